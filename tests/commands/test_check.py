"""``check``: what it finds, writes and leaves alone, over fake engines; and once over real ones."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cherry_vllm.commands.check import check
from cherry_vllm.commands.job import Job
from cherry_vllm.commands.report import report
from cherry_vllm.commands.score import score
from cherry_vllm.config import compose
from cherry_vllm.engines.checkpoint import Checkpoint
from cherry_vllm.engines.settings import REFERENCE
from cherry_vllm.errors import DisagreementError, UserError
from cherry_vllm.store.files import read_json
from cherry_vllm.workers.work import Piece
from tests import fakes
from tests.conftest import Cli
from tests.fakes import FakeEngine
from tests.runs import leftovers, logprob_files, plain_answer, write_rows

NUM_ROWS, COUNT = 30, 10
LONGEST_MARKER = 20  # tokens, which are fewer than those of any prompt


class Wrong(FakeEngine):
    """Another model than the reference, in its own way."""

    def __init__(self, checkpoint: Checkpoint, error: float, prompts_cost: float) -> None:
        super().__init__(checkpoint)
        self._error, self._prompts_cost = error, prompts_cost

    def logprobs(self, spans: Sequence[Any], on_scored: Any) -> list[Any]:
        """See :class:`cherry_vllm.engines.Engine`."""
        found = super().logprobs(spans, on_scored)
        costs = [self._prompts_cost * (span.start > LONGEST_MARKER) for span in spans]
        return [
            floats * (1 + cost + self._error * (place % 3))
            for place, (floats, cost) in enumerate(zip(found, costs, strict=True))
        ]


class Checking:
    """Checks of a fake engine on the same rows and model."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run_dir, self.error, self.prompts_cost = folder / "run", 0.0, 0.0
        data = write_rows(
            folder / "rows.jsonl", [plain_answer(n) for n in range(NUM_ROWS)], with_talks=True
        )
        model = fakes.write_checkpoint(folder / "model")
        self.executor = fakes.install(monkeypatch)
        monkeypatch.setattr("cherry_vllm.scoring.trial.build_engine", self.build)
        self.words = [f"run_dir={self.run_dir}", "shard_rows=7", "max_length=96", "prompt=vicuna"]
        self.words += [f"data.path={data}", f"model.path={model}", "engine=hf"]
        self.words += ["engine.dtype=float32", "engine.batch_tokens=512", f"check.count={COUNT}"]

    def build(self, engine: Any, checkpoint: Checkpoint, **_: Any) -> FakeEngine:
        error = 0.0 if engine == REFERENCE else self.error
        return Wrong(checkpoint, error, self.prompts_cost)

    def run(self, *more: str, stage: Any = check) -> dict[str, Any]:
        stage(compose(*self.words, *more), Job(self.run_dir, is_sweep=False))
        return read_json(self.run_dir / "check.json")


@pytest.fixture
def checking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checking:
    return Checking(tmp_path, monkeypatch)


