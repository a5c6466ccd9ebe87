"""Embeddings, perplexities and the rows of the brief experience."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from transformers import AutoModelForCausalLM, AutoTokenizer

from cherry_vllm.config import compose, plain, prompt_of
from cherry_vllm.engines.checkpoint import read_checkpoint
from cherry_vllm.engines.settings import HfSettings
from cherry_vllm.errors import UserError
from cherry_vllm.experience import sampling_run as experience
from cherry_vllm.experience.clusters import cluster_embeddings
from cherry_vllm.options import DataFormat
from cherry_vllm.sources import Columns
from cherry_vllm.sources.shards import read_row_shards
from cherry_vllm.store.marks import mark_path
from cherry_vllm.store.shards import Shards
from tests.conftest import ROWS, Cli

PROMPT = prompt_of(compose("prompt=wizardlm"))
HF = HfSettings(name="hf", dtype="float32", device="cpu", batch_tokens=512)
USE: dict[str, Any] = {
    "prompt": PROMPT,
    "max_length": 64,
    "engine": HF,
    "executor": plain(compose().executor),
    "trust_remote_code": False,
}
KMEANS = {
    "num_clusters": 3,
    "percentiles": (25.0, 75.0),
    "n_init": 10,
    "minibatch_rows": 10_000,
    "seed": 0,
}


def read(run_dir: Path, file: Path = ROWS) -> Shards:
    return read_row_shards(
        run_dir,
        [file],
        data_format=DataFormat.auto,
        columns=Columns("instruction", "input", "output"),
        refusals=[],
        shard_rows=10,
    )


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("experience") / "run"


@pytest.fixture(scope="module")
def rows(run_dir: Path) -> Shards:
    return read(run_dir)


@pytest.fixture(scope="module")
def embeddings(checkpoint: Path, run_dir: Path, rows: Shards) -> Shards:
    return experience.embed(run_dir, rows, read_checkpoint(checkpoint), **USE)


@pytest.fixture(scope="module")
def perplexities(checkpoint: Path, run_dir: Path, rows: Shards) -> Shards:
    return experience.measure_perplexity(run_dir, rows, read_checkpoint(checkpoint), **USE)


def test_both_are_what_a_plain_forward_pass_gives(
    checkpoint: Path, rows: Shards, embeddings: Shards, perplexities: Shards
) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    frames = (rows.scan(), embeddings.scan(), perplexities.scan())
    source, embedded, measured = (frame.collect() for frame in frames)
    assert source["row"].equals(embedded["row"])
    assert source["row"].equals(measured["row"])
    seen = 0
    for row, (instruction, extra) in enumerate(source.select("instruction", "input").iter_rows()):
        if source["drop_reason"][row]:
            assert embedded["drop_reason"][row] == source["drop_reason"][row]
            assert embedded["embedding"][row] is None
            continue
        template = PROMPT["with_input" if extra else "without_input"]
        ids = tokenizer(str(template).format(instruction=instruction, input=extra))["input_ids"]
        if len(ids) >= 64:
            assert embedded["drop_reason"][row] == measured["drop_reason"][row] == "prompt_too_long"
            assert measured["perplexity"][row] is None
            continue
        seen += 1
        with torch.no_grad():
            output = model(
                torch.tensor([ids]), labels=torch.tensor([ids]), output_hidden_states=True
            )
        mean = output.hidden_states[-1][0].mean(0)
        np.testing.assert_allclose(embedded["embedding"][row].to_numpy(), mean, atol=2e-3)
        assert measured["perplexity"][row] == pytest.approx(float(output.loss.exp()), rel=1e-3)
        assert measured["num_prompt_tokens"][row] == len(ids)
    assert seen > 15


def test_vllm_gives_the_same_embeddings_and_clusters(
    checkpoint: Path, cli: Cli, embeddings: Shards, perplexities: Shards, tmp_path: Path
) -> None:
    done = cli(
        "embed",
        f"data.path={ROWS}",
        f"model.path={checkpoint}",
        f"run_dir={tmp_path}",
        "prompt=wizardlm",
        "engine=vllm_eager",
        "engine.dtype=float32",
        "max_length=64",
        "shard_rows=10",
    )
    assert done.returncode == 0, done.stderr
    left, right = (
        pl.concat([pl.read_parquet(path) for path in sorted(folder.glob("*/part-*.parquet"))])
        for folder in (embeddings.folder.parent, tmp_path / "embeddings")
    )
    assert left["drop_reason"].equals(right["drop_reason"])
    one, other = (frame["embedding"].drop_nulls().to_numpy() for frame in (left, right))
    np.testing.assert_allclose(one, other, atol=5e-3)
    labels = [
        cluster_embeddings(vectors, num_clusters=4, n_init=10, minibatch_rows=10_000, seed=0).labels
        for vectors in (one, other)
    ]
    assert adjusted_rand_score(*labels) == 1
    (folder,) = (tmp_path / "perplexities").iterdir()
    measured = pl.concat([pl.read_parquet(path) for path in sorted(folder.glob("part-*.parquet"))])
    expected = perplexities.scan().collect()["perplexity"].drop_nulls()
    np.testing.assert_allclose(measured["perplexity"].drop_nulls(), expected, rtol=1e-3)


def test_a_lost_shard_alone_is_made_again(
    checkpoint: Path, run_dir: Path, rows: Shards, embeddings: Shards
) -> None:
    before = embeddings.path(1).read_bytes()
    kept = embeddings.path(0).stat().st_mtime_ns
    embeddings.path(1).unlink()
    again = experience.embed(run_dir, rows, read_checkpoint(checkpoint), **USE)
    assert again.fingerprint == embeddings.fingerprint
    assert again.path(1).read_bytes() == before
    assert again.path(0).stat().st_mtime_ns == kept


def test_a_sample_holds_the_records_and_says_where_from(
    run_dir: Path, rows: Shards, embeddings: Shards, perplexities: Shards
) -> None:
    target = experience.sample_diverse(run_dir, rows, embeddings, perplexities, count=6, **KMEANS)
    mark = json.loads(mark_path(target).read_text())
    records = json.loads(target.read_text(encoding="utf-8"))
    lines = ROWS.read_text(encoding="utf-8").splitlines()
    assert records == [json.loads(lines[row]) for row in mark["rows"]]
    assert mark["counts"]["num_sampled"] == len(records) <= 6
    assert mark["counts"]["num_clusters"] == 3
    usable = embeddings.scan().filter(pl.col("drop_reason").is_null()).collect()["row"]
    assert mark["counts"]["num_candidates"] == len(usable)
    assert set(mark["rows"]) <= set(usable)
    stamp = target.stat().st_mtime_ns
    again = experience.sample_diverse(run_dir, rows, embeddings, perplexities, count=6, **KMEANS)
    assert (again, again.stat().st_mtime_ns) == (target, stamp)


def test_fewer_rows_than_clusters_and_equal_instructions_are_counted(
    tiny: Path, tmp_path: Path
) -> None:
    file = tmp_path / "same.jsonl"
    file.write_text('{"instruction": "Say hello.", "output": "Hello."}\n' * 4)
    rows = read(tmp_path, file)
    arguments = (tmp_path, rows, read_checkpoint(tiny))
    target = experience.sample_diverse(
        tmp_path,
        rows,
        experience.embed(*arguments, **USE),
        experience.measure_perplexity(*arguments, **USE),
        count=20,
        **(KMEANS | {"num_clusters": 10}),
    )
    mark = json.loads(mark_path(target).read_text())
    assert mark["counts"]["num_candidates"] == 4
    assert mark["counts"]["num_clusters"] == 1
    assert 1 <= mark["counts"]["num_sampled"] <= 4


def test_random_and_difficult_samples(run_dir: Path, rows: Shards, tmp_path: Path) -> None:
    target = experience.sample_any(run_dir, rows, count=5, seed=1)
    mark = json.loads(mark_path(target).read_text())
    assert mark["rows"] == sorted(set(mark["rows"]))
    assert mark["counts"]["num_sampled"] == 5
    with pytest.raises(UserError, match=r"scores\.parquet: no such file.*cherry-vllm score"):
        experience.sample_most_difficult(run_dir, rows, tmp_path, count=5)


def test_a_count_that_clusters_cannot_share_is_refused(
    run_dir: Path, rows: Shards, embeddings: Shards, perplexities: Shards
) -> None:
    with pytest.raises(UserError, match=r"sample\.count=7: give a multiple"):
        experience.sample_diverse(run_dir, rows, embeddings, perplexities, count=7, **KMEANS)


def test_nothing_to_sample_from_is_refused(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "blank.jsonl"
    file.write_text('{"instruction": "Say nothing.", "output": " "}\n')
    rows = read(tmp_path, file)
    embeddings = experience.embed(tmp_path, rows, read_checkpoint(tiny), **USE)
    perplexities = experience.measure_perplexity(tmp_path, rows, read_checkpoint(tiny), **USE)
    with pytest.raises(UserError, match="no row can be sampled"):
        experience.sample_diverse(tmp_path, rows, embeddings, perplexities, count=3, **KMEANS)
