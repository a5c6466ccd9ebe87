"""The card of a data set folder: no name in it acts on Markdown, HTML or YAML."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cherry_vllm.selection.card import write_card

HOSTILE = "a|b <img src=x onerror=alert(1)> [x](e) `c` **d** _e_ $f$ &lt; ~g~ \\| \x1b[31m\u202e"
MANIFEST: dict[str, Any] = {
    "fingerprint": "0123",
    "num_rows": 10,
    "outcomes": dict.fromkeys(
        (
            *("usable", "malformed", "empty_answer", "refusal", "out_of_vocabulary"),
            *("prompt_too_long", "engine_failed", "non_finite", "ifd_above_one"),
        ),
        0,
    )
    | {"usable": 7, "ifd_above_one": 3},
    "read": {
        "files": ["data.jsonl"],
        "settings": {
            "files": [["abcd", ".jsonl"]],
            "columns": {"instruction": "instruction", "input": None, "output": "output"},
            "max_rows": None,
            "refusals": [],
        },
    },
    "score": {
        "model": "models/m",
        "settings": {"model": "ef", "max_length": 512, "engine": {}, "prompt": {}},
        "versions": {"polars": "1"},
    },
}


def card(folder: Path, title: str = "cherry", command: str = "c", **changes: Any) -> str:
    write_card(
        folder / "README.md",
        "data/train-0.parquet",
        title=title,
        manifest=MANIFEST | changes,
        choice={"num_selected": 5, "num_above_one": 0, "strategy": "cherry"},
        command=command,
    )
    return (folder / "README.md").read_text(encoding="utf-8")


def test_the_counts_of_all_rows_add_up(tmp_path: Path) -> None:
    rows = [line.strip("| ").split(" | ") for line in card(tmp_path).splitlines()]
    table = {line[0]: line[-1] for line in rows}
    parts = ("selected", "usable, not selected", "dropped: ifd_above_one")
    assert [table[part] for part in parts] == ["5", "2", "3"]
    assert table["rows read"] == "10"


@pytest.mark.parametrize("title", ["cherry", HOSTILE, "a: b", "- x", "'", '"', "🌅", "---", "null"])
def test_the_header_is_yaml_whatever_the_folder_is_called(tmp_path: Path, title: str) -> None:
    _, header, _ = card(tmp_path, title).split("---\n", 2)
    found = yaml.safe_load(header)
    assert list(found) == ["pretty_name", "task_categories", "tags", "configs"]
    files = [{"split": "train", "path": "data/train-0.parquet"}]
    assert found["configs"] == [{"config_name": "default", "data_files": files}]
    if title.isprintable():
        assert found["pretty_name"] == title


def test_no_name_is_taken_for_markup(tmp_path: Path) -> None:
    read = {
        "files": [HOSTILE],
        "settings": MANIFEST["read"]["settings"] | {"columns": {"instruction": HOSTILE}},
    }
    score = MANIFEST["score"] | {"model": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    text = card(tmp_path, HOSTILE, read=read, score=score).split("---\n", 2)[2]
    hostile = [line for line in text.split("\n") if "onerror" in line]
    assert len(hostile) == 5  # the title, the file, the columns, the model and a version
    for line in hostile:
        assert line.isprintable()
        shown = re.sub(r"\\[!-/:-@\[-`{-~]", "", line)  # without what a backslash makes plain
        assert not set("<>`*[]$&~").intersection(shown)
        assert shown.count("|") in (0, 3)


def test_a_command_cannot_leave_its_block(tmp_path: Path) -> None:
    text = card(tmp_path, command="select 'x=```\n# <b>'")
    assert text.endswith("\n````bash\nselect 'x=```\\n# <b>'\n````\n")
