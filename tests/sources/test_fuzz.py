"""Broken inputs: each ends in rows with reasons that add up, or in one clear line."""

import json
import random
import traceback
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from cherry_vllm.errors import UserError
from cherry_vllm.runtime.processes import Child, ChildError, Wire
from cherry_vllm.schema import ROWS
from cherry_vllm.sources import find_files, read_rows
from cherry_vllm.sources.row_shards import read_row_shards
from tests.sources.samples import ALPACA, FIELDS, SAMPLES, compressed, encoded, with_texts

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
FEW, MANY = 60, 1000  # cases for each name
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
VALUES: list[object] = [
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


def broken(name: str, case: int) -> bytes:
    """A file of that name as it should not be; equal arguments, equal bytes."""
    generator = random.Random(f"{name} {case}")
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


@pytest.mark.parametrize("name", [name for name in NAMES if "parquet" not in name])
def test_a_few_broken_inputs_end_in_rows_that_add_up_or_in_one_line(
    tmp_path: Path, name: str
) -> None:
    path, ends = tmp_path / name, Counter[str]()
    for case in range(FEW):
        path.write_bytes(broken(name, case))
        ends[read_case(path)] += 1
    assert min(ends["read"], ends["refused"]) > 0, ends


@pytest.mark.process
def test_a_few_broken_parquet_files_end_in_rows_that_add_up_or_in_one_line(tmp_path: Path) -> None:
    check_in_children(tmp_path, "d.parquet", FEW)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", NAMES)
def test_a_broken_input_ends_in_rows_that_add_up_or_in_one_line(tmp_path: Path, name: str) -> None:
    check_in_children(tmp_path, name, MANY)


def check_in_children(folder: Path, name: str, num_cases: int) -> None:
    path, ends, deaths = folder / name, Counter[str](), 0
    case = 0
    while case < num_cases:
        # Polars ends the process on a few: the pipeline reads in one of its own.
        child = Child(read_cases, path, case, num_cases)
        try:
            while case < num_cases:
                end = child.receive()
                assert end in ("read", "refused"), f"case {case}: {end}"
                ends[end] += 1
                case += 1
        except ChildError as lost:
            path.write_bytes(broken(name, case))
            with pytest.raises(UserError, match=f"{name}: not readable, the reader {lost}"):
                read_through_pipeline(folder / str(case), path)
            deaths, case = deaths + 1, case + 1
        finally:
            child.close()
    assert sum(ends.values()) + deaths == num_cases
    assert min(ends["read"], ends["refused"]) > num_cases / 50, ends
    assert deaths <= num_cases / 50


@pytest.mark.process
def test_a_file_that_ends_its_reader_is_refused(tmp_path: Path) -> None:
    path = Path(__file__).parents[1] / "data" / "deadly.parquet"  # of the cases above, made once
    with pytest.raises(UserError, match=r"deadly\.parquet: not readable"):
        read_through_pipeline(tmp_path, path)


def read_cases(wire: Wire, path: Path, first: int, num_cases: int) -> None:
    """Reads one case after the other and says how each ends."""
    for case in range(first, num_cases):
        path.write_bytes(broken(path.name, case))
        try:
            wire.send(read_case(path))
        except BaseException:
            wire.send(traceback.format_exc())
            return


def read_case(path: Path) -> str:
    try:
        frames = list(
            read_rows(
                find_files([str(path)]),
                columns=ALPACA,
                refusals=["sorry"],
                batch_rows=3,
            )
        )
    except UserError as error:
        message = str(error)
        assert str(path) in message, message
        assert len(message.splitlines()) == 1, message
        return "refused"
    check_rows(with_texts(pl.concat(frames)))
    return "read"


def read_through_pipeline(run_dir: Path, path: Path) -> None:
    read_row_shards(
        run_dir,
        find_files([str(path)]),
        columns=ALPACA,
        refusals=["sorry"],
        shard_rows=3,
    )


def check_rows(rows: pl.DataFrame) -> None:
    assert rows.select(*ROWS).schema == pl.Schema(ROWS)
    assert rows["row"].to_list() == list(range(rows.height))
    assert rows["record"].null_count() == 0
    usable = rows.filter(pl.col("drop_reason").is_null())
    assert usable.select(FIELDS).null_count().sum_horizontal().item() == 0
    assert (usable["answer"].str.strip_chars() != "").all()
    assert set(rows["drop_reason"].drop_nulls()) <= {"malformed", "empty_answer", "refusal"}
