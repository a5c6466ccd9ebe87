"""What the user must know about the rows that are read: counted over all files, a line each."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from cherry_vllm.errors import UserError
from cherry_vllm.sources.columns import Columns, legible

MAX_FAULTS_SHOWN = 3
INPUT_FIELDS = ("input", "context", "passage", "document")
CONVENTIONAL_INPUT = "input"  # may be absent; any other name was given by the user


class Findings:
    """Counts what is odd about the rows that are read, and reports it."""

    def __init__(self, columns: Columns, tell: Callable[[str], None]) -> None:
        """``tell`` is called with one line at a time."""
        self._columns, self._tell = columns, tell
        self._num_rows = self._num_malformed = 0
        self._unread, self._numbers = Counter[str](), Counter[str]()
        self._converted: dict[str, str] = {}
        self._not_finite = Counter[str]()
        self._faults: list[str] = []  # of the file that is being read
        self._without_input: list[Path] = []
        self._has_input = False
        self._names: dict[str, None] = {}

    def malformed(self, file: Path, row: int, fault: str) -> None:
        """Notes a dropped row of a file; the first few are reported."""
        self._num_malformed += 1
        if self._num_malformed <= MAX_FAULTS_SHOWN:
            self._faults.append(f"{file}: row {row} dropped as malformed: {fault}")

    def unread_context(self, name: str, num_rows: int = 1) -> None:
        """Counts rows with content in a context field that is not read."""
        self._unread[name] += num_rows

    def number(self, name: str, num_rows: int = 1) -> None:
        """Counts rows whose field is a number or a truth value, which is read as text."""
        self._numbers[name] += num_rows

    def converted(self, name: str, dtype: str) -> None:
        """Notes a column of a type that JSON lacks; its values are kept as text."""
        self._converted[name] = dtype

    def not_finite(self, name: str, num_rows: int = 1) -> None:
        """Counts rows with a number that JSON lacks, NaN or an infinity, which is kept as null."""
        self._not_finite[name] += num_rows

    def file_read(
        self, file: Path, num_rows: int, names: dict[str, None], *, has_input: bool
    ) -> None:
        """Notes that a file is done, its rows and field names, and whether it has the input."""
        for fault in self._faults:
            self._tell(fault)
        self._faults.clear()
        self._num_rows += num_rows
        if not num_rows:
            return
        self._names |= names
        self._has_input |= has_input
        if not has_input:
            self._without_input.append(file)

    def conclude(self) -> None:
        """Reports the counts.

        Raises:
            UserError: no row has the input column that was asked for.
        """
        if self._num_malformed > MAX_FAULTS_SHOWN:
            self._tell(f"{self._num_malformed} malformed rows in all")
        self._tell_of_input()
        for name, count in self._unread.items():
            if count:
                advice = (
                    f"data.columns.input={name} reads it"
                    if name in INPUT_FIELDS and not self._has_input
                    else "put it into the instruction or the input if the answers need it"
                )
                self._tell(
                    f"{count} of {self._num_rows} rows have a field '{name}' that is not read, so "
                    f"they lack this context; {advice}"
                )
        for name, count in self._numbers.items():
            if count:
                self._tell(f"{count} rows: field '{name}' is a number or true/false, read as text")
        for name, dtype in self._converted.items():
            self._tell(f"column '{name}' is {dtype}, which JSON lacks: outputs hold it as text")
        for name, count in self._not_finite.items():
            if count:
                self._tell(f"{count} rows: column '{name}' is NaN or infinite, null in outputs")

    def _tell_of_input(self) -> None:
        name = self._columns.input
        if name is None or not self._without_input:
            return
        if self._has_input:
            num_files, first = len(self._without_input), self._without_input[0]
            self._tell(
                f"{num_files} of the files have no field '{name}' in any row; one is {first}"
            )
            return
        lack = f"no row has a field '{name}' (found: {legible(self._names)})"
        if name != CONVENTIONAL_INPUT:
            raise UserError(
                f"data.columns.input={name}: {lack}; give null if the data has no input"
            )
        self._tell(
            f"{lack}, so all rows are read without input; name the field with "
            "data.columns.input=..., or give null if there is none"
        )
