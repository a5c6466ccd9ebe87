"""Clusters a million embeddings and samples rows of each cluster: time, memory and inertia.

    python -m bench.clusters [--rows 1000000] [--width 576] [--n-init 10] [--methods minibatch]

The embeddings are synthetic: a few hundred overlapping Gaussians whose variance falls from one
direction to the next. ``--methods kmeans minibatch`` compares the two; each runs in its own
process, whose peak memory is measured. Inertia is the mean squared distance to the cluster's mean.
"""

import argparse
import os
import subprocess
import sys
import time

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cherry_vllm.experience.clusters import cluster_embeddings, sample_clusters
from cherry_vllm.runtime.memory import peak_bytes

COMPONENTS = 300
CHUNK_ROWS = 50_000


def make_embeddings(num_rows: int, width: int) -> NDArray[np.float32]:
    """A seeded mixture, rows x width; half of its variance lies between the components."""
    generator = np.random.default_rng(0)
    scale = 1 / np.sqrt(np.arange(1, width + 1, dtype=np.float32))
    centres = scale * generator.standard_normal((COMPONENTS, width), np.float32)
    weights = generator.dirichlet(np.ones(COMPONENTS))
    embeddings = np.empty((num_rows, width), np.float32)
    for start in tqdm(range(0, num_rows, CHUNK_ROWS), desc="embeddings"):
        chunk = embeddings[start : start + CHUNK_ROWS]
        generator.standard_normal(out=chunk, dtype=np.float32)
        chunk *= scale
        chunk += centres[generator.choice(COMPONENTS, len(chunk), p=weights)]
    return embeddings


def mean_inertia(embeddings: NDArray[np.float32], labels: NDArray[np.int32]) -> float:
    """Squared distance of a row to the mean of its cluster, averaged over the rows."""
    total = 0.0
    for label in np.unique(labels):
        members = embeddings[labels == label]
        total += len(members) * members.var(axis=0, dtype=np.float64).sum()
    return total / len(labels)


def measure(method: str, arguments: argparse.Namespace) -> None:
    """Runs one method in this process and prints its line of the table."""
    embeddings = make_embeddings(arguments.rows, arguments.width)
    perplexities = np.random.default_rng(1).lognormal(3, 1, arguments.rows)
    started = time.perf_counter()
    found = cluster_embeddings(
        embeddings,
        num_clusters=100,
        n_init=arguments.n_init,
        minibatch_rows=1 if method == "minibatch" else arguments.rows + 1,
        seed=0,
    )
    clustering, peak = time.perf_counter() - started, peak_bytes() / 2**30
    started = time.perf_counter()
    chosen = sample_clusters(found.labels, perplexities, rows_per_cluster=10, percentiles=(25, 75))
    sampling = time.perf_counter() - started
    print(
        f"{found.method:<12}{clustering:>10.1f} s{sampling:>10.2f} s{peak:>8.2f} GiB"
        f"{found.num_clusters:>10}{chosen.size:>8}{mean_inertia(embeddings, found.labels):>10.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--n-init", type=int, default=10)
    methods = ("kmeans", "minibatch")
    parser.add_argument("--methods", nargs="+", choices=methods, default=["minibatch"])
    parser.add_argument("--only", choices=methods, help="one method, for this command's own use")
    arguments = parser.parse_args()
    if arguments.only:
        measure(arguments.only, arguments)
        return
    size = 4 * arguments.rows * arguments.width / 2**30
    cores = len(os.sched_getaffinity(0))
    print(
        f"{arguments.rows:,} x {arguments.width}, {size:.2f} GiB; n_init={arguments.n_init}; "
        f"{cores} cores"
    )
    print(
        f"{'':<12}{'clustering':>12}{'sampling':>12}{'peak':>12}{'clusters':>10}{'rows':>8}"
        f"{'inertia':>10}",
        flush=True,
    )
    for method in arguments.methods:
        command = [sys.executable, "-m", "bench.clusters", *sys.argv[1:], "--only", method]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
