"""The failure policy by itself: which piece is next, and what happens to one that fails."""

import pytest

from cherry_vllm.errors import UserError
from cherry_vllm.workers.schedule import MAX_LOSSES, MAX_TIMEOUTS, Schedule
from cherry_vllm.workers.work import Piece


def shards(*heights: int) -> list[Piece]:
    return [Piece(index, 0, height) for index, height in enumerate(heights)]


def play(schedule: Schedule, deadly: set[tuple[int, int]]) -> list[Piece]:
    """Makes all pieces, losing a worker on each that holds a deadly row; returns what was made."""
    made = []
    while not schedule.is_over:
        piece = schedule.take()
        assert piece
        rows = {(piece.index, row) for row in range(piece.start, piece.stop)}
        if rows & deadly and not piece.is_quarantined:
            schedule.lost(piece, "was killed")
        else:
            schedule.made(0 if piece.is_quarantined else 2 * piece.num_rows)
            made.append(piece)
    return made


def rows_of(pieces: list[Piece]) -> list[tuple[int, int]]:
    return sorted((piece.index, row) for piece in pieces for row in range(piece.start, piece.stop))


@pytest.mark.parametrize("deadly", [{(1, 0)}, {(0, 0), (2, 99)}, {(1, 50), (1, 51), (0, 7)}])
def test_the_rows_that_kill_are_found_and_no_other_is_lost(deadly: set[tuple[int, int]]) -> None:
    made = play(Schedule(shards(100, 100, 100), 1), deadly)
    assert rows_of(made) == [(index, row) for index in range(3) for row in range(100)]
    quarantined = [piece for piece in made if piece.is_quarantined]
    assert set(rows_of(quarantined)) == deadly
    assert all(piece.num_rows == 1 for piece in quarantined)
    untouched = set(range(3)) - {index for index, _ in deadly}
    assert {piece.index for piece in made if piece.num_rows == 100} == untouched


def test_a_shard_that_fails_once_stays_whole() -> None:
    schedule = Schedule(shards(10, 10), 1)
    first = schedule.take()
    assert first
    schedule.lost(first, "was killed")
    assert [piece.num_rows for piece in play(schedule, set())] == [10, 10]


@pytest.mark.parametrize("num_workers", [1, 4])
@pytest.mark.parametrize("heights", [(1,), (1, 1, 1), (2000,), (50,) * 50])
def test_an_engine_that_dies_on_everything_is_no_rows_fault(
    heights: tuple[int, ...], num_workers: int
) -> None:
    everything = {(index, row) for index, height in enumerate(heights) for row in range(height)}
    schedule = Schedule(shards(*heights), num_workers)
    times = MAX_LOSSES * num_workers
    with pytest.raises(UserError, match=f"^{times} times in a row, .* the engine was killed"):
        play(schedule, everything)


def test_a_model_that_cannot_be_loaded_is_tried_twice() -> None:
    schedule = Schedule(shards(5), 1)
    for _ in range(3):  # with successes in between
        piece = schedule.take()
        assert piece
        schedule.not_loaded(piece, "was killed")
        schedule.loaded()
    piece = schedule.take()
    assert piece
    schedule.not_loaded(piece, "was killed")
    again = schedule.take()
    assert again == piece
    with pytest.raises(UserError, match="the model cannot be loaded: the engine was killed"):
        schedule.not_loaded(piece, "was killed")


def test_a_slow_piece_is_tried_again_after_the_others_with_twice_the_time() -> None:
    schedule = Schedule(shards(10, 20, 30), 1)
    slow = schedule.take()
    assert slow
    schedule.timed_out(slow, "gave no sign of life for 1 s")
    order = []
    while piece := schedule.take():
        order.append((piece.index, piece.patience))
        schedule.made(1)
    assert order == [(1, 1), (2, 1), (0, 2)]
    assert schedule.is_over


def test_a_row_that_only_ever_times_out_ends_the_run_and_is_not_dropped() -> None:
    schedule, patience = Schedule(shards(1, *[1] * 50), 1), []

    def play() -> None:
        while piece := schedule.take():
            assert not piece.is_quarantined
            if piece.index:
                schedule.made(2)
            else:
                patience.append(piece.patience)
                schedule.timed_out(piece, "gave no sign of life for 1 s")

    with pytest.raises(UserError, match=r"the engine gave no sign .* raise executor\.timeout_s"):
        play()
    assert patience == [2**tries for tries in range(MAX_TIMEOUTS)]


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 3])
def test_an_engine_that_always_hangs_ends_the_run_before_all_shards_have_waited(
    num_workers: int,
) -> None:
    schedule, waits = Schedule(shards(*[5] * 100), num_workers), []

    def play() -> None:
        while piece := schedule.take():
            waits.append(piece.index)
            schedule.timed_out(piece, "gave no sign of life for 1 s")

    with pytest.raises(UserError, match=r"executor\.timeout_s"):
        play()
    assert waits == list(range(MAX_TIMEOUTS * num_workers))
