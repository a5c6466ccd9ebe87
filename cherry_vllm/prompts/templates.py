"""All prompt templates: one place, for scoring and for training.

A row becomes a prompt, which the answer follows directly, and a response marker, which takes the
prompt's place in the direct pass so that the first answer token is scored in both.
"""

from string import Formatter
from typing import Any, NamedTuple, Protocol

from jinja2 import TemplateError

from cherry_vllm.errors import UserError


class Prompt(NamedTuple):
    """The text before the answer, in the conditioned pass and in the direct one."""

    text: str
    marker: str


class PromptTemplate(Protocol):
    adds_special_tokens: bool
    """Whether the tokenizer's BOS goes before the text; False where the text holds it already."""

    def render(self, instruction: str, input: str) -> Prompt: ...


class TextTemplate:
    """Fixed text around the row's fields, as in Alpaca, WizardLM and Vicuna."""

    adds_special_tokens = True

    def __init__(self, *, without_input: str, with_input: str, marker: str) -> None:
        """``without_input`` holds {instruction}; ``with_input`` holds {input} as well.

        Raises:
            UserError: a template holds other fields, or lacks one.
        """
        check_fields("prompt.without_input", without_input, {"instruction"})
        check_fields("prompt.with_input", with_input, {"instruction", "input"})
        self._without_input = without_input
        self._with_input = with_input
        self._marker = marker

    def render(self, instruction: str, input: str) -> Prompt:
        template = self._with_input if input else self._without_input
        return Prompt(template.format(instruction=instruction, input=input), self._marker)


class ChatTemplate:
    """The tokenizer's chat template around the user message; its generation prompt is the marker.

    The direct pass begins with BOS if, and only if, the rendered prompt does.
    """

    adds_special_tokens = False

    def __init__(
        self, tokenizer: Any, message: TextTemplate, *, system: str | None, marker: str | None
    ) -> None:
        """``marker`` stands in for the generation prompt where the template makes none.

        Raises:
            UserError: the tokenizer has no chat template, or it makes no generation prompt.
        """
        self._tokenizer = tokenizer
        self._message = message
        self._system = [] if system is None else [{"role": "system", "content": system}]
        if not tokenizer.chat_template:
            raise UserError(
                "prompt=chat: the tokenizer has no chat template; use prompt=alpaca, or save one "
                "with the tokenizer"
            )
        closed = self._apply("x", add_generation_prompt=False)
        opened = self._apply("x", add_generation_prompt=True)
        opens_answer = opened.startswith(closed) and len(opened) > len(closed)
        if marker is None and not opens_answer:
            raise UserError(
                "prompt=chat: the chat template adds no generation prompt, so the direct pass has "
                "no marker; set prompt.marker to the text that opens an answer"
            )
        self._marker = marker or opened[len(closed) :]
        bos = tokenizer.bos_token
        if bos and opened.startswith(bos) and not self._marker.startswith(bos):
            self._marker = bos + self._marker

    def render(self, instruction: str, input: str) -> Prompt:
        message = self._message.render(instruction, input).text
        return Prompt(self._apply(message, add_generation_prompt=True), self._marker)

    def _apply(self, message: str, *, add_generation_prompt: bool) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                [*self._system, {"role": "user", "content": message}],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except TemplateError as error:  # such as "System role not supported"
            raise UserError(f"prompt=chat: the chat template refuses: {error}") from None
        return str(text)


def build_template(
    tokenizer: Any,
    *,
    without_input: str,
    with_input: str,
    marker: str | None,
    chat: bool,
    system: str | None,
) -> PromptTemplate:
    """The template that a ``conf/prompt`` file describes.

    Raises:
        UserError: the description does not fit together, or does not fit the tokenizer.
    """
    if not chat and (marker is None or system is not None):
        raise UserError("prompt: a text template needs a marker, and takes no system message")
    text = TextTemplate(without_input=without_input, with_input=with_input, marker=marker or "")
    return ChatTemplate(tokenizer, text, system=system, marker=marker) if chat else text


def check_fields(key: str, template: str, fields: set[str]) -> None:
    try:
        found = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise UserError(f"{key}: {error}; write a literal brace twice") from None
    if found != fields:
        wanted = " and ".join(f"{{{name}}}" for name in sorted(fields))
        raise UserError(
            f"{key}: must hold {wanted} and no other field; write a literal brace twice"
        )
