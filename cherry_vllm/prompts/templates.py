"""All prompt templates, in one place for scoring and training.

A row becomes a prompt, which the answer follows directly, and a response marker. The marker takes
the prompt's place in the direct pass, so that the first answer token is scored in both passes.
"""

from collections.abc import Mapping
from datetime import date, datetime, time
from inspect import signature
from string import Formatter
from typing import Any, NamedTuple, Protocol

from jinja2 import TemplateError

from cherry_vllm.errors import UserError
from cherry_vllm.prompts.prompt import Prompt

# A question and an answer that no template writes by itself.
QUESTION, ANSWER = "cherry-vllm question", "cherry-vllm answer"
OWN_KWARGS = ("tools", "documents")  # arguments of apply_chat_template that the template sees


class Rendered(NamedTuple):
    """The text before the answer, in the conditioned pass and in the direct one."""

    text: str
    marker: str


class PromptTemplate(Protocol):
    adds_special_tokens: bool
    """Whether the tokenizer's BOS goes before the text; False where the text holds it already."""

    def render(self, instruction: str, input: str) -> Rendered:
        """The prompt of a row; an input that is blank counts as none."""
        ...


class TextTemplate:
    """Fixed text around the row's fields, as in Alpaca, WizardLM and Vicuna."""

    adds_special_tokens = True

    def __init__(
        self, *, without_input: str, with_input: str, marker: str, answer_prefix: str = ""
    ) -> None:
        """``without_input`` holds {instruction}; ``with_input`` also holds {input}.

        Raises:
            UserError: a template holds other fields, or lacks one.
        """
        check_fields("prompt.without_input", without_input, {"instruction"})
        check_fields("prompt.with_input", with_input, {"instruction", "input"})
        self._without_input = without_input
        self._with_input = with_input
        self._marker = marker + answer_prefix
        self._answer_prefix = answer_prefix

    def render(self, instruction: str, input: str) -> Rendered:
        # Unlike in the paper's code, a blank input is no input: it would leave an empty section.
        template = self._with_input if input.strip() else self._without_input
        text = template.format(instruction=instruction, input=input)
        return Rendered(text + self._answer_prefix, self._marker)


class ChatTemplate:
    """The tokenizer's chat template around the user message; its generation prompt is the marker.

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
        self._message = _text_template(prompt)
        self._system = (
            [] if prompt.system is None else [{"role": "system", "content": prompt.system}]
        )
        self._kwargs = _template_kwargs(tokenizer, prompt)
        self._answer_prefix = prompt.answer_prefix
        opened = self._apply(QUESTION)
        marker = prompt.marker or self._generation_prompt(opened)
        if not marker:
            raise UserError(
                "prompt=chat: the chat template adds no generation prompt, so the direct pass has "
                "no marker; set prompt.marker to the text that opens an answer"
            )
        bos = tokenizer.bos_token
        if bos and opened.startswith(bos) and not marker.startswith(bos):
            marker = bos + marker
        self._marker = marker + prompt.answer_prefix

    def render(self, instruction: str, input: str) -> Rendered:
        message = self._message.render(instruction, input).text
        return Rendered(self._apply(message) + self._answer_prefix, self._marker)

    def before_answer(self) -> str | None:
        """What the template itself writes before an answer to :data:`QUESTION`; None if unknown."""
        try:
            text = self._apply(QUESTION, ANSWER)
        except UserError:  # it takes no answer, or needs more than that
            return None
        before, found, _ = text.rpartition(ANSWER)
        return before if found else None

    def _generation_prompt(self, opened: str) -> str:
        """What the template adds to a conversation to request an answer; "" if nothing."""
        closed = self._apply(QUESTION, add_generation_prompt=False)
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
        self, question: str, answer: str | None = None, *, add_generation_prompt: bool = True
    ) -> str:
        messages = [*self._system, {"role": "user", "content": question}]
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        try:
            text = self._tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt and answer is None,
                **self._kwargs,
            )
        except TemplateError as error:  # such as "System role not supported"
            raise UserError(
                f"prompt=chat: the chat template refuses: {error}; change the prompt's settings"
            ) from None
        return str(text)


def build_template(tokenizer: Any, prompt: Prompt) -> PromptTemplate:
    """The template that ``prompt`` describes.

    Raises:
        UserError: the description does not fit together, or does not fit the tokenizer.
    """
    if not prompt.chat:
        if prompt.marker is None or prompt.system is not None:
            raise UserError(
                "prompt: a text template needs a marker and takes no system message; set "
                "prompt.marker and prompt.system=null"
            )
        for key in ("template_kwargs", "date"):
            if getattr(prompt, key):
                raise UserError(f"prompt.{key}: only chat templates take it; use prompt=chat")
        return _text_template(prompt, answer_prefix=prompt.answer_prefix)
    template = ChatTemplate(tokenizer, prompt)
    if prompt.rendered and tuple(template.render(QUESTION, "")) != prompt.rendered:
        raise UserError(
            "prompt=chat: the chat template no longer renders what it did when the run began; "
            "use a template whose text does not change by itself"
        )
    return template


def check_fields(key: str, template: str, fields: set[str]) -> None:
    """Raises a UserError if a template does not have exactly these fields."""
    try:
        found = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise UserError(f"{key}: {error}; write a literal brace twice") from None
    if found != fields:
        wanted = " and ".join(f"{{{name}}}" for name in sorted(fields))
        raise UserError(
            f"{key}: must hold {wanted} and no other field; write a literal brace twice"
        )


def _text_template(prompt: Prompt, *, answer_prefix: str = "") -> TextTemplate:
    return TextTemplate(
        without_input=prompt.without_input,
        with_input=prompt.with_input,
        marker=prompt.marker or "",
        answer_prefix=answer_prefix,
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
