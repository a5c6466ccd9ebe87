"""Rows that say the same as a higher one.

Rows are walked from the highest to the lowest. A duplicate of a row that stayed goes; a duplicate
only of rows that went stays.

The ``instruction`` is all that precedes the last answer but system messages, which many rows share;
the ``answer`` is every answer that is scored. Both are text without roles, in Unicode's form NFC,
case-folded, with single spaces. A row without such a text is not a duplicate.

``minhash`` compares the sets A and B of runs of three words by their Jaccard similarity
|A and B| / |A or B|, estimated by MinHash (Broder 1997) with a standard error of at most 0.045. A
character of Chinese, Japanese or Korean is a word. Of pairs at the threshold, its index finds at
least four in five, and almost all of those that are clearly above.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from cherry_vllm.conversation import SYSTEM, Message, last_answer, open_messages
from cherry_vllm.errors import UserError
from cherry_vllm.options import Dedup, DedupOn
from cherry_vllm.runtime.progress import Progress

RUN = 3  # words
NUM_HASHES = 128
WEIGHTS = (0.1, 0.9)  # of needless comparisons and of missed pairs, by which the bands are chosen
BATCH_ROWS = 10_000  # whose texts are in memory
CJK = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
WORD = re.compile(rf"[{CJK}]|[^\W{CJK}]+")

Sketches = NDArray[np.uint32]  # rows x NUM_HASHES


def drop_duplicates(
    ranked: pl.DataFrame, rows: pl.LazyFrame, dedup: Dedup, on: DedupOn, threshold: float
) -> pl.DataFrame:
    """The rows of ``ranked``, highest first, that do not duplicate one that stays.

    ``rows`` is of :data:`schema.ROWS`; its texts are read in batches. Of each row, 16 bytes are
    kept; for ``minhash`` 512, and an index of those that may have a duplicate.

    Raises:
        UserError: datasketch is not installed.
    """
    stays = np.ones(ranked.height, bool)
    if dedup is Dedup.exact:
        first: dict[bytes, int] = {}
        for place, text in _read(ranked["row"], rows, on):
            key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            kept = first.setdefault(key, place)
            first[key] = min(kept, place)
            stays[max(kept, place)] = kept == place
    else:
        places, sketches = _sketch(_read(ranked["row"], rows, on), ranked.height)
        stays[places] = _walk(sketches, threshold)
    return ranked.filter(pl.Series(stays))


def comparable_text(messages: Sequence[Message], on: DedupOn) -> str:
    """The text by which rows are duplicates; "" if there is none."""
    if on is DedupOn.answer:
        told = [said for said in messages if said.is_answer]
    else:
        told = [said for said in messages[: last_answer(messages)] if said.role != SYSTEM]
    parts = [part for said in told for part in (said.content, said.input, said.extra) if part]
    text = unicodedata.normalize("NFC", " ".join(parts)).casefold()
    return " ".join(text.split())


def runs_of(text: str) -> set[str]:
    """The runs of three words in a text; a shorter text is one run."""
    words = WORD.findall(text)
    return {" ".join(words[at : at + RUN]) for at in range(max(len(words) - RUN, 0) + 1)}


def _read(wanted: pl.Series, rows: pl.LazyFrame, on: DedupOn) -> Iterator[tuple[int, str]]:
    """The texts of the rows ``wanted``, each with its place there, in the order of ``rows``."""
    places = wanted.rename("row").to_frame().with_row_index("place")
    found = rows.select("row", "messages").join(places.lazy(), on="row")
    with Progress("comparing", total=len(wanted)) as bar:
        for batch in found.collect_batches(chunk_size=BATCH_ROWS):
            for place, messages in zip(
                batch["place"], open_messages(batch["messages"]), strict=True
            ):
                if text := comparable_text(messages, on):
                    yield place, text
            bar.update(batch.height)


def _sketch(texts: Iterator[tuple[int, str]], most: int) -> tuple[NDArray[np.int64], Sketches]:
    """The places of texts that have words, ascending, and their sketches."""
    empty = _datasketch().MinHash(NUM_HASHES)
    sketches, has_words = np.empty((most, NUM_HASHES), np.uint32), np.zeros(most, bool)
    for place, text in texts:
        if WORD.search(text):
            sketch = empty.copy()
            sketch.update_batch([run.encode("utf-8", "surrogatepass") for run in runs_of(text)])
            sketches[place], has_words[place] = sketch.hashvalues, True
    places = np.flatnonzero(has_words)
    return places, sketches if has_words.all() else sketches[places]


def _walk(sketches: Sketches, threshold: float) -> NDArray[np.bool_]:
    """Which sketches stay; an earlier one is of a higher row."""
    datasketch = _datasketch()
    index = datasketch.MinHashLSH(threshold, NUM_HASHES, WEIGHTS)
    stays = np.ones(len(sketches), bool)
    for place in np.flatnonzero(_share_a_band(sketches, index.hashranges)).tolist():
        sketch = datasketch.LeanMinHash(seed=1, hashvalues=sketches[place], scheme="affine32")
        others = sketches[index.query(sketch)]
        equal = (others == sketches[place]).sum(axis=1)
        stays[place] = not (equal >= threshold * NUM_HASHES).any()
        if stays[place]:
            index.insert(place, sketch, check_duplication=False)
    return stays


def _share_a_band(sketches: Sketches, bands: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """Which sketches the index could find for another one; few, which keeps it small."""
    found = np.zeros(len(sketches), bool)
    for start, end in bands:
        keys = np.zeros(len(sketches), np.uint64)
        for column in range(start, end):  # a polynomial modulo 2**64: equal bands have equal keys
            keys = keys * np.uint64(0x9E3779B97F4A7C15) + sketches[:, column]
        _, codes, counts = np.unique(keys, return_inverse=True, return_counts=True)
        found |= counts[codes] > 1
    return found


def _datasketch() -> Any:
    try:
        import datasketch
    except ModuleNotFoundError:
        raise UserError(
            "select.dedup=minhash: datasketch is missing; install cherry-vllm[dedup]"
        ) from None
    return datasketch
