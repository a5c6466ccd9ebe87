"""Decides which piece is next, and what happens to a piece on which a worker died."""

from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from cherry_vllm.errors import UserError
from cherry_vllm.store.run_folder import Inner
from cherry_vllm.workers.work import Piece

MAX_FAILED_LOADS = 2  # in a row
MAX_LOSSES = 8  # in a row, for each worker
MAX_TIMEOUTS = 3  # of one piece, or in a row for each worker


class Schedule:
    """The pieces that wait and those under way.

    A shard on which two workers die is halved, and so are its halves, until the row that causes it
    is alone. If two more workers die on that row, it is quarantined, but only after the engine has
    done other rows: an engine that never works is not a row's fault.

    A piece that times out is tried again after the others, with twice the time; no row is dropped
    because it is slow.
    """

    def __init__(self, pieces: Iterable[Piece], num_workers: int) -> None:
        self._waiting, self._suspects = deque(pieces), deque[Piece]()
        self._num_under_way = self._failed_loads = self._losses = self._timeouts = 0
        self._max_losses, self._max_timeouts = MAX_LOSSES * num_workers, MAX_TIMEOUTS * num_workers
        self.engine_works = False  # whether it has done any row

    @property
    def is_over(self) -> bool:
        return not (self._waiting or self._suspects or self._num_under_way)

    def take(self) -> Piece | None:
        """The next piece; None if none is waiting, though one under way may come back."""
        # Suspects first, in the order of their size: usually one of two halves succeeds.
        queue = self._suspects or self._waiting
        if not queue:
            return None
        self._num_under_way += 1
        return queue.popleft()

    def loaded(self) -> None:
        """Notes that a worker has loaded its model."""
        self._failed_loads = 0

    def not_loaded(self, piece: Piece, reason: str) -> None:
        """Notes that the worker for ``piece`` died before it had loaded its model.

        Raises:
            UserError: that happened twice in a row.
        """
        self._num_under_way -= 1
        self._failed_loads += 1
        if self._failed_loads >= MAX_FAILED_LOADS:
            raise UserError(
                f"the model cannot be loaded: the engine {reason}; check model.path and the "
                "engine's memory settings, or raise executor.load_timeout_s if it is slow"
            )
        self._waiting.appendleft(piece)

    def made(self, num_units: int) -> None:
        """Notes that a piece is done, which took ``num_units`` units of the model's work."""
        self._num_under_way -= 1
        if num_units:
            self._losses = self._timeouts = 0
            self.engine_works = True

    def lost(self, piece: Piece, reason: str) -> None:
        """Notes that a worker died on ``piece``.

        Raises:
            UserError: too many workers in a row died, so no row can be the cause.
        """
        self._num_under_way -= 1
        self._losses += 1
        if self._losses >= self._max_losses:
            raise UserError(
                f"{self._losses} times in a row, whichever rows it was given, the engine "
                f"{reason}; see {Inner.FAILURES}, check the engine's settings, then give the same "
                "command again"
            )
        self._suspects.extend(self._next_step(replace(piece, num_losses=piece.num_losses + 1)))

    def timed_out(self, piece: Piece, reason: str) -> None:
        """Notes that ``piece`` timed out.

        Raises:
            UserError: the piece has timed out too often, with more time each time; or too many
                pieces in a row have.
        """
        self._num_under_way -= 1
        self._timeouts += 1
        again = replace(piece, num_timeouts=piece.num_timeouts + 1)
        if again.num_timeouts == MAX_TIMEOUTS or self._timeouts >= self._max_timeouts:
            raise UserError(
                f"the engine {reason}, and not for the first time (see {Inner.FAILURES}); raise "
                "executor.timeout_s, then give the same command again"
            )
        self._waiting.append(again)

    def _next_step(self, piece: Piece) -> list[Piece]:
        if piece.num_losses < 2 or piece.is_quarantined:
            return [piece]
        if piece.num_rows > 1:
            middle = (piece.start + piece.stop) // 2
            halves = replace(piece, stop=middle), replace(piece, start=middle)
            # A half is split again at its first loss; a single row gets two tries of its own.
            return [replace(half, num_losses=int(half.num_rows > 1)) for half in halves]
        return [replace(piece, is_quarantined=self.engine_works)]
