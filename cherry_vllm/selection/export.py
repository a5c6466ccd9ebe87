"""Chosen rows to what trainers read: a JSON array, JSON Lines, Parquet, or a data set folder."""

from collections.abc import Callable
from pathlib import Path

import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.selection.parquet import write_parquet
from cherry_vllm.store.files import atomic_folder, atomic_path

SUFFIXES = (".json", ".jsonl", ".parquet")
# Of a data set folder.
DATA = Path("data") / "train-00000-of-00001.parquet"
PATTERN = "data/train-*.parquet"
CARD = "README.md"


def check_output(output: Path) -> None:
    """Raises a UserError if nothing can be written there.

    The suffix names the format; without one a data set folder is written, which replaces nothing
    but such a folder.
    """
    if not output.suffix:
        parts = set(output.iterdir()) if output.is_dir() else {output}
        if output.exists() and parts - {output / CARD, output / DATA.parent}:
            raise UserError(
                f"{output}: there is something else; name another folder with select.output"
            )
    elif output.suffix not in SUFFIXES:
        raise UserError(
            f"select.output={output.name}: end it in one of {', '.join(SUFFIXES)}, or leave the "
            "suffix out for a data set folder"
        )


def find_data(output: Path) -> Path:
    """The file that holds the rows of an output."""
    return output if output.suffix else output / DATA


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
            write_parquet(records, path, output)
        elif output.suffix == ".jsonl":
            path.write_text("".join(f"{record}\n" for record in records), encoding="utf-8")
        else:
            path.write_text("[\n" + ",\n".join(records) + "\n]\n", encoding="utf-8")


def write_dataset(records: pl.Series, output: Path, write_card: Callable[[Path], None]) -> None:
    """Writes a folder that the usual loaders take for a data set: its rows and its card."""
    with atomic_folder(output) as folder:
        (folder / DATA).parent.mkdir()
        write_parquet(records, folder / DATA, output)
        write_card(folder / CARD)
