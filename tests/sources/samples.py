"""Small files of every format, and how they are read."""

import csv
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from backports import zstd

from cherry_vllm.conversation import USER, Message, open_messages
from cherry_vllm.errors import UserError
from cherry_vllm.schema import ROWS
from cherry_vllm.sources import Columns, Layout, read_rows

REPOSITORY = Path(__file__).parents[2]


ALPACA = Columns("instruction", "input", "output", None, None, None, None)


AUTO = Columns()


QUESTION_ANSWER = Columns("question", None, "answer", None, None, None, None)


FIELDS = ["instruction", "input", "answer"]


FIRST = {"instruction": "first?", "input": "", "output": "first"}


LAST = {"instruction": "last?", "input": "", "output": "last"}


LONG = "x" * 100_000


TOO_DEEP = "[" * 100_000 + "]" * 100_000


TOO_MANY_DIGITS = "9" * 5_000


# What each format can hold, and easily gets wrong.
SAMPLES = [
    {"instruction": "Name a colour.", "input": "", "output": "Blue."},
    {"instruction": "Translate.", "input": "good morning", "output": "Доброе утро 🌅👩‍👩‍👧"},
    {"instruction": 'Quote "this", please', "input": "a,b;c\td", "output": 'He said "no", twice'},
    {"instruction": "Two\nlines", "input": "\n", "output": "one\r\ntwo\n"},
    {"instruction": "  spaces  ", "input": " ", "output": " kept "},
    {"instruction": "separators", "input": "\u2028", "output": "a\u2028b\u0085c"},
    {"instruction": "NUL \x00 too", "input": "", "output": "a\x00b"},
    {"instruction": "42", "input": "null", "output": "true"},
    {"instruction": LONG, "input": LONG, "output": LONG},
    {"instruction": "Name a colour.", "input": "", "output": "Blue."},
]


def rows_of(
    *files: Path,
    layout: Layout = Layout(),
    columns: Columns = ALPACA,
    refusals: Sequence[str] = (),
    batch_rows: int = 100,
) -> pl.DataFrame:
    frames = read_rows(
        files, layout=layout, columns=columns, refusals=refusals, batch_rows=batch_rows
    )
    return with_texts(pl.concat(list(frames)))


def with_texts(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows with :data:`FIELDS`: the first request, its input, and the last answer."""
    texts = [_texts(messages) for messages in open_messages(rows["messages"])]
    return rows.hstack(pl.DataFrame(texts, dict.fromkeys(FIELDS, pl.String), orient="row"))


def _texts(messages: Sequence[Message]) -> tuple[str | None, ...]:
    request = next((message for message in messages if message.role == USER), None)
    asked = (None, None) if request is None else (request.content, request.input)
    return *asked, messages[-1].content if messages else None


def complaint_about(*files: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        rows_of(*files, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def compressed(content: bytes, name: str) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(content)
    if name.endswith(".zst"):
        return zstd.compress(content)
    return content


def encoded(samples: Sequence[dict[str, Any]], name: str) -> bytes:
    """The samples as the bytes of a file of this name."""
    plain = name.removesuffix(".gz").removesuffix(".zst")
    if plain.endswith(".json"):
        content = json.dumps(samples).encode()
    elif plain.endswith((".jsonl", ".ndjson")):
        content = "".join(f"{json.dumps(sample)}\n" for sample in samples).encode()
    elif plain.endswith(".csv"):
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(samples[0]))
        writer.writeheader()
        writer.writerows(samples)
        content = text.getvalue().encode()
    else:
        buffer = io.BytesIO()
        pl.DataFrame(samples).write_parquet(buffer)
        content = buffer.getvalue()
    return compressed(content, name)


def file_of(folder: Path, name: str, samples: Sequence[dict[str, Any]]) -> Path:
    return file_with(folder, name, encoded(samples, name))


def file_with(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def lines_around(line: bytes) -> bytes:
    return b"\n".join([json.dumps(FIRST).encode(), line, json.dumps(LAST).encode(), b""])


def array_around(element: bytes) -> bytes:
    return b"[" + b",".join([json.dumps(FIRST).encode(), element, json.dumps(LAST).encode()]) + b"]"


def check_neighbours(rows: pl.DataFrame) -> None:
    assert rows["row"].to_list() == [0, 1, 2]
    assert rows.select(*ROWS).schema == pl.Schema(ROWS)
    for position, sample in ((0, FIRST), (2, LAST)):
        row = rows.row(position, named=True)
        assert row["drop_reason"] is None
        assert (row["instruction"], row["answer"]) == (sample["instruction"], sample["output"])
        assert json.loads(row["record"]) == sample


def with_field(name: str, value: Any) -> bytes:
    fields = {"instruction": '"i"', "input": '"n"', "output": '"o"', name: value}
    return ("{" + ", ".join(f'"{key}": {value}' for key, value in fields.items()) + "}").encode()


def shards_of_twelve_rows(folder: Path) -> list[Path]:
    samples = [{"instruction": f"{i}?", "input": "", "output": str(i)} for i in range(12)]
    samples[7]["output"] = ""
    return [
        file_of(folder, "0.jsonl", samples[:5]),
        file_of(folder, "1.parquet", samples[5:6]),
        file_of(folder, "2.csv", samples[6:10]),
        file_of(folder, "3.json", samples[10:]),
    ]
