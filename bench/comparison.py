"""Is cherry data better than other data of the same size? Held-out answer loss, model by model.

    python -m bench.comparison --data FILE --other FILE [--rows 1000] [--held-out 100]
        [--fraction 0.1] [--seeds 0] [--run-dir runs/comparison] [overrides of the pipeline ...]

FILE and OTHER, a different kind of data, are in Alpaca's format. The pipeline selects from the
first ROWS of FILE. Two held-out sets are taken before anything is selected: the next HELD_OUT rows
of FILE, and the first HELD_OUT rows of OTHER. Rows whose instruction and input are among the ROWS
are left out of both sets and counted. The pipeline trains one model for each way to select FRACTION
of the rows. It also trains one on random rows with as many answer tokens as the cherry data: a
fairer baseline, as cherry answers are longer. Loss is the mean over all answer tokens, in nats, in
fp32.

An interrupted run resumes. Models are in RUN_DIR; each comparison has its own folder there, named
by all that decides it, so that different fractions, models and data never mix.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bench.agreement import MODEL
from cherry_vllm.config import compose, prompt_of
from cherry_vllm.conversation import single_turn
from cherry_vllm.engines import Span
from cherry_vllm.engines.checkpoint import Checkpoint, find_checkpoint, read_checkpoint
from cherry_vllm.prompts.spans import AnswerSpans, open_span_builder
from cherry_vllm.store.files import fingerprint, read_json, write_json
from cherry_vllm.training.probe import answer_losses

FIELDS = ("instruction", "input", "output")
STRATEGIES = ("cherry", "low_ifd", "high_conditioned", "longest", "random")
SETS = ("held-out", "other")

Record = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """The data, the model and the settings that decide every number of the table."""

    pool: list[Record]
    sets: dict[str, list[Record]]
    base: Checkpoint
    fraction: float
    overrides: Sequence[str]

    @property
    def fingerprint(self) -> str:
        return fingerprint(
            {
                "pool": self.pool,
                "base": self.base.fingerprint,
                "fraction": self.fraction,
                "overrides": list(self.overrides),
            }
        )


def split(
    data: Path, other: Path, *, rows: int, held_out: int
) -> tuple[list[Record], dict[str, list[Record]]]:
    """The rows to select from, and the two held-out sets, which share no question with them."""
    answered = _answered(data)
    pool = list(islice(answered, rows))
    seen = {_question(record) for record in pool}
    return pool, {
        name: _take(name, source, held_out, seen)
        for name, source in zip(SETS, (answered, _answered(other)), strict=True)
    }


def _take(name: str, source: Iterable[Record], number: int, seen: set[Any]) -> list[Record]:
    taken: list[Record] = []
    overlaps = 0
    for record in source:
        if len(taken) == number:
            break
        if _question(record) in seen:
            overlaps += 1
        else:
            taken.append(record)
    print(f"{name}: {len(taken)} rows; {overlaps} left out because the pool has their question")
    if len(taken) < number:
        raise SystemExit(f"{name}: {len(taken)} rows are left for --held-out {number}; lower it")
    return taken


def _question(record: Record) -> tuple[str, str]:
    instruction, extra = (str(record.get(key) or "") for key in FIELDS[:2])
    return " ".join(instruction.split()), " ".join(extra.split())


def _answered(file: Path) -> Iterator[Record]:
    text = file.read_text(encoding="utf-8")
    records = json.loads(text) if file.suffix == ".json" else map(json.loads, text.splitlines())
    return (record for record in records if record["output"].strip())


def run_pipeline(run_dir: Path, comparison: Comparison, seed: int, *choices: str) -> None:
    """Runs one pipeline for each choice; its manifest lies in the comparison's folder."""
    pool = run_dir / comparison.fingerprint / "pool.jsonl"
    pool.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(record) + "\n" for record in comparison.pool)
    pool.write_text(lines, encoding="utf-8")
    command = [sys.executable, "-m", "cherry_vllm", "pipeline", "-m", f"seed=choice({seed})"]
    command += [*choices, f"data.path={pool}", f"run_dir={run_dir}", *comparison.overrides]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def train_models(run_dir: Path, comparison: Comparison, seed: int) -> None:
    folder = f"{comparison.fingerprint}/seed-{seed}"
    run_pipeline(
        run_dir,
        comparison,
        seed,
        f"select={','.join(STRATEGIES)}",
        f"select.fraction={comparison.fraction}",
        f"hydra.sweep.subdir={folder}/${{select.name}}",
    )
    cherry = find_manifests(run_dir / folder)["cherry"]
    num_tokens = _facts(cherry, "select")["num_answer_tokens"]
    run_pipeline(
        run_dir,
        comparison,
        seed,
        "select=random",
        f"select.num_tokens={num_tokens}",
        f"hydra.sweep.subdir={folder}/random-by-tokens",
    )


