"""What a trial says about the whole data set, and which settings it suggests."""

from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from cherry_vllm.config import compose, engine_settings
from cherry_vllm.scoring import forecast
from cherry_vllm.scoring.forecast import advise, foresee
from cherry_vllm.workers.pace import Pace

HOUR = 3600


def pace(tokens_per_s: float, num_workers: int = 1) -> Pace:
    return Pace(
        num_rows=10,
        num_tokens=1000,
        num_workers=num_workers,
        seconds=40,
        load_s=20,
        working_s=1000 * num_workers / tokens_per_s,
        model_s=1,
        peak_bytes=1,
        peak_gpu_bytes=0,
    )


def trial(*words: str, num_tokens: int = 50_000, speed: float = 100, other: float = 50) -> Any:
    engine: Any = engine_settings(compose(*words).engine)
    return SimpleNamespace(
        run=SimpleNamespace(engine=engine),
        num_tokens=num_tokens,
        sample=pl.DataFrame({"row": range(10)}),
        engine=SimpleNamespace(pace=pace(speed), num_bytes=4000),
        reference=SimpleNamespace(pace=pace(other)),
    )


def test_time_follows_from_tokens_and_disk_from_rows() -> None:
    found = foresee(trial(), 500, keep_logprobs=True)
    assert found.seconds == pytest.approx(20 + 50_000 / 100)
    assert found.num_bytes == 500 * (400 + 62)
    assert foresee(trial(), 500, keep_logprobs=False).num_bytes == 500 * (22 + 62)


EAGER, COMPILED = "engine.enforce_eager=true", "engine.enforce_eager=false"


@pytest.mark.parametrize(
    ("words", "case", "expected"),
    [
        ([EAGER], {"num_tokens": 100 * HOUR}, ["engine.enforce_eager=false", "executor.num_w"]),
        ([EAGER], {"num_tokens": 100}, ["executor.num_workers=2"]),
        ([COMPILED], {"num_tokens": 100}, ["engine.enforce_eager=true", "executor.num_workers=2"]),
        ([COMPILED], {"num_tokens": 100 * HOUR}, ["executor.num_workers=2"]),
        ([EAGER], {"num_tokens": 100, "other": 150}, ["executor.num_w", "engine=hf engine.dtype"]),
        (["engine=hf"], {"other": 150}, []),
        (["engine=vllm_server"], {"other": 150}, []),
    ],
)
def test_settings_that_would_be_faster_are_told(
    words: list[str], case: dict[str, Any], expected: list[str]
) -> None:
    found = trial(*words, **case)
    foreseen = foresee(found, 10, keep_logprobs=True)
    lines = advise(found, foreseen, dtype="float32", is_on_gpu=False, num_cores=2)
    assert len(lines) == len(expected)
    assert all(map(str.startswith, lines, expected))


@pytest.mark.parametrize(
    ("dtype", "is_on_gpu", "lacks_bf16", "expected"),
    [
        ("bfloat16", True, False, "engine.dtype=float16: eight times as exact"),
        ("float16", True, False, "engine.dtype=float32: more exact"),
        ("bfloat16", False, True, "engine.dtype=float32: several times as fast"),
        ("bfloat16", False, False, "engine.dtype=float32: more exact"),
    ],
)
def test_a_more_exact_type_is_told(
    monkeypatch: pytest.MonkeyPatch, *, dtype: str, is_on_gpu: bool, lacks_bf16: bool, expected: str
) -> None:
    monkeypatch.setattr(forecast, "lacks_bf16", lambda: lacks_bf16)
    found = trial("engine=hf")
    foreseen = foresee(found, 10, keep_logprobs=True)
    (line,) = advise(found, foreseen, dtype=dtype, is_on_gpu=is_on_gpu, num_cores=2)
    assert line.startswith(expected)


def test_a_gpu_takes_larger_steps_than_the_defaults() -> None:
    found = trial(EAGER, num_tokens=100)
    foreseen = foresee(found, 10, keep_logprobs=True)
    (line,) = advise(found, foreseen, dtype="float32", is_on_gpu=True, num_cores=2)
    assert line.startswith("engine.max_num_batched_tokens=16384 engine.max_num_seqs=1024: ")
