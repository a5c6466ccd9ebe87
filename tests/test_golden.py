"""Fingerprints that runs already have on disk: a run is found again after the code moves."""

from pathlib import Path
from typing import Any

import pytest

from cherry_vllm.commands.inputs import model_use
from cherry_vllm.config import compose, plain, prompt_of
from cherry_vllm.engines.checkpoint import Checkpoint
from cherry_vllm.store.files import fingerprint
from cherry_vllm.workers.run import ModelRun


class _Rows:
    fingerprint = "0123456789abcdef"


GOLDEN = {
    (): "4cb2631d1a0b4ec5",
    ("engine=vllm", "prompt=vicuna", "max_length=1024"): "ac944540298f9198",
    ("engine=hf", "prompt=chat", "engine.dtype=float32"): "958626fe56a700bd",
    ("engine=vllm_eager", "prompt=wizardlm"): "4f183d6cc4dea281",
    ("engine=hf", "executor=ray", "executor.num_workers=2"): "4fbef8c2f4398cce",
}


@pytest.mark.parametrize(("overrides", "expected"), GOLDEN.items())
def test_inference(overrides: tuple[str, ...], expected: str) -> None:
    rows: Any = _Rows()
    checkpoint = Checkpoint(Path("model"), "fedcba9876543210", ())
    config = compose(*overrides)
    use = model_use(config, prompt_of(config))
    target = ModelRun(Path("run"), rows, checkpoint, use, keep_logprobs=True).target
    assert target.fingerprint == expected


RECIPES = {
    (): "2c0102be089747cc",
    ("train=cherry", "train.lora_rank=8"): "1e53302970507011",
    ("train.num_epochs=1", "train.save_steps=3"): "6fb6a0bbd0b5b25e",
}


@pytest.mark.parametrize(("overrides", "expected"), RECIPES.items())
def test_recipe(overrides: tuple[str, ...], expected: str) -> None:
    assert fingerprint(plain(compose(*overrides).train)) == expected
