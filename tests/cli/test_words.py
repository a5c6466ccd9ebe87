"""Names of files as people and browsers write them, read without quotes where they are clear."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from cherry_vllm.cli.words import name_values, read_words
from cherry_vllm.config import Config, compose
from cherry_vllm.errors import UserError

NAMES = [
    "alpaca (1).jsonl",
    "lr=2e-5.jsonl",
    "part[0].jsonl",
    "a{b}.json",
    "it's.json",
    'say "so".json',
    "C#.json",
    "a & b; c!.json",
    "50%.json",
    "~backup.json",
    "データ.json",
    "résumé, naïve?.json",
    "back\\slash.json",
    "2024.10",
    "true",
    "1e5",
    "a: b.json",
    "runs/x/select.fraction=0.05/cherry.json",
]


def compose_words(*words: str) -> Config:
    return compose(*read_words(words, is_sweep=False))


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_read_as_it_is_written(name: str) -> None:
    for key in ("data.path", "model.path", "run_dir", "judge.first"):
        (override,) = read_words([f"{key}={name}"], is_sweep=False)
        assert OverridesParser.create().parse_override(override).value() == name


def test_the_configuration_holds_the_path_as_it_is_written() -> None:
    keys = ("data.path", "model.path", "run_dir", "judge.first", "judge.second", "select.output")
    config = compose_words(*(f"{key}={name}" for key, name in zip(keys, NAMES, strict=False)))
    found = (config.data.path, config.model.path, config.run_dir, config.judge.first)
    assert found == tuple(NAMES[:4])


def test_a_comma_is_part_of_a_name_where_the_file_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("lr=2e-5,ep=3.jsonl", "a,b.jsonl", "[a]"):
        Path(name).touch()
        assert read_words([f"data.path={name}"], is_sweep=False) == [f"data.path='{name}'"]
        assert read_words([f"data.path={name}"], is_sweep=True) == [f"data.path='{name}'"]


def test_home_is_found_in_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = compose_words("data.path=~/a.json", "run_dir=~/run", "judge.first=~/a (1).jsonl")
    assert config.data.path == "/home/me/a.json"
    assert config.scores_dir == config.run_dir == "/home/me/run"
    assert config.judge.first == "/home/me/a (1).jsonl"
    config = compose_words("data.path=['~/a.json','hf://datasets/b']")
    assert config.data.path == ["/home/me/a.json", "hf://datasets/b"]
    outputs = ("generate.output=~/a.jsonl", "compare.output=~/a.json", "fit.output=~/select/a.yaml")
    config = compose_words(*outputs)
    assert config.generate.output == "/home/me/a.jsonl"
    assert config.compare.output == "/home/me/a.json"
    assert config.fit.output == "/home/me/select/a.yaml"


@pytest.mark.parametrize(
    "word",
    [
        "data.path=[a.json,b.json]",
        "data.path='a (1).json'",
        'run_dir="a b"',
        "model.path=null",
        "scores_dir=${run_dir}/x",
        r"data.path=a\,b.json",
        "judge.parameters.stop=[a,b]",
        "+judge.parameters.seed=1",
        "+prompt.template_kwargs.enable_thinking=false",
        "prompt.template_kwargs={enable_thinking: false}",
        "hydra.sweep.dir=runs/x",
        "select.fraction=0.1",
        "data=question_answer",
    ],
)
def test_what_hydra_reads_is_left_to_hydra(word: str) -> None:
    assert read_words([word], is_sweep=False) == [word]


def test_a_text_is_the_text_that_was_typed() -> None:
    config = compose_words("testset.name=2024.10", "prompt.marker=### Response:")
    assert config.testset.name == "2024.10"
    assert config.prompt.marker == "### Response:"


@pytest.mark.parametrize("sign", [",", ";", "|", ":", "^", "tab"])
def test_a_delimiter_needs_no_quotes(sign: str) -> None:
    assert compose_words(f"data.delimiter={sign}").data.delimiter == sign


def test_a_field_and_an_encoding_are_what_was_typed() -> None:
    config = compose_words("data.field=.", "data.encoding=1252")
    assert (config.data.field, config.data.encoding) == (".", "1252")


@pytest.mark.parametrize(
    ("word", "is_sweep", "forms"),
    [
        ("data.path=[~/a,b (1)]", False, ["data.path=['~/a','b (1)']"]),
        ("data.path=[~/a,b (1)]", True, ["data.path=['~/a','b (1)']"]),
        ("data.path=a (1),b", True, ["data.path='a (1),b'", "data.path='a (1)','b'"]),
        ("data.path=a.json,b", False, ["data.path='a.json,b'", "data.path='a.json','b'"]),
    ],
)
def test_where_two_things_can_be_meant_the_line_shows_both_in_quotes(
    word: str, forms: list[str], *, is_sweep: bool
) -> None:
    with pytest.raises(UserError) as refused:
        read_words([word], is_sweep=is_sweep)
    for form in forms:
        assert f'"{form}"' in str(refused.value)
        assert read_words([form], is_sweep=True) == [form]  # following it works


def test_with_m_several_values_are_a_sweep() -> None:
    sweep = ["data.path=a.json,b.json"]
    assert read_words(sweep, is_sweep=True) == sweep


def test_a_line_break_in_a_prompts_double_quotes_is_one() -> None:
    words = [
        r'prompt.marker="<|a|>\n"',
        r"prompt.system=\nabla",
        r'prompt.answer_prefix="a\\nb"',
        r'data.path="C:\new"',
    ]
    config = compose(*read_words(words, is_sweep=False))
    assert config.prompt.marker == "<|a|>\n"
    assert config.prompt.system == r"\nabla"
    assert "\n" not in config.prompt.answer_prefix
    assert config.data.path == r"C:\new"


def test_values_without_keys_get_theirs_in_order() -> None:
    words = ["-cd", "own", "a.json", "run_dir=r", "-m", "b", "c"]
    named = ["-cd", "own", "compare.first=a.json", "run_dir=r", "-m", "compare.second=b", "c"]
    assert name_values(words, ["compare.first", "compare.second"]) == named
    assert name_values(words, []) == words
