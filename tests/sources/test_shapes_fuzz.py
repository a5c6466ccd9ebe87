"""Messages of any kind: each record is a row or a row with a reason, and texts stay as they are."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cherry_vllm.conversation import open_conversations
from cherry_vllm.schema import ROWS
from tests.sources.samples import AUTO, rows_of

SOUND = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
REASONS = {"malformed", "broken_turns", "no_scored_turn", "empty_answer"}
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=8)  # lone surrogates, too
TEXT = st.text(max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=6,
)
ROLES = st.sampled_from(["system", "user", "assistant", "tool", "gpt", "Human", "function_call"])
PARTS = st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": TEXT}) | TEXT | VALUES)
MESSAGE = st.fixed_dictionaries(
    {},
    optional={
        "role": ROLES | VALUES,
        "from": ROLES | VALUES,
        "content": TEXT | PARTS | VALUES,
        "value": TEXT | VALUES,
        "tool_calls": st.lists(st.dictionaries(TEXT, VALUES, max_size=2), max_size=2) | VALUES,
        "weight": VALUES,
        "name": VALUES,
    },
)
MESSAGES = st.lists(MESSAGE, max_size=5) | VALUES
NAMES = ("messages", "conversations", "instruction", "prompt", "input", "output", "completion")
RECORD = st.dictionaries(
    st.sampled_from([*NAMES, "system", "history", "tools", "context"]), MESSAGES, max_size=5
)
QUICK = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def rows_beside_a_sound_one(folder: Path, record: Any, name: str = "d.jsonl") -> pl.DataFrame:
    records = [record, SOUND]
    path = folder / name
    text = json.dumps(records) if name == "d.json" else "\n".join(map(json.dumps, records))
    path.write_text(text)
    rows = rows_of(path, columns=AUTO)
    assert rows["row"].to_list() == [0, 1]
    assert rows["drop_reason"][1] is None
    return rows


@pytest.mark.slow
@QUICK
@given(record=RECORD | st.builds(lambda value: {"messages": value}, MESSAGES))
def test_any_record_is_a_row_or_has_a_reason(folder: Path, record: dict[str, Any]) -> None:
    for name in ("d.jsonl", "d.json"):
        rows = rows_beside_a_sound_one(folder, record, name)
        row = rows.row(0, named=True)
        conversation = open_conversations(rows.select(*ROWS))[0]
        assert row["drop_reason"] in REASONS | {None}
        assert (row["drop_reason"] is None) == bool(conversation.answers)
        for message in conversation.messages:
            message.as_fields(message.content)  # what a chat template takes
        if row["drop_reason"] != "malformed":  # what is exported is what was read
            assert repr(json.loads(row["record"])) == repr(json.loads(json.dumps(record)))


TURNS = st.lists(st.tuples(TEXT, TEXT.filter(str.strip)), min_size=1, max_size=4)


@QUICK
@given(turns=TURNS, system=TEXT)
def test_texts_are_read_to_the_letter_in_every_shape(
    folder: Path, turns: list[tuple[str, str]], system: str
) -> None:
    said = [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]
    head = [{"role": "system", "content": system}] if system else []
    (question, answer), history = turns[-1], [list(turn) for turn in turns[:-1]]
    triple = {"instruction": question, "output": answer, "history": history, "system": system}
    shapes: list[dict[str, Any]] = [
        {"messages": head + said},
        {"messages": said, "system": system},
        {"messages": json.dumps(head + said)},
        {
            "conversations": [
                {"from": message["role"], "value": [message["content"]]} for message in head + said
            ]
        },
        {"prompt": head + said[:-1], "completion": said[-1:]},
        triple,
    ]
    for record in shapes:
        rows = rows_beside_a_sound_one(folder, record)
        assert rows["drop_reason"][0] is None
        (conversation, _) = open_conversations(rows.select(*ROWS))
        found = [(message.role, message.content) for message in conversation.messages]
        assert found == [(message["role"], message["content"]) for message in head + said]
        whole = "messages" in record or "conversations" in record
        assert len(conversation.answers) == (len(turns) if whole else 1)
        assert conversation.messages[-1].is_answer
