"""Every option of ``conf/`` composes, and nothing that is not in the schema does."""

from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException

from cherry_vllm.config import CONF, HfConfig, ServerConfig, VllmConfig, compose

GROUPS = (
    "data",
    "refusals",
    "prompt",
    "engine",
    "executor",
    "sample",
    "train",
    "select",
    "testset",
    "judge",
)
OPTIONS = {
    group: sorted(file.stem for file in (Path(CONF) / group).glob("*.yaml")) for group in GROUPS
}
# As few configurations as hold every option of every group.
MIXTURES = [
    [f"{group}={options[turn % len(options)]}" for group, options in OPTIONS.items()]
    for turn in range(max(map(len, OPTIONS.values())))
]


@pytest.mark.parametrize("mixture", MIXTURES, ids=" ".join)
def test_every_option_of_every_group_composes(mixture: list[str]) -> None:
    config = compose(*mixture)
    classes = {"engine=hf": HfConfig, "engine=vllm_server": ServerConfig}
    (engine,) = [word for word in mixture if word.startswith("engine=")]
    assert isinstance(config.engine, classes.get(engine, VllmConfig))


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
        "select=best",
        "engine.batch=3",
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
