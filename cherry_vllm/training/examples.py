"""Rows to training examples: the scorer's prompts and token ids, with EOS after the answer."""

from collections import Counter
from typing import NamedTuple

import polars as pl

from cherry_vllm.prompts.spans import AnswerSpans, SpanBuilder


class Example(NamedTuple):
    """Token ids; those from ``start`` (at least 1) on carry loss."""

    token_ids: list[int]
    start: int


def build_examples(
    rows: pl.DataFrame, builder: SpanBuilder, *, eos_token_id: int, max_length: int
) -> tuple[list[Example | None], Counter[str]]:
    """One example for each line of a frame of :data:`schema.ROWS`, or None for a dropped one.

    The text is the scorer's conditioned text and EOS, cut at ``max_length`` tokens, so a truncated
    answer has no EOS. The counter holds the number of rows for each drop reason.
    """
    texts = (rows[name].fill_null("").to_list() for name in ("instruction", "input", "answer"))
    examples: list[Example | None] = []
    dropped: Counter[str] = Counter()
    for reason, built in zip(rows["drop_reason"], builder.build(*texts), strict=True):
        if reason is None and isinstance(built, AnswerSpans):
            token_ids, start = built.conditioned
            examples.append(Example([*token_ids, eos_token_id][:max_length], start))
        else:
            dropped[reason or str(built)] += 1
            examples.append(None)
    return examples, dropped
