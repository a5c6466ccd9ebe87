"""Chosen rows to formats that trainers read: JSON, JSON Lines, Parquet, or a data set folder."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.selection.columns import INSTRUCTION, RECORD
from cherry_vllm.selection.loadable import find_oddities
from cherry_vllm.selection.parquet import write_parquet
from cherry_vllm.store.hashes import file_sha256
from cherry_vllm.store.marks import marked_file, marked_folder

CARD = "README.md"  # of a data set folder
DATA_FOLDER = "data"
KEY = "scores"  # of a row: its scores

log = logging.getLogger(__name__)

WriteCard = Callable[[Path, str], None]
"""Writes the card to a path; the second argument is the file of the rows, relative to it."""


def find_records(rows: pl.LazyFrame, wanted: pl.Series) -> pl.Series:
    """The input records with the row numbers ``wanted``, in that order, from a frame of ROWS."""
    chosen = wanted.alias("row").to_frame()
    found = (
        rows.select("row", "record")
        .join(chosen.lazy(), on="row", how="semi")
        .collect(engine="streaming")
    )
    records = chosen.join(found, on="row", how="left", maintain_order="left")["record"]
    if records.null_count():
        raise RuntimeError(
            f"{records.null_count()} of {records.len()} rows are not in their shards"
        )
    return records


def add_scores(records: pl.Series, rows: pl.DataFrame) -> pl.Series:
    """Records (JSON objects, as text) with the line of ``rows`` under the key :data:`KEY`.

    The rest of each record keeps its text.

    Raises:
        UserError: a record has such a key.
    """
    texts = [name for name in rows.columns if name == INSTRUCTION or name.startswith(RECORD)]
    lines = rows.drop("drop_reason", *texts).iter_rows(named=True)
    return pl.Series(
        "record", [_add(text, line) for text, line in zip(records, lines, strict=True)], pl.String
    )


def _add(record: str, line: dict[str, Any]) -> str:
    fields = json.loads(record)
    if KEY in fields:
        raise UserError(
            f"select.with_scores: row {line['row']} has a field {KEY!r} of its own; rename that, "
            "or leave the scores out"
        )
    begun = record.rstrip()[:-1].rstrip()
    separator = ", " if fields else ""
    scores = json.dumps(line, ensure_ascii=False, default=str)
    return f"{begun}{separator}{json.dumps(KEY)}: {scores}}}"


def export(
    records: pl.Series, output: Path, facts: Mapping[str, Any], write_card: WriteCard
) -> Path:
    """Writes records to ``output``, with its mark; returns the file that holds them.

    The suffix names the format; without a suffix, a data set folder with a card is written.

    Raises:
        UserError: the records do not fit in a Parquet file, or ``output`` must not be replaced.
    """
    if output.suffix:
        with marked_file(output, facts) as path:
            write_records(records, path, output)
        return output
    with marked_folder(output, facts) as folder:
        file = _write_dataset(records, folder, output)
        write_card(folder / CARD, file)
    return output / file


def write_records(records: pl.Series, path: Path, output: Path) -> None:
    """Writes records (JSON objects, as text) in order; the JSON formats keep their text exactly.

    ``output`` is the path that ``path`` will be renamed to.
    """
    if output.suffix == ".parquet":
        write_parquet(records, path, output)
        return
    for oddity, where in find_oddities(records).items():
        log.warning("%s: %s (%s); other programs may refuse or change them", output, oddity, where)
    if output.suffix == ".jsonl":
        path.write_text("".join(f"{record}\n" for record in records), encoding="utf-8")
    else:
        path.write_text("[\n" + ",\n".join(records) + "\n]\n", encoding="utf-8")


def _write_dataset(records: pl.Series, folder: Path, output: Path) -> str:
    """Writes the rows below ``folder``; returns the path of their file, relative to it.

    What Parquet would change is written as JSON Lines. The file is named by its contents: the
    cache of ``datasets`` distinguishes data sets only by the file names in their cards.
    """
    (folder / DATA_FOLDER).mkdir()
    path = folder / DATA_FOLDER / "train.parquet"
    try:
        write_parquet(records, path, output)
    except UserError as misfit:
        log.warning("%s; the rows are in a .jsonl file", str(misfit).partition(";")[0])
        path = path.with_suffix(".jsonl")
        write_records(records, path, path)
    named = path.rename(path.with_name(f"train-{file_sha256(path)[:16]}{path.suffix}"))
    return named.relative_to(folder).as_posix()
