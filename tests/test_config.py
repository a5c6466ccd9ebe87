"""Every option of ``conf/`` composes, and nothing that is not in the schema does."""

from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException

from cherry_vllm.config import CONF, HfConfig, VllmConfig, compose

GROUPS = (
    "data",
    "refusals",
    "prompt",
    "engine",
    "executor",
    "sample",
    "train",
    "testset",
    "judge",
)
OPTIONS = [
    (group, file.stem) for group in GROUPS for file in sorted((Path(CONF) / group).glob("*.yaml"))
]


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_of_every_group_composes(group: str, option: str) -> None:
    config = compose(f"{group}={option}")
    if group == "engine":
        assert isinstance(config.engine, HfConfig if option == "hf" else VllmConfig)


def test_no_folder_of_conf_is_left_out_of_these_tests() -> None:
    folders = {path.name for path in Path(CONF).iterdir() if path.is_dir()}
    assert folders == {*GROUPS, "experiment", "hydra"}


@pytest.mark.parametrize("file", sorted((Path(CONF) / "experiment").glob("*.yaml")))
def test_every_experiment_composes_and_yields_to_the_command_line(file: Path) -> None:
    config = compose(f"+experiment={file.stem}", "engine=hf", "max_length=77", "run_dir=x")
    assert isinstance(config.engine, HfConfig)
    assert (config.max_length, config.run_dir) == (77, "x")


@pytest.mark.parametrize(
    "override",
    [
        "max_lenght=3",
        "max_length=long",
        "select.strategy=best",
        "engine=tpu",
        "engine.batch=3",
        "judge.api_key=x",
    ],
)
def test_unknown_keys_and_wrong_types_are_refused(override: str) -> None:
    with pytest.raises(ConfigCompositionException):
        compose(override)


def test_refusal_phrases_are_data_and_minimal() -> None:
    phrases = compose("refusals=wizardlm").refusals.phrases
    assert len(phrases) == len(set(phrases)) > 50
    held = [(a, b) for a in phrases for b in phrases if a != b and a in b]
    assert held == []
