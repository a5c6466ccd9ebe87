"""The last step of the demo: base and cherry model answer, a local server judges, a page shows it.

    make demo-pipeline && python -m bench.judged [--run-dir runs/demo] [--questions FILE]

Each step is an ordinary command, which is printed before it runs. The judge is the demo's
checkpoint behind vLLM's server, with structured outputs; its judgement means nothing.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.server import serve
from cherry_vllm.options import Mode
from cherry_vllm.reporting.artifacts import find_artifacts, find_manifests

EXPERIMENT = "+experiment=demo"


def run(*arguments: str) -> None:
    """Prints a command line of cherry-vllm and runs it."""
    print(f"\n$ cherry-vllm {shlex.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", "cherry_vllm", *arguments], check=True)


def find_inputs(run_dir: Path) -> tuple[dict[str, Path], Path]:
    """The base and the cherry model of a finished pipeline, and the folder of its scores."""
    manifest = find_manifests(run_dir)[0]
    stages = ("train cherry", "score")
    cherry, scores = (find_artifacts([manifest], run_dir, stage)[0] for stage in stages)
    base = Path(manifest["config"]["model"]["path"])
    return {"base": base, "cherry": cherry / "model"}, scores.parent


def answer(models: dict[str, Path], questions: Path, run_dir: Path) -> dict[str, Path]:
    """Has every model answer the questions; returns the files of answers."""
    for name, model in models.items():
        run(
            "generate",
            EXPERIMENT,
            "testset=file",
            f"testset.path={questions}",
            f"model.path={model}",
            "engine.dtype=bfloat16",
            "generate.max_new_tokens=96",
            f"generate.output={name}.jsonl",
            f"run_dir={run_dir}",
        )
    return {name: run_dir / f"{name}.jsonl" for name in models}


def judge(run_dir: Path, address: str, mode: Mode, *more: str) -> None:
    """Has the local server judge answers or instructions."""
    run(
        "judge",
        f"judge={mode.value}",
        f"judge.base_url={address}/v1",
        "judge.model=judge",
        "judge.api_key_env=null",
        "judge.parameters.max_tokens=160",
        f"run_dir={run_dir}",
        *more,
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/demo"))
    parser.add_argument(
        "--questions", type=Path, default=Path(__file__).with_name("questions.jsonl")
    )
    arguments = parser.parse_args(argv)
    run_dir = arguments.run_dir
    judged = run_dir / "judged"
    models, scores = find_inputs(run_dir)
    answers = answer(models, arguments.questions, judged)
    with serve(models["base"], judged / "server.log") as address:
        sides = (f"judge.first={answers['cherry']}", f"judge.second={answers['base']}")
        judge(judged, address, Mode.pairwise, *sides)
        rows = ("judge.count=8", f"scores_dir={scores}")
        judge(run_dir / "aspects", address, Mode.aspects, *rows)
    run("report", EXPERIMENT, f"run_dir={run_dir}")


if __name__ == "__main__":
    main()
