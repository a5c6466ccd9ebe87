"""The user's own configuration folder: what it adds works, what is wrong in it costs one line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cherry_vllm.cli import main, stages
from cherry_vllm.config import Config

Refused = Callable[..., str]
GLOBAL = "# @package _global_\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a configuration folder C that extends two known groups."""
    monkeypatch.chdir(tmp_path)
    for name in ("data", "experiment", "team", "model"):
        (tmp_path / "C" / name).mkdir(parents=True)
    write("C/data/mine.yaml", "defaults: [alpaca, _self_]\nmax_rows: 7\n")
    write("C/experiment/mine.yaml", f"{GLOBAL}max_length: 77\n")
    write("C/team/ours.yaml", f"{GLOBAL}seed: 7\n")
    return tmp_path


def write(name: str, text: str) -> None:
    Path(name).write_text(text, encoding="utf-8")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[Config]:  # noqa: ARG001
    """The configurations that ``select`` is called with; it does nothing else."""
    configs: list[Config] = []
    monkeypatch.setitem(stages.STAGES, "select", lambda config, _job: configs.append(config))
    return configs


@pytest.mark.parametrize("name", ["a,b.jsonl", "a[1].jsonl"])
def test_a_folder_for_a_known_group_leaves_its_keys_as_they_are(
    seen: list[Config], name: str
) -> None:
    Path(name).touch()
    assert main(["select", "--config-dir", "C", f"data.path={name}", f"model.path={name}"]) == 0
    assert (seen[0].data.path, seen[0].model.path) == (name, name)


@pytest.mark.parametrize(
    "word", ["experiment=mine", "+experiment=mine", "data=mine", "+data=mine", "++data=mine"]
)
def test_an_option_of_a_known_group_may_be_the_users(seen: list[Config], word: str) -> None:
    assert main(["select", "--config-dir", "C", word]) == 0
    assert 77 in (seen[0].max_length, 70 + (seen[0].data.max_rows or 0))


def test_a_group_that_only_the_user_has_is_left_to_hydra(seen: list[Config]) -> None:
    assert main(["select", "--config-dir", "C", "+team=ours"]) == 0
    assert seen[0].seed == 7


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("~data", "~data: cannot be left out; give it another value"),
        ("data=null", "data=null: no such option; choose from alpaca, auto, messages, p"),
        ("data=yours", "data=yours: no such option; choose from alpaca, auto, messages, mine, p"),
        ("data=[mine,no]", "data/no.yaml: no such file; check the name"),
        ("data.pth=x", "data.pth: no such key; did you mean data.path?"),
    ],
)
def test_a_mistake_in_a_known_group_is_explained(
    folder: Path, refused: Refused, word: str, line: str
) -> None:
    assert folder
    assert refused("select", "--config-dir", "C", word).startswith(line)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("max_length: [77\n", "{path}, line 3: expected ',' or ']', but got '<stream end>' while"),
        ("select:\n\tcount: 3\n", "{path}, line 3: found character '\\t' that cannot start"),
        ("seed: 1\nseed: 2\n", "{path}, line 3: found duplicate key seed while constructing"),
        ("select:\n  fracton: 0.1\n", "experiment/x.yaml: select.fracton: no such key; did you m"),
        ("select:\n  fraction: a\n", "experiment/x.yaml: select.fraction=a: give a number above 0"),
        ("select:\n  strategy: best\n", "experiment/x.yaml: select.strategy: no such key; write s"),
        ("select: 3\n", "experiment/x.yaml: 3: a value where a group of settings belongs; write"),
        ("max_lenght: 3\n", "experiment/x.yaml: max_lenght: no such key; did you mean max_length"),
        ("max_length: 0\n", "max_length=0: give a whole number of at least 1"),
        ("run_dir: ${run_dri}\n", "run_dir=${run_dri}: no such key; did you mean run_dir?"),
        ("run_dir: ${run_dir\n", "run_dir: a ${...} in its value cannot be read; close its br"),
        (
            "defaults: [nosuch]\n",
            "experiment/x.yaml: defaults: experiment/nosuch.yaml: no such fil",
        ),
        ("defaults: [override /data: nil]\n", "data=nil: no such option; choose from alpaca, aut"),
        ("defaults: 3\n", "Invalid defaults list in 'experiment/x', defaults must be a list (got"),
    ],
)
def test_a_mistake_in_a_file_is_explained(
    folder: Path, refused: Refused, text: str, line: str
) -> None:
    path = folder / "C" / "experiment" / "x.yaml"
    write(str(path), GLOBAL + text)
    said = refused("select", "--config-dir", "C", "+experiment=x")
    assert said.startswith(line.replace("{path}", str(path)))


@pytest.mark.slow
def test_a_file_without_a_package_is_told_the_line_to_add(folder: Path, refused: Refused) -> None:
    for text in ("", "seed: 1\n", "- a\n"):
        (folder / "C" / "experiment" / "x.yaml").write_text(text)
        said = refused("select", "--config-dir", "C", "+experiment=x")
        assert said.startswith("experiment/x.yaml: add `# @package _global_` as its first line")


def test_a_file_that_is_not_utf_8_is_named(folder: Path, refused: Refused) -> None:
    (folder / "C" / "prompt").mkdir()
    (folder / "C" / "prompt" / "latin.yaml").write_bytes(b"chat: false\nmarker: caf\xe9\n")
    said = refused("select", "--config-dir", "C", "prompt=latin")
    assert said == "C/prompt/latin.yaml, line 2: not UTF-8; save the file as UTF-8"


def test_a_mistake_in_the_main_file_is_explained(folder: Path, refused: Refused) -> None:
    argv = ("select", "--config-dir", "C", "--config-name", "c")
    write("C/c.yaml", "defaults: [config, _self_]\nmax_length: [7\n")
    assert refused(*argv).startswith(f"{folder}/C/c.yaml, line 3: expected ',' or ']'")
    write("C/c.yaml", "defaults: [config, _self_]\nmax_lenght: 7\n")
    assert refused(*argv) == "c.yaml: max_lenght: no such key; did you mean max_length?"
