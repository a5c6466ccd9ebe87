"""Rows to training examples: the scorer's token ids, with the token that ends each answer."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import polars as pl

from cherry_vllm.conversation import open_conversations
from cherry_vllm.engines import Span
from cherry_vllm.prompts.spans import AnswerSpans, SpanBuilder


class TrainingSet(NamedTuple):
    spans: Mapping[int, Sequence[Span]]  # by the row's position, as the scorer's conditioned pass
    examples: Sequence[Span]  # their ranges carry loss; each answer's end is among them
    dropped: Counter[str]  # the number of rows for each drop reason

    @property
    def num_rows(self) -> int:
        return len(self.spans) + self.dropped.total()

    def __str__(self) -> str:
        reasons = "".join(f", {count} {reason}" for reason, count in self.dropped.most_common())
        return f"{len(self.spans)} of {self.num_rows} rows{reasons}"


def build_training_set(
    rows: pl.DataFrame, builder: SpanBuilder, *, eos_token_id: int, max_length: int
) -> TrainingSet:
    """The training set that a frame of :data:`schema.ROWS` makes.

    A row is usually one example. If its template renders earlier answers in another way once they
    are past, each of its answers is an example.
    """
    open_rows = rows.with_row_index("position").filter(pl.col("drop_reason").is_null())
    dropped = Counter(rows["drop_reason"].drop_nulls().to_list())
    spans: dict[int, Sequence[Span]] = {}
    built = builder.build(open_conversations(open_rows))
    for position, pair in zip(open_rows["position"], built, strict=True):
        if isinstance(pair, AnswerSpans):
            spans[position] = pair.conditioned
        else:
            dropped[str(pair)] += 1
    examples = [
        end_answers(span, eos_token_id, max_length) for of_row in spans.values() for span in of_row
    ]
    return TrainingSet(spans, examples, dropped)


def end_answers(span: Span, eos_token_id: int, max_length: int) -> Span:
    """Adds to each range the token that ends its answer: the last one's is EOS.

    An answer that is cut at ``max_length`` has no end.
    """
    token_ids = [*span.token_ids, eos_token_id][:max_length]
    ranges = tuple((start, min(stop + 1, len(token_ids))) for start, stop in span.ranges)
    return Span(token_ids, ranges)
