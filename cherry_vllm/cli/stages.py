"""The stages by the names that the command line calls them by."""

from collections.abc import Callable

from cherry_vllm.commands import pipeline
from cherry_vllm.commands.demo import fetch_demo
from cherry_vllm.commands.generate import generate
from cherry_vllm.commands.inputs import Job
from cherry_vllm.commands.judge import judge
from cherry_vllm.commands.report import report
from cherry_vllm.commands.sample import embed, sample
from cherry_vllm.commands.score import score
from cherry_vllm.commands.select import select
from cherry_vllm.commands.train import train
from cherry_vllm.config import Config

# What a stage returns is for the pipeline, and no concern of the command line.
STAGES: dict[str, Callable[[Config, Job], object]] = {
    "pipeline": pipeline.run,
    "embed": embed,
    "sample": sample,
    "train": train,
    "score": score,
    "select": select,
    "generate": generate,
    "judge": judge,
    "report": report,
    "fetch-demo": fetch_demo,
}
