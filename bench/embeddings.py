"""Whether vLLM's embeddings give the same clusters as transformers' embeddings.

    python -m bench.embeddings --data FILE [--rows 500] [--clusters 20] [--model FOLDER]

The prompts of the first rows are embedded by both engines, in fp32 and in bf16, each in its own
process, and clustered with one seed. The adjusted Rand index is 1 if two clusterings are the same
and 0 for chance; a second seed on the same embeddings shows how much K-Means itself varies.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from bench.demo import MODEL
from cherry_vllm.config import compose, engine_settings, prompt_of
from cherry_vllm.conversation import open_conversations
from cherry_vllm.engines import build_embedder
from cherry_vllm.engines.checkpoint import read_checkpoint
from cherry_vllm.experience.clusters import cluster_embeddings
from cherry_vllm.prompts.spans import open_span_builder
from cherry_vllm.sources import Columns, read_rows

MAX_LENGTH = 512
REFERENCE = "hf float32"
OTHERS = ("vllm float32", "hf bfloat16", "vllm bfloat16")


def embed(name: str, data: Path, model: Path, num_rows: int) -> NDArray[np.float32]:
    """The embeddings of an engine and a type, in this process."""
    engine, dtype = name.split()
    columns = Columns("instruction", "input", "output")
    rows = next(read_rows([data], columns=columns, refusals=[], batch_rows=num_rows))
    checkpoint = read_checkpoint(model)
    builder = open_span_builder(
        checkpoint, prompt=prompt_of(compose()), max_length=MAX_LENGTH, trust_remote_code=False
    )
    usable = open_conversations(rows.filter(pl.col("drop_reason").is_null()))
    prompts = [ids for ids in builder.encode_prompts(usable) if isinstance(ids, list)]
    option = "vllm_fused_eager" if engine == "vllm" else engine
    embedder = build_embedder(
        engine_settings(compose(f"engine={option}", f"engine.dtype={dtype}").engine),
        checkpoint,
        max_length=MAX_LENGTH,
        trust_remote_code=False,
    )
    return embedder.embed(prompts, lambda _count: None).embeddings


def in_process(*arguments: Any) -> NDArray[np.float32]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(embed, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--clusters", type=int, default=20)
    parser.add_argument("--model", type=Path, default=MODEL)
    arguments = parser.parse_args()

    def cluster(embeddings: NDArray[np.float32], seed: int = 0) -> NDArray[np.int32]:
        settings = {"num_clusters": arguments.clusters, "n_init": 10, "minibatch_rows": 10**9}
        return cluster_embeddings(embeddings, **settings, seed=seed).labels

    inputs = (arguments.data, arguments.model, arguments.rows)
    reference = in_process(REFERENCE, *inputs)
    labels = cluster(reference)
    print(f"{len(reference)} prompts, {arguments.clusters} clusters; against {REFERENCE}")
    print(f"{'':<28}{'largest difference':>20}{'adjusted Rand index':>22}")
    for name in OTHERS:
        embeddings = in_process(name, *inputs)
        difference = np.abs(embeddings - reference).max() / np.abs(reference).max()
        index = adjusted_rand_score(labels, cluster(embeddings))
        print(f"{name:<28}{difference:>20.1e}{index:>22.3f}", flush=True)
    again = adjusted_rand_score(labels, cluster(reference, seed=1))
    print(f"{REFERENCE + ', another seed':<28}{0:>20}{again:>22.3f}")


if __name__ == "__main__":
    main()
