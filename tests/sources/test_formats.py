"""The same rows in every format; damaged files are one clear line."""

import codecs
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from backports import zstd
from polars.testing import assert_frame_equal

from cherry_vllm.options import DataFormat
from cherry_vllm.sources import Layout
from tests.sources.samples import (
    FIELDS,
    FIRST,
    LAST,
    LONG,
    SAMPLES,
    complaint_about,
    compressed,
    encoded,
    file_of,
    file_with,
    rows_of,
)

ALL_NAMES = [
    "d.json",
    "d.json.gz",
    "d.json.zst",
    "d.jsonl",
    "d.jsonl.gz",
    "d.jsonl.zst",
    "d.ndjson",
    "d.csv",
    "d.csv.gz",
    "d.csv.zst",
    "d.parquet",
    "d.pq",
    "dotted.v1.0.jsonl.gz",
    "UPPER.JSONL",
]


@pytest.mark.parametrize("name", ALL_NAMES)
@pytest.mark.parametrize("batch_rows", [3, 1000])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, batch_rows: int) -> None:
    path = tmp_path / name
    path.write_bytes(encoded(SAMPLES, name.lower()))
    rows = rows_of(path, batch_rows=batch_rows)
    expected = pl.DataFrame(SAMPLES).rename({"output": "answer"})
    assert_frame_equal(rows.select(FIELDS), expected)
    assert rows["row"].to_list() == list(range(len(SAMPLES)))
    assert rows["drop_reason"].null_count() == len(SAMPLES)
    assert [json.loads(record) for record in rows["record"]] == SAMPLES


@pytest.mark.parametrize("name", ["d.json", "d.jsonl.zst", "d.csv", "d.parquet"])
def test_the_input_column_is_optional(tmp_path: Path, name: str) -> None:
    samples = [{"instruction": "i", "output": "o"}, {"instruction": "j", "output": "p"}]
    rows = rows_of(file_of(tmp_path, name, samples))
    assert rows.select(FIELDS).rows() == [("i", "", "o"), ("j", "", "p")]
    assert rows["drop_reason"].null_count() == 2


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.csv", "d.parquet"])
def test_null_answers_are_dropped_and_null_inputs_are_not(tmp_path: Path, name: str) -> None:
    samples: list[dict[str, Any]] = [
        {"instruction": "i", "input": None, "output": "o"},
        {"instruction": "j", "input": "n", "output": None},
        {"instruction": "k", "input": "n", "output": "  "},
    ]
    rows = rows_of(file_of(tmp_path, name, samples))
    assert rows["drop_reason"].to_list() == [None, "empty_answer", "empty_answer"]
    assert rows["input"].to_list() == ["", "n", "n"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.csv"])
def test_all_members_of_a_compressed_file_are_read(tmp_path: Path, name: str, suffix: str) -> None:
    samples = [{"instruction": f"{i}?", "output": str(i)} for i in range(100)]
    content = encoded(samples, name)
    half = len(content) // 2
    members = [compressed(part, suffix) for part in (content[:half], content[half:])]
    rows = rows_of(file_with(tmp_path, name + suffix, b"".join(members)))
    assert rows["answer"].to_list() == [str(i) for i in range(100)]


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.csv", "d.parquet"])
def test_the_named_format_goes_before_the_suffix(tmp_path: Path, name: str) -> None:
    path = file_with(tmp_path, "data.txt", encoded([FIRST, LAST], name))
    data_format = DataFormat(name.removeprefix("d."))
    assert rows_of(path, layout=Layout(data_format))["answer"].to_list() == ["first", "last"]


@pytest.mark.parametrize("name", ["data", "data.txt", "data.gz", "data.xlsx"])
def test_an_unknown_suffix_is_a_user_error(tmp_path: Path, name: str) -> None:
    path = file_with(tmp_path, name, b"content")
    message = complaint_about(path)
    assert str(path) in message
    assert "data.format" in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.jsonl", b"\n\n  \n"),
        ("d.json", b"[]"),
        ("d.json", b"[\n]\n"),
        ("d.json", b"  \n"),
        ("d.csv", b"instruction,input,output\n"),
        ("d.jsonl.gz", gzip.compress(b"", mtime=0)),
        ("d.jsonl.zst", zstd.compress(b"")),
        ("d.json.gz", gzip.compress(b"", mtime=0)),
        ("d.csv.gz", gzip.compress(b"", mtime=0)),
    ],
)
def test_a_file_without_a_row_is_a_user_error(tmp_path: Path, name: str, content: bytes) -> None:
    path = file_with(tmp_path, name, content)
    assert str(path) in complaint_about(path)


