"""Shapes of data sets to conversations, with their fields named or recognised."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cherry_vllm.config import compose
from cherry_vllm.conversation import Message, open_messages
from cherry_vllm.sources import Columns
from tests.sources.samples import AUTO, complaint_about, file_of, rows_of

USER, ANSWER = "Name a fruit.", "A cherry."
PAIR = [Message("user", USER), Message("assistant", ANSWER, is_answer=True)]
OPENAI = [{"role": "user", "content": USER}, {"role": "assistant", "content": ANSWER}]
SHAREGPT = [{"from": "human", "value": USER}, {"from": "gpt", "value": ANSWER}]
PARTS = [
    {"role": "user", "content": [{"type": "text", "text": "Name "}, "a fruit."]},
    {"role": "assistant", "content": {"type": "text", "text": ANSWER}},
]
GEMINI = [
    {"role": "user", "parts": [{"text": "Name "}, {"text": "a fruit."}]},
    {"role": "model", "parts": [{"text": ANSWER}]},
]
# The same pair in every shape that is read.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "openai": ("messages", {"messages": OPENAI}),
    "parts": ("messages", {"messages": PARTS}),
    "gemini": ("messages", {"messages": GEMINI}),
    "as-text": ("messages", {"messages": json.dumps(OPENAI)}),
    "sharegpt": ("sharegpt", {"id": "c0", "conversations": SHAREGPT}),
    "alpaca": ("alpaca", {"instruction": USER, "input": "", "output": ANSWER}),
    "history": (
        "alpaca",
        {"instruction": USER, "input": "", "output": ANSWER, "system": "", "history": []},
    ),
    "texts": ("prompt_completion", {"prompt": USER, "completion": ANSWER}),
    "messages": ("prompt_completion", {"prompt": OPENAI[:1], "completion": OPENAI[1:]}),
    "mixed": ("prompt_completion", {"prompt": USER, "completion": OPENAI[1:]}),
    # As preferences are written: the output is the whole conversation, the request included.
    "repeated": ("prompt_completion", {"prompt": USER, "completion": OPENAI}),
    "repeated-messages": ("prompt_completion", {"prompt": OPENAI[:1], "completion": OPENAI}),
    "question": ("question_answer", {"question": USER, "answer": ANSWER}),
    "one-text": ("question_answer", {"question": [USER], "answer": [ANSWER]}),
    "dolly": ("auto", {"instruction": USER, "context": "", "response": ANSWER}),
    "flan": ("auto", {"inputs": USER, "targets": ANSWER}),
    "input-output": ("auto", {"input": USER, "output": ANSWER}),
}


def columns_of(option: str) -> Columns:
    columns = compose(f"data={option}").data.columns
    return Columns(**{name: getattr(columns, name) for name in Columns.__dataclass_fields__})


def messages_of(path: Path, columns: Columns = AUTO) -> list[tuple[Message, ...]]:
    rows = rows_of(path, columns=columns)
    assert rows["drop_reason"].null_count() == rows.height, rows["drop_reason"].to_list()
    return open_messages(rows["messages"])


def one(tmp_path: Path, fields: Any, columns: Columns = AUTO) -> dict[str, Any]:
    """How a record is read, beside one that is sound."""
    sound = {"messages": OPENAI}
    path = tmp_path / "d.jsonl"
    path.write_text(f"{json.dumps(fields)}\n{json.dumps(sound)}\n")
    row = rows_of(path, columns=columns).row(0, named=True)
    messages = open_messages(pl.Series([row["messages"]], dtype=rows_dtype()))[0]
    return row | {"messages": messages}


def rows_dtype() -> Any:
    from cherry_vllm.schema import ROWS

    return ROWS["messages"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("is_named", [False, True], ids=["auto", "named"])
def test_every_shape_is_the_same_conversation(
    tmp_path: Path, shape: str, *, is_named: bool
) -> None:
    option, record = SHAPES[shape]
    columns = columns_of(option) if is_named else AUTO
    assert messages_of(file_of(tmp_path, "d.jsonl", [record]), columns) == [tuple(PAIR)]


@pytest.mark.parametrize(
    "name", ["d.json", "d.jsonl", "d.jsonl.zst", "d.csv", "d.parquet", "d.arrow"]
)
@pytest.mark.parametrize("shape", ["openai", "sharegpt", "messages", "history"])
def test_shapes_are_read_from_every_format(tmp_path: Path, name: str, shape: str) -> None:
    record = SHAPES[shape][1]
    if name == "d.csv":  # a cell holds nested values as JSON
        record = {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in record.items()
        }
    if name == "d.arrow":
        pl.DataFrame([record]).write_ipc(tmp_path / name)
    path = tmp_path / name if name == "d.arrow" else file_of(tmp_path, name, [record])
    assert messages_of(path, columns_of(SHAPES[shape][0])) == [tuple(PAIR)]


def test_turns_before_the_last_are_scored_too_and_a_system_message_is_context(
    tmp_path: Path,
) -> None:
    said = [("system", "Be brief."), ("human", "a?"), ("gpt", "A."), ("human", "b?"), ("gpt", "B.")]
    turns = [{"from": who, "value": text} for who, text in said]
    (messages,) = messages_of(file_of(tmp_path, "d.json", [{"conversations": turns}]))
    assert [message.role for message in messages] == [
        *("system", "user", "assistant", "user", "assistant")
    ]
    assert [message.is_answer for message in messages] == [False, False, True, False, True]


@pytest.mark.parametrize(
    "history",
    [
        [["How is it in summer?", "Mild."]],
        '[["How is it in summer?", "Mild."]]',
        [
            {"role": "user", "content": "How is it in summer?"},
            {"role": "assistant", "content": "Mild."},
        ],
    ],
)
def test_system_and_history_are_context(tmp_path: Path, history: Any) -> None:
    record = {"instruction": "And in winter?", "input": "", "output": "Cold."}
    record |= {"system": "Answer about Oslo.", "history": history}
    (messages,) = messages_of(file_of(tmp_path, "d.jsonl", [record]), columns_of("alpaca"))
    assert messages == (
        Message("system", "Answer about Oslo."),
        Message("user", "How is it in summer?"),
        Message("assistant", "Mild."),
        Message("user", "And in winter?"),
        Message("assistant", "Cold.", is_answer=True),
    )


def test_tools_and_calls_are_context(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "weather", "arguments": '{"days": 0.50}'}}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"step": 0.50}}}]
    turns = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "12 degrees", "tool_call_id": "x"},
        {"role": "assistant", "content": "12 degrees.", "tool_calls": None},
    ]
    for given in (tools, json.dumps(tools)):
        row = one(tmp_path, {"messages": turns, "tools": given})
        assert row["drop_reason"] is None
        assert json.loads(row["tools"]) == tools
        _, calls, result, answer = row["messages"]
        assert calls == Message("assistant", "", extra=json.dumps({"tool_calls": [call]}))
        assert result == Message("tool", "12 degrees", extra='{"tool_call_id": "x"}')
        assert answer == Message("assistant", "12 degrees.", is_answer=True)


@pytest.mark.parametrize("calls", [1, 2])
def test_a_call_that_sharegpt_writes_as_text_is_a_call(tmp_path: Path, calls: int) -> None:
    call = {"name": "weather", "arguments": {"city": "Bern"}}
    value = json.dumps(call if calls == 1 else [call, call])
    turns = [
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": value},
        {"from": "observation", "value": "12"},
        {"from": "gpt", "value": "12 degrees."},
    ]
    _, said, result, answer = one(tmp_path, {"conversations": turns})["messages"]
    assert (said.role, said.content, said.is_answer) == ("assistant", "", False)
    assert json.loads(said.extra) == {
        "tool_calls": [{"type": "function", "function": call}] * calls
    }
    assert (result.role, answer.is_answer) == ("tool", True)


@pytest.mark.parametrize(
    "mask", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}]
)
def test_a_masked_message_is_context(tmp_path: Path, mask: dict[str, Any]) -> None:
    turns = [*OPENAI[:1], OPENAI[1] | mask, *OPENAI[:1], OPENAI[1] | {"weight": 1}]
    messages = one(tmp_path, {"messages": turns})["messages"]
    assert [message.is_answer for message in messages] == [False, False, False, True]
    assert {message.extra for message in messages} == {None}


ASSISTANT, CALL = OPENAI[1], {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([ASSISTANT, OPENAI[0]], "broken_turns"),
        ([{"role": "system", "content": "x"}, ASSISTANT], "broken_turns"),
        ([*OPENAI, ASSISTANT], "broken_turns"),
        ([], "no_scored_turn"),
        ([OPENAI[0]], "no_scored_turn"),
        ([OPENAI[0], CALL], "no_scored_turn"),
        ([OPENAI[0], ASSISTANT | {"weight": 0}], "no_scored_turn"),
        ([OPENAI[0], ASSISTANT | {"content": " "}], "empty_answer"),
    ],
)
def test_a_conversation_without_an_answer_to_score_is_dropped(
    tmp_path: Path, turns: Any, reason: str
) -> None:
    row = one(tmp_path, {"messages": turns})
    assert row["drop_reason"] == reason
    assert not any(message.is_answer for message in row["messages"])


IMAGE = {"type": "image_url", "image_url": {"url": "x.png"}}


@pytest.mark.parametrize(
    ("turns", "fault"),
    [
        ([{"role": "narrator", "content": "x"}], "message 0: unknown role 'narrator'"),
        ([{"content": "x"}], "message 0: no role"),
        (
            [{"role": "user", "content": [IMAGE]}],
            "message 0: a part of its content is 'image_url', and only text is read",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], "a part of its content has no text"),
        (
            [{"role": "user", "message": "x"}, {"role": "assistant", "message": "y"}],
            "messages without content or value or text or parts (found: 'message')",
        ),
        ([{"role": "user", "content": [7]}], "a part of its content is a number, not text"),
        ([{"role": "user", "content": "\ud800"}], "'content' contains a lone surrogate"),
        ([{"role": "user", "content": "x", "name": "\ud800"}], "contains a lone surrogate"),
        ([{"role": "assistant", "tool_calls": 5}], "field 'tool_calls' is a number, not a list"),
        (["x", "y"], "field 'messages' is a list, not a list of messages"),
        ("Hello.", "field 'messages' is text, not a list of messages"),
        (None, "field 'messages' is null"),
    ],
)
def test_what_is_no_conversation_is_malformed_with_its_fault(
    tmp_path: Path, turns: Any, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert one(tmp_path, {"messages": turns})["drop_reason"] == "malformed"
    assert fault in caplog.text


@pytest.mark.parametrize("name", ["task.question", "task.0.question"])
def test_names_may_be_nested(tmp_path: Path, name: str) -> None:
    task: Any = {"question": USER}
    record = {"task": task if name == "task.question" else [task], "answers": ["no", ANSWER]}
    columns = Columns(name, None, "answers.1")
    assert messages_of(file_of(tmp_path, "d.jsonl", [record]), columns) == [tuple(PAIR)]
    message = complaint_about(file_of(tmp_path, "d.jsonl", [record]), columns=Columns("task.q"))
    assert "no field 'task.q' (found: task, answers)" in message


def test_a_repeated_request_is_context_once_with_the_system_message_before_it(
    tmp_path: Path,
) -> None:
    system = {"role": "system", "content": "Be brief."}
    whole = [system, *OPENAI, {"role": "user", "content": "And another?"}, OPENAI[1]]
    record: dict[str, Any] = {"prompt": whole[1:4], "chosen": whole}
    (messages,) = messages_of(file_of(tmp_path, "d.jsonl", [record]), Columns(output="chosen"))
    assert [(said.role, said.content) for said in messages] == [
        (fields["role"], fields["content"]) for fields in whole
    ]
    assert [said.is_answer for said in messages] == [False] * 4 + [True]
    record = {"prompt": "Another request.", "chosen": OPENAI}
    (messages,) = messages_of(file_of(tmp_path, "d.jsonl", [record]), Columns(output="chosen"))
    assert [said.content for said in messages] == ["Another request.", USER, ANSWER]


def test_json_text_in_a_field_is_read_as_strictly_as_a_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = json.dumps(OPENAI)
    assert one(tmp_path, {"messages": text.replace(f'"{ANSWER}"', "NaN")})["drop_reason"] == (
        "empty_answer"
    )
    twice = text.replace(f'"{ANSWER}"', f'"{ANSWER}", "content": "No."')
    assert one(tmp_path, {"messages": twice})["drop_reason"] == "malformed"
    assert "field 'messages': key 'content' occurs twice, with two values" in caplog.text
    answer = '[{"role": "assistant", "content": "A cherry.", "content": "No."}]'
    both = {"prompt": json.dumps(OPENAI[:1]), "completion": answer}
    assert one(tmp_path, both)["drop_reason"] == "malformed"


def test_messages_win_over_a_prompt_beside_them(tmp_path: Path) -> None:
    record: dict[str, Any] = {"prompt": "Name", "prompt_id": "x", "messages": OPENAI}
    assert messages_of(file_of(tmp_path, "d.jsonl", [record])) == [tuple(PAIR)]
    record = {"prompt": USER, "completion": ANSWER, "messages": None}
    assert messages_of(file_of(tmp_path, "d.jsonl", [record])) == [tuple(PAIR)]


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (
            {"messages": [{"role": "system", "content": "a"}, *OPENAI], "system": "b"},
            "1 of 1 rows have a field 'system' that is not read",
        ),
        (
            {"prompt": OPENAI[:1], "input": "more", "completion": ANSWER},
            "1 of 1 rows have a field 'input' that is not read",
        ),
        ({"messages": OPENAI, "context": "c"}, "1 of 1 rows have a field 'context'"),
        ({"messages": GEMINI, "systemInstruction": {"parts": []}}, "a field 'systemInstruction'"),
        (
            {"prompt": USER, "completion": ANSWER, "Input": "c"},
            "so they lack this context; data.columns.input=Input reads it",
        ),
        (
            {"messages": [OPENAI[0], OPENAI[1] | {"reasoning_content": "Hm."}]},
            "1 answers have a field 'reasoning_content', which is not scored",
        ),
    ],
)
def test_context_without_a_place_is_told(
    tmp_path: Path, record: Any, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    messages_of(file_of(tmp_path, "d.jsonl", [record]))
    assert line in caplog.text


def test_the_fields_that_were_recognised_are_told_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="cherry_vllm")
    records = [{"prompt": USER, "completion": ANSWER}] * 2 + [{"conversations": SHAREGPT}]
    messages_of(file_of(tmp_path, "d.jsonl", records))
    assert (
        "read 2 rows by prompt as instruction, completion as output; "
        "1 rows by conversations as messages" in caplog.text
    )


def test_an_empty_list_of_messages_does_not_hide_an_instruction(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"instruction": "Name a fruit.", "output": "A cherry.", "conversations": []},
        {"instruction": "Name a fruit.", "output": "A cherry.", "conversations": None},
    ]
    rows = rows_of(file_of(tmp_path, "d.jsonl", records), columns=Columns())
    assert rows["drop_reason"].to_list() == [None, None]
    assert rows["answer"].to_list() == ["A cherry."] * 2


def test_a_blank_answer_with_fields_of_its_own_is_empty(tmp_path: Path) -> None:
    blank = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "", "id": 7}]
    call = [*blank[:1], {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}]
    sound = [*blank[:1], {"role": "assistant", "content": "Hello."}]
    records = [{"messages": said} for said in (blank, call, sound)]
    rows = rows_of(file_of(tmp_path, "d.jsonl", records), columns=Columns())
    assert rows["drop_reason"].to_list() == ["empty_answer", "no_scored_turn", None]


# --- what a reader found ---------------------------------------------------------------------

SAID = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def first_row(folder: Path, record: dict[str, Any]) -> Any:
    rows = rows_of(file_of(folder, "d.jsonl", [record]), columns=Columns())
    return rows.row(0, named=True)


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "q", "output": None, "response": "a"},
        {"messages": None, "conversations": SAID},
        {"prompt": None, "question": "q", "completion": None, "answer": "a"},
    ],
)
def test_a_null_field_does_not_hide_another_of_its_kind(
    tmp_path: Path, record: dict[str, Any]
) -> None:
    row = first_row(tmp_path, record)
    assert (row["instruction"], row["answer"], row["drop_reason"]) == ("q", "a", None)


def test_a_call_of_openais_former_format_is_a_call(tmp_path: Path) -> None:
    call = {"name": "weather", "arguments": "{}"}
    talk = [SAID[0], {"role": "assistant", "content": None, "function_call": call}]
    talk += [{"role": "function", "name": "weather", "content": "12"}, SAID[1]]
    (messages,) = open_messages(
        rows_of(file_of(tmp_path, "d.jsonl", [{"messages": talk}]), columns=Columns())["messages"]
    )
    assert json.loads(messages[1].extra or "") == {
        "tool_calls": [{"type": "function", "function": call}]
    }


def test_an_object_as_content_is_no_text(tmp_path: Path) -> None:
    talk = [SAID[0], {"role": "tool", "content": {"text": "ok", "sky": "blue"}}, SAID[1]]
    assert "content" in complaint_about(
        file_of(tmp_path, "d.jsonl", [{"messages": talk}]), columns=Columns()
    )


@pytest.mark.parametrize("zero", ["0", "0.00", "0e0", "false"])
def test_every_zero_masks(tmp_path: Path, zero: str) -> None:
    masked = '{"role": "assistant", "content": "b", "weight": ' + zero + "}"
    talk = json.dumps(SAID)[:-1] + ', {"role": "user", "content": "q"}, ' + masked + "]"
    path = tmp_path / "d.jsonl"
    path.write_text('{"messages": ' + talk + "}\n")
    (messages,) = open_messages(rows_of(path, columns=Columns())["messages"])
    assert [message.is_answer for message in messages] == [False, True, False, False]


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "Answer in French.", "messages": SAID},
        {"article": "A text.", "question": "q", "answer": "a"},
        {"question": "q", "choices": ["a", "b"], "answer": "a"},
        {"instruction": "q", "Input": "context", "output": "a"},
        {"instruction": "q", "question": "the real one", "response": "a"},
    ],
)
def test_context_that_is_not_read_is_counted(
    tmp_path: Path, record: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    first_row(tmp_path, record)
    assert "is not read" in caplog.text


def test_a_request_that_messages_repeat_is_no_context(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first_row(tmp_path, {"prompt": "q", "messages": SAID})
    assert "not read" not in caplog.text


def test_conversations_of_an_unknown_role_are_told_as_such(tmp_path: Path) -> None:
    talk: list[dict[str, str]] = [SAID[0], {"role": "narrator", "content": "x"}]
    line = complaint_about(
        file_of(tmp_path, "d.jsonl", [{"messages": talk}] * 3), columns=Columns()
    )
    assert "unknown role 'narrator'" in line
