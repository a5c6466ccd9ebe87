"""vLLM's other ways: stock log-probs, embeddings, answers, and models that it cannot run."""

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest
import torch

from cherry_vllm.errors import UserError
from tests.conftest import ROWS, Cli
from tests.engines.models import (
    assert_close,
    assert_plain_pass,
    expected_logprobs,
    load,
    make_multimodal,
    make_remote,
    make_spans,
)
from tests.engines.process import embed, generate, inspects_by_name, score, score_stock

pytestmark = pytest.mark.engine
Run = Callable[..., Any]
ModelOf = Callable[[str], Path]


def test_stock_log_probs_are_those_of_a_plain_forward_pass(
    model_of: ModelOf, in_process: Run
) -> None:
    checkpoint, spans = model_of("Llama"), make_spans()
    found = in_process(score_stock, checkpoint, spans)
    assert_close(spans, found, expected_logprobs(checkpoint, spans))


@pytest.mark.parametrize("preempt", [False, True])
def test_one_pass_gives_mean_hidden_states_and_log_probs(
    *, preempt: bool, model_of: ModelOf, in_process: Run
) -> None:
    checkpoint = model_of("Llama")
    # A single token, prompts with one beginning, and some in many parts.
    prompts = [[5], [6, 7, 8], *(list(range(3, end)) for end in (200, 150, 120, 201))]
    found = in_process(embed, checkpoint, prompts, preempt=preempt)
    assert_plain_pass(checkpoint, prompts, found)


def test_answers_are_what_a_plain_greedy_loop_writes(model_of: ModelOf, in_process: Run) -> None:
    checkpoint, prompts = model_of("Llama"), [[5], [6, 7, 8], list(range(3, 60))]
    answers, model = in_process(generate, checkpoint, prompts), load(checkpoint)
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 8:
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == 1:
                break
        assert answer.token_ids == [token for token in ids[len(prompt) :] if token != 1]


def rename(checkpoint: Path, folder: Path, architecture: str) -> Path:
    """A copy that calls itself by the name of another architecture."""
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = [architecture]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("run", [score, score_stock])
def test_an_architecture_that_vllm_lacks_is_one_line(
    run: Run, model_of: ModelOf, in_process: Run, tmp_path: Path
) -> None:
    checkpoint = rename(model_of("Llama"), tmp_path / "model", "OfTomorrowForCausalLM")
    with pytest.raises(
        UserError, match=r"^\S+: vLLM \S+ has no architecture OfTomorrowForCausalLM; use engine=hf$"
    ):
        in_process(run, checkpoint, make_spans())


def test_code_of_its_own_that_vllm_cannot_run_is_one_line(in_process: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no architecture OwnModel; use engine=hf$"):
        in_process(score_stock, make_remote(tmp_path), make_spans(), trust_remote_code=True)


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="vLLM needs torchvision for it")
@pytest.mark.parametrize("run", [score, score_stock])
def test_a_multimodal_model_tells_what_vllm_lacks(
    run: Run, in_process: Run, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError,
        match=r"vLLM's Gemma3\S+ cannot be imported here \(.*torchvision.*\); install what",
    ):
        in_process(run, make_multimodal(tmp_path), make_spans())


@pytest.mark.skipif(find_spec("torchvision") is None, reason="vLLM needs torchvision for it")
def test_a_multimodal_model_is_used_on_text_alone(in_process: Run, tmp_path: Path) -> None:
    checkpoint, spans = make_multimodal(tmp_path), make_spans()
    prompts = [[5], [6, 7, 8]]
    assert np.isfinite(in_process(embed, checkpoint, prompts).embeddings).all()
    assert len(in_process(generate, checkpoint, prompts)) == len(prompts)
    expected = expected_logprobs(checkpoint, spans)
    assert_close(spans, in_process(score_stock, checkpoint, spans), expected)
    for name in ("vllm_fused_eager", "vllm_fused"):
        assert_close(spans, in_process(score, checkpoint, spans, name=name).logprobs, expected)


@pytest.mark.parametrize("run", [score, score_stock, embed, generate])
def test_no_engine_of_vllms_takes_a_model_without_some_weights(
    run: Run, model_of: ModelOf, in_process: Run, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(model_of("Llama"), tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.k_proj.weight"]  # one of three in vLLM's parameter
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"no weights for model\.layers\.1\.self_attn\.k_proj"):
        in_process(run, folder, [])


@pytest.mark.parametrize("run", [score, score_stock, embed, generate])
def test_an_engine_starts_no_process_to_inspect_its_model(
    run: Run, model_of: ModelOf, in_process: Run
) -> None:
    arguments = [[1, 2, 3]] if run in (embed, generate) else make_spans()[:1]
    assert not in_process(inspects_by_name, run, model_of("Llama"), arguments)


# The embedded checkpoint through the command line: vLLM's own process, bf16 and fp32.


class Scored(NamedTuple):
    scores: pl.DataFrame
    logprobs: pl.Series  # of all answer tokens


@pytest.fixture(scope="module")
def scored(checkpoint: Path, cli: Cli, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The shipped rows scored by each engine and type."""
    folder = tmp_path_factory.mktemp("agreement")
    found = {}
    num_rows = {"hf-float32": 26, "vllm_fused_eager-float32": 26, "vllm_fused_eager-bfloat16": 8}
    for name, count in num_rows.items():  # bf16 is slow on many CPUs
        engine, dtype = name.split("-")
        done = cli(
            "score",
            f"data.path={ROWS}",
            f"data.max_rows={count}",
            f"model.path={checkpoint}",
            f"run_dir={folder / name}",
            f"engine={engine}",
            f"engine.dtype={dtype}",
            "prompt=wizardlm",
            "max_length=72",
        )
        assert done.returncode == 0, done.stderr
        logprobs = pl.read_parquet(folder / name / "logprobs" / "*" / "part-*.parquet")
        found[name] = Scored(
            pl.read_parquet(folder / name / "scores.parquet"),
            logprobs["conditioned_logprobs"].explode().explode(),
        )
    return found


def spearman(left: pl.Series, right: pl.Series) -> float:
    return float(np.corrcoef(left.rank(), right.rank())[0, 1])


@pytest.mark.checkpoint
@pytest.mark.parametrize(
    ("dtype", "of_ifd", "of_token"), [("float32", 1e-3, 1e-4), ("bfloat16", 0.05, 0.08)]
)
def test_vllm_agrees_with_hf(scored: Any, dtype: str, of_ifd: float, of_token: float) -> None:
    (vllm, found), (hf, expected) = scored[f"vllm_fused_eager-{dtype}"], scored["hf-float32"]
    hf = hf.head(vllm.height)
    assert vllm["num_answer_tokens"].equals(hf["num_answer_tokens"])
    assert vllm["ifd"].is_null().equals(hf["ifd"].is_null())
    assert (hf["ifd"] - vllm["ifd"]).abs().max() < of_ifd
    difference = found - expected.head(found.len())
    assert difference.len() > 80
    assert (difference**2).mean() ** 0.5 < of_token  # root mean square, in nats
    if dtype == "float32":
        assert spearman(hf["ifd"].drop_nulls(), vllm["ifd"].drop_nulls()) > 0.9999
    # Only a row whose IFD is 1 to within the tolerance may be dropped by one and not the other.
    differs = hf["drop_reason"].is_null() != vllm["drop_reason"].is_null()
    assert ((hf.filter(differs)["ifd"] - 1).abs() < of_ifd).all()
