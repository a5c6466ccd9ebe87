"""Chosen rows to a file that trainers read: a JSON array, JSON Lines or Parquet."""

import io
from pathlib import Path

import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.store import atomic_path

SUFFIXES = (".json", ".jsonl", ".parquet")


def check_suffix(output: Path) -> None:
    """Raises a UserError if the suffix names no format that can be written."""
    if output.suffix not in SUFFIXES:
        raise UserError(f"select.output={output.name}: end it in one of {', '.join(SUFFIXES)}")


def find_records(rows: pl.LazyFrame, wanted: pl.Series) -> pl.Series:
    """The input records of the row numbers ``wanted``, in that order, from a frame of ROWS."""
    chosen = wanted.alias("row").to_frame()
    found = (
        rows.select("row", "record")
        .join(chosen.lazy(), on="row", how="semi")
        .collect(engine="streaming")
    )
    return chosen.join(found, on="row", how="left", maintain_order="left")["record"]


def write_records(records: pl.Series, output: Path) -> None:
    """Writes records (JSON objects, as text) in their order; JSON keeps them to the letter."""
    with atomic_path(output) as path:
        if output.suffix == ".parquet":
            _write_parquet(records, path, output)
        elif output.suffix == ".jsonl":
            path.write_text("".join(f"{record}\n" for record in records), encoding="utf-8")
        else:
            path.write_text("[\n" + ",\n".join(records) + "\n]\n", encoding="utf-8")


def _write_parquet(records: pl.Series, path: Path, output: Path) -> None:
    """Parquet has one type per column, which JSON records need not have."""
    lines = io.BytesIO("\n".join(records).encode())
    try:
        pl.read_ndjson(lines, infer_schema_length=None).write_parquet(path)
    except pl.exceptions.PolarsError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{output}: the rows' fields do not fit in columns ({reason}); use a .jsonl output"
        ) from None
