"""A long run in small: memory that does not grow with the rows, and progress that stays true."""

from pathlib import Path

import pytest

from bench.score_million import measure, write_checkpoint, write_rows
from tests.conftest import Cli, start
from tests.runs import stamps, wait_for_shards

pytestmark = [pytest.mark.engine, pytest.mark.process, pytest.mark.slow]

ENGINE = ["engine=hf", "engine.batch_tokens=16384", "max_length=96", "shard_rows=200"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model"))


def test_memory_is_that_of_a_shard_whatever_the_number_of_rows(model: Path, tmp_path: Path) -> None:
    few, many = (tmp_path / name for name in ("few", "many"))
    few.mkdir()
    many.mkdir()
    small = measure(few, model, 2_000, ENGINE)
    large = measure(many, model, 20_000, [*ENGINE, "score.keep_logprobs=false"])
    assert large.driver_mib < small.driver_mib + 100  # mostly what Polars keeps; flat beyond
    assert large.worker_mib < small.worker_mib + 60
    assert 0 < large.outside < 1
    assert large.rows_per_s > 0
    assert large.bytes_per_row["logprobs"] < small.bytes_per_row["logprobs"] / 2
    assert large.bytes_per_row["logprobs"] < 40  # two sums, two counts, a number, and no list


def test_progress_is_true_after_a_kill(model: Path, cli: Cli, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.jsonl", 2_000)
    places = [f"data.path={data}", f"model.path={model}", f"run_dir={tmp_path / 'run'}"]
    command = ["score", *places, *ENGINE, "prompt=wizardlm"]
    process = start(*command)
    wait_for_shards(process, tmp_path / "run", 4)
    process.kill()
    process.communicate()
    num_done = 200 * len(stamps(tmp_path / "run"))
    assert 800 <= num_done < 2000
    done = cli(*command)
    assert done.returncode == 0, done.stderr
    shown = [line for line in done.stderr.splitlines() if "scoring:" in line]
    assert f"scoring: {num_done} of 2000 rows are done already" in shown[0]
    assert f"scoring: {2000 - num_done} rows in" in shown[-1]
