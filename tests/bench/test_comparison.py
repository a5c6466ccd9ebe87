"""The comparison of strategies: every number belongs to its own data, model and settings."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import comparison
from bench.comparison import Comparison, evaluate, split
from cherry_vllm.engines.checkpoint import read_checkpoint
from tests import fakes


def write(path: Path, questions: list[str]) -> Path:
    records = [{"instruction": text, "input": "", "output": "answer"} for text in questions]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def questions(records: list[dict[str, Any]]) -> list[str]:
    return [record["instruction"] for record in records]


def test_held_out_rows_share_no_question_with_the_pool(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "data.jsonl", ["a", "b", " a ", "c", "b", "d", "e"])
    other = write(tmp_path / "other.jsonl", ["b", "x", "y"])
    pool, sets = split(data, other, rows=2, held_out=2)
    assert questions(pool) == ["a", "b"]
    assert questions(sets["held-out"]) == ["c", "d"]
    assert questions(sets["other"]) == ["x", "y"]
    shown = capsys.readouterr().out
    assert "held-out: 2 rows; 2 left out because the pool has their question" in shown
    assert "other: 2 rows; 1 left out" in shown
    with pytest.raises(SystemExit, match=r"held-out: 3 rows are left for --held-out 4"):
        split(data, other, rows=2, held_out=4)


@pytest.fixture
def comparison_of_one(tmp_path: Path) -> Comparison:
    base = read_checkpoint(fakes.write_checkpoint(tmp_path / "models" / "base"))
    sets = {"held-out": [{"instruction": "a"}], "other": [{"instruction": "b"}]}
    return Comparison([{"instruction": "c"}], sets, base, fraction=0.1, overrides=["seed=0"])


def test_another_fraction_model_or_setting_is_another_comparison(
    comparison_of_one: Comparison, tmp_path: Path
) -> None:
    other = read_checkpoint(fakes.write_checkpoint(tmp_path / "other", b"other"))
    changed = [
        replace(comparison_of_one, fraction=0.2),
        replace(comparison_of_one, base=other),
        replace(comparison_of_one, overrides=["max_length=99"]),
        replace(comparison_of_one, pool=[]),
    ]
    assert len({each.fingerprint for each in (comparison_of_one, *changed)}) == 5


def test_no_loss_of_another_model_prompt_or_set_is_reused(
    comparison_of_one: Comparison, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def measure(model: Any, *_arguments: Any) -> float:
        measured.append(model.fingerprint)
        return float(len(measured))

    monkeypatch.setattr(comparison, "held_out_loss", measure)
    # Another base of the same folder name, as `models/base` is in every place.
    other = read_checkpoint(fakes.write_checkpoint(tmp_path / "b" / "base", b"other"))
    variants = [
        comparison_of_one,
        replace(comparison_of_one, base=other),
        replace(comparison_of_one, overrides=["max_length=99"]),
        replace(comparison_of_one, sets={"held-out": [], "other": []}),
    ]
    tuned = fakes.write_checkpoint(tmp_path / "tuned" / "model", b"tuned")
    for variant in variants:
        folder = tmp_path / "run" / variant.fingerprint / "seed-0" / "cherry"
        folder.mkdir(parents=True, exist_ok=True)
        stages = [
            {"stage": "train pre-experienced", "artifact": str(tuned.parent), "facts": {}},
            {"stage": "select", "artifact": "cherry.json", "facts": {}},
            {"stage": "train cherry", "artifact": str(tuned.parent), "facts": {}},
        ]
        config = {"select": {"name": "cherry", "num_tokens": None}}
        (folder / "pipeline.json").write_text(json.dumps({"config": config, "stages": stages}))
    tables = [evaluate(tmp_path / "run", variant, seed=0) for variant in variants]
    bases = [table[0]["held-out"] for table in tables]
    assert len(set(bases)) == len(variants)
    count = len(measured)
    assert [evaluate(tmp_path / "run", variant, seed=0) for variant in variants] == tables
    assert len(measured) == count
