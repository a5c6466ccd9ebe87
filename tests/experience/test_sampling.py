"""Embeddings, perplexities and the rows of the brief experience."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from cherry_vllm.commands.job import Job
from cherry_vllm.commands.pipeline import run as run_pipeline
from cherry_vllm.commands.sample import sample
from cherry_vllm.config import compose, executor_settings, prompt_of
from cherry_vllm.conversation import open_messages
from cherry_vllm.engines.checkpoint import Checkpoint, read_checkpoint
from cherry_vllm.engines.settings import HfSettings
from cherry_vllm.errors import UserError
from cherry_vllm.experience.clusters import cluster_embeddings
from cherry_vllm.experience.embeddings import embed
from cherry_vllm.experience.sampling import (
    DiverseSampling,
    draw_positions,
    find_highest,
    sample_difficult,
    sample_diverse,
    sample_random,
)
from cherry_vllm.sources import Columns
from cherry_vllm.sources.row_shards import read_row_shards
from cherry_vllm.store.marks import mark_path
from cherry_vllm.store.shards import Shards
from cherry_vllm.workers.run import ModelUse
from tests import fakes
from tests.conftest import ROWS, TOKENIZER, Cli

USE = ModelUse(
    prompt=prompt_of(compose("prompt=wizardlm")),
    max_length=64,
    engine=HfSettings(name="hf", dtype="float32", device="cpu", batch_tokens=512),
    executor=executor_settings(compose().executor),
    trust_remote_code=False,
)
# The fake engine embeds the end of a prompt, which must differ from row to row.
FAKE_USE = replace(
    USE,
    prompt=replace(USE.prompt, without_input="{instruction}", with_input="{input} {instruction}"),
)
KMEANS = DiverseSampling(
    count=6, num_clusters=3, percentiles=(25.0, 75.0), n_init=10, minibatch_rows=10_000
)


def read(run_dir: Path, file: Path = ROWS) -> Shards:
    return read_row_shards(
        run_dir,
        [file],
        columns=Columns("instruction", "input", "output"),
        refusals=[],
        shard_rows=10,
    )


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """A model of the fake engine's, which every command of the test uses."""
    fakes.install(monkeypatch)
    return read_checkpoint(fakes.write_checkpoint(tmp_path / "model"))


@pytest.fixture
def rows(tmp_path: Path, model: Checkpoint) -> Shards:  # noqa: ARG001 - it reads the rows inline
    return read(tmp_path)


