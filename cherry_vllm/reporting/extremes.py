"""The rows at both ends of the IFD scale, and their texts."""

from typing import NamedTuple

import polars as pl

from cherry_vllm.conversation import show_conversations
from cherry_vllm.selection.sides import Side

MAX_CARD_CHARS = 400
# Courtesies before the verb of a request.
COURTESY = r"(?i)^\W*(?:(?:please|kindly|(?:can|could|will|would) you)\W+)*"
WORD = r"(\w[\w'\u2019-]{0,19})"  # \u2019 is an apostrophe; a script without spaces is cut
MAX_WORDS_PER_SIDE = 8


def find_texts(rows: pl.LazyFrame, wanted: pl.DataFrame) -> pl.DataFrame:
    """``wanted``, in its order, with the texts of each row that :mod:`conversation` shows."""
    found = (
        rows.select("row", "messages")
        .join(wanted.lazy().select("row"), on="row", how="semi")
        .collect(engine="streaming")
    )
    return wanted.join(show_conversations(found), on="row", how="left", maintain_order="left")


class Sample(NamedTuple):
    """A row as a card shows it; long texts end in an ellipsis."""

    row: int
    ifd: float
    conditioned_score: float
    direct_score: float
    num_answer_tokens: int
    instruction: str
    input: str
    answer: str


def find_samples(ranked: pl.DataFrame, rows: pl.LazyFrame, count: int) -> dict[str, list[Sample]]:
    """Up to ``count`` rows each from the beginning, the middle and the end of ``ranked``."""
    count = min(count, ranked.height // 3)
    middle = (ranked.height - count) // 2
    parts = {
        "highest": ranked.head(count),
        "middle": ranked.slice(middle, count),
        "lowest": ranked.tail(count).reverse(),
    }
    return {
        name: [
            Sample(**line) for line in _shorten_texts(find_texts(rows, part)).iter_rows(named=True)
        ]
        for name, part in parts.items()
        if count
    }


def _shorten_texts(found: pl.DataFrame) -> pl.DataFrame:
    texts = [shorten(pl.col(name), MAX_CARD_CHARS) for name in ("instruction", "input", "answer")]
    return found.select(Sample._fields).with_columns(texts)


def shorten(text: pl.Expr, max_chars: int) -> pl.Expr:
    """The text, cut to ``max_chars`` with an ellipsis if it is longer."""
    cut = text.str.slice(0, max_chars - 1).str.strip_chars_end() + "\u2026"
    return pl.when(text.str.len_chars() > max_chars).then(cut).otherwise(text).name.keep()


def count_first_words(texts: pl.DataFrame) -> pl.DataFrame:
    """How often the first requests of each side begin with a word.

    Takes the columns ``side`` and ``request``; returns ``side``, ``word``, ``count`` and
    ``share`` (of the side's rows, 0 to 1) for the most frequent words of each side. After
    courtesies, the first word of an English request is mostly its verb; no parser is used.
    """
    sides = texts.filter(pl.col("side") != Side.OTHERS.value)
    words = sides.with_columns(
        word=pl.col("request").str.replace(COURTESY, "").str.extract(WORD).str.to_lowercase()
    ).drop_nulls("word")
    sizes = sides.group_by("side").agg(size=pl.len())
    counted = words.group_by("side", "word").agg(count=pl.len()).join(sizes, on="side")
    shares = counted.with_columns(share=pl.col("count") / pl.col("size")).drop("size")
    frequent = (
        shares.sort(["count", "word"], descending=[True, False])
        .group_by("side", maintain_order=True)
        .head(MAX_WORDS_PER_SIDE)
    )
    return shares.join(frequent.select("word").unique(), on="word").sort("word", "side")
