"""Completion: what a word may become, and the installed function asked as bash asks it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cherry_vllm.cli import main
from cherry_vllm.cli.completion import list_choices
from cherry_vllm.config import CONF

ENGINES = sorted(file.stem for file in (Path(CONF) / "engine").iterdir())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cherry-vllm sc", ["score "]),
        ("cherry-vllm se", ["select "]),
        ("cherry-vllm score max_l", ["max_length="]),
        ("cherry-vllm score seed=1 engi", ["engine.", "engine="]),
        ("cherry-vllm score engine=", [f"engine={name} " for name in ENGINES]),
        ("cherry-vllm select select.fr", ["select.fraction="]),
        ("cherry-vllm select select.order=", ["select.order=input ", "select.order=ifd "]),
        ("cherry-vllm score verbose=t", ["verbose=true "]),
        ("cherry-vllm score engine.enforce_eager=a", ["engine.enforce_eager=auto "]),
        ("cherry-vllm score +experiment=demo", ["+experiment=demo ", "+experiment=demo_score "]),
        ("cherry-vllm score --mul", ["--multirun "]),
        ("cherry-vllm score nothing", []),
        ("cherry-vllm  sc", ["score "]),
        ("cherry-vllm score  max_l", ["max_length="]),
        ("cherry-vllm score --cfg ", ["all ", "hydra ", "job "]),
        ("cherry-vllm score --cfg j", ["job "]),
        ("cherry-vllm score -m engine=hf,vllm_fused_", ["engine=hf,vllm_fused_eager "]),
        ("cherry-vllm score -m verbose=true,", ["verbose=true,false ", "verbose=true,true "]),
        ("cherry-vllm score ++max_l", ["++max_length="]),
        ("cherry-vllm score ++verbose=t", ["++verbose=true "]),
        ("cherry-vllm score ~judge.par", ["~judge.parameters="]),
    ],
)
def test_a_word_is_completed(line: str, expected: list[str]) -> None:
    assert list_choices(line) == expected


def test_no_internal_option_is_offered() -> None:
    for group in ("engine", "executor", "sample", "train"):
        assert not any("_schema" in word for word in list_choices(f"cherry-vllm score {group}="))


def test_every_key_can_be_reached_step_by_step() -> None:
    found = list_choices("cherry-vllm score ")
    assert {"data.", "select.", "max_length=", "engine=", "engine."} <= set(found)


def test_a_position_that_is_no_number_is_the_end_of_the_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMP_LINE", "cherry-vllm sc")
    for point in ("", "x", "-1"):
        monkeypatch.setenv("COMP_POINT", point)
        assert main(["-sc", "query=bash"]) == 0
        assert capsys.readouterr().out == "score \n"


@pytest.mark.process
@pytest.mark.parametrize(
    ("typed", "replies"),
    [
        ("cherry-vllm sco", ["score "]),
        ("cherry-vllm score max_le", ["max_length="]),
        ("cherry-vllm score select=ch", ["cherry "]),
        ("cherry-vllm score -m select=cherry,lo", ["cherry,longest ", "cherry,low_ifd "]),
        ("cherry-vllm score data.path=al", []),  # then readline completes names of files
    ],
)
def test_bash_completes_with_the_installed_function(
    typed: str, replies: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["-sc", "install=bash"]) == 0
    script = capsys.readouterr().out
    program = tmp_path / "cherry-vllm"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m cherry_vllm "$@"\n')
    program.chmod(0o755)
    asked = f"""{script}
COMP_LINE='{typed}' COMP_POINT={len(typed)}
COMP_WORDS=({typed.replace("=", " = ")}) COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
complete -p cherry-vllm > /dev/null || exit 1
_cherry_vllm
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", asked],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": path},
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == (replies or [""])
