"""Files to frames of rows, in batches of one size, each row with its drop reason."""

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.options import DataFormat
from cherry_vllm.schema import REASON, ROWS, DropReason
from cherry_vllm.sources.columns import Columns
from cherry_vllm.sources.csv_records import read_csv_records
from cherry_vllm.sources.findings import Findings
from cherry_vllm.sources.formats import READ_ERRORS, detect_format, unreadable
from cherry_vllm.sources.json_texts import read_json_records
from cherry_vllm.sources.records import frames_of
from cherry_vllm.sources.tables import read_table

log = logging.getLogger(__name__)


def read_rows(
    files: Sequence[Path],
    *,
    data_format: DataFormat,
    columns: Columns,
    refusals: Sequence[str],
    max_rows: int | None = None,
    batch_rows: int,
    tell: Callable[[str], None] = log.warning,
) -> Iterator[pl.DataFrame]:
    """Yields all rows of ``files``, in order, as frames of :data:`schema.ROWS`.

    Every frame but the last has ``batch_rows`` rows; only the first ``max_rows`` rows of the input
    are read. ``refusals`` holds phrases; a row whose answer contains one, in upper or lower case,
    gets ``drop_reason`` "refusal". ``tell`` is called with a line for each odd finding.

    Raises:
        UserError: a file as a whole cannot be read, no row can be read, or a column is missing.
    """
    findings = Findings(columns, tell)
    frames = _read_files(files, data_format, columns, findings, max_rows)
    first_row = 0
    for frame in _rebatch(frames, batch_rows):
        yield (
            frame.with_columns(drop_reason=_drop_reason(refusals))
            .with_row_index("row", offset=first_row)
            .select(list(ROWS))
            .cast(ROWS)  # type: ignore[arg-type]
        )
        first_row += frame.height
    if first_row == 0:
        raise UserError(f"{', '.join(map(str, files))}: no rows; check data.path and data.format")
    findings.conclude()


def _read_files(
    files: Sequence[Path],
    data_format: DataFormat,
    columns: Columns,
    findings: Findings,
    max_rows: int | None,
) -> Iterator[pl.DataFrame]:
    for file in files:
        if max_rows == 0:
            return
        for frame in _read_file(file, data_format, columns, findings, max_rows):
            yield frame
            max_rows = None if max_rows is None else max_rows - frame.height


def _read_file(
    file: Path,
    data_format: DataFormat,
    columns: Columns,
    findings: Findings,
    max_rows: int | None,
) -> Iterator[pl.DataFrame]:
    """Yields frames of record, instruction, input, answer and malformed."""
    if data_format is DataFormat.auto:
        data_format = detect_format(file)
    if data_format in (DataFormat.parquet, DataFormat.arrow):
        yield from read_table(file, data_format, columns, findings, max_rows)
        return
    match data_format:
        case DataFormat.csv:
            records = read_csv_records(file)
        case DataFormat.json | DataFormat.jsonl:
            records = read_json_records(file, data_format)
        case _:
            raise ValueError(f"no reader for {data_format}")
    try:
        yield from frames_of(islice(records, max_rows), file, columns, findings)
    except READ_ERRORS as error:
        raise unreadable(file, error) from None


def _rebatch(frames: Iterator[pl.DataFrame], rows: int) -> Iterator[pl.DataFrame]:
    """Cuts a stream of frames into frames of ``rows`` rows; the last may be shorter."""
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
    refused = text.str.contains_any(phrases) if phrases else pl.lit(value=False)
    return (
        pl.when("malformed")
        .then(pl.lit(DropReason.MALFORMED.value, REASON))
        .when(empty)
        .then(pl.lit(DropReason.EMPTY_ANSWER.value, REASON))
        .when(refused)
        .then(pl.lit(DropReason.REFUSAL.value, REASON))
    )
