"""``check.json``: what a trial of an engine found, written, and put in words."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cherry_vllm.engines.settings import REFERENCE
from cherry_vllm.runtime.text import rough_time
from cherry_vllm.runtime.versions import installed_versions
from cherry_vllm.scoring.agreement import Agreement, Bounds
from cherry_vllm.scoring.forecast import Forecast
from cherry_vllm.scoring.trial import Trial
from cherry_vllm.store.files import write_json
from cherry_vllm.store.marks import own_file

COMMAND = "check"
VALUES = {
    "ifd": "difference of IFD",
    "conditioned_score": "difference of s(A|Q), nats",
    "direct_score": "difference of s(A), nats",
    "logprob": "difference of log-probs, nats",
}
MIB, GIB = 2**20, 2**30


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """All that a check found."""

    trial: Trial
    model: Path
    dtype: str  # that the engine computes in
    agreement: Agreement
    bounds: Bounds
    forecast: Forecast
    advice: Sequence[str]
    warnings: Sequence[str]  # about the prompt

    @property
    def faults(self) -> list[str]:
        """Where the engine is beyond the bounds."""
        return self.bounds.find_faults(self.agreement)

    def as_json(self) -> dict[str, Any]:
        """The contents of ``check.json``."""
        run, trial = self.trial.run, self.trial
        return {
            "scoring": run.target.fingerprint,  # of the run that `score` would make
            "model": str(self.model),
            "engine": run.engine.identity(),
            "dtype": self.dtype,
            "reference": asdict(REFERENCE),
            "rows": trial.sample["row"].to_list(),
            "agreement": asdict(self.agreement),
            "bounds": asdict(self.bounds),
            "faults": self.faults,
            "pace": asdict(trial.engine.pace),
            "reference_pace": asdict(trial.reference.pace),
            "tokens_per_s": trial.engine.pace.tokens_per_s,
            "rows_per_s": trial.engine.pace.rows_per_s,
            "reference_tokens_per_s": trial.reference.pace.tokens_per_s,
            "forecast": asdict(self.forecast),
            "advice": list(self.advice),
            "warnings": list(self.warnings),
            "versions": installed_versions(),
        }

    def write(self, target: Path) -> None:
        """Writes ``check.json``.

        Raises:
            UserError: another file is in its place.
        """
        with own_file(target, COMMAND) as path:
            write_json(path, self.as_json())


def describe(found: Mapping[str, Any]) -> dict[str, str]:
    """The contents of ``check.json`` in words, by label."""
    pace, forecast, agreement = found["pace"], found["forecast"], found["agreement"]
    bounds, spearman = found["bounds"], agreement["spearman"]
    order = "no order in so few rows" if spearman is None else f"{spearman:.5f}"
    reference = f"transformers, {found['reference']['dtype']}"
    compiled = {True: ", not compiled", False: ", compiled"}
    limits = {"ifd": ("p99", "max_ifd_difference"), "logprob": ("median", "max_logprob_difference")}
    facts = {
        "engine": f"{found['engine']['name']}, {found['dtype']}"
        + compiled.get(found["engine"].get("enforce_eager"), ""),
        "compared with": reference,
        "rows": f"{len(found['rows'])}, {agreement['num_compared']} of them scored by both",
        "order by IFD, Spearman": f"{order} (at least {bounds['min_spearman']:g})",
    }
    for name, label in VALUES.items():
        if name in agreement["differences"]:
            place, key = limits.get(name, ("", ""))
            facts[label] = _show(agreement["differences"][name], place, bounds.get(key))
    facts |= {
        "outcomes, engine / reference": ", ".join(
            f"{name} {left:,} / {right:,}" for name, (left, right) in agreement["outcomes"].items()
        ),
        "IFD above 1 by only one": f"{agreement['num_crossed']} rows",
        "other answer tokens": f"{agreement['num_other_tokens']} rows",
        "result": "; ".join(found["faults"]) or "within the bounds",
        "speed": f"{found['rows_per_s']:,.2f} rows/s, {found['tokens_per_s']:,.0f} tokens/s "
        f"({reference}: {found['reference_tokens_per_s']:,.0f}), workers: {pace['num_workers']}",
        "loading": f"{pace['load_s']:.0f} s",
        "memory of a worker": f"{pace['peak_bytes'] / GIB:.1f} GiB"
        + (f", {pace['peak_gpu_bytes'] / GIB:.1f} GiB of its GPU" * (pace["peak_gpu_bytes"] > 0)),
        "the whole data set": f"{forecast['num_rows']:,} rows, about {forecast['num_tokens']:,} "
        f"tokens: about {rough_time(forecast['seconds'])}, "
        f"{forecast['num_bytes'] / MIB:,.1f} MiB on disk",
    }
    return facts


def _show(differences: Mapping[str, float], bounded: str, bound: float | None) -> str:
    names = {"median": "median", "p99": "99th percentile", "largest": "largest"}
    return ", ".join(
        f"{label} {differences[name]:.1e}" + (f" (at most {bound:g})" if name == bounded else "")
        for name, label in names.items()
    )
