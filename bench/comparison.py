"""Is cherry data better than other data of the same size? Held-out answer loss, model by model.

    python -m bench.comparison --data FILE --other FILE [--rows 1000] [--held-out 100]
        [--fraction 0.1] [--seeds 0] [--run-dir runs/comparison] [overrides of the pipeline ...]

FILE and its unlike set OTHER are JSON Lines in Alpaca's format. The held-out rows are set apart
before anything is selected: the last ones of FILE's first ROWS + HELD_OUT, and the first HELD_OUT
of OTHER whose instruction is not among the ROWS. The pipeline trains one model for each way to
select FRACTION of the rows, and one on random rows with as many answer tokens as the cherry data
has, which is the fairer rival: cherry answers are longer. Loss is the mean over all answer tokens,
in nats, in fp32. A run that was cut short is resumed.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from bench.agreement import MODEL
from cherry_vllm.config import compose, prompt_of
from cherry_vllm.engines import Span
from cherry_vllm.engines.checkpoint import Checkpoint, read_checkpoint
from cherry_vllm.prompts.spans import AnswerSpans, open_span_builder
from cherry_vllm.store.files import fingerprint, read_json, write_json
from cherry_vllm.training.probe import answer_loss

FIELDS = ("instruction", "input", "output")
STRATEGIES = ("cherry", "low_ifd", "high_conditioned", "longest", "random")


def split(arguments: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """The rows to select from, and the two held-out sets."""
    number, held_out = arguments.rows, arguments.held_out
    records = list(islice(_answered(arguments.data), number + held_out))
    pool = records[:number]
    seen = {record["instruction"] for record in pool}
    others = (record for record in _answered(arguments.other) if record["instruction"] not in seen)
    return {"pool": pool, "held-out": records[number:], "other": list(islice(others, held_out))}


def _answered(file: Path) -> Any:
    text = file.read_text(encoding="utf-8")
    records = json.loads(text) if file.suffix == ".json" else map(json.loads, text.splitlines())
    return (record for record in records if record["output"].strip())


def run_pipeline(run_dir: Path, seed: int, overrides: Sequence[str], *choices: str) -> None:
    command = [
        sys.executable,
        "-m",
        "cherry_vllm",
        "pipeline",
        "-m",
        f"seed=choice({seed})",
        *choices,
    ]
    command += [f"data.path={run_dir / 'pool.jsonl'}", f"run_dir={run_dir}", *overrides]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def train_models(run_dir: Path, seed: int, fraction: float, overrides: Sequence[str]) -> None:
    strategies = f"select.strategy={','.join(STRATEGIES)}"
    run_pipeline(run_dir, seed, overrides, strategies, f"select.fraction={fraction}")
    cherry = find_manifests(run_dir, seed)["cherry"]
    num_tokens = _facts(cherry, "select")["num_answer_tokens"]
    run_pipeline(
        run_dir,
        seed,
        overrides,
        "select.strategy=random",
        f"select.num_tokens={num_tokens}",
        f"hydra.sweep.subdir=random-by-tokens-{seed}",
    )


def find_manifests(run_dir: Path, seed: int) -> dict[str, dict[str, Any]]:
    """The finished pipelines of a seed, by what they selected."""
    manifests = [read_json(file) for file in sorted(run_dir.glob("*/pipeline.json"))]
    found = {}
    for manifest in manifests:
        choice = manifest["config"]["select"]
        if manifest["config"]["seed"] == seed:
            by_tokens = " by tokens" if choice["num_tokens"] else ""
            found[choice["strategy"] + by_tokens] = manifest
    return found


def answer_spans(
    model: Checkpoint, records: Sequence[dict[str, Any]], overrides: Sequence[str]
) -> list[Span]:
    """The records as the scorer sees them after their instruction."""
    config = compose(*overrides)
    builder = open_span_builder(
        model, prompt=prompt_of(config), max_length=config.max_length, trust_remote_code=False
    )
    columns = ([str(record.get(key) or "") for record in records] for key in FIELDS)
    return [pair.conditioned for pair in builder.build(*columns) if isinstance(pair, AnswerSpans)]


def _artifact(manifest: dict[str, Any], stage: str) -> Path:
    return Path(_stage(manifest, stage)["artifact"])


def _facts(manifest: dict[str, Any], stage: str) -> dict[str, Any]:
    facts: dict[str, Any] = _stage(manifest, stage)["facts"]
    return facts


def _stage(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    return next(stage for stage in manifest["stages"] if stage["stage"] == name)


def evaluate(
    run_dir: Path, seed: int, base: Path, sets: dict[str, Any], overrides: Sequence[str]
) -> list[dict[str, Any]]:
    """One line for each model; what was evaluated before is read back."""
    manifests = find_manifests(run_dir, seed)
    tuned = _artifact(manifests["cherry"], "train pre-experienced") / "model"
    lines: list[tuple[str, Path, dict[str, Any]]] = [("base", base, {})]
    lines.append(("pre-experienced", tuned, {}))
    for name, manifest in manifests.items():
        model = _artifact(manifest, "train cherry") / "model"
        lines.append((name, model, _facts(manifest, "select")))
    table = []
    for name, folder, facts in lines:
        file = run_dir / "losses" / fingerprint(sets) / f"{folder.parent.name}.json"
        if not file.is_file():
            checkpoint = read_checkpoint(folder)
            losses = {
                key: answer_loss(
                    checkpoint,
                    answer_spans(checkpoint, sets[key], overrides),
                    trust_remote_code=False,
                )
                for key in ("held-out", "other")
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
    overrides = [*overrides, f"model.path={arguments.model}"]
    sets, run_dir = split(arguments), arguments.run_dir
    run_dir.mkdir(parents=True, exist_ok=True)
    pool = "".join(json.dumps(record) + "\n" for record in sets["pool"])
    (run_dir / "pool.jsonl").write_text(pool, encoding="utf-8")
    print("seed  model                  rows    tokens  held-out     other")
    table = []
    for seed in arguments.seeds:
        train_models(run_dir, seed, arguments.fraction, overrides)
        table += evaluate(run_dir, seed, arguments.model, sets, overrides)
    write_json(run_dir / "comparison.json", {"overrides": overrides, "table": table})


if __name__ == "__main__":
    main()
