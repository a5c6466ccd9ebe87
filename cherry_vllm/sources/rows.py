"""Files to frames of rows, in batches of one size, each row with its drop reason."""

import logging
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.options import DataFormat, Turns
from cherry_vllm.schema import REASON, ROWS, DropReason
from cherry_vllm.sources.csv_records import read_csv_records
from cherry_vllm.sources.fields import Columns
from cherry_vllm.sources.findings import Findings
from cherry_vllm.sources.formats import READ_ERRORS, Layout, unreadable
from cherry_vllm.sources.json_texts import read_json_records
from cherry_vllm.sources.records import frames_of
from cherry_vllm.sources.tables import read_table_records

log = logging.getLogger(__name__)


def read_rows(
    files: Sequence[Path],
    *,
    columns: Columns,
    layout: Layout = Layout(),
    refusals: Sequence[str],
    turns: Turns = Turns.all,
    max_rows: int | None = None,
    batch_rows: int,
    tell: Callable[[str], None] = log.warning,
) -> Iterator[pl.DataFrame]:
    """Yields all rows of ``files``, in order, as frames of :data:`schema.ROWS`.

    ``layout`` says how the records lie in the files. Every frame but the last has ``batch_rows``
    rows; only the first ``max_rows`` rows of the input are read. ``turns`` says which answers of a
    conversation count as such. ``refusals`` holds phrases; a row with an answer that contains one,
    in upper or lower case, gets ``drop_reason`` "refusal". ``tell`` is called with a line for each
    odd finding.

    Raises:
        UserError: a file as a whole cannot be read, no row can be read, or a column is missing.
    """
    findings = Findings(columns, tell)
    reading = _Reading(layout, columns, turns, findings)
    frames = _read_files(files, reading, max_rows)
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


class _Reading(NamedTuple):
    """How files are read."""

    layout: Layout
    columns: Columns
    turns: Turns
    findings: Findings


def _read_files(
    files: Sequence[Path], reading: _Reading, max_rows: int | None
) -> Iterator[pl.DataFrame]:
    for file in files:
        if max_rows == 0:
            return
        for frame in _read_file(file, reading, max_rows):
            yield frame
            max_rows = None if max_rows is None else max_rows - frame.height


def _read_file(file: Path, reading: _Reading, max_rows: int | None) -> Iterator[pl.DataFrame]:
    """Yields frames of record, messages, tools and drop_reason."""
    columns, turns, findings = reading.columns, reading.turns, reading.findings
    layout = reading.layout.settle(file)
    match layout.format:
        case DataFormat.parquet | DataFormat.arrow:
            records = read_table_records(file, layout.format, columns, findings, max_rows)
        case DataFormat.csv:
            records = read_csv_records(file, layout)
        case DataFormat.json | DataFormat.jsonl:
            records = read_json_records(file, layout)
        case _:
            raise ValueError(f"no reader for {layout.format}")
    try:
        yield from frames_of(islice(records, max_rows), file, columns, turns, findings)
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
    """The reason so far, or "refusal" for a row with an answer that holds one of the phrases."""
    if not refusals:
        return pl.col("drop_reason")
    message = pl.element().struct
    phrases = [phrase.lower() for phrase in refusals]
    holds = message.field("content").str.to_lowercase().str.contains_any(phrases)
    refused = pl.col("messages").list.eval(message.field("is_answer") & holds).list.any()
    return pl.coalesce(
        "drop_reason", pl.when(refused).then(pl.lit(DropReason.REFUSAL.value, REASON))
    )
