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


def write_records(records: pl.Series, output: Path) -> None:
    """Writes records (JSON objects, as text) in their order; JSON keeps them to the letter."""
    with atomic_path(output) as path:
        if output.suffix == ".parquet":
            lines = io.BytesIO("\n".join(records).encode())
            pl.read_ndjson(lines, infer_schema_length=None).write_parquet(path)
        elif output.suffix == ".jsonl":
            path.write_text("".join(f"{record}\n" for record in records), encoding="utf-8")
        else:
            path.write_text("[\n" + ",\n".join(records) + "\n]\n", encoding="utf-8")
