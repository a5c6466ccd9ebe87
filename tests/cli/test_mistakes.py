"""A user's mistake costs one line and exit code 2, whatever it is."""

import io
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cherry_vllm.cli import main, stages
from cherry_vllm.config import CONF, Config
from cherry_vllm.errors import UserError
from tests.conftest import ROWS

DATA = f"data.path={ROWS}"
Refused = Callable[..., str]


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["scores"], "scores: no such stage; choose from pipeline, embed,"),
        (["score", "alpaca.json"], "alpaca.json: give key=value, as in data.path=alpaca.json"),
        (["score", "max_lenght=3"], "max_lenght: no such key; did you mean max_length?"),
        (["score", "+max_lenght=3"], "+max_lenght: no such key; did you mean max_length?"),
        (["score", "++select.fractoin=1"], "++select.fractoin: no such key; did you mean select.f"),
        (["train", "learning_rate=1"], "learning_rate: no such key; did you mean pre_experience."),
        (["score", "+foo=3"], "+foo: no such key; `cherry-vllm STAGE --cfg job` prints all keys"),
        (["score", "~max_length"], "~max_length: cannot be left out; give it another value"),
        (["score", "~sample"], "~sample: cannot be left out"),
        (["score", "~foo"], "~foo: no such key"),
        (["score", "engine=tpu"], "engine=tpu: no such option; choose from hf, vllm"),
        (["score", "engine=hf_schema"], "engine=hf_schema: no such option; choose from hf, vllm"),
        (["score", "-m", "engine=hf,vllm_schema"], "engine=vllm_schema: no such option"),
        (["score", "sample=null"], "sample=null: no such option; choose from difficulty"),
        (["score", "engine.batch_tokens=3"], "engine.batch_tokens: not a setting of the chosen en"),
        (["score", "+experiment=mine"], "experiment=mine: no such option; choose from alpaca_7b"),
        (["score", "censure=wizardlm"], "censure: has a new name; write refusals=wizardlm"),
        (["score", "censure.phrases=[a]"], "censure.phrases: has a new name; write refusals.phras"),
        (["score", "max_length=long"], "max_length=long: give a whole number of at least 1"),
        (["score", "max_length=true"], "max_length=true: give a whole number of at least 1"),
        (["score", "max_length=0"], "max_length=0: give a whole number of at least 1"),
        (["score", "seed=-1"], "seed=-1: give a whole number of at least 0"),
        (["score", "executor.num_workers=0"], "executor.num_workers=0: give a whole number of at"),
        (["sample", "sample.n_init=0"], "sample.n_init=0: give a whole number of at least 1"),
        (["score", "run_dir="], "run_dir=: give a path that is not empty"),
        (["select", "select=best"], "select=best: no such option; choose from balanced, cherry, "),
        (
            ["select", "select.strategy=best"],
            "select.strategy: no longer a setting; write select=be",
        ),
        (["select", "select.pool=all"], "select.pool=all: choose from usable, scored"),
        (["select", "select.quota=some"], "select.quota=some: give proportional, equal, or a mapp"),
        (
            ["select", "select.quota={a: -1}"],
            "select.quota={'a': -1}: give proportional, equal, or",
        ),
        (["select", "select.where="], "select.where=: give a SQL expression"),
        (
            ["select", "select.strata=[]", "select.bins=1"],
            "select.bins=1: give a whole number of at",
        ),
        (["select", "select.fraction=0,1"], "select.fraction=0,1: several values; add -m to run t"),
        (["select", "engine=hf,vllm"], "engine=hf,vllm: several values; add -m to run them all"),
        (["select", "engine=glob(*)"], "engine=glob(*): several values; add -m to run them all"),
        (["select", "seed=range(1,3)"], "seed=range(1,3): several values; add -m to run them all"),
        (["select", "run_dir=choice(a,b)"], "run_dir=choice(a,b): several values; add -m to run"),
        (["select", "run_dir=a,b"], "run_dir=a,b: for one text write \"run_dir='a,b'\", for a sw"),
        (["select", "-m", "seed=glob(*)"], "seed=glob(*): glob() finds options of groups; list"),
        (["select", "-m", "engine=glob(x*)"], "no job to run: a glob() or a range() finds no v"),
        (["select", "-m", "seed=range(1,1)"], "no job to run: a glob() or a range() finds no v"),
        (["select", "-m", "seed=1,2", "select.fraction=1,7"], "select.fraction=7.0: give a numbe"),
        (["select", "verbose=maybe"], "verbose=maybe: give true or false"),
        (["select", "engine.dtype=null"], "engine.dtype=null: choose from auto, float32, "),
        (["select", "run_dir=${run_dri}"], "run_dir=${run_dri}: no such key; did you mean run_d"),
        (["select", "data={a:1}"], "data={a:1}: no such option; choose from alpaca, auto, mess"),
        (["select", "data=1"], "data=1: no such option; choose from alpaca, auto, messages"),
        (["select", "engine="], "engine=: no such option; choose from hf, vllm"),
        (["select", "select.fraction=(1)"], "select.fraction=(1): Hydra cannot read this value"),
        (["score"], "data.path: not given; add data.path=... (a file, a glob or hf://...)"),
        (["score", DATA], "model.path: not given; add model.path=... (a model folder or a hub id)"),
        (["score", "data.path=/no/data.json"], "/no/data.json: No such file or directory; check "),
        (
            ["score", "data.path=https://x/y.json", "model.path=m"],
            "https://x/y.json: URLs are not read; download the file, or give an hf:// path",
        ),
        (["score", DATA, "model.path=/no/model"], "/no/model: no such folder; check model.path"),
        (["select", "run_dir=/no/run"], "/no/run/scores.parquet: no such file; run `cherry-vllm "),
        (["score", "--nope"], "--nope: no such flag; see cherry-vllm --hydra-help"),
        (["--cfg", "job"], "--cfg: put the stage first, as in cherry-vllm score --cfg"),
        (["score", "--cfg", "all", "-m"], "--multirun and --cfg: give one of them"),
        (["score", "--cfg", "nothing"], "argument --cfg/-c: invalid choice: 'nothing'"),
        (["score", "--cfg", "job", "-p", "no"], "--package no: no such part; see --cfg job"),
        (["score", "--resolve"], "--resolve: only works with --cfg job"),
        (["score", "--config-dir", "/no/dir"], "--config-dir /no/dir: no such folder"),
        (["score", "--config-name", "mine"], "--config-name mine: no such file; give --config-dir"),
        (["score", "--experimental-rerun", "x"], "--experimental-rerun: not supported"),
        (["score", "hydra.run.dir=x"], "hydra.run.dir=x: not used; a run's files are in run_dir"),
        (["judge", "judge.max_wait_s=9"], "judge.max_wait_s=9: no longer a setting"),
        (["score", "hydra.job.chdir=true"], "hydra.job.chdir=true: not supported"),
        (["score", "hydra.nothing=1"], "hydra.nothing: no such key; --hydra-help lists Hydra's"),
        (["score", "-m", "hydra/launcher=no"], "hydra/launcher=no: no such option; choose from "),
        (["-sc", "install=fish"], "-sc install=fish: give install=bash or uninstall=bash"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_costs_one_line_that_says_what_to_do(
    refused: Refused, argv: list[str], line: str
) -> None:
    assert refused(*argv).startswith(line)


def test_following_the_advice_about_an_unknown_key_is_never_a_traceback(refused: Refused) -> None:
    for prefix in ("", "+", "++", "~"):
        assert "did you mean max_length?" in refused("score", f"{prefix}max_lenght=3")


def test_a_file_name_that_is_not_utf_8_costs_one_line(refused: Refused) -> None:
    assert "not UTF-8" in refused("score", os.fsdecode(b"data.path=caf\xe9.json"))


@pytest.mark.slow
def test_every_failing_job_of_a_sweep_is_told_and_each_mistake_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folders = [str(tmp_path / name) for name in ("a", "b")]
    jobs = ",".join([*folders, folders[0]])
    assert main(["select", "-m", f"run_dir={jobs}", f"hydra.sweep.dir={tmp_path}"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in lines] == [f"{name}/scores.parquet" for name in folders]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configurations that ``select`` is called with; it does nothing else."""
    configs: list[Config] = []
    monkeypatch.setitem(stages.STAGES, "select", lambda config, _job: configs.append(config))
    return configs


@pytest.mark.slow
def test_what_a_hydra_user_types_works(seen: list[Config], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("defaults: [alpaca, _self_]\nmax_rows: 7\n")
    (tmp_path / "mine.yaml").write_text("defaults: [config, _self_]\nmax_length: 77\n")
    folder = ("--config-dir", str(tmp_path))
    for argv in (
        ["+max_length=77"],
        ["experiment=demo", "++max_length=77"],
        ["+experiment=demo", "max_length=77"],
        ["max_length=77", *folder, "data=mine"],
        [*folder, "-cn", "mine"],
        ["~judge.parameters.max_tokens", "+judge.parameters.seed=1", "max_length=77"],
        ["train@pre_experience=cherry", "hydra.verbose=true", "max_length=77"],
    ):
        assert main(["select", *argv]) == 0, argv
        assert seen[-1].max_length == 77, argv


@pytest.mark.slow
def test_flags_may_stand_anywhere_and_a_sweep_runs_every_job(
    seen: list[Config], tmp_path: Path
) -> None:
    sweep = ("seed=1", f"hydra.sweep.dir={tmp_path}")
    assert main(["select", "max_length=3,4", *sweep, "--multirun"]) == 0
    assert main(["select", "hydra.mode=MULTIRUN", *sweep, "max_length=5"]) == 0
    assert [(job.seed, job.max_length) for job in seen] == [(1, 3), (1, 4), (1, 5)]
    assert (tmp_path / "max_length=3").is_dir()


@pytest.mark.slow
def test_no_job_of_a_sweep_starts_before_all_are_checked(
    seen: list[Config], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    argv = ["select", "-m", f"run_dir={tmp_path / 'run'}"]
    assert main([*argv, "select.fraction=0.1,7"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "cherry-vllm: select.fraction=7.0: give a number above 0 and up to 1"
    assert seen == []
    assert list(tmp_path.iterdir()) == []
    number = "scores_dir=${hydra:job.num}"  # known once a job starts
    assert main([*argv, number]) == 0
    assert [config.scores_dir for config in seen] == ["0"]


def test_the_configuration_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, words in {
        ("--cfg", "job", "prompt=vicuna", "+experiment=demo"): "marker: 'ASSISTANT:'",
        ("prompt=vicuna", "--cfg", "job", "--package", "prompt"): "# @package prompt",
        ("--cfg", "job", "--resolve"): "scores_dir: runs/cherry",
        ("--info", "defaults"): "engine/vllm_fused",
        ("--version",): "0.",
    }.items():
        assert main(["score", *argv]) == 0
        assert words in capsys.readouterr().out


def test_a_call_leaves_the_process_as_it_was(seen: list[Config]) -> None:
    def state() -> list[object]:
        root = logging.getLogger()
        return [dict(os.environ), sys.argv[:], root.level, root.handlers[:], Path.cwd()]

    before = state()
    for _ in range(2):
        assert main(["select", "seed=3"]) == 0
        assert main(["select", "nothing=3"]) == 2
    assert state() == before
    assert len(seen) == 2


def test_an_internal_error_is_one_line_and_its_traceback_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(_config: object, _job: object) -> None:
        raise ZeroDivisionError("a fault\x1b[2J")

    monkeypatch.setitem(stages.STAGES, "select", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main(["select"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    (file,) = tmp_path.iterdir()
    assert line.startswith("cherry-vllm: internal error (please report it): ZeroDivisionError: a f")
    assert line.endswith(str(file))
    assert "\x1b" not in line
    assert "raise ZeroDivisionError" in file.read_text()
    assert main(["select", "++verbose=True"]) == 1
    assert "raise ZeroDivisionError" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("x: wrong; fix it"), "x: wrong; fix it"),
        (OSError(28, "No space left on device"), "No space left on device; check run_dir, the ot"),
        (OSError(5, "Input/output error", "/a"), "/a: Input/output error; check that place and it"),
        (OSError(37, "No locks available", "/a"), "/a: No locks available; check that place and i"),
        (MemoryError(), "out of memory; free some, or lower shard_rows"),
    ],
)
def test_a_fault_of_the_machine_costs_one_line(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, error: Exception, line: str
) -> None:
    def fail(_config: object, _job: object) -> None:
        raise error

    monkeypatch.setitem(stages.STAGES, "select", fail)
    assert refused("select").startswith(line)


class Unwritable(io.StringIO):
    """An output that cannot be written to, as a pipe whose reader left or a full disk."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def flush(self) -> None:
        raise self.error

    def write(self, _text: str) -> int:
        raise self.error


@pytest.mark.slow
@pytest.mark.parametrize("sweep", [[], ["-m", "seed=1"]], ids=["job", "sweep"])
def test_an_output_that_takes_no_more_is_named(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    sweep: list[str],
) -> None:
    monkeypatch.setitem(stages.STAGES, "select", lambda _config, _job: print("rows"))
    line = "cherry-vllm: stdout: No space left on device; check where the output goes\n"
    for error, code, said in (
        (BrokenPipeError(32, "Broken pipe"), 141, ""),
        (OSError(28, "No space left on device"), 2, line),
    ):
        monkeypatch.setattr(sys, "stdout", Unwritable(error))
        assert main(["select", f"run_dir={tmp_path}", *sweep]) == code
        assert capsys.readouterr().err == said


def test_a_closed_output_is_no_fault(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["--help"]) == 0
    assert main(["scores"]) == 2
    assert sys.stdout is None
    assert "scores: no such stage" in capsys.readouterr().err


def test_no_option_of_conf_is_an_internal_one() -> None:
    assert not list(Path(CONF).rglob("*_schema.yaml"))


@pytest.mark.slow
def test_a_sweep_replaces_no_file_of_the_users_and_stays_in_its_folder(
    refused: Refused, tmp_path: Path
) -> None:
    own = tmp_path / "multirun.yaml"
    own.write_text("mine: 1\n")
    assert "multirun.yaml: exists and is not from a sweep" in refused(
        "select", "-m", "select.count=1,2", f"run_dir={tmp_path}"
    )
    assert own.read_text() == "mine: 1\n"
    own.unlink()
    values = ("model.path=../../../../up,../../../../down", f"run_dir={tmp_path / 'run'}")
    for _ in range(2):  # the second time, Hydra's own file is there
        assert main(["select", "-m", *values]) == 2
    assert (tmp_path / "run" / "multirun.yaml").is_file()
