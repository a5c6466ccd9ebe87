"""Scores made up without a model, for all that comes after scoring."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from cherry_vllm.config import choice_of, compose
from cherry_vllm.conversation import Message, frame_messages
from cherry_vllm.schema import LOGPROBS, ROWS, SCHEMA_VERSION, SCORES
from cherry_vllm.scoring.run import aggregate
from cherry_vllm.selection.choice import Choice
from cherry_vllm.sources import Columns, read_rows
from cherry_vllm.store.hashes import file_sha256
from cherry_vllm.store.shards import Shards

SHIPPED = Path(__file__).parent / "data" / "rows.jsonl"  # 26 rows, all usable until scored
SHARD_ROWS = 5
COLUMNS = Columns("instruction", "input", "output")


def named(strategy: str, **changes: Any) -> Choice:
    """The choice of a strategy by its file, but of no number of rows unless one is given."""
    return replace(_choice(strategy), **({"fraction": None} | changes))


@cache
def _choice(strategy: str) -> Choice:
    return choice_of(compose(f"select={strategy}"))


def rows_of(*conversations: Sequence[Message]) -> pl.DataFrame:
    """Rows as they are read, of conversations."""
    columns = {
        "row": range(len(conversations)),
        "record": "{}",
        "messages": frame_messages(conversations),
        "tools": None,
        "drop_reason": None,
    }
    return pl.DataFrame(columns, schema=ROWS)


def scores_of(
    ifd: Sequence[float | None],
    conditioned: Sequence[float | None] | None = None,
    reasons: Sequence[str | None] | None = None,
) -> pl.DataFrame:
    """A frame of SCORES with these IFDs."""
    columns: dict[str, Any] = dict.fromkeys(SCORES, None) | {
        "row": range(len(ifd)),
        "ifd": ifd,
        "conditioned_score": conditioned or ifd,
        "drop_reason": reasons or [None] * len(ifd),
    }
    return pl.DataFrame(columns, schema=SCORES)


def scores(*ifds: float | None, reason: str | None = None) -> pl.DataFrame:
    """Scores with these IFDs over a direct score of 2; a row without one fell to ``reason``."""
    rows: list[dict[str, Any]] = [
        {
            "row": row,
            "num_answer_tokens": None if ifd is None else 3,
            "conditioned_score": None if ifd is None else 2 * ifd,
            "direct_score": None if ifd is None else 2.0,
            "ifd": ifd,
            "ifd_ppl": ifd,
            "share_helped": None,
            "nats_saved": None,
            "s_ifd": None,
            "num_turns": None if ifd is None else 1,
            "turn_ifd": None if ifd is None else [ifd],
            "truncated": None if ifd is None else False,
            "drop_reason": reason if ifd is None else ("ifd_above_one" if ifd > 1 else None),
        }
        for row, ifd in enumerate(ifds)
    ]
    return pl.DataFrame(rows, schema=SCORES)


def distinct(number: int) -> pl.DataFrame:
    """Scores of so many usable rows, no two alike, in no order."""
    return scores_of([(i * 7919 % number + 1) / (number + 1) for i in range(number)])


# By row: the cherry order is 4, 1, 2, 5, 0; rows 3 and 6 are dropped.
SEVEN = scores_of(
    [0.1, 0.9, 0.5, 1.7, 0.95, 0.3, None],
    [3.0, 0.5, 2.0, 9.0, 1.0, 4.0, None],
    [None, None, None, "ifd_above_one", None, None, "malformed"],
)


def write_rows(run_dir: Path, data: Path = SHIPPED) -> Shards:
    """Row shards of a file, as the reading stage leaves them."""
    settings = {
        "schema_version": SCHEMA_VERSION,
        "files": [[file_sha256(data), *data.suffixes]],
        "columns": asdict(COLUMNS),
        "refusals": [],
        "max_rows": None,
    }
    rows = Shards(run_dir / "rows", settings)
    frames = read_rows(
        [data],
        columns=COLUMNS,
        refusals=[],
        batch_rows=SHARD_ROWS,
    )
    num_rows = num_shards = 0
    for frame in frames:
        rows.write(num_shards, frame)
        num_rows, num_shards = num_rows + frame.height, num_shards + 1
    rows.close(num_shards, num_rows=num_rows, files=[str(data.absolute())])
    return rows


def write_logprobs(run_dir: Path, rows: Shards, first: float = 0.1, step: float = 0.05) -> Shards:
    """Log-prob shards in which row n has an IFD of ``first`` + n x ``step``."""
    settings = {
        "model": f"made up from {first} by {step}",
        "max_length": 512,
        "engine": {"name": "made_up"},
        "prompt": {"without_input": "{instruction}\n\n### Response:"},
        "rows": rows.fingerprint,
    }
    logprobs = Shards(run_dir / "logprobs", settings)
    for index in range(rows.num_shards):
        read = rows.read(index)
        frame = read.select(
            "row",
            conditioned_logprobs=pl.Series([[[-first - row * step]] for row in read["row"]]),
            direct_logprobs=pl.Series([[[-1.0]]] * read.height),
            truncated=pl.lit(value=False),
            drop_reason="drop_reason",
        )
        logprobs.write(index, frame.cast(LOGPROBS))  # type: ignore[arg-type]
    logprobs.close(rows.num_shards, model="models/made_up", versions={"polars": "1"})
    return logprobs


def score(run_dir: Path, data: Path = SHIPPED, first: float = 0.1, step: float = 0.05) -> Shards:
    """A scored run of a file's rows, which are returned."""
    rows = write_rows(run_dir, data)
    aggregate(run_dir, rows, write_logprobs(run_dir, rows, first, step))
    return rows


