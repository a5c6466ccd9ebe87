"""A shard of rows to a shard of log-probs, or of their sums."""

from collections.abc import Callable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cherry_vllm.prompts.spans import AnswerSpans, SpanBuilder
from cherry_vllm.schema import LOGPROBS, REASON
from cherry_vllm.scoring.ifd import sum_logprobs


def score_shard(
    rows: pl.DataFrame,
    on_scored: Callable[[int], None],
    *,
    builder: SpanBuilder,
    model: Callable[..., list[NDArray[np.float32]]],
) -> pl.DataFrame:
    """Scores one shard: a frame of :data:`schema.ROWS` to one of :data:`schema.LOGPROBS`.

    Rows that are already dropped keep their reason. ``on_scored`` is called with the number of
    spans just scored; each scored row has two. ``model`` is :meth:`engines.Engine.logprobs`.
    """
    open_rows = rows.filter(pl.col("drop_reason").is_null())
    built = builder.build(
        *(open_rows[name].to_list() for name in ("instruction", "input", "answer"))
    )
    scored = dict(zip(open_rows["row"], built, strict=True))
    pairs = {row: item for row, item in scored.items() if isinstance(item, AnswerSpans)}
    reasons = {row: item.value for row, item in scored.items() if not isinstance(item, AnswerSpans)}

    spans = [span for pair in pairs.values() for span in (pair.conditioned, pair.direct)]
    logprobs = model(spans, on_scored)
    for span, floats in zip(spans, logprobs, strict=True):
        if len(floats) != span.num_answer_tokens:
            raise RuntimeError(
                f"{len(floats)} log-probs for {span.num_answer_tokens} answer tokens"
            )

    found = pl.DataFrame(
        {
            "row": list(pairs),
            "conditioned_logprobs": logprobs[::2],
            "direct_logprobs": logprobs[1::2],
            "truncated": [pair.truncated for pair in pairs.values()],
        },
        schema={name: LOGPROBS[name] for name in LOGPROBS if name != "drop_reason"},
    )
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
    model: Callable[..., list[NDArray[np.float32]]],
) -> pl.DataFrame:
    """Like :func:`score_shard`, to a frame of :data:`schema.SUMS`."""
    return sum_logprobs(score_shard(rows, on_scored, builder=builder, model=model).lazy()).collect()
