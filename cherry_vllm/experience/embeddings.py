"""Row shards and the base model to embeddings of the prompts, with their perplexities.

run_dir/embeddings/FINGERPRINT/   shards of schema.EMBEDDINGS
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cherry_vllm.conversation import open_conversations
from cherry_vllm.engines import Embedded, build_embedder
from cherry_vllm.engines.checkpoint import Checkpoint
from cherry_vllm.prompts.spans import SpanBuilder
from cherry_vllm.schema import REASON, DropReason
from cherry_vllm.store.run_folder import Folder
from cherry_vllm.store.shards import Shards
from cherry_vllm.workers.run import WHOLE, ModelRun, ModelUse, Share


def embed(
    run_dir: Path, rows: Shards, checkpoint: Checkpoint, use: ModelUse, share: Share = WHOLE
) -> Shards:
    """Row shards to shards of :data:`schema.EMBEDDINGS`.

    Raises:
        UserError: the model cannot be used, or cannot take ``max_length`` tokens.
    """
    # Earlier shards have no perplexities.
    return ModelRun(
        run_dir / Folder.EMBEDDINGS, rows, checkpoint, use, count_tokens, perplexities=True
    ).run("embedding", build_embedder, "embed", embed_shard, done="embedded", share=share)


def embed_shard(
    rows: pl.DataFrame,
    on_embedded: Callable[[int], None],
    *,
    builder: SpanBuilder,
    model: Callable[..., Embedded],
) -> pl.DataFrame:
    """Embeds one shard: a frame of :data:`schema.ROWS` to one of :data:`schema.EMBEDDINGS`.

    An embedding is the mean of the last hidden states over all tokens of the prompt (paper,
    section 2.1); it is null for a dropped row. The perplexity of a prompt is the exponential of the
    mean negative log-likelihood of all its tokens but the first; a single token has none, and one
    that is not a finite number is null, too. ``model`` is :meth:`engines.Embedder.embed`.
    """
    encoded = _encode_prompts(rows, builder)
    prompts = encoded.filter(pl.col("token_ids").is_not_null())
    embeddings, logprobs = model(prompts["token_ids"].to_list(), on_embedded)
    found = prompts.select("row").with_columns(
        pl.Series("embedding", embeddings, pl.Array(pl.Float32, embeddings.shape[1])),
        pl.Series("perplexity", [_perplexity(values) for values in logprobs], pl.Float64),
        finite=np.asarray(np.isfinite(embeddings).all(axis=1)),
    )
    is_lost = ~pl.col("finite")  # null for a row that was dropped before
    return encoded.join(found, on="row", how="left", maintain_order="left").select(
        "row",
        pl.when("finite").then("embedding").alias("embedding"),
        pl.col("token_ids").list.len().cast(pl.UInt32).alias("num_prompt_tokens"),
        "perplexity",
        pl.when(is_lost)
        .then(pl.lit(DropReason.NON_FINITE.value, REASON))
        .otherwise("drop_reason")
        .alias("drop_reason"),
    )


def count_tokens(rows: pl.DataFrame, builder: SpanBuilder) -> int:
    """How many tokens the prompts of a frame of :data:`schema.ROWS` have."""
    return int(_encode_prompts(rows, builder)["token_ids"].list.len().sum())


def _perplexity(logprobs: NDArray[np.float32]) -> float | None:
    if not len(logprobs):
        return None
    with np.errstate(over="ignore"):
        found = float(np.exp(-np.mean(logprobs, dtype=np.float64)))
    return found if np.isfinite(found) else None


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