def write_embeddings(
    folder: Path, frame: pl.DataFrame, rows: str, model: str = "", **settings: bool
) -> Shards:
    """Embeddings of the rows with the fingerprint ``rows``, as `embed` leaves them, in one shard.

    ``frame`` has the columns row and embedding.
    """
    embeddings = Shards(folder, {"rows": rows, "model": model, **settings})
    embeddings.write(0, frame)
    embeddings.close(1)
    return embeddings


def embed(rows: Sequence[int], width: int = 6, seed: int = 0) -> pl.DataFrame:
    """A random embedding for each row; a third are repeated."""
    vectors = np.random.default_rng(seed).normal(size=(len(rows), width)).astype(np.float32)
    vectors[len(rows) // 3 : 2 * (len(rows) // 3)] = vectors[: len(rows) // 3]
    kind = pl.Array(pl.Float32, width)
    return pl.DataFrame({"row": rows, "embedding": pl.Series(vectors.tolist(), dtype=kind)})


def made_up_frame(number: int = 400) -> pl.DataFrame:
    """Scores with every outcome, many ties and ratings, by arithmetic alone."""
    rows: list[dict[str, Any]] = []
    for row in range(number):
        ifd, direct = (row * 7919 % 97 + 1) / 80, (row * 31 % 13 + 1) / 4
        reason = "malformed" if row % 17 == 0 else "refusal" if row % 23 == 0 else None
        is_scored = reason is None
        rating = (row * 13 % 11) / 2 if row % 7 else None
        line = {"row": row, "drop_reason": reason, "rating": rating, "rating_reason": None}
        scored = {
            "num_turns": 1,
            "num_answer_tokens": row * 37 % 211 + 1,
            "conditioned_score": ifd * direct,
            "direct_score": direct,
            "ifd": ifd,
            "turn_ifd": [ifd],
            "ifd_ppl": round(math.exp(ifd * direct - direct), 3),
            "truncated": False,
            "drop_reason": "ifd_above_one" if ifd > 1 else None,
        }
        rows.append(line | scored if is_scored else line)
    schema = {**SCORES, "rating": pl.Float64, "rating_reason": pl.String}
    return pl.DataFrame(rows, schema=schema)


def made_up_logprobs(number: int) -> pl.DataFrame:
    """Log-probs of one to three turns a row; some rows are not scored, or differ in tokens."""
    generator = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for row in range(number):
        lengths = generator.integers(1, 9, row % 3 + 1)
        both = [[(-generator.gamma(2, 1, n)).tolist() for n in lengths] for _ in range(2)]
        both[0][0] = both[0][0][:-1] + [-0.5] * (row % 10 == 1) + both[0][0][-1:]
        is_scored = row % 7 > 0
        rows.append(
            {
                "row": row,
                "conditioned_logprobs": both[0] if is_scored else None,
                "direct_logprobs": both[1] if is_scored else None,
                "truncated": False if is_scored else None,
                "drop_reason": None if is_scored else "refusal",
            }
        )
    return pl.DataFrame(rows, schema=LOGPROBS)
