"""Whether the prompt and the rows fit together, checked before anything is scored."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm.conversation import (
    ASSISTANT,
    CALL_FIELDS,
    LAST_ANSWER,
    SYSTEM,
    TOOL,
    Conversation,
    open_conversations,
)
from cherry_vllm.engines.checkpoint import load_tokenizer
from cherry_vllm.errors import UserError
from cherry_vllm.prompts.control_tokens import control_tokens
from cherry_vllm.prompts.prompt import Prompt
from cherry_vllm.prompts.templates import EXAMPLE, PromptTemplate, RefusedError, build_template

log = logging.getLogger(__name__)

OPEN_TAG = re.compile(r"<(\w+)>\s*$")
MAX_TRIED = 100  # rows that are rendered before a run


def check_place(
    checkpoint: Path, prompt: Prompt, rows: pl.LazyFrame, *, trust_remote_code: bool
) -> None:
    """Checks that the template has a place for what precedes the answers of the usable rows.

    Warns if the template refuses some of the first rows; such rows are dropped one by one as
    "template_refused".

    Raises:
        UserError: a text template has no place for something, or the template refuses every row.
    """
    message = pl.element().struct
    before = pl.col("messages").list.head(LAST_ANSWER + 1).list
    roles = before.eval(message.field("role"))
    has_text = message.field("content").str.strip_chars() != ""
    calls = message.field("extra").str.contains_any([f'"{name}"' for name in CALL_FIELDS])
    features = {
        "a system message": before.eval((message.field("role") == SYSTEM) & has_text).list.any(),
        "earlier turns": roles.list.count_matches(ASSISTANT) > 1,
        "tools": roles.list.contains(TOOL)
        | pl.col("tools").is_not_null()
        | before.eval(calls.fill_null(value=False)).list.any(),
    }
    found = rows.select(pl.len(), **{name: expr.sum() for name, expr in features.items()}).collect()
    num_rows, *counts = found.row(0)
    tokenizer = load_tokenizer(checkpoint, trust_remote_code=trust_remote_code)
    if not prompt.split_special_tokens:
        _warn_of_control_tokens(tokenizer, rows, num_rows)
    if not prompt.chat:
        _refuse_without_place(prompt, dict(zip(features, counts, strict=True)), num_rows)
    _try_some(build_template(tokenizer, prompt), rows, num_rows)


def _try_some(template: PromptTemplate, rows: pl.LazyFrame, num_rows: int) -> None:
    """Renders the first rows, and tells what the template says of those that it refuses."""
    examples = open_conversations(rows.select("messages", "tools").head(MAX_TRIED).collect())
    faults = [fault for fault in (_refusal(template, one) for one in examples) if fault]
    if faults and len(faults) == num_rows:
        raise UserError(f"{faults[0]}; it refuses every row")
    if faults:
        log.warning(
            "%d of the first %d rows will be dropped as template_refused: %s",
            *(len(faults), len(examples), faults[0]),
        )


def _warn_of_control_tokens(tokenizer: Any, rows: pl.LazyFrame, num_rows: int) -> None:
    """Warns of rows whose text holds what the tokenizer takes for a token of its own."""
    message = pl.element().struct
    texts = pl.concat_str(
        *(message.field(name).fill_null("") for name in ("content", "input", "extra"))
    )
    names = control_tokens(tokenizer)
    held = pl.col("messages").list.eval(texts.str.contains_any(names)).list.any()
    held |= pl.col("tools").fill_null("").str.contains_any(names)
    count, example = (
        rows.filter(held)
        .select(
            pl.len(),
            pl.col("messages").first().list.eval(texts).list.join("\n")
            + pl.col("tools").first().fill_null(""),
        )
        .collect()
        .row(0)
    )
    if count:
        name = next(name for name in names if name in example)
        log.warning(
            "%d of %d rows hold control tokens in their text, such as %s, which are encoded as "
            "such; prompt.split_special_tokens=true encodes them as text",
            *(count, num_rows, name),
        )


def _refuse_without_place(prompt: Prompt, present: Mapping[str, int], num_rows: int) -> None:
    lacking = ["tools"]
    lacking += ["earlier turns"] if prompt.later_turn is None else []
    lacking += ["a system message"] if prompt.system is None else []
    for name, count in present.items():
        if count and name in lacking:
            others = "prompt=chat" if name == "tools" else "prompt=chat or prompt=vicuna"
            raise UserError(
                f"prompt: this template has no place for {name}, which {count} of {num_rows} rows "
                f"have; use {others}"
            )


def _refusal(template: PromptTemplate, example: Conversation) -> str | None:
    try:
        template.render(example, max(example.answers, default=len(example.messages)))
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
            "has already written; take it off the answers, or choose a prompt that does not write "
            "it"
        )
    return warnings
