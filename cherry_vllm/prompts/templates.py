"""All prompt templates, in one place for scoring and training.

A conversation becomes the text before one of its answers, which that answer follows directly. In
the direct pass a response marker takes that text's place, so that the first answer token is scored
in both passes.
"""

import json
from collections.abc import Mapping, Sequence, Set
from datetime import date, datetime, time
from inspect import signature
from string import Formatter
from typing import Any, Protocol

from jinja2 import TemplateError

from cherry_vllm.conversation import (
    ASSISTANT,
    SYSTEM,
    USER,
    Conversation,
    Message,
    single_turn,
)
from cherry_vllm.errors import UserError
from cherry_vllm.prompts.prompt import Prompt

# A question and an answer that no template writes by itself.
QUESTION, ANSWER = "cherry-vllm question", "cherry-vllm answer"
EXAMPLE = single_turn(QUESTION, "", ANSWER)
WITH_SYSTEM = Conversation((Message(SYSTEM, "Be brief."), *EXAMPLE.messages))
WITH_TURNS = Conversation((*EXAMPLE.messages, *EXAMPLE.messages))
WITH_TOOLS = EXAMPLE._replace(
    tools=json.dumps([{"type": "function", "function": {"name": "f", "description": "d"}}])
)
OWN_KWARGS = ("tools", "documents")  # arguments of apply_chat_template that the template sees
# What a template's own code may raise on a conversation that it does not expect.
TEMPLATE_ERRORS = (
    *(TemplateError, TypeError, ValueError, LookupError, AttributeError),
    *(ArithmeticError, RecursionError),
)


class RefusedError(UserError):
    """The template has no place for such a conversation."""


class PromptTemplate(Protocol):
    adds_special_tokens: bool
    """Whether the tokenizer's BOS goes before the text; False where the text holds it already."""

    marker: str
    """What precedes an answer in the direct pass."""

    def render(self, conversation: Conversation, place: int) -> str:
        """The text before the answer at ``place`` among the messages, which may be at their end.

        An input that is blank counts as none.

        Raises:
            RefusedError: the template has no place for such a conversation.
        """
        ...


class TextTemplate:
    """Fixed text around the row's fields, as in Alpaca, WizardLM and Vicuna."""

    adds_special_tokens = True

    def __init__(self, prompt: Prompt, eos: str = "") -> None:
        """``eos`` is the tokenizer's end of text, for a ``prompt.later_turn`` that holds {eos}.

        Raises:
            UserError: a template holds other fields, or lacks one.
        """
        system = {"system"} if prompt.system is not None and not prompt.chat else set()
        check_fields("prompt.without_input", prompt.without_input, {"instruction", *system})
        check_fields("prompt.with_input", prompt.with_input, {"instruction", "input", *system})
        if prompt.later_turn is not None:
            check_fields("prompt.later_turn", prompt.later_turn, {"instruction"}, {"eos"})
        self._prompt, self._eos = prompt, eos
        self.marker = (prompt.marker or "") + prompt.answer_prefix

    def render(self, conversation: Conversation, place: int) -> str:
        """See :class:`PromptTemplate`."""
        messages = list(conversation.messages[:place])
        system = messages.pop(0).content if messages and messages[0].role == SYSTEM else None
        system = system if system and system.strip() else None
        self._check(conversation, messages, system)
        text = self._open(messages[0], self._prompt.system if system is None else system)
        for answer, request in zip(messages[1::2], messages[2::2], strict=True):
            text += self._prompt.answer_prefix + answer.content + self._open_later(request)
        return text + self._prompt.answer_prefix

    def render_request(self, message: Message) -> str:
        """A single request, with its input if it has one."""
        return self._open(message, self._prompt.system)

    def _check(
        self, conversation: Conversation, messages: Sequence[Message], system: str | None
    ) -> None:
        roles = [message.role for message in messages]
        alternate = [(USER, ASSISTANT)[place % 2] for place in range(len(roles))]
        has_tools = conversation.tools or any(message.calls_tools for message in messages)
        if has_tools or roles != alternate or len(roles) % 2 == 0:
            raise RefusedError("the prompt takes only requests and answers in turn")
        if len(messages) > 1 and self._prompt.later_turn is None:
            raise RefusedError("the prompt has no place for earlier turns")
        if system is not None and self._prompt.system is None:
            raise RefusedError("the prompt has no place for a system message")

    def _open(self, message: Message, system: str | None) -> str:
        # Unlike in the paper's code, a blank input is no input: it would leave an empty section.
        has_input = bool(message.input.strip())
        template = self._prompt.with_input if has_input else self._prompt.without_input
        return template.format(instruction=message.content, input=message.input, system=system)

    def _open_later(self, message: Message) -> str:
        parts = [message.content, message.input] if message.input.strip() else [message.content]
        return str(self._prompt.later_turn).format(instruction="\n\n".join(parts), eos=self._eos)


