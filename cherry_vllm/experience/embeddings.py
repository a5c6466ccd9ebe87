"""A shard of rows to embeddings of their prompts, or to their perplexities."""

from collections.abc import Callable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cherry_vllm.conversation import open_conversations
from cherry_vllm.engines import Span
from cherry_vllm.prompts.spans import SpanBuilder
from cherry_vllm.schema import PERPLEXITIES, REASON, DropReason


def embed_shard(
    rows: pl.DataFrame,
    on_embedded: Callable[[int], None],
    *,
    builder: SpanBuilder,
    model: Callable[..., NDArray[np.float32]],
) -> pl.DataFrame:
    """Embeds one shard: a frame of :data:`schema.ROWS` to one of :data:`schema.EMBEDDINGS`.

    An embedding is the mean of the last hidden states over all tokens of the prompt (paper,
    section 2.1); it is null for a dropped row. ``model`` is :meth:`engines.Embedder.embed`.
    """
    encoded = _encode_prompts(rows, builder)
    prompts = encoded.filter(pl.col("token_ids").is_not_null())
    embeddings = model(prompts["token_ids"].to_list(), on_embedded)
    finite = np.asarray(np.isfinite(embeddings).all(axis=1))
    vectors = pl.Series("embedding", embeddings, pl.Array(pl.Float32, embeddings.shape[1]))
    found = prompts.select("row").with_columns(vectors, finite=finite)
    joined = encoded.join(found, on="row", how="left", maintain_order="left")
    return _drop_non_finite(joined, "embedding").select("row", "embedding", "drop_reason")


def count_tokens(rows: pl.DataFrame, builder: SpanBuilder) -> int:
    """How many tokens the prompts of a frame of :data:`schema.ROWS` have."""
    return int(_encode_prompts(rows, builder)["token_ids"].list.len().sum())


def measure_shard(
    rows: pl.DataFrame,
    on_scored: Callable[[int], None],
    *,
    builder: SpanBuilder,
    model: Callable[..., list[NDArray[np.float32]]],
) -> pl.DataFrame:
    """Measures one shard: a frame of :data:`schema.ROWS` to one of :data:`schema.PERPLEXITIES`.

    The perplexity of a prompt is the exponential of the mean negative log-likelihood of all its
    tokens but the first; a single token has none. ``model`` is :meth:`engines.Engine.logprobs`.
    """
    encoded = _drop_single_tokens(_encode_prompts(rows, builder))
    prompts = encoded.filter(pl.col("token_ids").is_not_null())
    spans = [Span.from_start(token_ids, 1) for token_ids in prompts["token_ids"].to_list()]
    logprobs = model(spans, on_scored)
    with np.errstate(over="ignore"):
        perplexities = [float(np.exp(-np.mean(values, dtype=np.float64))) for values in logprobs]
    found = pl.DataFrame(
        {"row": prompts["row"], "perplexity": perplexities, "finite": np.isfinite(perplexities)},
        schema_overrides={"perplexity": pl.Float64, "finite": pl.Boolean},
    )
    joined = encoded.join(found, on="row", how="left", maintain_order="left")
    return (
        _drop_non_finite(joined, "perplexity")
        .select(
            "row",
            pl.col("token_ids").list.len().alias("num_prompt_tokens"),
            "perplexity",
            "drop_reason",
        )
        .cast(PERPLEXITIES)  # type: ignore[arg-type]
    )


def _encode_prompts(rows: pl.DataFrame, builder: SpanBuilder) -> pl.DataFrame:
    """Columns ``row``, ``token_ids`` and ``drop_reason``, one of the last two null."""
    usable = rows.filter(pl.col("drop_reason").is_null())
    encoded = builder.encode_prompts(open_conversations(usable))
    found = pl.DataFrame(
        {
            "row": usable["row"],
            "token_ids": [x if isinstance(x, list) else None for x in encoded],
            "reason": [None if isinstance(x, list) else x.value for x in encoded],
        },
        schema={"row": pl.Int64, "token_ids": pl.List(pl.Int64), "reason": REASON},
    )
    return (
        rows.select("row", "drop_reason")
        .join(found, on="row", how="left", maintain_order="left")
        .select("row", "token_ids", pl.coalesce("drop_reason", "reason").alias("drop_reason"))
    )


def _drop_single_tokens(encoded: pl.DataFrame) -> pl.DataFrame:
    is_single = pl.col("token_ids").list.len() == 1
    return encoded.with_columns(
        pl.when(~is_single).then("token_ids").alias("token_ids"),
        drop_reason=pl.when(is_single)
        .then(pl.lit(DropReason.PROMPT_TOO_SHORT.value, REASON))
        .otherwise("drop_reason"),
    )


def _drop_non_finite(frame: pl.DataFrame, column: str) -> pl.DataFrame:
    return frame.with_columns(
        pl.when("finite").then(column).alias(column),
        drop_reason=pl.when(~pl.col("finite"))
        .then(pl.lit(DropReason.NON_FINITE.value, REASON))
        .otherwise("drop_reason"),
    )