def find_manifests(folder: Path) -> dict[str, dict[str, Any]]:
    """The finished pipelines of a comparison and a seed, by what they selected."""
    found = {}
    for file in sorted(folder.glob("*/pipeline.json")):
        manifest = read_json(file)
        choice = manifest["config"]["select"]
        found[choice["name"] + (" by tokens" if choice["num_tokens"] else "")] = manifest
    return found


def answer_spans(
    model: Checkpoint, records: Sequence[Record], overrides: Sequence[str]
) -> list[list[Span]]:
    """The conditioned spans of each record, as the scorer builds them."""
    config = compose(*overrides)
    builder = open_span_builder(
        model, prompt=prompt_of(config), max_length=config.max_length, trust_remote_code=False
    )
    rows = [single_turn(*(str(record.get(key) or "") for key in FIELDS)) for record in records]
    return [pair.conditioned for pair in builder.build(rows) if isinstance(pair, AnswerSpans)]


def held_out_loss(model: Checkpoint, records: Sequence[Record], overrides: Sequence[str]) -> float:
    """The mean loss over all answer tokens of the records, in nats."""
    spans = answer_spans(model, records, overrides)
    losses = answer_losses(model, spans, trust_remote_code=False)
    return float(np.average(losses, weights=[span.num_answer_tokens for (span,) in spans]))


def _artifact(manifest: dict[str, Any], stage: str) -> Path:
    return Path(_stage(manifest, stage)["artifact"])


def _facts(manifest: dict[str, Any], stage: str) -> dict[str, Any]:
    facts: dict[str, Any] = _stage(manifest, stage)["facts"]
    return facts


def _stage(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    return next(stage for stage in manifest["stages"] if stage["stage"] == name)


def evaluate(run_dir: Path, comparison: Comparison, seed: int) -> list[dict[str, Any]]:
    """One line for each model; losses are read from disk if nothing that decides them has changed.

    They are decided by the model, the held-out rows and the overrides, with prompt and length.
    """
    manifests = find_manifests(run_dir / comparison.fingerprint / f"seed-{seed}")
    tuned = _artifact(manifests["cherry"], "train pre-experienced") / "model"
    lines: list[tuple[str, Checkpoint, dict[str, Any]]] = [("base", comparison.base, {})]
    lines.append(("pre-experienced", read_checkpoint(tuned), {}))
    for name, manifest in manifests.items():
        model = _artifact(manifest, "train cherry") / "model"
        lines.append((name, read_checkpoint(model), _facts(manifest, "select")))
    table = []
    for name, checkpoint, facts in lines:
        decided_by = {
            "model": checkpoint.fingerprint,
            "sets": comparison.sets,
            "overrides": list(comparison.overrides),
        }
        file = run_dir / "losses" / f"{fingerprint(decided_by)}.json"
        if not file.is_file():
            losses = {
                key: held_out_loss(checkpoint, records, comparison.overrides)
                for key, records in comparison.sets.items()
            }
            write_json(file, losses)
        table.append({"seed": seed, "model": name, **facts, **read_json(file)})
        print(_show(table[-1]), flush=True)
    return table


def _show(line: dict[str, Any]) -> str:
    counts = f"{line.get('num_selected', ''):>8}{line.get('num_answer_tokens', ''):>10}"
    losses = f"{line['held-out']:>10.4f}{line['other']:>10.4f}"
    return f"{line['seed']:>4}  {line['model']:<20}{counts}{losses}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--other", type=Path, default=MODEL.parent / "alpaca_en_demo.json")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/comparison"))
    arguments, overrides = parser.parse_known_args()
    pool, sets = split(
        arguments.data, arguments.other, rows=arguments.rows, held_out=arguments.held_out
    )
    base = find_checkpoint(str(arguments.model))
    overrides = [*overrides, f"model.path={arguments.model}"]
    comparison = Comparison(pool, sets, base, arguments.fraction, overrides)
    print("seed  model                  rows    tokens  held-out     other")
    table = []
    for seed in arguments.seeds:
        train_models(arguments.run_dir, comparison, seed)
        table += evaluate(arguments.run_dir, comparison, seed)
    target = arguments.run_dir / comparison.fingerprint / "comparison.json"
    write_json(target, {"overrides": overrides, "fraction": arguments.fraction, "table": table})
    print(f"table: {target}")


if __name__ == "__main__":
    main()
