"""A shard of rows to a shard of log-probs, or of their sums."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cherry_vllm.conversation import open_conversations
from cherry_vllm.prompts.spans import AnswerSpans, SpanBuilder
from cherry_vllm.schema import LOGPROBS, PASSES, REASON
from cherry_vllm.scoring.ifd import sum_logprobs

Logprobs = NDArray[np.float32]


def score_shard(
    rows: pl.DataFrame,
    on_scored: Callable[[int], None],
    *,
    builder: SpanBuilder,
    model: Callable[..., list[Logprobs]],
) -> pl.DataFrame:
    """Scores one shard: a frame of :data:`schema.ROWS` to one of :data:`schema.LOGPROBS`.

    Rows that are already dropped keep their reason. ``on_scored`` is called with the number of
    passes just finished; each scored row has two. ``model`` is :meth:`engines.Engine.logprobs`.
    """
    open_rows = rows.filter(pl.col("drop_reason").is_null())
    built = builder.build(open_conversations(open_rows))
    scored = dict(zip(open_rows["row"], built, strict=True))
    pairs = {row: item for row, item in scored.items() if isinstance(item, AnswerSpans)}
    reasons = {row: item.value for row, item in scored.items() if not isinstance(item, AnswerSpans)}
    found = _frame(pairs, _score(list(pairs.values()), model, on_scored))
    dropped = pl.DataFrame(
        {"row": list(reasons), "reason": list(reasons.values())},
        schema={"row": pl.Int64, "reason": REASON},
    )
    return (
        rows.select("row", "drop_reason")
        .join(found, on="row", how="left", maintain_order="left")
        .join(dropped, on="row", how="left", maintain_order="left")
        .with_columns(pl.coalesce("drop_reason", "reason"))
        .select(list(LOGPROBS))
    )


def sum_shard(
    rows: pl.DataFrame,
    on_scored: Callable[[int], None],
    *,
    builder: SpanBuilder,
    model: Callable[..., list[Logprobs]],
) -> pl.DataFrame:
    """Like :func:`score_shard`, to a frame of :data:`schema.SUMS`."""
    return sum_logprobs(score_shard(rows, on_scored, builder=builder, model=model).lazy()).collect()


def count_tokens(rows: pl.DataFrame, builder: SpanBuilder) -> int:
    """How many tokens the model gets for a frame of :data:`schema.ROWS`, in both passes."""
    open_rows = rows.filter(pl.col("drop_reason").is_null())
    built = builder.build(open_conversations(open_rows))
    pairs = [item for item in built if isinstance(item, AnswerSpans)]
    return sum(len(span.token_ids) for it in pairs for span in (*it.conditioned, *it.direct))


def _score(
    pairs: Sequence[AnswerSpans],
    model: Callable[..., list[Logprobs]],
    on_scored: Callable[[int], None],
) -> Iterator[Logprobs]:
    """The log-probs of each range: of a row's conditioned spans, then of its direct ones."""
    spans = [span for pair in pairs for span in (*pair.conditioned, *pair.direct)]
    passes = count_passes(on_scored, num_spans=len(spans), num_passes=2 * len(pairs))
    for span, floats in zip(spans, model(spans, passes), strict=True):
        if len(floats) != span.num_answer_tokens:
            raise RuntimeError(
                f"{len(floats)} log-probs for {span.num_answer_tokens} answer tokens"
            )
        ends = np.cumsum([stop - start for start, stop in span.ranges])
        yield from np.split(floats, ends[:-1])


def count_passes(
    on_passes: Callable[[int], None], *, num_spans: int, num_passes: int
) -> Callable[[int], None]:
    """A counter of spans that reports passes: ``num_passes`` once all spans are done."""
    done = 0

    def on_spans(count: int) -> None:
        nonlocal done
        before, done = done, done + count
        passes = done * num_passes // num_spans - before * num_passes // num_spans
        on_passes(passes)

    return on_spans


def _frame(pairs: dict[int, AnswerSpans], logprobs: Iterator[Logprobs]) -> pl.DataFrame:
    """Columns ``row``, ``truncated`` and :data:`PASSES`, from the log-probs of each range."""
    lines: list[tuple[Any, ...]] = []
    for row, pair in pairs.items():
        num_turns = len(pair.direct)
        of_row = [next(logprobs) for _ in range(2 * num_turns)]
        lines += [(row, *turn) for turn in zip(of_row[:num_turns], of_row[num_turns:], strict=True)]
    by_turn = {name: pl.List(pl.Float32) for name in PASSES}
    columns = zip(*lines, strict=True) if lines else [[]] * 3
    turns = pl.DataFrame(
        dict(zip(("row", *PASSES), map(list, columns), strict=True)),
        schema={"row": pl.Int64, **by_turn},
    )
    truncated = pl.Series([pair.truncated for pair in pairs.values()], dtype=pl.Boolean)
    grouped = turns.group_by("row", maintain_order=True).agg(PASSES)
    return grouped.with_columns(truncated=truncated)
