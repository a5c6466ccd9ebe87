"""Chosen rows in files: nothing is lost on the way, and a data set folder loads as itself."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from cherry_vllm.selection.export import export, find_records, write_records

RECORDS = [
    {
        "id": 7,
        "instruction": "Grüße 🌅",
        "input": "",
        "output": 'two\nlines, "quoted" \\ and a tab\t',
        "tags": ["a", "é"],
        "meta": {"source": {"url": "x", "score": 0.25}, "ok": True, "none": None},
    },
    {
        "id": 3,
        "instruction": "NUL \x00, separator \u2028",
        "input": "in",
        "output": "42",
        "tags": [],
        "meta": {"source": {"url": "", "score": -1.5}, "ok": False, "none": None},
    },
]


def read_back(path: Path) -> Any:
    if path.suffix == ".parquet":
        return pl.read_parquet(path).to_dicts()
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return json.loads(text)
    lines = text.split("\n")
    assert lines.pop() == ""
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_records_keep_all_their_fields(tmp_path: Path, suffix: str, *, ascii_only: bool) -> None:
    texts = [json.dumps(record, ensure_ascii=ascii_only) for record in RECORDS]
    output = tmp_path / f"cherry{suffix}"
    write_records(pl.Series(texts), output, output)
    assert read_back(output) == RECORDS


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_json_keeps_a_record_to_the_letter(tmp_path: Path, suffix: str) -> None:
    texts = ['{"n":1e2, "big": 12345678901234567890123, "s": "\\ud800\\u00e9"}', '{ "b" : 0.10 }']
    output = tmp_path / f"cherry{suffix}"
    write_records(pl.Series(texts), output, output)
    lines = [line.rstrip(",") for line in output.read_text(encoding="utf-8").splitlines()]
    assert lines == (["[", *texts, "]"] if suffix == ".json" else texts)


def test_a_record_that_is_not_there_is_never_written_as_text() -> None:
    rows = pl.LazyFrame({"row": [0, 2], "record": ["{}", "{}"]})
    assert find_records(rows, pl.Series([2, 0])).to_list() == ["{}", "{}"]
    with pytest.raises(RuntimeError, match="1 of 2 rows are not in their shards"):
        find_records(rows, pl.Series([0, 1]))


# --- data set folders --------------------------------------------------------------------------


def write_folder(output: Path, rows: list[dict[str, Any]]) -> Path:
    """A data set folder with a card of no more than its header."""

    def write_card(path: Path, file: str) -> None:
        files = [{"split": "train", "path": file}]
        header = yaml.safe_dump({"configs": [{"config_name": "default", "data_files": files}]})
        path.write_text(f"---\n{header}---\n", encoding="utf-8")

    records = pl.Series([json.dumps(row) for row in rows])
    return export(records, output, {"made_by": "select"}, write_card)


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``datasets.load_dataset``, always with the same cache."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    datasets.disable_progress_bars()

    def load_rows(folder: Path | str) -> list[dict[str, Any]]:
        splits = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
        assert list(splits) == ["train"]
        return [dict(row) for row in splits["train"]]

    return load_rows


def test_a_folder_holds_the_rows_and_a_card_and_nothing_else(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "cherry", RECORDS)
    files = {path for path in (tmp_path / "cherry").rglob("*") if path.is_file()}
    assert files == {data, tmp_path / "cherry" / "README.md"}
    assert data.parent == tmp_path / "cherry" / "data"
    for reader in (data, data.parent):
        assert pl.read_parquet(reader).to_dicts() == RECORDS


def test_folders_of_one_name_load_as_themselves_in_one_cache(tmp_path: Path, load: Any) -> None:
    few, many = [{"a": 1}], [{"a": 1}, {"a": 2}]
    for folder, rows in {"sweep/fraction=0.1": few, "sweep/fraction=0.2": many}.items():
        write_folder(tmp_path / folder / "cherry", rows)
    assert load(tmp_path / "sweep/fraction=0.1/cherry") == few
    assert load(tmp_path / "sweep/fraction=0.2/cherry") == many


def test_a_folder_that_is_selected_again_loads_as_what_it_holds(tmp_path: Path, load: Any) -> None:
    for rows in ([{"a": 1}], [{"a": 2}], [{"b": "x"}], [{"a": 1}]):
        write_folder(tmp_path / "cherry", rows)
        assert load(tmp_path / "cherry") == rows
    assert len(list((tmp_path / "cherry" / "data").iterdir())) == 1


def test_folders_load_by_a_relative_path(
    tmp_path: Path, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for job in ("first", "second"):
        write_folder(tmp_path / job / "cherry", [{"job": job}])
        monkeypatch.chdir(tmp_path / job)
        assert load("cherry") == [{"job": job}]


def test_other_readers_find_the_same_rows(tmp_path: Path) -> None:
    pandas, parquet = (pytest.importorskip(name) for name in ("pandas", "pyarrow.parquet"))
    data = write_folder(tmp_path / "cherry", RECORDS)
    assert parquet.read_table(data.parent).to_pylist() == RECORDS
    assert list(pandas.read_parquet(data)["output"]) == [row["output"] for row in RECORDS]


# --- conversations -----------------------------------------------------------------------------

ASKED, SAID = (
    {"role": "user", "content": "Wetter in Zürich?"},
    {"role": "assistant", "content": "12°"},
)


def calling(arguments: Any) -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return {"role": "assistant", "content": None, "tool_calls": [{"function": function}]}


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "turns": [{"messages": [ASKED, SAID]}, {"messages": [ASKED, SAID, ASKED, SAID]}],
    "sharegpt": [{"id": "1", "conversations": [{"from": "human", "value": "q"}], "system": ""}],
    "prompt and completion": [{"prompt": [ASKED], "completion": [SAID]}],
    "history": [{"instruction": "i", "history": [["a", "b"]]}, {"instruction": "i", "history": []}],
    "sparse": [
        {"messages": [ASKED, SAID]},
        {"messages": [ASKED, calling({"city": "Z"}), {"role": "tool", "content": "12"}, SAID]},
        {"messages": [ASKED, calling({"place": {"zip": 8000}}), SAID | {"weight": 0}]},
    ],
    "arguments as text": [{"messages": [ASKED, calling('{"city": "Z"}'), SAID]}] * 2,
    "parts": [{"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}]}],
    # What Parquet cannot hold.
    "no arguments": [{"messages": [ASKED, calling({}), SAID]}],
    "parts or text": [
        {"messages": [ASKED, SAID]},
        {"messages": [ASKED | {"content": [{"type": "text", "text": "q"}]}, SAID]},
    ],
}
MISFITS = ("no arguments", "parts or text")


def without_nulls(value: Any) -> Any:
    """A value without the fields that a column has because other rows have them."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_conversations_are_in_a_folder_that_loads_as_them(
    tmp_path: Path, load: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = CONVERSATIONS[kind]
    data = write_folder(tmp_path / "cherry", rows)
    assert without_nulls(load(tmp_path / "cherry")) == without_nulls(rows)
    assert data.suffix == (".jsonl" if kind in MISFITS else ".parquet")
    assert (kind in MISFITS) == ("the rows are in a .jsonl file" in caplog.text)
    if kind not in MISFITS:
        assert without_nulls(pl.read_parquet(data).to_dicts()) == without_nulls(rows)


