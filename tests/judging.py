"""The judge stage within this process, and the answers that it is shown."""

from functools import cache
from pathlib import Path

import polars as pl

from cherry_vllm.commands.job import Job
from cherry_vllm.commands.judge import judge
from cherry_vllm.config import JudgeConfig, compose
from cherry_vllm.evaluation.endpoint import EndpointSettings
from cherry_vllm.evaluation.prompts import JudgePrompt, RequestSettings
from cherry_vllm.evaluation.reviews import read_reviews
from cherry_vllm.evaluation.verdicts import decide
from cherry_vllm.options import ResponseFormat

DATA = Path(__file__).parent / "data"
FIRST, SECOND, REVIEWS = (
    DATA / name for name in ("answers_a.jsonl", "answers_b.jsonl", "reviews.json")
)
KEY = "sk-0123456789-secret"
ANSWERS = (f"judge.first={FIRST}", f"judge.second={SECOND}", "judge.model=m")


def run_judge(run_dir: Path, *overrides: str) -> None:
    """The stage in this process, which spares the start of another."""
    config = compose(f"run_dir={run_dir}", *overrides)
    judge(config, Job(run_dir, is_sweep=False))


@cache
def _shipped(mode: str) -> JudgeConfig:
    return compose(f"judge={mode}").judge


def request_settings(mode: str = "pairwise", **prompt: str) -> RequestSettings:
    """The shipped settings of a mode, with changes to its prompt."""
    shipped = _shipped(mode)
    texts = {name: getattr(shipped.prompt, name) for name in JudgePrompt.__dataclass_fields__}
    return RequestSettings(
        model="m",
        parameters=shipped.parameters,
        response_format=ResponseFormat.json_schema,
        prompt=JudgePrompt(**{**texts, **prompt}),
    )


def endpoint_settings(url: str, **changes: float) -> EndpointSettings:
    """Quick and impatient; the key is in SOME_KEY."""
    settings = {"concurrency": 2, "timeout_s": 0.4, "max_tries": 4, **changes}
    return EndpointSettings(base_url=url, api_key_env="SOME_KEY", **settings)  # type: ignore[arg-type]


def verdicts_of(file: Path) -> pl.DataFrame:
    """The verdicts of recorded reviews."""
    return decide(read_reviews([file]))
