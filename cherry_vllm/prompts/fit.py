"""Fixes the prompt before a run, and checks that it suits the chat template and the answers."""

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm.conversation import SYSTEM, TOOL, USER, Conversation, open_conversations
from cherry_vllm.engines.checkpoint import load_tokenizer
from cherry_vllm.errors import UserError
from cherry_vllm.prompts.prompt import Prompt
from cherry_vllm.prompts.templates import (
    EXAMPLE,
    QUESTION,
    ChatTemplate,
    PromptTemplate,
    RefusedError,
    build_template,
    parse_date,
    render_example,
)

log = logging.getLogger(__name__)

OPEN_TAG = re.compile(r"<(\w+)>\s*$")
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
    rendered = _render(tokenizer, settled)
    if rendered == _render(tokenizer, replace(prompt, date=(day - ANOTHER_DAY).isoformat())):
        if prompt.date:
            raise UserError(
                f"prompt.date={prompt.date}: the chat template writes no date; leave it out"
            )
        settled = replace(prompt, date=None)
    elif not prompt.date:
        log.warning(
            "the chat template writes today's date into every prompt: on another day, "
            "prompt.date=%s resumes this run; without it, a new run begins",
            settled.date,
        )
    _warn_of_header(tokenizer, settled)
    return replace(settled, rendered=rendered)


def check_place(
    checkpoint: Path, prompt: Prompt, rows: pl.LazyFrame, *, trust_remote_code: bool
) -> None:
    """Checks that the template has a place for all that the usable rows hold.

    Warns of rows that a chat template will refuse; they are dropped as "template_refused".

    Raises:
        UserError: a text template has no place for something, or a chat template for any row.
    """
    messages = pl.col("messages").list
    roles = messages.eval(pl.element().struct.field("role"))
    features = {
        "a system message": roles.list.contains(SYSTEM),
        "earlier turns": roles.list.count_matches(USER) > 1,
        "tools": roles.list.contains(TOOL) | pl.col("tools").is_not_null(),
    }
    found = rows.select(pl.len(), **{name: expr.sum() for name, expr in features.items()}).collect()
    num_rows, *counts = found.row(0)
    present = {name: count for name, count in zip(features, counts, strict=True) if count}
    if not prompt.chat:
        _refuse_without_place(prompt, present, num_rows)
        return
    tokenizer = load_tokenizer(checkpoint, trust_remote_code=trust_remote_code)
    template = build_template(tokenizer, prompt)
    for name, count in present.items():
        example = open_conversations(rows.filter(features[name]).head(1).collect())[0]
        fault = _refusal(template, example)
        if fault and count == num_rows:
            raise UserError(f"{fault}; each of the {num_rows} rows has {name}")
        if fault:
            log.warning("%d of %d rows have %s, and %s", count, num_rows, name, fault)


def _refuse_without_place(prompt: Prompt, present: Mapping[str, int], num_rows: int) -> None:
    lacking = ["tools"]
    lacking += ["earlier turns"] if prompt.later_turn is None else []
    lacking += ["a system message"] if prompt.system is None else []
    for name in present:
        if name in lacking:
            others = "prompt=chat" if name == "tools" else "prompt=chat or prompt=vicuna"
            raise UserError(
                f"prompt: this one has no place for {name}, which {present[name]} of {num_rows} "
                f"rows have; use {others}"
            )


def _refusal(template: PromptTemplate, example: Conversation) -> str | None:
    try:
        template.render(example, example.answers[-1])
    except RefusedError as error:
        return str(error)
    return None


def answer_warnings(prompt: Prompt, rows: pl.LazyFrame) -> list[str]:
    """Warnings if answers repeat the end of a settled prompt, or do not close its last tag."""
    text = (
        prompt.rendered[0] if prompt.rendered else build_template(None, prompt).render(EXAMPLE, 1)
    )
    tag, last_line = OPEN_TAG.search(text), text.rstrip().rpartition("\n")[2].strip()
    answers = (
        rows.select(pl.col("messages").explode())
        .unnest("messages")
        .filter("is_answer")
        .select(answer="content")
    )
    answer = pl.col("answer")
    closed = answer.str.contains(f"</{tag[1]}>", literal=True) if tag else pl.lit(value=True)
    num_answers, num_open, num_repeated = (
        answers.select(
            pl.len(),
            (~closed).sum(),
            answer.str.strip_chars_start().str.starts_with(last_line).sum().alias("repeated"),
        )
        .collect()
        .row(0)
    )
    warnings = []
    if num_open and tag:
        warnings.append(
            f"{num_open} of {num_answers} answers do not close the {tag[0].strip()} that the "
            "prompt ends in, so they are read as thoughts; switch thinking off, as in "
            "prompt.template_kwargs='{enable_thinking: false}', or close it in prompt.answer_prefix"
        )
    if num_repeated and last_line:
        warnings.append(
            f"{num_repeated} of {num_answers} answers begin with {last_line!r}, which the prompt "
            "has already written; take it off the answers, or choose a prompt that does not write it"
        )
    return warnings


def _render(tokenizer: Any, prompt: Prompt) -> tuple[str, ...]:
    return render_example(build_template(tokenizer, prompt))


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
