"""Ten thousand broken inputs: each ends in rows with reasons that add up, or in one clear line."""

import json
import random
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from cherry_vllm.errors import UserError
from cherry_vllm.schema import ROWS
from cherry_vllm.sources import DataFormat, find_files, read_rows
from tests.test_sources import ALPACA, FIELDS, SAMPLES, compressed, encoded

NAMES = [
    "d.json",
    "d.jsonl",
    "d.csv",
    "d.parquet",
    "d.json.gz",
    "d.jsonl.gz",
    "d.csv.gz",
    "d.json.zst",
    "d.jsonl.zst",
    "d.csv.zst",
]
CASES_PER_NAME = 1000
SMALL = [sample for sample in SAMPLES if len(sample["output"]) < 1000]
PIECES = [
    b"\x00",
    b"\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b'"',
    b"'",
    b"\\",
    b"\\ud800",
    b"{",
    b"}",
    b"[" * 3000,
    b"]",
    b'{"a":' * 3000,
    b",",
    b"\n",
    b"\r",
    b"\r\n\r\n",
    b"\x1a",
    b"null",
    b"NaN",
    b"-Infinity",
    b"1e999999",
    b"9" * 5000,
    b"-0",
    b"true",
    b'""',
    b"instruction",
    b'{"instruction": 1, "output": []}',
    "\u2028\u0085\u00a0".encode(),
    "é".encode("latin-1"),
    "é".encode("utf-16"),
    b"PAR1",
    b"\x1f\x8b\x08\x00",
    b"\x28\xb5\x2f\xfd",
]
VALUES = [
    None,
    True,
    0,
    -1,
    10**400,
    1.5,
    "",
    " \n",
    "a\x00b",
    "\ud800",
    [],
    ["x"],
    {},
    {"a": {"b": []}},
    "x" * 5000,
]


def mutate(content: bytes, generator: random.Random) -> bytes:
    """A few random wounds: bytes flipped, cut out, repeated, moved, put in, the end cut off."""
    data = bytearray(content)
    for _ in range(generator.choice((1, 1, 1, 2, 3, 8))):
        at, end = sorted(generator.randrange(len(data) + 1) for _ in range(2))
        match generator.randrange(8):
            case 0:
                data[at : at + 1] = bytes([generator.randrange(256)])
            case 1:
                del data[at : at + generator.choice((1, 2, 10, 100))]
            case 2:
                data[at:at] = data[at:end][:200]
            case 3:
                del data[end:]
            case 4:
                data[at:at] = generator.choice(PIECES)
            case 5 if at < len(data):
                data[at] ^= 1 << generator.randrange(8)
            case 6:
                data[at:end] = bytes(reversed(data[at:end]))
            case _:
                data[at : at + 4] = generator.randbytes(4)
    return bytes(data)


def confuse(generator: random.Random) -> list[dict[str, object]]:
    """Records with fields that are missing, too many, or of any type."""
    rows = []
    for sample in generator.choices(SMALL, k=generator.choice((1, 3, 8))):
        row: dict[str, object] = dict(sample)
        for _ in range(generator.randrange(3)):
            field = generator.choice(("instruction", "input", "output", "x", ""))
            if generator.random() < 0.2:
                row.pop(field, None)
            else:
                row[field] = generator.choice(VALUES)
        rows.append(row)
    return rows


def broken(name: str, generator: random.Random) -> bytes:
    """A file of that name as it should not be."""
    plain = name.removesuffix(".gz").removesuffix(".zst")
    if generator.random() < 0.25 and plain.endswith((".json", ".jsonl")):
        rows = confuse(generator)
        content = (
            json.dumps(rows)
            if plain.endswith(".json")
            else "".join(f"{json.dumps(row)}\n" for row in rows)
        ).encode()
    else:
        samples = generator.choices(SMALL, k=generator.choice((1, 2, 5)))
        content = encoded(samples, plain)
        if name == plain or generator.random() < 0.5:
            content = mutate(content, generator)
    content = compressed(content, name)
    if name != plain and generator.random() < 0.5:
        content = mutate(content, generator)
    return content


@pytest.mark.parametrize("name", NAMES)
def test_a_broken_input_ends_in_rows_that_add_up_or_in_one_line(tmp_path: Path, name: str) -> None:
    generator, path = random.Random(name), tmp_path / name
    ends: Counter[str] = Counter()
    for case in range(CASES_PER_NAME):
        content = broken(name, generator)
        path.write_bytes(content)
        try:
            frames = list(
                read_rows(
                    find_files([str(path)]),
                    data_format=DataFormat.auto,
                    columns=ALPACA,
                    censure=["sorry"],
                    batch_rows=3,
                )
            )
        except UserError as error:
            message = str(error)
            assert str(path) in message, (case, message)
            assert len(message.splitlines()) == 1, (case, message)
            ends["refused"] += 1
            continue
        except BaseException as error:
            raise AssertionError(f"case {case}: {content!r}") from error
        check_rows(pl.concat(frames))
        ends["read"] += 1
    assert sum(ends.values()) == CASES_PER_NAME
    assert min(ends["read"], ends["refused"]) > CASES_PER_NAME / 50, ends


def check_rows(rows: pl.DataFrame) -> None:
    assert rows.schema == pl.Schema(ROWS)
    assert rows["row"].to_list() == list(range(rows.height))
    assert rows["record"].null_count() == 0
    usable = rows.filter(pl.col("drop_reason").is_null())
    assert usable.select(FIELDS).null_count().sum_horizontal().item() == 0
    assert (usable["answer"].str.strip_chars() != "").all()
    assert set(rows["drop_reason"].drop_nulls()) <= {"malformed", "empty_answer", "censured"}
