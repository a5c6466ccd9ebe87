"""Columns that expressions may name beside the scores; each is made only if one names it.

``record.NAME``   a field of the row's record, also nested, as in ``record.meta.source``
``instruction``   the text of all that precedes the row's last answer
``rating``        of the judge's ratings
``cluster``       of the embeddings, by K-Means
any other         of the tables that are joined by ``row``
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import polars as pl
from polars import selectors as cs

from cherry_vllm.conversation import LAST_ANSWER
from cherry_vllm.errors import UserError
from cherry_vllm.runtime.text import first_line
from cherry_vllm.selection.ratings import RATING_REASON, add_ratings, read_ratings
from cherry_vllm.store.run_folder import Inner
from cherry_vllm.store.shards import Shards

RECORD = "record."
INSTRUCTION, RATING, CLUSTER = "instruction", "rating", "cluster"
EMBEDDINGS = "embeddings"  # among the tables that were read
RANK = "rank_value"  # the column that a selection adds, unless the rank is random
BOOLEANS = {"true": True, "false": False}
LONG = r"^[+-]?\d{16,}$"  # a whole number that a float might round
PART_END = "\x1e"  # between the parts of a message


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where columns come from. ``origin`` names the data whose rows tables must be about."""

    rows: pl.LazyFrame | None = None  # of schema.ROWS
    num_rows: int = 0
    tables: Sequence[Path] = ()  # Parquet files with a column `row`
    ratings: Path | None = None
    find_clusters: Callable[[Shards], pl.DataFrame] | None = None  # columns row and cluster
    find_embeddings: Callable[[str], Shards] | None = None  # of schema.EMBEDDINGS, for a user
    origin: str | None = None
    used: dict[str, Path] = field(default_factory=dict, init=False)  # tables that were read

    @cached_property
    def known(self) -> list[str]:
        """The names that :meth:`add` could add, for people."""
        held = {
            CLUSTER: self.find_clusters,
            RATING: self.ratings,
            INSTRUCTION: self.rows,
            f"{RECORD}NAME": self.rows,
        }
        return self.joined + [name for name, source in held.items() if source is not None]

    @property
    def joined(self) -> list[str]:
        """The columns of the tables."""
        return [name for names in self._columns.values() for name in names]

    def find_unambiguous(self, held: Sequence[str]) -> list[str]:
        """The columns of the tables that :meth:`add` can add to a frame of the columns ``held``."""
        counts = Counter(self.joined)
        return [name for name, count in counts.items() if count == 1 and not _is_taken(name, held)]

    def add(self, frame: pl.DataFrame, names: Iterable[str]) -> pl.DataFrame:
        """``frame``, which has a column ``row``, with those of the ``names`` that exist anywhere.

        Raises:
            UserError: a table cannot be read, or is about other rows; such a column is in two
                tables, or in a table and in the scores or records; or no record has a value in
                such a field.
        """
        named = list(dict.fromkeys(names))
        self._refuse_second_columns(frame.columns, named)
        wanted = [name for name in named if name not in frame.columns]
        texts = [name for name in wanted if _is_text(name)]
        if texts and self.rows is not None:
            found = read_texts(self.rows, texts)
            self._refuse_empty_fields(found)
            frame = _join(frame, found)
        for name in wanted:
            tables = [table for table, columns in self._columns.items() if name in columns]
            if len(tables) > 1:
                raise UserError(
                    f"select.join: both {tables[0]} and {tables[1]} have a column {name}; rename "
                    "it in one of them"
                )
            if tables:
                frame = _join(frame, self._read(tables[0], name))
            elif name == RATING and self.ratings is not None:
                self.used[RATING] = self.ratings
                frame = add_ratings(frame, read_ratings(self.ratings, self.origin))
            elif name == CLUSTER and self.find_clusters is not None:
                embeddings = self._open_embeddings("the column cluster")
                frame = _join(frame, self.find_clusters(embeddings))
        return frame

    def _refuse_second_columns(self, held: Sequence[str], names: Sequence[str]) -> None:
        for table, columns in self._columns.items():
            for name in names:
                if name in columns and _is_taken(name, held):
                    raise UserError(
                        f"select.join: {table} has a column {name}, and so have the scores, the "
                        "records or the selection; rename it in the table"
                    )

    def _refuse_empty_fields(self, texts: pl.DataFrame) -> None:
        for name in texts.columns:
            if name.startswith(RECORD) and texts[name].null_count() == texts.height:
                raise UserError(
                    f"{name}: no record has a value there; the first one has the fields "
                    f"{', '.join(self._first_fields)}"
                )

    @property
    def _first_fields(self) -> list[str]:
        """The fields of the first record that can be used."""
        usable = self.open_rows(RECORD).filter(pl.col("drop_reason").is_null())
        first = usable.select("record").head(1).collect()
        return [*json.loads(first.item())] if first.height else []

    def open_rows(self, setting: str) -> pl.LazyFrame:
        """The rows, for their texts; a UserError that names the ``setting`` if there are none."""
        if self.rows is None:
            raise UserError(
                f"{setting}: needs the texts of the rows, which only `cherry-vllm select` reads; "
                "use that"
            )
        return self.rows

    @cached_property
    def embeddings(self) -> pl.LazyFrame:
        """The embeddings: columns row and embedding, which may be null.

        Raises:
            UserError: there are none.
        """
        return self._open_embeddings("select.diversify").scan()

    def _open_embeddings(self, user: str) -> Shards:
        if self.find_embeddings is None:
            raise UserError(
                f"{user}: needs the embeddings of the rows, which only `cherry-vllm select` reads; "
                "use that"
            )
        shards = self.find_embeddings(user)
        self.used[EMBEDDINGS] = shards.folder / Inner.COMPLETE
        return shards

    @cached_property
    def _columns(self) -> dict[Path, list[str]]:
        return {table: _read_names(table, self.origin) for table in self.tables}

    def _read(self, table: Path, name: str) -> pl.DataFrame:
        self.used[str(table)] = table
        try:
            frame = pl.read_parquet(table, columns=["row", name], glob=False)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
            raise _not_parquet(table, error) from None
        number = pl.col("row").cast(pl.Int64, strict=False)
        is_fault = (
            number.is_null() | number.is_duplicated() | ~number.is_between(0, self.num_rows - 1)
        )
        for (row,) in frame.filter(is_fault).select("row").head(1).iter_rows():
            raise UserError(
                f"{table}: row {row}; each row may occur once, from 0 to {self.num_rows - 1}"
            )
        return frame.with_columns(cs.float().fill_nan(None), number.alias("row"))


