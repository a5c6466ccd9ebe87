"""bf16 copies that keep what was learned."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from cherry_vllm.training.rounding import export_bfloat16, round_stochastically
from tests.training.support import Tuned, assert_kept, load_weights


def test_rounding_takes_a_neighbour_and_keeps_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1000, generator=generator) * torch.logspace(-6, 3, 1000)
    total = torch.zeros(1000, dtype=torch.float64)
    step = (values.view(torch.int32) & ~0xFFFF).view(torch.float32)
    above = ((values.view(torch.int32) & ~0xFFFF) + 0x10000).view(torch.float32)
    for _ in range(400):
        rounded = round_stochastically(values, generator)
        assert rounded.dtype == torch.bfloat16
        assert ((rounded.float() == step) | (rounded.float() == above)).all()
        total += rounded.double()
    error = (total / 400 - values.double()) / (above - step).double()
    assert error.abs().max() < 0.15  # six standard errors of a coin toss
    assert abs(float(error.mean())) < 0.005


def test_rounding_leaves_what_bf16_can_hold_and_what_is_no_float() -> None:
    generator = torch.Generator().manual_seed(0)
    exact = torch.tensor([0.0, -0.0, 1.0, -2.5, 3.0e38, 1e-40]).bfloat16().float()
    assert torch.equal(round_stochastically(exact, generator).float(), exact)
    integers = torch.arange(5)
    assert round_stochastically(integers, generator) is integers


@pytest.mark.engine
def test_a_bf16_copy_loads_as_the_trained_model_rounded_and_repeats(
    tiny: Path, tuned: Tuned, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        export_bfloat16(tuned.model, tmp_path / name, seed=3)
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one", dtype="auto")
    assert model.dtype == torch.bfloat16
    whole, rounded = load_weights(tuned.model), load_weights(tmp_path / "one")
    for name, value in whole.items():
        step = value.abs() * 2**-7 + 1e-30
        assert ((rounded[name].float() - value).abs() <= step).all()
    assert_kept(tmp_path / "one", tuned, tiny)


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_a_bf16_copy_declares_bf16_for_the_models_inside_it_too(key: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    config = {
        key: "float32",
        "text_config": {key: "float32", "hidden_size": 8, "inner": {key: "float32"}},
        "vision_config": {"hidden_size": 8},
        "rope_parameters": {"rope_theta": 1.0},
    }
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    export_bfloat16(tmp_path / "model", tmp_path / "copy", seed=0)
    assert json.loads((tmp_path / "copy" / "config.json").read_text()) == {
        "dtype": "bfloat16",
        "text_config": {"dtype": "bfloat16", "hidden_size": 8, "inner": {"dtype": "bfloat16"}},
        "vision_config": {"hidden_size": 8},
        "rope_parameters": {"rope_theta": 1.0},
    }
