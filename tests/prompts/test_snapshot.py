"""What is fixed when a run begins, and what is said of a template's own header."""

import logging
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from cherry_vllm.conversation import single_turn
from cherry_vllm.errors import UserError
from cherry_vllm.prompts import snapshot
from cherry_vllm.prompts.snapshot import settle_prompt
from cherry_vllm.prompts.templates import build_template, render_example
from tests.prompts.conftest import prompt_named, settle

Saved = Callable[[str], Path]


class Clock(date):
    """A date whose today is set."""

    @classmethod
    def today(cls) -> "Clock":
        return cls(2026, 1, 31)


@pytest.mark.parametrize("name", ["alpaca", "wizardlm", "vicuna"])
def test_a_text_template_is_settled_without_a_tokenizer(name: str) -> None:
    prompt = prompt_named(name)
    assert settle_prompt(Path("none"), prompt, trust_remote_code=False) == prompt


def test_a_dated_template_takes_one_day_for_the_whole_run(
    saved: Saved, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(snapshot, "date", Clock)
    begun = settle(saved("dated"))
    assert begun.date == "2026-01-31"
    assert "Today is 31 Jan 2026" in begun.rendered[0]
    assert "prompt.date=2026-01-31 resumes this run" in caplog.text
    monkeypatch.setattr(Clock, "today", classmethod(lambda cls: cls(2026, 2, 1)))
    assert settle(saved("dated")).as_json() != begun.as_json()
    caplog.clear()
    assert settle(saved("dated"), date="2026-01-31") == begun
    assert not caplog.records


def test_workers_render_the_day_of_the_run(
    saved: Saved, chat_tokenizer: Callable[[str], Any]
) -> None:
    begun = settle(saved("dated"), date="2020-02-29")
    template = build_template(chat_tokenizer("dated"), begun)
    assert render_example(template) == begun.rendered
    assert "Today is 29 Feb 2020" in template.render(single_turn("Say hi.", "", ""), 1)


def test_a_template_without_a_date_has_none(saved: Saved) -> None:
    assert settle(saved("chatml")).date is None
    with pytest.raises(UserError, match=r"prompt\.date=2026-01-31: the chat template writes no"):
        settle(saved("chatml"), date="2026-01-31")


def test_the_rendered_template_is_part_of_the_fingerprint(saved: Saved) -> None:
    assert settle(saved("chatml")).as_json() != settle(saved("phi")).as_json()


@pytest.mark.parametrize(
    ("name", "changes", "behind"),
    [
        ("chatml", {}, None),
        ("phi", {}, None),
        ("think", {}, r"after '.*assistant\\n', but the prompt ends in '.*<think>\\n'"),
        ("think", {"answer_prefix": "</think>"}, None),
        ("think", {"template_kwargs": {"enable_thinking": False}}, None),
        ("channel", {}, r"assistant<\|channel\|>final<\|message\|>', but the prompt ends"),
        ("channel", {"answer_prefix": "<|channel|>final<|message|>"}, None),
    ],
)
def test_a_header_that_the_prompt_lacks_is_a_warning(
    saved: Saved,
    caplog: pytest.LogCaptureFixture,
    name: str,
    changes: dict[str, Any],
    behind: str | None,
) -> None:
    with caplog.at_level(logging.WARNING):
        settle(saved(name), **changes)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (behind is not None)
    if behind:
        assert re.search(behind, messages[0])
        assert "prompt.answer_prefix" in messages[0]


def test_a_date_that_only_some_conversations_show_is_fixed_too(
    chat_tokenizer: Callable[[str], Any], tmp_path: Path
) -> None:
    tokenizer = chat_tokenizer("chatml")
    tokenizer.chat_template = (
        "{% if tools %}{{ strftime_now('%d %b %Y') }}{% endif %}" + tokenizer.chat_template
    )
    tokenizer.save_pretrained(tmp_path)
    assert settle(tmp_path, date="2026-01-31").date == "2026-01-31"
    assert settle(tmp_path).date == date.today().isoformat()