def read_texts(rows: pl.LazyFrame, names: Sequence[str]) -> pl.DataFrame:
    """Columns ``row`` and ``names`` (``instruction``, ``record.NAME``) of a frame of ROWS.

    A field is a number if each of its values is one or reads as one, or true or false if each is
    that; else it is text. Whole numbers of 16 digits and more are Int64, which keeps them apart, or
    text if one of them is too large for that. A field that a record lacks is null, and so is NaN.
    """
    texts = {
        name: _instruction() if name == INSTRUCTION else _field(name.removeprefix(RECORD))
        for name in names
    }
    found = rows.select("row", **texts).collect(engine="streaming")
    return found.with_columns(_typed(found[name]) for name in names if name.startswith(RECORD))


def _field(path: str) -> pl.Expr:
    keys = "".join(
        f"['{key}']" for key in path.replace("\\", "\\\\").replace("'", "\\'").split(".")
    )
    return pl.col("record").str.json_path_match(f"${keys}")


def _instruction() -> pl.Expr:
    message = pl.element().struct
    parts = [message.field(name).fill_null("") for name in ("role", "content", "input", "extra")]
    before = pl.col("messages").list.head(LAST_ANSWER)
    return before.list.eval(pl.concat_str(parts, separator=PART_END)).list.join(2 * PART_END)


def _typed(texts: pl.Series) -> pl.Series:
    if texts.null_count() == len(texts):
        return texts
    if texts.drop_nulls().is_in(list(BOOLEANS)).all():
        return texts.replace_strict(BOOLEANS, return_dtype=pl.Boolean)
    dtype = pl.Int64 if texts.str.contains(LONG).any() else pl.Float64
    numbers = texts.cast(dtype, strict=False)
    if numbers.null_count() > texts.null_count():
        return texts
    return numbers.fill_nan(None) if dtype == pl.Float64 else numbers


def _read_names(table: Path, origin: str | None) -> list[str]:
    """The columns of a table but ``row``.

    Raises:
        UserError: it is not a Parquet file with whole numbers in a column ``row``, or it is about
            other data.
    """
    try:
        schema = pl.read_parquet_schema(table)
        made_of = pl.read_parquet_metadata(table).get("origin")
    except FileNotFoundError:
        raise UserError(f"{table}: no such file; check select.join") from None
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise _not_parquet(table, error) from None
    if not schema.get("row", pl.Null()).is_integer():
        raise UserError(f"{table}: no column row of whole numbers, by which it could be joined")
    if made_of and origin and made_of != origin:
        raise UserError(
            f"{table}: about other data than this run scored; make it of the same data.path with "
            "the same data.columns, score.turns and settings of the format"
        )
    return [name for name in schema if name != "row"]


def _not_parquet(table: Path, error: BaseException) -> UserError:
    return UserError(
        f"{table}: not a Parquet file, or damaged ({first_line(error)}); check select.join"
    )


def _is_taken(name: str, held: Sequence[str]) -> bool:
    """Whether a column of a table could be taken for another one."""
    return name in (*held, RANK, RATING_REASON) or _is_text(name)


def _is_text(name: str) -> bool:
    return name == INSTRUCTION or name.startswith(RECORD)


def _join(frame: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
    return frame.join(found, on="row", how="left", maintain_order="left")