@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_conversations_are_in_files_that_load_as_them(
    tmp_path: Path, kind: str, suffix: str
) -> None:
    import datasets

    rows, output = CONVERSATIONS[kind], tmp_path / f"cherry{suffix}"
    write_records(pl.Series([json.dumps(row) for row in rows]), output, output)
    assert read_back(output) == rows
    loaded = datasets.Dataset.from_json(str(output), cache_dir=str(tmp_path / "cache"))
    assert without_nulls(loaded.to_list()) == without_nulls(rows)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("NaN", "numbers that no 64-bit number equals (1 records, as in NaN)"),
        ("-1e400", "numbers that no 64-bit number equals (1 records, as in -1e400)"),
        ("18446744073709551616", "numbers that no 64-bit number equals"),
        ("0.12345678901234567890", "numbers that no 64-bit number equals"),
        (r'["\udcff"]', "a lone surrogate, which is not valid text (1 records"),
        (r'{"\ud800": 1}', "a lone surrogate, which is not valid text (1 records"),
        ('{"b": 1, "b": 1}', "a key twice (1 records, as in 'b')"),
        (r'"\ud83c\udf05"', ""),
        ("[1, 0.5, 9223372036854775807, null, {}]", ""),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_what_other_programs_read_differently_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str, value: str, told: str
) -> None:
    output = tmp_path / f"cherry{suffix}"
    write_records(pl.Series([f'{{"a": {value}}}', '{"a": 1}']), output, output)
    assert f'{{"a": {value}}}' in output.read_text(encoding="utf-8")
    if told:
        assert f"{output}: {told}" in caplog.text
        assert "other programs may refuse or change them" in caplog.text
    else:
        assert caplog.text == ""
