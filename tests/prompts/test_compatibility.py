"""What is said of a prompt that does not fit the rows."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cherry_vllm.conversation import (
    ASSISTANT,
    SYSTEM,
    USER,
    Message,
    frame_messages,
    single_turn,
)
from cherry_vllm.errors import UserError
from cherry_vllm.prompts.compatibility import answer_warnings, check_place
from cherry_vllm.prompts.prompt import Prompt
from tests.prompts.conftest import prompt_named, settle

Saved = Callable[[str], Path]
PLAIN = ["Red, green and blue.", "Yes."]
THOUGHTS = ["<think>\nLet me see.\n</think>\n\nRed.", "<think>\nWell.\n</think>\n\nYes."]


def warnings_of(prompt: Prompt, answers: list[str]) -> list[str]:
    messages = frame_messages([single_turn("Why?", "", answer).messages for answer in answers])
    return answer_warnings(prompt, pl.LazyFrame({"messages": messages}))


def test_answers_that_leave_the_thought_open_are_counted(saved: Saved) -> None:
    prompt = settle(saved("think"))
    (warning,) = warnings_of(prompt, [*PLAIN, "A thought.</think>Yes."])
    assert "2 of 3 answers do not close the <think>" in warning
    assert "prompt.template_kwargs" in warning


def test_answers_that_repeat_the_end_of_the_prompt_are_counted(saved: Saved) -> None:
    (warning,) = warnings_of(settle(saved("think")), THOUGHTS)
    assert "2 of 2 answers begin with '<think>', which the prompt has already written" in warning
    (warning,) = warnings_of(prompt_named("alpaca"), [*PLAIN, "### Response: Yes."])
    assert "1 of 3 answers begin with '### Response:'" in warning


def test_answers_that_fit_are_no_warning(saved: Saved) -> None:
    off = settle(saved("think"), template_kwargs={"enable_thinking": False})
    assert warnings_of(off, PLAIN) == []
    assert warnings_of(settle(saved("chatml")), [*PLAIN, *THOUGHTS]) == []
    assert warnings_of(prompt_named("alpaca"), PLAIN) == []
    assert warnings_of(prompt_named("alpaca"), []) == []


# --- what rows hold, and whether the prompt has a place for it ---------------------------------

SYSTEM_FIRST = (Message(SYSTEM, "Be brief."), Message(USER, "Hi."))
ANSWER = Message(ASSISTANT, "Hello.", is_answer=True)
PLAIN_TURN = (Message(USER, "Hi."), ANSWER)
LATER_TURN = (*PLAIN_TURN, Message(USER, "Bye."), ANSWER)


def check(
    folder: Path, prompt: Prompt, *talks: tuple[Message, ...], tools: str | None = None
) -> None:
    rows = pl.LazyFrame(
        {
            "messages": frame_messages(talks),
            "tools": pl.Series([tools] * len(talks), dtype=pl.String),
        }
    )
    check_place(folder, prompt, rows, trust_remote_code=False)


@pytest.mark.parametrize("name", ["alpaca", "wizardlm"])
@pytest.mark.parametrize(
    ("talk", "lack"),
    [(LATER_TURN, "earlier turns"), ((*SYSTEM_FIRST, ANSWER), "a system message")],
)
def test_a_prompt_without_a_place_is_refused_before_anything_is_scored(
    saved: Saved, name: str, talk: tuple[Message, ...], lack: str
) -> None:
    with pytest.raises(
        UserError,
        match=f"no place for {lack}, which 1 of 2 rows have; use prompt=chat or prompt=vicuna",
    ):
        check(saved("chatml"), prompt_named(name), PLAIN_TURN, talk)
    check(saved("chatml"), prompt_named(name), PLAIN_TURN)
    check(saved("chatml"), prompt_named("vicuna"), PLAIN_TURN, talk)


def test_no_text_prompt_has_a_place_for_tools(saved: Saved) -> None:
    with pytest.raises(
        UserError, match="no place for tools, which 1 of 1 rows have; use prompt=chat"
    ):
        check(saved("chatml"), prompt_named("vicuna"), PLAIN_TURN, tools="[{}]")
    check(saved("chatml"), prompt_named("chat"), PLAIN_TURN, tools="[{}]")


def test_rows_that_a_chat_template_refuses_are_counted(
    chat_tokenizer: Callable[[str], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + tokenizer.chat_template
    )
    tokenizer.save_pretrained(tmp_path)
    check(tmp_path, prompt_named("chat"), PLAIN_TURN, LATER_TURN, (*SYSTEM_FIRST, ANSWER))
    (line,) = caplog.messages
    assert re.search("^1 of the first 3 rows will be dropped as template_refused: .*no sys", line)
    with pytest.raises(UserError, match=r"no system role.*; it refuses every row"):
        check(tmp_path, prompt_named("chat"), (*SYSTEM_FIRST, ANSWER))


def test_control_tokens_in_the_data_are_counted(
    saved: Saved, caplog: pytest.LogCaptureFixture
) -> None:
    injected = (Message(USER, "Hi.", "<|im_end|>"), ANSWER)
    check(saved("chatml"), prompt_named("alpaca"), PLAIN_TURN, injected, injected)
    (line,) = caplog.messages
    assert line.startswith("2 of 3 rows hold control tokens in their text, such as <|im_end|>,")
    caplog.clear()
    check(saved("chatml"), replace(prompt_named("alpaca"), split_special_tokens=True), injected)
    assert caplog.messages == []


def test_a_template_that_refuses_every_row_ends_the_run(saved: Saved) -> None:
    twice = (Message(USER, "Hi."), Message(USER, "Are you there?"), ANSWER)
    with pytest.raises(UserError, match="only requests and answers in turn; it refuses every row"):
        check(saved("chatml"), prompt_named("vicuna"), twice, twice)
    check(saved("chatml"), prompt_named("vicuna"), twice, PLAIN_TURN)


def test_only_what_precedes_a_scored_answer_needs_a_place(saved: Saved) -> None:
    first_only = (*PLAIN_TURN, Message(USER, "Bye."), Message(ASSISTANT, "Bye!"))
    empty_system = (Message(SYSTEM, " "), *PLAIN_TURN)
    check(saved("chatml"), prompt_named("alpaca"), first_only, empty_system)


def test_calls_of_tools_need_a_place(saved: Saved) -> None:
    call = Message(ASSISTANT, "Let me look.", extra='{"tool_calls": [{"name": "f"}]}')
    talk = (Message(USER, "Hi."), call, Message(USER, "And?"), ANSWER)
    with pytest.raises(UserError, match="no place for tools, which 1 of 2 rows have"):
        check(saved("chatml"), prompt_named("vicuna"), PLAIN_TURN, talk)
