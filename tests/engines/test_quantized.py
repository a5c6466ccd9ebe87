"""Quantized checkpoints: the engines agree, and refuse what they would get wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from cherry_vllm.engines import Span
from cherry_vllm.engines.checkpoint import read_checkpoint
from cherry_vllm.engines.hf import HfEngine, load_model
from cherry_vllm.engines.settings import HfSettings
from cherry_vllm.errors import UserError
from tests.engines.models import (
    assert_close,
    expected_logprobs,
    load,
    make_checkpoint,
    make_spans,
    quantize,
)
from tests.engines.process import score, score_stock

pytestmark = pytest.mark.engine
Run = Callable[..., Any]
LARGEST = {"int8": 127, "fp8": 448}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    def make(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind) / "model"
        return quantize(make_checkpoint("Llama", folder), kind)

    return make


def by_hand(folder: Path, kind: str, spans: list[Span]) -> list[NDArray[np.float32]]:
    """The log-probs of the plain model with its weights, and what enters its layers, rounded."""
    model = load(make_checkpoint("Llama", folder.with_name("plain")))
    tensors = load_file(folder / "model.safetensors")

    def round_inputs(_layer: Any, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
        scale = inputs[0].abs().amax(-1, keepdim=True) / LARGEST[kind]
        exact = inputs[0] / scale
        rounded = exact.round() if kind == "int8" else exact.to(torch.float8_e4m3fn).float()
        return (rounded * scale,)

    for name, layer in model.named_modules():
        if f"{name}.weight_scale" in tensors:
            layer.weight.data = tensors[f"{name}.weight"].float() * tensors[f"{name}.weight_scale"]
            layer.register_forward_pre_hook(round_inputs)
    return expected_logprobs(model, spans)


def error(found: list[Any], expected: list[Any]) -> float:
    return float(np.abs(np.concatenate(found) - np.concatenate(expected)).mean())


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_fused_stock_and_transformers_agree(
    kind: str, folder_of: Callable[[str], Path], in_process: Run
) -> None:
    folder, spans = folder_of(kind), make_spans()
    stock = in_process(score_stock, folder, spans, has_int8=True)
    fused = in_process(score, folder, spans, has_int8=True).logprobs
    assert_close(spans, fused, stock)
    settings = HfSettings(name="hf", dtype="float32", device="cpu", batch_tokens=1024)
    hf = HfEngine(settings, read_checkpoint(folder), max_length=512, trust_remote_code=False)
    expected = by_hand(folder, kind, spans)
    plain = expected_logprobs(folder.with_name("plain"), spans)
    assert error(fused, expected) < error(plain, expected) / 10
    # It rounds what enters a layer by a rule of its own.
    assert error(hf.logprobs(spans, lambda _count: None), expected) < error(plain, expected)


@pytest.mark.parametrize("run", [score, score_stock])
def test_int8_is_refused_where_its_products_overflow(
    run: Run, folder_of: Callable[[str], Path], in_process: Run
) -> None:
    with pytest.raises(UserError, match="int8 activations, whose products overflow"):
        in_process(run, folder_of("int8"), [], has_int8=False)


def test_a_kind_that_vllm_lacks_here_is_one_line(
    folder_of: Callable[[str], Path], in_process: Run
) -> None:
    folder = folder_of("fp8")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError,
        match=r"cannot compute with .* \(.* method: bitsandbytes\); use engine=hf",
    ):
        in_process(score, folder, [], is_checked=False)


def remove_tensor(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_transformers_own_report_counts_too(
    folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, name = folder_of("fp8"), "model.layers.0.self_attn.q_proj.weight_scale"
    remove_tensor(folder, name)
    monkeypatch.setattr("cherry_vllm.engines.hf.check_weights", lambda *_args, **_keywords: None)
    with pytest.raises(UserError, match=rf"no weights for {name};"):
        load_model(read_checkpoint(folder), trust_remote_code=False)


@pytest.mark.parametrize("run", [score, score_stock])
def test_no_engine_of_vllms_takes_a_quantized_model_without_a_scale(
    run: Run, folder_of: Callable[[str], Path], in_process: Run
) -> None:
    folder, name = folder_of("fp8"), "model.layers.1.mlp.down_proj.weight_scale"
    remove_tensor(folder, name)
    with pytest.raises(UserError, match=rf"no weights for {name}"):
        in_process(run, folder, [])
    # The same where transformers cannot look at it first.
    with pytest.raises(UserError, match=rf"vLLM found no weights for {name}; use engine=hf"):
        in_process(run, folder, [], is_checked=False)
