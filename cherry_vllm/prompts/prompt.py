"""The prompt's settings, as ``conf/prompt`` describes them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """How a row becomes a prompt.

    ``with_input`` and ``without_input`` hold a request's fields. They are the prompt itself, or
    with ``chat`` the user message in the tokenizer's chat template, which also takes
    ``template_kwargs``. ``later_turn`` follows an answer and opens the next one. A row's own system
    message takes the place of ``system``. ``answer_prefix`` stands between the prompt and an answer
    in both passes.
    """

    without_input: str
    with_input: str
    marker: str | None
    chat: bool
    system: str | None
    later_turn: str | None = None  # None: a text template takes a single turn
    answer_prefix: str = ""
    split_special_tokens: bool = False  # control tokens in the data's text are encoded as text
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    date: str | None = None  # what a chat template uses as today's date, as in 2026-01-31
    rendered: tuple[str, ...] = ()  # a sample, as the chat template rendered it at the run's start

    def as_json(self) -> dict[str, Any]:
        """The settings for a fingerprint; newer settings are included only if they are in use."""
        content: dict[str, Any] = {
            "without_input": self.without_input,
            "with_input": self.with_input,
            "marker": self.marker,
            "chat": self.chat,
            "system": self.system,
        }
        later = {
            "later_turn": self.later_turn,
            "answer_prefix": self.answer_prefix,
            "split_special_tokens": self.split_special_tokens,
            "template_kwargs": dict(self.template_kwargs),
            "date": self.date,
            "rendered": list(self.rendered),
        }
        return content | {key: value for key, value in later.items() if value}