@pytest.fixture
def embeddings(tmp_path: Path, rows: Shards, model: Checkpoint) -> Shards:
    return embed(tmp_path, rows, model, FAKE_USE)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model whose attention heads are wide enough for vLLM."""
    folder = tmp_path_factory.mktemp("wide") / "wide"
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
    )
    make_model: Any = AutoModelForCausalLM.from_config
    make_model(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.engine
@pytest.mark.process
def test_both_engines_give_what_a_plain_forward_pass_gives(
    wide: Path, cli: Cli, tmp_path: Path
) -> None:
    rows = read(tmp_path)
    arguments = (tmp_path, rows, read_checkpoint(wide))
    expected = embed(*arguments, USE).scan().collect()
    assert_plain_forward_pass(wide, rows.scan().collect(), expected)
    done = cli(
        "embed",
        f"data.path={ROWS}",
        f"model.path={wide}",
        f"run_dir={tmp_path / 'vllm'}",
        "prompt=wizardlm",
        "engine=vllm_fused_eager",
        "engine.dtype=float32",
        "max_length=64",
        "shard_rows=10",
    )
    assert done.returncode == 0, done.stderr
    found = sorted((tmp_path / "vllm" / "embeddings").glob("*/part-*.parquet"))
    embedded = pl.concat([pl.read_parquet(path) for path in found])
    assert embedded["drop_reason"].equals(expected["drop_reason"])
    one, other = (frame["embedding"].drop_nulls().to_numpy() for frame in (expected, embedded))
    np.testing.assert_allclose(one, other, atol=5e-3)
    labels = [
        cluster_embeddings(vectors, num_clusters=4, n_init=10, minibatch_rows=10_000, seed=0).labels
        for vectors in (one, other)
    ]
    assert adjusted_rand_score(*labels) == 1
    one, other = (frame["perplexity"].drop_nulls().to_numpy() for frame in (expected, embedded))
    np.testing.assert_allclose(one, other, rtol=1e-3)


def assert_plain_forward_pass(
    checkpoint: Path, source: pl.DataFrame, embedded: pl.DataFrame
) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    assert source["row"].equals(embedded["row"])
    seen = 0
    for row, (asked, *_) in enumerate(open_messages(source["messages"])):
        if source["drop_reason"][row]:
            assert embedded["drop_reason"][row] == source["drop_reason"][row]
            assert embedded["embedding"][row] is None
            continue
        template = USE.prompt.with_input if asked.input else USE.prompt.without_input
        text = template.format(instruction=asked.content, input=asked.input)
        ids = tokenizer(text)["input_ids"]
        if len(ids) >= 64:
            assert embedded["drop_reason"][row] == "prompt_too_long"
            assert embedded["perplexity"][row] is None
            continue
        seen += 1
        with torch.no_grad():
            output = model(
                torch.tensor([ids]), labels=torch.tensor([ids]), output_hidden_states=True
            )
        mean = output.hidden_states[-1][0].mean(0)
        np.testing.assert_allclose(embedded["embedding"][row].to_numpy(), mean, atol=2e-3)
        assert embedded["perplexity"][row] == pytest.approx(float(output.loss.exp()), rel=1e-3)
        assert embedded["num_prompt_tokens"][row] == len(ids)
    assert seen > 15


def test_a_lost_shard_alone_is_made_again(
    tmp_path: Path, model: Checkpoint, rows: Shards, embeddings: Shards
) -> None:
    before = embeddings.path(1).read_bytes()
    kept = embeddings.path(0).stat().st_mtime_ns
    embeddings.path(1).unlink()
    again = embed(tmp_path, rows, model, FAKE_USE)
    assert again.fingerprint == embeddings.fingerprint
    assert again.path(1).read_bytes() == before
    assert again.path(0).stat().st_mtime_ns == kept


def test_a_sample_holds_the_records_and_says_where_from(
    tmp_path: Path, rows: Shards, embeddings: Shards
) -> None:
    found = sample_diverse(tmp_path, rows, embeddings, KMEANS, seed=0)
    mark = json.loads(mark_path(found.artifact).read_text())
    records = json.loads(found.artifact.read_text(encoding="utf-8"))
    lines = ROWS.read_text(encoding="utf-8").splitlines()
    assert records == [json.loads(lines[row]) for row in found.rows]
    assert (mark["rows"], mark["counts"]) == (found.rows, found.facts)
    assert found.facts["num_sampled"] == len(records) <= 6
    assert found.facts["num_clusters"] == 3
    usable = embeddings.scan().filter(pl.col("drop_reason").is_null()).collect()["row"]
    assert found.facts["num_candidates"] == len(usable)
    assert set(found.rows) <= set(usable)
    stamp = found.artifact.stat().st_mtime_ns
    again = sample_diverse(tmp_path, rows, embeddings, KMEANS, seed=0)
    assert again == found
    assert again.artifact.stat().st_mtime_ns == stamp


def test_a_sample_that_was_edited_is_neither_used_nor_replaced(
    tmp_path: Path, rows: Shards
) -> None:
    found = sample_random(tmp_path, rows, count=5, seed=1)
    found.artifact.write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match="choose another output or move it"):
        sample_random(tmp_path, rows, count=5, seed=1)
    assert found.artifact.read_text(encoding="utf-8") == "[]"


def test_fewer_rows_than_clusters_and_equal_instructions_are_counted(
    tmp_path: Path, model: Checkpoint
) -> None:
    file = tmp_path / "same.jsonl"
    file.write_text('{"instruction": "Say hello.", "output": "Hello."}\n' * 4)
    rows = read(tmp_path, file)
    embeddings = embed(tmp_path, rows, model, FAKE_USE)
    sampling = DiverseSampling(
        count=20, num_clusters=10, percentiles=(25.0, 75.0), n_init=10, minibatch_rows=10_000
    )
    found = sample_diverse(tmp_path, rows, embeddings, sampling, seed=0)
    assert found.facts["num_candidates"] == 4
    assert found.facts["num_clusters"] == 1
    assert 1 <= found.facts["num_sampled"] <= 4


def test_random_and_difficult_samples(rows: Shards, tmp_path: Path) -> None:
    found = sample_random(tmp_path, rows, count=5, seed=1)
    assert found.rows == sorted(set(found.rows))
    assert found.facts["num_sampled"] == 5
    with pytest.raises(UserError, match=r"scores\.parquet: no such file.*cherry-vllm score"):
        sample_difficult(tmp_path, rows, tmp_path, count=5)


@pytest.mark.parametrize("command", [sample, run_pipeline])
def test_a_count_that_clusters_cannot_share_is_refused_before_any_work(
    command: Any, model: Checkpoint, tmp_path: Path
) -> None:
    places = (f"data.path={ROWS}", f"model.path={model.folder}", f"run_dir={tmp_path / 'run'}")
    config = compose(*places, "sample.num_clusters=3", "sample.count=7")
    with pytest.raises(UserError, match=r"sample\.count=7: give a multiple of .*num_clusters=3"):
        command(config, Job(tmp_path, is_sweep=False))
    assert not (tmp_path / "run").exists()


def test_nothing_to_sample_from_is_refused(model: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "blank.jsonl"
    file.write_text('{"instruction": "Say nothing.", "output": " "}\n')
    rows = read(tmp_path, file)
    embeddings = embed(tmp_path, rows, model, FAKE_USE)
    with pytest.raises(UserError, match="no row can be sampled"):
        sample_diverse(tmp_path, rows, embeddings, KMEANS, seed=0)


# --- random and difficult ----------------------------------------------------------------------


def test_random_positions_are_distinct_ascending_and_the_seeds_own() -> None:
    chosen = draw_positions(1000, 100, seed=1).tolist()
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 100
    assert 0 <= chosen[0] <= chosen[-1] < 1000
    assert chosen == draw_positions(1000, 100, seed=1).tolist()
    assert chosen != draw_positions(1000, 100, seed=2).tolist()


def test_no_row_gives_none() -> None:
    assert draw_positions(0, 5, seed=0).tolist() == []
    assert find_highest(np.array([]), 5).tolist() == []


def test_a_larger_random_sample_holds_the_smaller() -> None:
    assert set(draw_positions(50, 10, seed=3)) < set(draw_positions(50, 20, seed=3))


def test_random_reaches_every_position() -> None:
    seen = {tuple(draw_positions(5, 2, seed=seed)) for seed in range(200)}
    assert len(seen) == 10


@pytest.mark.parametrize("count", [5, 6, 100])
def test_a_count_beyond_the_rows_takes_them_all(count: int) -> None:
    assert draw_positions(5, count, seed=0).tolist() == [0, 1, 2, 3, 4]
    assert find_highest(np.array([0.3, 0.1, 0.9, 0.2, 0.5]), count).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("count", "expected"), [(1, [2]), (2, [2, 5]), (3, [0, 2, 5]), (4, [0, 2, 3, 5])]
)
def test_difficult_rows_have_the_highest_ifd_the_earlier_of_equals_first(
    count: int, expected: Sequence[int]
) -> None:
    ifd = np.array([0.7, 0.2, 1.0, 0.7, 0.7, 0.9])
    chosen = find_highest(ifd, count)
    assert chosen.dtype == np.int64
    assert chosen.tolist() == expected
