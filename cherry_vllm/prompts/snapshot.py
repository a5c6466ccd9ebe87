"""The prompt as it is when a run begins: its date, and what the chat template renders."""

import logging
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from cherry_vllm.engines.checkpoint import load_tokenizer
from cherry_vllm.errors import UserError
from cherry_vllm.prompts.prompt import Prompt
from cherry_vllm.prompts.templates import (
    EXAMPLE,
    QUESTION,
    WITH_SYSTEM,
    WITH_TOOLS,
    WITH_TURNS,
    ChatTemplate,
    RefusedError,
    build_template,
    parse_date,
    render_example,
)

log = logging.getLogger(__name__)

ANOTHER_DAY = timedelta(days=400)  # another year, day of the month and day of the week


def settle_prompt(checkpoint: Path, prompt: Prompt, *, trust_remote_code: bool) -> Prompt:
    """The prompt with its date and rendered text fixed, for a chat template.

    A template that writes a date gets ``prompt.date``, or today. Workers that get the settled
    prompt render the same text, or refuse to work.

    Raises:
        UserError: the prompt does not suit the checkpoint.
    """
    if not prompt.chat:
        build_template(None, prompt)  # to check it
        return prompt
    tokenizer = load_tokenizer(checkpoint, trust_remote_code=trust_remote_code)
    day = parse_date(prompt.date) if prompt.date else date.today()
    settled = replace(prompt, date=day.isoformat())
    rendered = render_example(build_template(tokenizer, settled))
    another_day = replace(prompt, date=(day - ANOTHER_DAY).isoformat())
    if _render_all(tokenizer, settled) == _render_all(tokenizer, another_day):
        if prompt.date:
            raise UserError(
                f"prompt.date={prompt.date}: the chat template writes no date; leave it out"
            )
        settled = replace(prompt, date=None)
    elif not prompt.date:
        log.warning(
            "the chat template writes today's date: on another day, prompt.date=%s resumes this "
            "run; without it, a new run begins",
            settled.date,
        )
    _warn_of_header(tokenizer, settled)
    return replace(settled, rendered=rendered)


def _render_all(tokenizer: Any, prompt: Prompt) -> list[str | None]:
    """What the template writes for conversations of several kinds; None where it refuses."""
    template = build_template(tokenizer, prompt)
    texts: list[str | None] = [template.marker]
    for example in (EXAMPLE, WITH_SYSTEM, WITH_TURNS, WITH_TOOLS):
        try:
            texts.append(template.render(example, len(example.messages) - 1))
        except RefusedError:
            texts.append(None)
    return texts


def _warn_of_header(tokenizer: Any, prompt: Prompt) -> None:
    """Warns if the template itself puts an answer after other text than the prompt ends in."""
    if prompt.answer_prefix or prompt.template_kwargs:  # the user has taken care of it
        return
    template = ChatTemplate(tokenizer, prompt)
    text, written = template.render(EXAMPLE, 1), template.before_answer()
    if written is None or written == text:
        return
    log.warning(
        "prompt=chat: the chat template writes an answer after %r, but the prompt ends in %r; "
        "prompt.answer_prefix can add what is missing, prompt.template_kwargs can change the rest",
        written.rpartition(QUESTION)[2],
        text.rpartition(QUESTION)[2],
    )
