"""The settings of a training: what names a result, and the warm-up."""

from dataclasses import asdict, replace

import pytest

from cherry_vllm.commands.train import training_settings
from cherry_vllm.config import compose, prompt_of
from cherry_vllm.store.hashes import fingerprint
from cherry_vllm.training.run import Training
from tests.training.support import RECIPE

# Of results that are already on disk: they are found again after the code moves.
GOLDEN = {
    (): "dd4489812f1ab93c",
    ("train.lora_rank=8",): "60903cb63e9e99b1",
    ("train.num_epochs=1", "train.save_steps=3", "train.report_to=[wandb]"): "0966f43005ba82ec",
}


def settings(*overrides: str) -> Training:
    config = compose(*overrides)
    return training_settings(config, config.train, prompt_of(config))


@pytest.mark.parametrize(("overrides", "expected"), GOLDEN.items())
def test_a_recipe_is_named_as_before(overrides: tuple[str, ...], expected: str) -> None:
    assert fingerprint(asdict(settings(*overrides).recipe)) == expected


def test_settings_of_the_machine_name_nothing() -> None:
    other = settings("train.micro_batch_tokens=99", "train.fsdp=true", "train.report_to=[wandb]")
    assert settings().settings("rows", "model") == other.settings("rows", "model")


@pytest.mark.parametrize(
    "override",
    [
        "train.num_epochs=2",
        "train.lora_dropout=0.5",
        "train.scorer_dtype=bfloat16",
        "prompt=vicuna",
        "max_length=99",
        "seed=1",
        "model.trust_remote_code=true",
    ],
)
def test_what_decides_the_weights_names_the_result(override: str) -> None:
    assert settings().settings("rows", "model") != settings(override).settings("rows", "model")


@pytest.mark.parametrize(
    ("ratio", "num_steps", "expected"),
    [(0.03, 8, 1), (0.03, 100, 3), (0.0, 8, 0), (0.03, 1, 0), (0.5, 1, 0), (1.0, 4, 3)],
)
def test_warm_up_is_rounded_up_and_leaves_a_step_that_trains(
    ratio: float, num_steps: int, expected: int
) -> None:
    assert replace(RECIPE, warmup_ratio=ratio).warmup_steps(num_steps) == expected
