"""What figures show of a run: its selection and its judgements."""

from typing import Any, NamedTuple

import polars as pl

SIZE_KEYS = ("select.fraction=", "select.count=", "select.num_tokens=")


class ScoredSelection(NamedTuple):
    """What ``select`` chose, and how."""

    mark: dict[str, Any]
    rows: pl.DataFrame  # of SCORES

    @property
    def cut(self) -> float | None:
        """The lowest IFD chosen; None if the rows were not chosen by IFD."""
        by_ifd = self.mark["rank"] == "ifd" and not self.mark["strata"]
        return float(self.rows["ifd"].min()) if by_ifd else None  # type: ignore[arg-type]


class JobResult(NamedTuple):
    """A folder with a selection or with verdicts: the run itself, or a job of a sweep below it."""

    name: str  # relative to the run folder; "." is the run itself
    selection: dict[str, Any] | None  # its mark
    judgements: dict[str, dict[str, Any]]  # the figures of judge.json, by folder

    @property
    def series(self) -> str:
        """What distinguishes the job from others, apart from the number of its rows."""
        strategy = str(self.selection["strategy"]) if self.selection else "no selection"
        folder, _, own = self.name.rpartition("/")
        shared = (*SIZE_KEYS, "select=")
        others = [part for part in own.split(",") if "=" in part and not part.startswith(shared)]
        return ", ".join([strategy, *others, *([folder] if folder else [])])
