"""What it took to make the shards of a run, as its workers measured it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The time, work and memory of all workers of a run."""

    num_rows: int
    num_tokens: int  # that the model got
    num_workers: int
    seconds: float  # from the start of the first worker to the end
    load_s: float  # until the first worker had loaded the model
    working_s: float  # of all workers together, without loading
    model_s: float  # of these, in calls of the model
    peak_bytes: int  # of main memory, by the worker that held most
    peak_gpu_bytes: int  # likewise, of its GPU; 0 without one

    @property
    def rows_per_s(self) -> float:
        """Without loading."""
        return self._per_s(self.num_rows)

    @property
    def tokens_per_s(self) -> float:
        """Without loading."""
        return self._per_s(self.num_tokens)

    @property
    def share_outside(self) -> float:
        """The share of the time that was not spent in calls of the model."""
        return 1 - self.model_s / self.working_s if self.working_s else 0.0

    def _per_s(self, count: int) -> float:
        return count * self.num_workers / self.working_s if self.working_s else 0.0