def test_one_shard_without_a_row_does_not_stop_the_others(tmp_path: Path) -> None:
    files = [
        file_with(tmp_path, "0.json", b"[]"),
        file_of(tmp_path, "1.json", [FIRST]),
        file_with(tmp_path, "2.jsonl", b"\n"),
        file_of(tmp_path, "3.json", [LAST]),
    ]
    rows = rows_of(*files)
    assert rows.select("row", "answer").rows() == [(0, "first"), (1, "last")]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.csv"])
def test_what_is_not_compressed_as_its_name_says_is_a_user_error(
    tmp_path: Path, name: str, suffix: str
) -> None:
    path = file_with(tmp_path, name + suffix, b"this was never compressed")
    assert str(path) in complaint_about(path)


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.csv"])
@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (encoded([FIRST], "d.jsonl.gz"), "compressed by gzip; add .gz to its name"),
        (encoded([FIRST], "d.jsonl.zst"), "compressed by Zstandard; add .zst to its name"),
        (encoded([FIRST], "d.parquet"), "Parquet; set data.format=parquet"),
        (b"ARROW1\0\0...", "Arrow; set data.format=arrow"),
        (b"PK\x03\x04...", "a zip archive; unpack it"),
    ],
    ids=["gzip", "zstd", "parquet", "arrow", "zip"],
)
def test_a_file_of_another_kind_than_its_name_says_is_told_as_such(
    tmp_path: Path, name: str, content: bytes, advice: str
) -> None:
    assert complaint_about(file_with(tmp_path, name, content)).endswith(advice)


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.csv", "d.parquet", "d.jsonl.gz"])
def test_a_pointer_of_git_lfs_is_told_as_such(tmp_path: Path, name: str) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    assert "git lfs pull" in complaint_about(file_with(tmp_path, name, pointer))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.csv"])
def test_a_cut_off_compressed_file_is_a_user_error(tmp_path: Path, name: str, suffix: str) -> None:
    # Noise, so that whole blocks of it come before the cut.
    noise = np.random.default_rng(0)
    samples = [{"instruction": "i", "output": noise.bytes(100).hex()} for _ in range(3_000)]
    content = encoded(samples, name + suffix)
    path = file_with(tmp_path, name + suffix, content)
    assert rows_of(path, batch_rows=1_000).height == len(samples)
    path.write_bytes(content[: len(content) * 2 // 3])
    assert str(path) in complaint_about(path, batch_rows=1_000)


@pytest.mark.parametrize("name", ["d.json.gz", "d.jsonl.gz", "d.csv.gz"])
def test_a_damaged_gzip_stream_is_a_user_error(tmp_path: Path, name: str) -> None:
    header = encoded([FIRST], name)[:10]
    path = file_with(tmp_path, name, header + b"\xff" * 100)
    assert str(path) in complaint_about(path)


@pytest.mark.parametrize("name", ["d.json.zst", "d.jsonl.zst", "d.csv.zst"])
def test_a_damaged_zstandard_stream_is_a_user_error(tmp_path: Path, name: str) -> None:
    content = bytearray(encoded([{**FIRST, "output": LONG + str(i)} for i in range(20)], name))
    middle = len(content) // 2
    content[middle : middle + 20] = b"\xff" * 20
    path = file_with(tmp_path, name, bytes(content))
    assert str(path) in complaint_about(path)


# --- encodings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.csv", "d.csv.gz"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("named", [None, "gbk"])
def test_a_byte_order_mark_names_the_encoding(
    tmp_path: Path, name: str, encoding: str, named: str | None
) -> None:
    path = chinese(tmp_path, name, encoding)
    check_chinese(rows_of(path, layout=Layout(encoding=named)))


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.csv", "d.csv.gz"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_an_encoding_without_its_mark_is_told_and_the_advice_works(
    tmp_path: Path, name: str, encoding: str
) -> None:
    samples = [FIRST, LAST]
    text = encoded(samples, name.removesuffix(".gz")).decode()
    path = file_with(tmp_path, name, compressed(text.encode(encoding), name))
    message = complaint_about(path)
    assert f"{path}: looks like {encoding.upper()}" in message
    assert message.endswith(f"data.encoding={encoding}")
    rows = rows_of(path, layout=Layout(encoding=encoding))
    assert [json.loads(record) for record in rows["record"]] == samples


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.csv"])
@pytest.mark.parametrize("encoding", ["gbk", "windows-1252", "big5"])
def test_a_named_encoding_is_read_and_without_it_the_line_asks_for_it(
    tmp_path: Path, name: str, encoding: str
) -> None:
    text = "caf\u00e9" if encoding == "windows-1252" else "\u5317\u4eac\u554f"
    path = chinese(tmp_path, name, encoding, text)
    check_chinese(rows_of(path, layout=Layout(encoding=encoding)), text)
    message = complaint_about(path)
    assert "its bytes are not UTF-8; name the encoding, as in data.encoding=gbk" in message
    assert "data.format" not in message


@pytest.mark.parametrize("name", ["d.json", "d.jsonl", "d.csv"])
@pytest.mark.parametrize(
    ("encoding", "bad"), [("gbk", b"\xff"), ("utf-8-sig", b"\xff"), ("utf-16", b"\x00\xd8")]
)
def test_bytes_that_are_not_of_the_encoding_are_told(
    tmp_path: Path, name: str, encoding: str, bad: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = chinese(tmp_path, name, encoding, "Q")
    content = path.read_bytes()
    letter = "Q".encode(encoding.removesuffix("-sig") if "8" in encoding else encoding)
    letter = letter.removeprefix(codecs.BOM_UTF16_LE)
    path.write_bytes(bad.join(content.split(letter, 1)))
    layout = Layout(encoding="gbk" if encoding == "gbk" else None)
    told = f"its bytes are not {encoding.removesuffix('-sig').upper()}".replace("GBK", "gbk")
    if name == "d.csv":
        assert told in complaint_about(path, layout=layout)
    else:
        assert rows_of(path, layout=layout)["drop_reason"].to_list() == ["malformed", None]
        assert told in caplog.text


@pytest.mark.parametrize("encoding", ["none-such", "base64", "rot13", "zip"])
def test_an_encoding_that_is_none_is_a_user_error(tmp_path: Path, encoding: str) -> None:
    path = file_of(tmp_path, "d.jsonl", [FIRST])
    message = complaint_about(path, layout=Layout(encoding=encoding))
    assert f"data.encoding={encoding}: no such encoding" in message


@pytest.mark.parametrize(
    ("name", "layout", "key"),
    [
        ("d.csv", Layout(field="data"), "data.field"),
        ("d.parquet", Layout(field="data"), "data.field"),
        ("d.jsonl", Layout(delimiter=";"), "data.delimiter"),
        ("d.parquet", Layout(encoding="gbk"), "data.encoding"),
    ],
)
def test_a_setting_without_a_meaning_for_the_format_is_a_user_error(
    tmp_path: Path, name: str, layout: Layout, key: str
) -> None:
    message = complaint_about(file_of(tmp_path, name, [FIRST]), layout=layout)
    assert message.endswith(f"leave out {key}")


def chinese(folder: Path, name: str, encoding: str, text: str = "\u5317\u4eac") -> Path:
    """A file of two rows in an encoding."""
    samples = [{"instruction": text, "input": "", "output": text}] * 2
    if ".csv" in name:
        content = encoded(samples, "d.csv").decode()
    else:
        lines = [json.dumps(sample, ensure_ascii=False) for sample in samples]
        content = f"[{','.join(lines)}]" if ".jsonl" not in name else "\n".join(lines)
    return file_with(folder, name, compressed(content.encode(encoding), name))


def check_chinese(rows: pl.DataFrame, text: str = "\u5317\u4eac") -> None:
    assert rows["instruction"].to_list() == rows["answer"].to_list() == [text] * 2
    assert rows["drop_reason"].null_count() == 2
    assert all(text in record for record in rows["record"])


@pytest.mark.parametrize("encoding", ["gbk", "utf-8"])
def test_a_mark_that_contradicts_the_named_encoding_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, encoding: str
) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(FIRST).encode() + b"\n")
    assert rows_of(path, layout=Layout(encoding=encoding))["answer"].to_list() == [FIRST["output"]]
    told = f"read as UTF-8, as its byte order mark says, not as data.encoding={encoding}"
    assert (told in caplog.text) == (encoding == "gbk")
