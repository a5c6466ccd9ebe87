"""Help fits a screen, and names keys that exist."""

import pytest

from cherry_vllm.cli import main
from cherry_vllm.cli.help import STAGES
from cherry_vllm.cli.keys import known_keys, list_groups
from cherry_vllm.cli.stages import STAGES as RUN
from cherry_vllm.cli.words import name_values, read_words


@pytest.mark.parametrize("stage", [None, *STAGES])
def test_help_fits_a_screen_and_says_where_the_rest_is(
    stage: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    for flag in ("-h", "--help"):
        assert main([flag] if stage is None else [stage, "seed=1", flag]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) <= 24
        assert max(map(len, lines)) <= 80
        for words in ("example:", "docs/usage.md", "exit codes: 0", "cherry-vllm "):
            assert any(words in line for line in lines)
        assert not any("_schema" in line for line in lines)


def test_the_flags_have_a_text_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--hydra-help"], ["score", "--hydra-help", "run_dir=x"]):
        assert main(argv) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) <= 24
        assert max(map(len, lines)) <= 80
        for flag in ("-m", "--cfg", "--info", "--config-dir", "--config-name", "-p", "--resolve"):
            assert any(flag in line for line in lines)


def test_without_a_stage_the_help_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: cherry-vllm STAGE" in capsys.readouterr().out


def test_every_stage_has_help_and_every_key_in_it_exists() -> None:
    assert list(STAGES) == list(RUN)
    for stage in STAGES.values():
        for key in stage.keys:
            assert key.lstrip("+") in {*known_keys(), *list_groups()}
        program, name, *words = stage.example.split()
        assert (program, STAGES[name]) == ("cherry-vllm", stage)
        words = name_values(words, stage.words)
        assert read_words(words, is_sweep=False) == words
