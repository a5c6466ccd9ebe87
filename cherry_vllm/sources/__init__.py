"""Files to rows: instruction data in any common format, as frames of :data:`schema.ROWS`.

A record that cannot be read is a row with ``drop_reason`` "malformed"; a file that cannot be read
is a :class:`UserError`. Memory holds one batch of records, whatever the size of the input.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.options import DataFormat
from cherry_vllm.schema import REASON, ROWS, DropReason
from cherry_vllm.sources.columns import Columns
from cherry_vllm.sources.files import detect_format, find_files
from cherry_vllm.sources.records import read_records
from cherry_vllm.sources.tables import read_table

__all__ = ["Columns", "DataFormat", "find_files", "read_rows"]


def read_rows(
    files: Sequence[Path],
    *,
    data_format: DataFormat,
    columns: Columns,
    refusals: Sequence[str],
    max_rows: int | None = None,
    batch_rows: int,
) -> Iterator[pl.DataFrame]:
    """Yields all rows of ``files``, in order, as frames of :data:`schema.ROWS`.

    Every frame but the last has ``batch_rows`` rows; of the input, only the first ``max_rows`` are
    read. ``refusals`` holds phrases; a row whose answer contains one, in any case, gets
    ``drop_reason`` "refusal".

    Raises:
        UserError: a file is broken as a whole, holds no row, or has none of the columns.
    """
    frames = (frame for file in files for frame in _read_file(file, data_format, columns))
    first_row = 0
    for frame in _rebatch(_head(frames, max_rows), batch_rows):
        yield (
            frame.with_columns(drop_reason=_drop_reason(refusals))
            .with_row_index("row", offset=first_row)
            .select(list(ROWS))
            .cast(ROWS)  # type: ignore[arg-type]
        )
        first_row += frame.height
    if first_row == 0:
        raise UserError(f"{', '.join(map(str, files))}: no rows; check data.path and data.format")


def _read_file(file: Path, data_format: DataFormat, columns: Columns) -> Iterator[pl.DataFrame]:
    if data_format is DataFormat.auto:
        data_format = detect_format(file)
    read = read_records if data_format in (DataFormat.json, DataFormat.jsonl) else read_table
    return read(file, data_format, columns)


def _head(frames: Iterator[pl.DataFrame], max_rows: int | None) -> Iterator[pl.DataFrame]:
    if max_rows is None:
        yield from frames
        return
    for frame in frames:
        yield frame.head(max_rows)
        max_rows -= min(max_rows, frame.height)
        if max_rows == 0:
            return


def _rebatch(frames: Iterator[pl.DataFrame], rows: int) -> Iterator[pl.DataFrame]:
    """Cuts a stream of frames anew, into frames of ``rows`` rows and a rest."""
    held: list[pl.DataFrame] = []
    for frame in frames:
        held.append(frame)
        if sum(part.height for part in held) < rows:
            continue
        joined = pl.concat(held)
        cut = joined.height - joined.height % rows
        yield from joined[:cut].iter_slices(rows)
        held = [joined[cut:]]
    rest = pl.concat(held) if held else pl.DataFrame()
    if rest.height:
        yield rest


def _drop_reason(refusals: Sequence[str]) -> pl.Expr:
    answer = pl.col("answer")
    empty = answer.is_null() | (answer.str.strip_chars() == "")
    phrases = [phrase.lower() for phrase in refusals]
    text = answer.str.to_lowercase()
    is_refusal = text.str.contains_any(phrases) if phrases else pl.lit(value=False)
    return (
        pl.when("malformed")
        .then(pl.lit(DropReason.MALFORMED.value, REASON))
        .when(empty)
        .then(pl.lit(DropReason.EMPTY_ANSWER.value, REASON))
        .when(is_refusal)
        .then(pl.lit(DropReason.REFUSAL.value, REASON))
    )