def test_an_engine_in_order_is_proven_and_the_whole_data_set_foretold(
    checking: Checking, capsys: pytest.CaptureFixture[str]
) -> None:
    found = checking.run()
    printed = capsys.readouterr().out
    assert found["faults"] == []
    assert found["agreement"]["num_compared"] == COUNT
    assert found["agreement"]["differences"]["ifd"]["largest"] == 0
    assert len(set(found["rows"])) == COUNT
    assert [row * COUNT // NUM_ROWS for row in found["rows"]] == list(range(COUNT))  # spread
    assert found["forecast"]["num_rows"] == NUM_ROWS
    assert found["forecast"]["num_tokens"] > found["pace"]["num_tokens"] > 0
    assert found["forecast"]["num_bytes"] > 0
    assert found["bounds"]["min_spearman"] == 0.999
    assert "within the bounds" in printed
    assert "30 rows, about" in printed
    assert re.search(r"\n  \| .*ASSISTANT:\s*\n  > \s*It is", printed)  # where the answer begins


def test_an_engine_that_is_wrong_ends_with_code_1_and_says_where(
    checking: Checking, capsys: pytest.CaptureFixture[str]
) -> None:
    checking.error = 0.05
    with pytest.raises(DisagreementError, match="99th percentile of the IFD") as wrong:
        checking.run()
    assert wrong.value.exit_code == 1
    found = read_json(checking.run_dir / "check.json")
    assert found["faults"]
    assert all(fault in str(wrong.value) for fault in found["faults"])
    assert "result" in capsys.readouterr().out
    wider = ("check.max_ifd_difference=9", "check.max_logprob_difference=9")
    checking.run(*wider, "check.min_spearman=-1")


def test_a_prompt_that_makes_answers_harder_is_warned_of_and_no_fault_of_the_engine(
    checking: Checking, caplog: pytest.LogCaptureFixture
) -> None:
    checking.prompts_cost = 3
    found = checking.run()
    assert found["faults"] == []
    (warning,) = found["warnings"]
    assert "have an IFD above 1: the prompt makes answers harder" in warning
    assert warning in caplog.messages


@pytest.mark.slow
def test_a_check_touches_nothing_of_a_run_and_the_run_nothing_of_it(checking: Checking) -> None:
    def stop(_slot: int, piece: Piece) -> None:
        if piece.index == 2:
            raise KeyboardInterrupt

    checking.executor.on_piece = stop
    with pytest.raises(KeyboardInterrupt):
        checking.run(stage=score)
    checking.executor.on_piece = lambda _slot, _piece: None
    before = logprob_files(checking.run_dir)
    first = checking.run()
    assert logprob_files(checking.run_dir) == before
    assert not (checking.run_dir / "scores.parquet").exists()
    assert not (checking.run_dir / ".check").exists()
    assert leftovers(checking.run_dir) == []
    second = checking.run("seed=1")  # measured again, on other rows
    assert second["rows"] != first["rows"]
    checking.run(stage=score)
    (folder,) = (checking.run_dir / "logprobs").iterdir()
    assert folder.name == first["scoring"] == second["scoring"]


@pytest.mark.slow
def test_score_says_at_its_start_what_the_check_measured(
    checking: Checking, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        checking.run()
        checking.run("max_length=64", stage=score)
        assert "as `check` measured" not in caplog.text
        checking.run(stage=score)
        checking.run(stage=score)
    assert caplog.text.count("as `check` measured") == 1


def test_another_file_of_that_name_is_kept(checking: Checking) -> None:
    checking.run_dir.mkdir()
    (checking.run_dir / "check.json").write_text("{}")
    with pytest.raises(UserError, match=r"check\.json: exists and is not what cherry-vllm wrote"):
        checking.run()
    (checking.run_dir / "check.json").unlink()
    (checking.run_dir / ".check").mkdir()
    (checking.run_dir / ".check" / "mine").write_text("mine")
    with pytest.raises(UserError, match=r"\.check: not from cherry-vllm"):
        checking.run()


def test_what_a_killed_check_left_is_gone_after_the_next(checking: Checking) -> None:
    def stop(_slot: int, _piece: Piece) -> None:
        raise KeyboardInterrupt

    checking.executor.on_piece = stop
    with pytest.raises(KeyboardInterrupt):
        checking.run()
    assert (checking.run_dir / ".check" / "engine").is_dir()
    checking.executor.on_piece = lambda _slot, _piece: None
    checking.run()
    assert not (checking.run_dir / ".check").exists()


def test_workers_share_the_rows_and_make_no_difference(checking: Checking) -> None:
    one = checking.run()
    checking.executor.num_workers = 2
    two = checking.run("executor.num_workers=2")
    assert two["pace"]["num_workers"] == 2
    assert two["agreement"] == one["agreement"]


def test_rows_that_nobody_can_score_are_a_mistake(checking: Checking) -> None:
    with pytest.raises(UserError, match=r"none of the 10 rows .*prompt_too_long 10") as mistake:
        checking.run("max_length=3")
    assert mistake.value.exit_code == 2


def test_a_check_is_not_shared(checking: Checking) -> None:
    with pytest.raises(UserError, match=r"share\.count=2: a check is not shared"):
        checking.run("share.count=2")


def test_servers_are_compared_with_the_weights_or_one_line_asks_for_them(
    checking: Checking, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cherry_vllm.engines import served
    from cherry_vllm.engines.checkpoint import read_checkpoint

    monkeypatch.setattr(served, "find_served", lambda path, *_, **__: read_checkpoint(Path(path)))
    words = [word for word in checking.words if not word.startswith("engine")]
    checking.words = [*words, "engine=vllm_server"]
    assert checking.run()["engine"]["name"] == "vllm_server"
    (model,) = checking.run_dir.parent.glob("model/*.safetensors")
    model.unlink()
    with pytest.raises(UserError, match="check: compares the servers with transformers, which"):
        checking.run()


@pytest.mark.slow
def test_the_report_shows_the_check_and_whether_it_is_of_the_scores(checking: Checking) -> None:
    checking.run()
    checking.run(stage=score)
    page = checking.run_dir / "report.html"
    checking.run(stage=report)
    assert "Check of the engine" in page.read_text(encoding="utf-8")
    assert "not those of the scores" not in page.read_text(encoding="utf-8")
    checking.run("score.keep_logprobs=false")
    checking.run(stage=report)
    assert "not those of the scores" in page.read_text(encoding="utf-8")


# --- the real thing ------------------------------------------------------------------------------

# On the path of the test's processes alone: vLLM's engine gets a head that is too large by half.
SITE = """
from functools import wraps
from cherry_vllm.engines import vllm as ours

load = ours.load_llm

@wraps(load)
def wrong(*arguments, **keywords):
    from vllm.model_executor.models.llama import LlamaForCausalLM

    load_weights = LlamaForCausalLM.load_weights

    def change(self, weights):
        named = ((name, 1.5 * it if name == "lm_head.weight" else it) for name, it in weights)
        return load_weights(self, named)

    LlamaForCausalLM.load_weights = change
    return load(*arguments, **keywords)

ours.load_llm = wrong
"""


@pytest.mark.engine
@pytest.mark.process
def test_a_real_engine_with_wrong_weights_ends_with_code_1(
    data: Path, tiny_for_vllm: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site'}:{os.environ.get('PYTHONPATH', '')}")
    words = [f"data.path={data}", f"model.path={tiny_for_vllm}", f"run_dir={tmp_path / 'run'}"]
    done = cli("check", *words, "prompt=vicuna", "max_length=96", "check.count=24")
    assert done.returncode == 1, done.stderr
    (line,) = [it for it in done.stderr.splitlines() if it.startswith("cherry-vllm: ")]
    assert "check.json: the engine does not agree with transformers in fp32: " in line
    found = json.loads((tmp_path / "run" / "check.json").read_text())
    assert found["engine"]["enforce_eager"] is True  # so few tokens are not worth compiling
    assert found["agreement"]["num_compared"] == 24
