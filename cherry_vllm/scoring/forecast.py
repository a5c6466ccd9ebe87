"""What scoring a whole data set will take, and what would be faster or more exact.

Time and disk follow from what a trial measured. What it could not measure comes from
docs/results.md.
"""

from dataclasses import dataclass

from cherry_vllm.engines.compilation import CPU_CORE, GPU
from cherry_vllm.engines.settings import EngineSettings, VllmSettings
from cherry_vllm.runtime.cpu import lacks_bf16
from cherry_vllm.runtime.text import rough_time
from cherry_vllm.scoring.trial import Trial

SCORES_BYTES, SUMS_BYTES = 62, 22  # a row, in scores.parquet, and in shards without log-probs
FAST_TOKENS, FAST_SEQS = 16_384, 1024  # of a step on a GPU
HALF = ("bfloat16", "float16")
WORTH_TELLING = 1.1  # times as fast


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Estimates for all rows, on the assumption that they are like those of the sample."""

    num_rows: int
    num_tokens: int  # in both passes
    seconds: float  # with loading
    num_bytes: int  # of log-probs and scores


def foresee(trial: Trial, num_rows: int, *, keep_logprobs: bool) -> Forecast:
    """The forecast for a data set of ``num_rows`` rows from a trial on some of them."""
    pace, per_row = trial.engine.pace, trial.engine.num_bytes / max(1, trial.sample.height)
    scoring_s = trial.num_tokens / pace.tokens_per_s if pace.num_tokens else 0.0
    return Forecast(
        num_rows=num_rows,
        num_tokens=trial.num_tokens,
        seconds=pace.load_s + scoring_s,
        num_bytes=round(num_rows * (SCORES_BYTES + (per_row if keep_logprobs else SUMS_BYTES))),
    )


def advise(
    trial: Trial, forecast: Forecast, *, dtype: str, is_on_gpu: bool, num_cores: int
) -> list[str]:
    """What would be faster or more exact, a line each; ``dtype`` is the engine's."""
    engine = trial.run.engine
    scoring_s = forecast.seconds - trial.engine.pace.load_s
    lines = _about_precision(engine, dtype, is_on_gpu=is_on_gpu)
    if isinstance(engine, VllmSettings):
        lines += _about_compiling(engine, scoring_s, is_on_gpu=is_on_gpu)
        if is_on_gpu and engine.max_num_batched_tokens < FAST_TOKENS:
            lines.append(
                f"engine.max_num_batched_tokens={FAST_TOKENS} engine.max_num_seqs={FAST_SEQS}: "
                "up to 1.9 times as fast for small models, no faster for 8B (H100 and H200)"
            )
        if not is_on_gpu and trial.engine.pace.num_workers == 1 and num_cores > 1:
            lines.append(
                "executor.num_workers=2: up to 1.07 times as fast (on two cores), with twice the "
                "memory"
            )
    ratio = trial.reference.pace.tokens_per_s / max(trial.engine.pace.tokens_per_s, 1e-9)
    if ratio >= WORTH_TELLING and isinstance(engine, VllmSettings):
        lines.append(
            f"engine=hf engine.dtype=float32: {ratio:.1f} times as fast on this sample (measured)"
        )
    return lines


def _about_precision(engine: EngineSettings, dtype: str, *, is_on_gpu: bool) -> list[str]:
    if dtype not in HALF or engine.name == "vllm_server":
        return []
    if is_on_gpu and dtype == "bfloat16":
        return [
            "engine.dtype=float16: eight times as exact, as fast (on an H100), unless the model "
            "was made for bf16 alone"
        ]
    if not is_on_gpu and lacks_bf16():
        return [
            "engine.dtype=float32: several times as fast on this CPU, which has no bf16 "
            "instructions, and more exact"
        ]
    return ["engine.dtype=float32: more exact where the order of close rows matters, but slower"]


def _about_compiling(engine: VllmSettings, scoring_s: float, *, is_on_gpu: bool) -> list[str]:
    hardware = GPU if is_on_gpu else CPU_CORE
    if engine.enforce_eager:
        saved_s = scoring_s * hardware.share_saved - hardware.compile_s
        way = "false: compiled"
    else:
        eager_s = scoring_s / (1 - hardware.share_saved)
        saved_s = hardware.compile_s - eager_s * hardware.share_saved
        way = "true: not compiled"
    if saved_s < hardware.compile_s / 2:
        return []
    return [f"engine.enforce_eager={way}, all rows take about {rough_time(saved_s)} less"]
