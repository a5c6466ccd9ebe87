"""SQL expressions over the columns of rows, as ``select.where`` and ``select.rank`` take them.

Polars parses and runs them, after a few changes to their words:

- A name with dots is one column, as in ``record.meta.source``, and so is the name of a column that
  is also a word of SQL, as ``cluster``. Double quotes hold names with other characters.
- A number with a decimal point is a float: as a decimal it would round what it is divided by.
- Lengths are signed: the difference of unsigned numbers would be a huge one in place of a negative.

Aggregates and windows see all rows that are left. Only one value per row is accepted, and nothing
that reads tables or files.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import polars as pl
from polars import selectors as cs

from cherry_vllm.errors import UserError
from cherry_vllm.runtime.text import first_line
from cherry_vllm.selection.choice import RANDOM, Choice

TOKEN = re.compile(
    r"""(?P<text>'(?:[^']|'')*') | (?P<name>"(?:[^"]|"")*") | (?P<number>\.?\d[\w.]*)
    | (?P<word>[^\W\d]\w*(?:\.[^\W\d]\w*)*) | (?P<other>--|/\*|.)""",
    re.VERBOSE | re.DOTALL,
)
# What begins a comment or another kind of quotes, within which words would not be seen.
ODD = {"'", '"', "`", "$", "#", ";", "\\", "{", "}", "--", "/*"}
OF_TABLES = re.compile(r"(?i)select|values|table|union|(read|scan)_\w+")
UNSIGNED = {
    *("array_length", "bit_length", "char_length", "character_length", "length", "octet_length"),
    *("position", "strpos"),
}
# Words that are never the names of columns, unless these are quoted.
OPERATORS = {
    *("and", "as", "asc", "between", "both", "by", "case", "cast", "desc", "distinct", "else"),
    *("end", "escape", "false", "following", "for", "from", "ilike", "in", "is", "leading", "like"),
    *("not", "null", "or", "order", "over", "partition", "preceding", "range", "rows", "then"),
    *("trailing", "true", "when"),
}
FAULTS = (pl.exceptions.PolarsError, pl.exceptions.PanicException)
WIDE = (pl.Int128, pl.UInt128)  # which NumPy lacks


@dataclass(frozen=True)
class Expression:
    """A parsed expression, the setting that it comes from, and the columns that it names."""

    key: str
    text: str
    parsed: pl.Expr
    columns: tuple[str, ...]

    def check(self, held: Sequence[str], others: Sequence[str] = ()) -> None:
        """Raises a UserError for a column that is not ``held``; ``others`` could have been."""
        for name in self.columns:
            if name not in held:
                known = ", ".join(dict.fromkeys([*held, *others]))
                raise self.refuse(f"no column {name}; there are {known}")

    def is_column(self, name: str) -> bool:
        """Whether it is a column and nothing else, however it is written."""
        return self.parsed.meta.eq(pl.col(name))

    def refuse(self, fault: str) -> UserError:
        """The error that names the setting and its value."""
        return UserError(f"{self.key}={self.text}: {fault}")


def parse(key: str, text: str, known: Collection[str] = ()) -> Expression:
    """Parses the ``text`` of the setting ``key``; ``known`` are the names of columns.

    Raises:
        UserError: it is not a SQL expression, or it reads tables.
    """
    try:
        parsed = pl.sql_expr(_rewrite(key, text, known))
        columns = dict.fromkeys(parsed.meta.root_names())
    except FAULTS as error:
        raise UserError(f"{key}={text}: {first_line(error)}; give a SQL expression") from None
    expression = Expression(key, text, parsed, tuple(columns))
    if not parsed.meta.undo_aliases().meta.eq(parsed):
        raise expression.refuse("a name follows an expression; is an operator missing?")
    return expression


class Expressions:
    """The parsed expressions of a choice, and the columns that they name."""

    def __init__(self, choice: Choice, known: Sequence[str]) -> None:
        """``known`` are the names of columns; raises a UserError for what cannot be parsed."""
        self.where = parse("select.where", choice.where, known) if choice.where else None
        self.rank = None if choice.rank == RANDOM else parse("select.rank", choice.rank, known)
        self.group = parse("select.group", choice.group, known) if choice.max_per_group else None
        self.strata = [parse("select.strata", text, known) for text in choice.strata]
        parsed = (self.where, self.rank, self.group, *self.strata)
        self._all = [expression for expression in parsed if expression]

    @property
    def columns(self) -> list[str]:
        """The columns that any of them names."""
        return [name for expression in self._all for name in expression.columns]

    def check(self, held: Sequence[str], others: Sequence[str]) -> None:
        """Raises a UserError for a column that is not ``held``; ``others`` could have been."""
        for expression in self._all:
            expression.check(held, others)


def evaluate(expression: Expression, frame: pl.DataFrame) -> pl.Series:
    """One value for each row of ``frame``, which has the expression's columns.

    Unsigned numbers count as signed ones, so that their differences may be negative. NaN is null.

    Raises:
        UserError: types do not match, or there is not one value per row.
    """
    held = frame.lazy().select(expression.columns)
    held = held.with_columns(cs.unsigned_integer().cast(pl.Int64))
    try:
        found = held.collect().select(expression.parsed)
    except FAULTS as error:
        raise expression.refuse(f"{first_line(error)}; check its names and types") from None
    if found.shape != (frame.height, 1) or not expression.columns:
        raise expression.refuse("not one value for each row; name a column, and aggregate nothing")
    values = found.to_series()
    if values.dtype in WIDE:
        raise expression.refuse("whole numbers of 128 bits; cast them to bigint or double")
    return values.fill_nan(None) if values.dtype.is_float() else values


def _rewrite(key: str, text: str, known: Collection[str]) -> str:
    """The text as Polars should read it; see the top of this file.

    Raises:
        UserError: it has comments, unusual quotes, or words that tables are read with.
    """
    parts, before, word = list[str](), "", ""  # what stands before, also in front of spaces
    closing: list[str] = []  # what follows each bracket that is open
    for token in TOKEN.finditer(text):
        part, kind = token[0], token.lastgroup or ""
        is_call = kind == "word" and text[token.end() :].lstrip().startswith("(")
        _refuse_odd(f"{key}={text}", part, kind, before)
        if kind == "word" and not is_call and ("." in part or _is_name(part, known)):
            parts.append(f'"{part}"')
        elif is_call and part.lower() in UNSIGNED:
            parts.append(f"cast({part}")
        elif kind == "number" and "." in part and "e" not in part.lower():
            parts.append(f"{part}e0")
        elif part == ")" and closing:
            parts.append(f"){closing.pop()}")
        else:
            parts.append(part)
        if part == "(":
            closing.append(" as bigint)" if word.lower() in UNSIGNED else "")
        before, word = part, part if part.strip() else word
    return "".join(parts)


def _is_name(word: str, known: Collection[str]) -> bool:
    return word in known and word.lower() not in OPERATORS


def _refuse_odd(setting: str, part: str, kind: str, before: str) -> None:
    is_prefixed = (
        kind in ("text", "name") and before[-1:].isalnum() and before.lower() not in OPERATORS
    )
    if (kind == "other" and part in ODD) or is_prefixed:
        raise UserError(f"{setting}: {part} is not understood here; give a SQL expression")
    if kind == "word" and OF_TABLES.fullmatch(part):
        raise UserError(
            f"{setting}: {part} is not understood, since no tables are read here; a column of this "
            "name needs double quotes"
        )
