"""SQL over columns: what is understood, and what costs one line."""

from pathlib import Path

import polars as pl
import pytest

from cherry_vllm.errors import UserError
from cherry_vllm.selection.expressions import evaluate, parse

FRAME = pl.DataFrame(
    {
        "row": [0, 1, 2],
        "ifd": [0.5, 0.7, None],
        "num_answer_tokens": pl.Series([1, 5, 9], dtype=pl.UInt32),
        "record.meta.source": ["a", "b", "a"],
        "record.my field": [True, False, None],
        "values": [1.0, 2.0, 3.0],
        "cluster": [3, 4, 3],
    }
)


def value_of(text: str) -> list[object]:
    return evaluate(parse("select.rank", text, FRAME.columns), FRAME).to_list()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ifd", [0.5, 0.7, None]),
        ("-ifd", [-0.5, -0.7, None]),
        ("-num_answer_tokens", [-1, -5, -9]),
        ("2 - num_answer_tokens", [1, -3, -7]),
        ("0.5 * ifd + num_answer_tokens", [1.25, 5.35, None]),
        ("num_answer_tokens BETWEEN 2 AND 9 and ifd <= 1", [False, True, None]),
        ("record.meta.source = 'a'", [True, False, True]),
        ("record.meta.source in ('a', 'select')", [True, False, True]),
        ("\"record.meta.source\" like 'a%'", [True, False, True]),
        ('"record.my field"', [True, False, None]),
        ("record.meta.source = 'it''s; -- \"a\"'", [False, False, False]),
        ("coalesce(ifd, 1.5e0)", [0.5, 0.7, 1.5]),
        ("num_answer_tokens - avg(num_answer_tokens)", [-4.0, 0.0, 4.0]),
        ("row_number() over (order by num_answer_tokens desc)", [3, 2, 1]),
        ("case when ifd > 0.6 then 1 else 0 end", [0, 1, 0]),
        ('"values"', [1.0, 2.0, 3.0]),
        ("ln(num_answer_tokens) >= 0", [True, True, True]),
        ("2 - length(record.meta.source) * 3", [-1, -1, -1]),
        ("1.0 / (3 * num_answer_tokens)", [1 / 3, 1 / 15, 1 / 27]),
        (".5 / num_answer_tokens", [0.5, 0.1, 0.5 / 9]),
        ("cluster", [3, 4, 3]),
        ("sum(row) OVER (PARTITION BY cluster order by row)", [0, 1, 2]),
        ("-(cluster - char_length(cast(cluster as varchar)))", [-2, -3, -2]),
        ("ifd * 0.0 / row", [None, 0.0, None]),
    ],
)
def test_expressions_give_a_value_for_each_row(text: str, expected: list[object]) -> None:
    assert value_of(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ifd +", "give a SQL expression"),
        ("ifd row", "is an operator missing"),
        ("ifd as row", "is an operator missing"),
        ("nosuch(ifd)", "nosuch"),
        ("ifd; drop table x", "; is not understood here"),
        ("ifd -- comment", "-- is not understood here"),
        ("ifd /* comment */", "/\\* is not understood here"),
        ("E'\\' or 1'", "'\\\\' is not understood here"),
        ("'open", "' is not understood here"),
        ("`ifd`", "` is not understood here"),
        ("$$ifd$$", "\\$ is not understood here"),
        ("values", "values is not understood, since no tables are read"),
        ("ifd in (select ifd from self)", "select is not understood"),
        ("ifd IN (SELECT a FROM read_csv('x.csv'))", "SELECT is not understood"),
        ("ifd in (from read_csv('x.csv'))", "read_csv is not understood"),
        ("exists (table x)", "table is not understood"),
        ("avg(ifd)", "not one value for each row"),
        ("1", "not one value for each row"),
        ("*", "give a SQL expression|not one value for each row"),
        ("ifd + record.meta.source", "check its names and types"),
        ("count(*)", "not one value for each row"),
        ("cast(row as hugeint)", "whole numbers of 128 bits; cast them to bigint"),
    ],
)
def test_a_mistake_costs_one_line(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        value_of(text)
    assert str(error.value).startswith("select.rank=")
    assert "\n" not in str(error.value)


def test_numbers_beyond_64_bits_cost_one_line() -> None:
    frame = pl.DataFrame({"x": pl.Series([2**63], dtype=pl.UInt64)})
    with pytest.raises(UserError, match=r"^select\.rank=x: .*; check its names and types$"):
        evaluate(parse("select.rank", "x"), frame)


@pytest.mark.parametrize(
    "text",
    [
        "ifd in (select column_1 from read_csv('{file}'))",
        "ifd in (from read_csv('{file}'))",
        "ifd in (from '{file}')",
        "read_csv('{file}')",
        "ifd > (select max(a) from read_csv('{file}'))",
        "E'\\' || (select a from read_csv('{file}')) || '",
    ],
)
def test_no_file_is_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("a\nsecret\n", encoding="utf-8")
    with pytest.raises(UserError) as error:
        value_of(text.format(file=tmp_path / "secret.csv"))
    assert str(error.value).startswith("select.rank=")
    assert "secret\n" not in str(error.value)
