"""The stages by their names on the command line."""

from collections.abc import Callable

from cherry_vllm.commands import pipeline
from cherry_vllm.commands.check import check
from cherry_vllm.commands.compare import compare_selections
from cherry_vllm.commands.demo import fetch_demo
from cherry_vllm.commands.fit import fit
from cherry_vllm.commands.generate import generate
from cherry_vllm.commands.job import Job
from cherry_vllm.commands.judge import judge
from cherry_vllm.commands.report import report
from cherry_vllm.commands.sample import embed, sample
from cherry_vllm.commands.score import score
from cherry_vllm.commands.select import select
from cherry_vllm.commands.train import train
from cherry_vllm.config import Config

# What a command returns is for its callers in Python; the command line ignores it.
STAGES: dict[str, Callable[[Config, Job], object]] = {
    "pipeline": pipeline.run,
    "embed": embed,
    "sample": sample,
    "train": train,
    "check": check,
    "score": score,
    "select": select,
    "fit": fit,
    "compare-selections": compare_selections,
    "generate": generate,
    "judge": judge,
    "report": report,
    "fetch-demo": fetch_demo,
}
