"""A table of results and its summary, which never replace a file that is not ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm import __version__
from cherry_vllm.errors import UserError
from cherry_vllm.store.files import ROW_GROUP_ROWS, read_json, write_json
from cherry_vllm.store.hashes import file_sha256
from cherry_vllm.store.marks import MADE_BY, check_replaceable, is_ours, marked_file, own_file

COMMAND = "judge"


@dataclass(frozen=True)
class ResultFiles:
    """Where results are: ``table`` is Parquet; ``summary`` is JSON with the table's SHA-256.

    Both have marks, so that an edited one counts as the user's.
    """

    table: Path
    summary: Path

    def check(self, inputs: Sequence[Path]) -> None:
        """Raises a UserError if an input, or a file that is not ours, would be replaced."""
        targets = {path.resolve() for path in (self.table, self.summary)}
        for path in inputs:
            if path.resolve() in targets:
                raise UserError(
                    f"{path}: is an input and would be replaced; choose another run_dir"
                )
        check_replaceable(self.table, COMMAND)
        if self.summary.exists() and self.read_summary() is None:
            raise UserError(
                f"{self.summary}: exists and is not what cherry-vllm wrote; choose another run_dir "
                "or move it"
            )

    def read_summary(self) -> dict[str, Any] | None:
        """The summary that an earlier run wrote, if there is one."""
        return read_json(self.summary) if is_ours(self.summary) else None

    def write(
        self, table: pl.DataFrame, summary: Mapping[str, Any], *, origin: str | None = None
    ) -> None:
        """Writes the table, then the summary; ``origin`` is noted in the table's metadata."""
        metadata = None if origin is None else {"origin": origin}
        with marked_file(self.table, {MADE_BY: COMMAND, "summary": self.summary.name}) as path:
            table.write_parquet(path, row_group_size=ROW_GROUP_ROWS, metadata=metadata)
        written = {"version": __version__, **summary, "sha256": file_sha256(self.table)}
        with own_file(self.summary, COMMAND) as path:
            write_json(path, written)
