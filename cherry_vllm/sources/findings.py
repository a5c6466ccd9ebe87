"""What the user must know about the rows that are read: counted over all files, a line each."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cherry_vllm.errors import UserError
from cherry_vllm.sources.fields import (
    CONVENTIONAL_INPUT,
    FIELD_KEYS,
    MESSAGES_KEYS,
    REQUIRED,
    ChosenFields,
    Columns,
    legible,
)
from cherry_vllm.sources.shapes import Shaped

log = logging.getLogger(__name__)

MAX_FAULTS_SHOWN = 3
MAX_CHOICES_SHOWN = 3
INPUT_FIELDS = ("input", "context", "passage", "document")


class Findings:
    """Counts what is odd about the rows that are read, and reports it."""

    def __init__(self, columns: Columns, tell: Callable[[str], None]) -> None:
        """``tell`` is called with one line at a time."""
        self._columns, self._tell = columns, tell
        self._num_rows = self._num_files = self._num_malformed = 0
        self._choices = Counter[str]()
        self._unread, self._unscored, self._numbers = Counter[str](), Counter[str](), Counter[str]()
        self._beside_messages = set[str]()  # names of unread fields
        self._converted: dict[str, str] = {}
        self._not_finite = Counter[str]()
        self._faults: list[str] = []  # of the file that is being read
        self._optional = [key for key in columns.named() if key not in REQUIRED]
        self._found: dict[str, ChosenFields] = {}  # what was chosen in the file
        self._ever_read: set[str] = set()  # keys of fields
        self._without: dict[str, list[Path]] = {key: [] for key in self._optional}
        self._names: dict[str, Any] = {}

    def chosen(self, chosen: ChosenFields, fields: Mapping[str, Any]) -> None:
        """Notes which fields of a record are read, and which hold context but are not."""
        self._choices[chosen.line] += 1
        self._found[chosen.line] = chosen
        for name in chosen.unread:
            if _holds_something(fields[name]):
                self._unread[name] += 1
                if "messages" in chosen.names:
                    self._beside_messages.add(name)

    def shaped(self, shaped: Shaped) -> None:
        """Counts what is odd about the messages of a record."""
        self._numbers.update(shaped.numbers)
        self._unread.update(shaped.unread)
        self._unscored.update(shaped.unscored)

    def malformed(self, file: Path, row: int, fault: str) -> None:
        """Notes a dropped row of a file; the first few are reported."""
        self._num_malformed += 1
        if self._num_malformed <= MAX_FAULTS_SHOWN:
            self._faults.append(f"{file}: row {row} dropped as malformed: {fault}")

    def converted(self, name: str, dtype: str) -> None:
        """Notes a column of a type that JSON lacks; its values are kept as text."""
        self._converted[name] = dtype

    def not_finite(self, name: str, num_rows: int) -> None:
        """Counts rows with a number that JSON lacks, NaN or an infinity, which is kept as null."""
        self._not_finite[name] += num_rows

    def file_read(self, file: Path, num_rows: int, names: Mapping[str, Any]) -> None:
        """Notes that a file is done, its rows and field names."""
        for fault in self._faults:
            self._tell(fault)
        self._faults.clear()
        self._num_rows += num_rows
        self._num_files += bool(num_rows)
        self._names |= names
        found = {key for chosen in self._found.values() for key in chosen.names}
        self._ever_read |= found
        for key in self._optional if num_rows else []:
            if key not in found:
                self._without[key].append(file)
        self._found.clear()

    def conclude(self) -> None:
        """Reports the counts.

        Raises:
            UserError: no row has a column that was asked for.
        """
        if self._num_malformed > MAX_FAULTS_SHOWN:
            self._tell(f"{self._num_malformed} malformed rows in all")
        for key, files in self._without.items():
            if files:
                self._tell_of_missing(key, files)
        self._tell_of_choices()
        for name, count in self._unread.items():
            self._tell_of_unread(name, count)
        for name, count in self._unscored.items():
            self._tell(f"{count} answers have a field '{name}', which is not scored")
        for name, count in self._numbers.items():
            self._tell(f"{count} rows: field '{name}' is a number or true/false, read as text")
        for name, dtype in self._converted.items():
            self._tell(f"column '{name}' is {dtype}, which JSON lacks: it is kept as text")
        for name, count in self._not_finite.items():
            if count:
                self._tell(f"{count} rows: column '{name}' is NaN or infinite, null in outputs")

    def _tell_of_missing(self, key: str, files: list[Path]) -> None:
        name = self._columns.named()[key]
        if len(files) < self._num_files:
            self._tell(
                f"{len(files)} of the files have no field '{name}' in any row; one is {files[0]}"
            )
            return
        if name in self._beside_messages:
            raise UserError(
                f"data.columns.{key}={name}: not read beside messages; put it into the request if "
                f"the answers need it, and leave out data.columns.{key}"
            )
        lack = f"no row has a field '{name}' (found: {legible(self._names)})"
        if name != CONVENTIONAL_INPUT:
            raise UserError(f"data.columns.{key}={name}: {lack}; give null if the data has none")
        self._tell(
            f"{lack}, so all rows are read without input; name the field with "
            "data.columns.input=..., or give null if there is none"
        )

    def _tell_of_choices(self) -> None:
        """Says in one line which fields were read, those of most rows first."""
        shown = self._choices.most_common(MAX_CHOICES_SHOWN)
        parts = [f"{count} rows by {line}" for line, count in shown]
        if len(self._choices) > len(shown):
            parts.append("and more")
        if parts:
            log.info("read %s", "; ".join(parts))

    def _tell_of_unread(self, name: str, count: int) -> None:
        folded = name.lower()
        key = "input" if folded in INPUT_FIELDS else folded
        readable = MESSAGES_KEYS if name in self._beside_messages else FIELD_KEYS
        if key in readable and key not in (*REQUIRED, *self._ever_read):
            advice = f"data.columns.{key}={name} reads it"
        else:
            advice = "put it into the request if the answers need it"
        self._tell(
            f"{count} of {self._num_rows} rows have a field '{name}' that is not read, so they "
            f"lack this context; {advice}"
        )


def _holds_something(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, float) and math.isnan(value):
        return False
    return bool(value)