class ChatTemplate:
    """The tokenizer's chat template around the messages; its generation prompt is the marker.

    The direct pass begins with BOS if, and only if, the rendered prompt does.
    """

    adds_special_tokens = False

    def __init__(self, tokenizer: Any, prompt: Prompt) -> None:
        """``prompt.marker``, if set, replaces the template's generation prompt as the marker.

        Raises:
            UserError: the tokenizer has no chat template, or there is no marker.
        """
        if not tokenizer.chat_template:
            raise UserError(
                "prompt=chat: the tokenizer has no chat template; use prompt=alpaca, or save one "
                "with the tokenizer"
            )
        self._tokenizer = tokenizer
        self._request = TextTemplate(prompt)
        self._system = [] if prompt.system is None else [Message(SYSTEM, prompt.system)]
        self._kwargs = _template_kwargs(tokenizer, prompt)
        self._answer_prefix = prompt.answer_prefix
        opened = self._apply(EXAMPLE, 1)
        marker = prompt.marker or self._generation_prompt(opened)
        if not marker:
            raise UserError(
                "prompt=chat: the chat template adds no generation prompt, so the direct pass has "
                "no marker; set prompt.marker to the text that opens an answer"
            )
        bos = tokenizer.bos_token
        if bos and opened.startswith(bos) and not marker.startswith(bos):
            marker = bos + marker
        self.marker = marker + prompt.answer_prefix

    def render(self, conversation: Conversation, place: int) -> str:
        """See :class:`PromptTemplate`."""
        return self._apply(conversation, place) + self._answer_prefix

    def before_answer(self) -> str | None:
        """What the template itself writes before an answer to :data:`QUESTION`; None if unknown."""
        try:
            text = self._apply(EXAMPLE, 2, add_generation_prompt=False)
        except RefusedError:  # it takes no answer, or needs more than that
            return None
        before, found, _ = text.rpartition(ANSWER)
        return before if found else None

    def _generation_prompt(self, opened: str) -> str:
        """What the template adds to a conversation to request an answer; "" if nothing."""
        closed = self._apply(EXAMPLE, 1, add_generation_prompt=False)
        if opened.startswith(closed):
            return opened[len(closed) :]
        # If the other text ends in EOS, both begin alike. They are compared by tokens, since "</s>"
        # and "<|assistant|>" have a character in common.
        ids, others = (
            self._tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (opened, closed)
        )
        pairs = enumerate(zip(ids, others, strict=False))
        start = next((place for place, (one, other) in pairs if one != other), len(others))
        added = self._tokenizer.decode(
            ids[start:],
            skip_special_tokens=False,
            clean_up_tokenization_spaces=False,
        )
        return added if opened.endswith(added) else ""

    def _apply(
        self, conversation: Conversation, place: int, *, add_generation_prompt: bool = True
    ) -> str:
        """The messages before ``place``, rendered."""
        messages = conversation.messages[:place]
        if messages and messages[0].role != SYSTEM:
            messages = (*self._system, *messages)
        tools = {"tools": json.loads(conversation.tools)} if conversation.tools else {}
        try:
            text = self._tokenizer.apply_chat_template(
                [self._as_fields(message) for message in messages],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **{**self._kwargs, **tools},
            )
        except TEMPLATE_ERRORS as error:  # such as "System role not supported"
            raise RefusedError(
                f"prompt=chat: the chat template refuses: {error}; change the prompt's settings"
            ) from None
        return str(text)

    def _as_fields(self, message: Message) -> dict[str, Any]:
        is_request = message.role == USER
        text = self._request.render_request(message) if is_request else message.content
        return message.as_fields(text)


def build_template(tokenizer: Any, prompt: Prompt) -> PromptTemplate:
    """The template that ``prompt`` describes.

    Raises:
        UserError: the description does not fit together, or does not fit the tokenizer.
    """
    if not prompt.chat:
        if prompt.marker is None:
            raise UserError("prompt: a text template needs a marker; set prompt.marker")
        for key in ("template_kwargs", "date"):
            if getattr(prompt, key):
                raise UserError(f"prompt.{key}: only chat templates take it; use prompt=chat")
        return TextTemplate(prompt, (tokenizer and tokenizer.eos_token) or "")
    template = ChatTemplate(tokenizer, prompt)
    if prompt.rendered and render_example(template) != prompt.rendered:
        raise UserError(
            "prompt=chat: the chat template no longer renders what it did when the run began; "
            "use a template whose text does not change by itself"
        )
    return template


def render_example(template: PromptTemplate) -> tuple[str, str]:
    """What a template writes before an answer to :data:`QUESTION`, and its marker."""
    return template.render(EXAMPLE, 1), template.marker


def check_fields(
    key: str,
    template: str,
    fields: set[str],
    optional: Set[str] = frozenset(),
) -> None:
    """Raises a UserError if a template lacks one of ``fields``, or holds any other field."""
    try:
        found = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise UserError(f"{key}: {error}; write a literal brace twice") from None
    if found - optional != fields:
        wanted = " and ".join(f"{{{name}}}" for name in sorted(fields))
        raise UserError(
            f"{key}: must hold {wanted} and no other field; write a literal brace twice"
        )


def _template_kwargs(tokenizer: Any, prompt: Prompt) -> dict[str, Any]:
    """The arguments that the chat template gets, including its clock."""
    taken = {*signature(tokenizer.apply_chat_template).parameters, "messages", "strftime_now"}
    for key in prompt.template_kwargs:
        if key in taken.difference(OWN_KWARGS):
            raise UserError(
                f"prompt.template_kwargs.{key}: set by cherry-vllm itself; leave it out"
            )
    kwargs: Mapping[str, Any] = prompt.template_kwargs
    if prompt.date is None:
        return dict(kwargs)
    # This argument overrides the function of the same name that transformers gives to templates.
    return {**kwargs, "strftime_now": datetime.combine(parse_date(prompt.date), time()).strftime}


def parse_date(text: str) -> date:
    """The day that ``prompt.date`` names.

    Raises:
        UserError: it names none.
    """
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UserError(f"prompt.date={text}: give a day, as in 2026-01-31") from None
