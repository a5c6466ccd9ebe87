"""Fingerprints that runs already have on disk: a run is found again after the code moves."""

from pathlib import Path
from typing import Any

import pytest

from cherry_vllm.commands.inputs import model_use
from cherry_vllm.config import arguments_of, compose, prompt_of
from cherry_vllm.engines.checkpoint import Checkpoint
from cherry_vllm.experience import embeddings as experience
from cherry_vllm.store.hashes import fingerprint
from cherry_vllm.workers.run import ModelRun


class _Rows:
    fingerprint = "0123456789abcdef"


# Of schema 2, taken before the code moved, and of schema 4. (Vicuna, which got a {system} and a
# text for later turns, is another prompt since.)
GOLDEN = {
    (): ("4cb2631d1a0b4ec5", "1e83a968eb1b80fe"),
    ("engine.enforce_eager=false",): ("4cb2631d1a0b4ec5", "1e83a968eb1b80fe"),
    ("engine=vllm", "max_length=1024"): ("3e774fadd32d17cc", "ce986001740dd01a"),
    ("engine=hf", "prompt=chat", "engine.dtype=float32"): ("958626fe56a700bd", "708fbedbacd4232d"),
    ("engine=vllm_fused_eager", "prompt=wizardlm"): ("4f183d6cc4dea281", "8be78ab8f4b21bf0"),
    ("engine=hf", "executor=ray", "executor.num_workers=2"): (
        "4fbef8c2f4398cce",
        "c3816e07f08027b8",
    ),
}


def inference_settings(*overrides: str) -> dict[str, Any]:
    rows: Any = _Rows()
    checkpoint = Checkpoint(Path("model"), "fedcba9876543210", ())
    config = compose(*overrides)
    use = model_use(config, prompt_of(config))
    return ModelRun(Path("run"), rows, checkpoint, use, keep_logprobs=True).target.settings


@pytest.mark.parametrize(("overrides", "expected"), GOLDEN.items())
def test_inference(overrides: tuple[str, ...], expected: tuple[str, str]) -> None:
    settings = inference_settings(*overrides)
    before, now = expected
    assert fingerprint(settings) == now
    # Without what schema 3 added, the settings read as they always have.
    assert settings.pop("trust_remote_code") is False
    assert fingerprint({**settings, "schema_version": 2}) == before


def test_embeddings_without_perplexities_are_not_found_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ModelRun, "run", lambda run, *_, **__: run.target)
    rows: Any = _Rows()
    checkpoint = Checkpoint(Path("model"), "fedcba9876543210", ())
    config = compose("engine.enforce_eager=false")
    use = model_use(config, prompt_of(config))
    settings = experience.embed(Path("run"), rows, checkpoint, use).settings
    assert fingerprint(settings) == "0dfe3730e26ff23e"
    assert settings.pop("perplexities") is True
    assert fingerprint(settings) == "e466093680ba3257"


def test_remote_code_makes_other_scores() -> None:
    with_code, without = (
        inference_settings(f"model.trust_remote_code={value}") for value in ("true", "false")
    )
    assert fingerprint(with_code) != fingerprint(without)


RECIPES = {
    (): "2c0102be089747cc",
    ("train=cherry", "train.lora_rank=8"): "1e53302970507011",
    ("train.num_epochs=1", "train.save_steps=3"): "6fb6a0bbd0b5b25e",
}


@pytest.mark.parametrize(("overrides", "expected"), RECIPES.items())
def test_recipe(overrides: tuple[str, ...], expected: str) -> None:
    assert fingerprint(arguments_of(compose(*overrides).train)) == expected
