"""The engines against their contract, against each other, and against the slow reference."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from cherry_vllm.config import compose, prompt_of
from cherry_vllm.engines import Span
from cherry_vllm.engines.checkpoint import read_checkpoint
from cherry_vllm.engines.hf import HfEngine
from cherry_vllm.engines.settings import HfSettings
from cherry_vllm.prompts.spans import SpanBuilder
from cherry_vllm.prompts.templates import build_template
from cherry_vllm.schema import REASON, DropReason
from cherry_vllm.scoring.ifd import aggregate_logprobs
from cherry_vllm.scoring.shard import score_shard
from tests.conftest import ROWS, Cli
from tests.reference import reference_scores


@pytest.fixture(scope="module")
def hf(checkpoint: Path) -> HfEngine:
    return hf_engine(checkpoint, batch_tokens=1024)


def hf_engine(checkpoint: Path, batch_tokens: int) -> HfEngine:
    return HfEngine(
        HfSettings(name="hf", dtype="float32", device="cpu", batch_tokens=batch_tokens),
        read_checkpoint(checkpoint),
        max_length=512,
        trust_remote_code=False,
    )


def ignore(_count: int) -> None:
    pass


def test_hf_keeps_the_order_and_batching_changes_nothing(checkpoint: Path, hf: HfEngine) -> None:
    generator = np.random.default_rng(0)
    spans = [
        Span(generator.integers(17, 40_000, size=length).tolist(), start)
        for length, start in [(9, 1), (40, 39), (3, 2), (70, 20), (9, 8)]
    ]
    done: list[int] = []
    batched = hf.logprobs(spans, done.append)
    single = hf_engine(checkpoint, batch_tokens=1).logprobs(spans, ignore)
    assert sum(done) == len(spans)
    for span, left, right in zip(spans, batched, single, strict=True):
        assert left.dtype == np.float32
        assert left.shape == (span.num_answer_tokens,)
        np.testing.assert_allclose(left, right, atol=1e-4)


def test_hf_log_probs_are_those_of_the_whole_softmax(checkpoint: Path, hf: HfEngine) -> None:
    ids = [100, 2000, 30, 4, 17]
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    (found,) = hf.logprobs([Span(ids, 2)], ignore)
    np.testing.assert_allclose(found, [expected[i - 1, ids[i]] for i in (2, 3, 4)], atol=1e-4)


@pytest.mark.parametrize(
    ("template", "max_length"),
    [("alpaca", 512), ("alpaca", 80), ("wizardlm", 64), ("vicuna", 96), ("chat", 100)],
)
def test_scores_agree_with_the_slow_reference(
    checkpoint: Path,
    hf: HfEngine,
    shipped_rows: list[dict[str, str]],
    template: str,
    max_length: int,
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = hf._model
    prompt = build_template(tokenizer, prompt_of(compose(f"prompt={template}")))
    builder = SpanBuilder(tokenizer, prompt, max_length=max_length, vocab_size=49152)
    rows = pl.DataFrame(shipped_rows).rename({"output": "answer"}).with_row_index("row")
    rows = rows.with_columns(pl.col("row").cast(pl.Int64), drop_reason=pl.lit(None, REASON))
    scores = aggregate_logprobs(
        score_shard(rows, ignore, builder=builder, model=hf.logprobs).lazy()
    ).collect()
    seen: list[Any] = []
    for row, found in zip(shipped_rows, scores.iter_rows(named=True), strict=True):
        fields = (row["instruction"], row["input"], row["output"])
        expected = reference_scores(model, tokenizer, template, *fields, max_length)
        if isinstance(expected, str):
            assert found["drop_reason"] == expected
            assert found["ifd"] is None
            seen.append(expected)
            continue
        assert found["num_answer_tokens"] == expected["num_answer_tokens"]
        assert found["truncated"] == expected["truncated"]
        for name in ("conditioned_score", "direct_score", "ifd"):
            assert found[name] == pytest.approx(expected[name], abs=1e-4)
        above = DropReason.IFD_ABOVE_ONE.value if expected["ifd"] > 1 else None
        assert found["drop_reason"] == above
        seen.append(expected["truncated"])
    assert False in seen
    if max_length < 512:
        assert True in seen
        assert DropReason.PROMPT_TOO_LONG in seen


# vLLM's own process starts slowly: one run each in bf16 and fp32, through the command line.

ENGINES = [
    (f"{engine}-{dtype}", f"engine={engine}", f"engine.dtype={dtype}")
    for engine in ("hf", "vllm_eager")
    for dtype in ("float32", "bfloat16")
]
ENGINES += [("vllm-bfloat16", "engine=vllm", "engine.enforce_eager=true", "engine.dtype=bfloat16")]


@pytest.fixture(scope="module")
def scored(checkpoint: Path, cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The shipped rows (and 40 Alpaca rows where they are) scored by each engine and type."""
    folder = tmp_path_factory.mktemp("agreement")
    scores = {}
    for name, *overrides in ENGINES:
        done = cli(
            "score",
            f"data.path={ROWS}",
            f"model.path={checkpoint}",
            f"run_dir={folder / name}",
            "max_length=128",
            "shard_rows=10",
            *overrides,
        )
        assert done.returncode == 0, done.stderr
        scores[name] = pl.read_parquet(folder / name / "scores.parquet")
    return scores


def spearman(left: pl.Series, right: pl.Series) -> float:
    return float(np.corrcoef(left.rank(), right.rank())[0, 1])


@pytest.mark.parametrize(
    ("engine", "tolerance", "correlation"),
    [
        ("vllm_eager-float32", 1e-3, 0.9999),
        ("vllm_eager-bfloat16", 0.15, 0.98),
        ("vllm-bfloat16", 0.15, 0.98),
    ],
)
def test_vllm_agrees_with_hf(
    scored: Any, engine: str, tolerance: float, correlation: float
) -> None:
    hf, vllm = scored[f"hf-{engine.rpartition('-')[2]}"], scored[engine]
    assert vllm["num_answer_tokens"].equals(hf["num_answer_tokens"])
    assert vllm["ifd"].is_null().equals(hf["ifd"].is_null())
    both = pl.DataFrame({"hf": hf["ifd"], "vllm": vllm["ifd"]}).drop_nulls()
    assert both.height >= 20
    assert (both["hf"] - both["vllm"]).abs().max() < tolerance
    assert spearman(both["hf"], both["vllm"]) > correlation
    # Only a row whose IFD is 1 to within the tolerance may be dropped by one and not the other.
    differs = hf["drop_reason"].is_null() != vllm["drop_reason"].is_null()
    assert ((hf.filter(differs)["ifd"] - 1).abs() < tolerance).all()
