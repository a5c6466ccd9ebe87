"""The card of an exported data set: where its rows come from, and how they were chosen."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cherry_vllm import __version__
from cherry_vllm.runtime.text import printable
from cherry_vllm.schema import DropReason

# The header tells the Hugging Face loader where the rows are.
HEADER = """\
---
pretty_name: {title}
task_categories:
- text-generation
tags:
- instruction-tuning
- data-selection
configs:
- config_name: default
  data_files:
  - split: train
    path: {file}
---
"""
INTRODUCTION = """
# {title}

{num_selected:,} of {num_rows:,} instruction rows, chosen by cherry-vllm {version}, which scores
a row by its Instruction-Following Difficulty, IFD = s(A|Q) / s(A)
([arXiv 2308.12032](https://arxiv.org/abs/2308.12032)). Each row has all fields of its source, and
the licence of its source applies.
"""
# What Markdown or HTML acts on within a line. An underscore inside a word is not emphasis.
ACTIVE = re.compile(r"[\\`*\[\]<>|&~$]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])")


def write_card(
    path: Path,
    file: str,
    *,
    title: str,
    manifest: Mapping[str, Any],
    choice: Mapping[str, Any],
    command: str,
) -> None:
    """Writes the card in Markdown.

    ``file`` is the file of the rows, relative to the card's folder, and ``command`` the command
    that made it. ``manifest`` is the run's ``score.json``; ``choice`` holds the settings and counts
    of the selection.
    """
    sections = {
        "Source": _describe_source(manifest["read"]),
        "Scores": _describe_scores(manifest),
        "Choice": choice.items(),
        "Every row": _count_rows(manifest, choice["num_selected"], choice["num_above_one"]).items(),
        "Versions": manifest["score"]["versions"].items(),
    }
    parts = [
        HEADER.format(title=_yaml(title), file=_yaml(file)),
        INTRODUCTION.format(
            title=_markdown(title),
            num_selected=choice["num_selected"],
            num_rows=manifest["num_rows"],
            version=__version__,
        ),
        *(_section(name, facts) for name, facts in sections.items()),
        f"\n## Command\n\n{_code_block(command)}\n",
    ]
    path.write_text("".join(parts), encoding="utf-8")


def _describe_source(read: Mapping[str, Any]) -> list[tuple[str, Any]]:
    settings = read["settings"]
    files = zip(read["files"], settings["files"], strict=True)
    return [
        *((Path(name).name, f"SHA-256 {found[0]}") for name, found in files),
        ("columns", settings["columns"]),
        ("max_rows", settings["max_rows"]),
        ("refusal phrases", len(settings["refusals"])),
    ]


def _describe_scores(manifest: Mapping[str, Any]) -> list[tuple[str, Any]]:
    score = manifest["score"]
    settings = score["settings"]
    return [
        ("model", f"{Path(score.get('model', '')).name} (fingerprint {settings['model']})"),
        *((key, settings[key]) for key in ("max_length", "engine", "prompt")),
        ("scores", manifest["fingerprint"]),
    ]


def _count_rows(
    manifest: Mapping[str, Any], num_selected: int, num_above_one: int
) -> dict[str, int]:
    """Counts of the rows read, selected, not selected and dropped; the last three add up.

    ``num_above_one`` of the selected rows have an IFD above 1.
    """
    outcomes = dict(manifest["outcomes"])
    outcomes[DropReason.IFD_ABOVE_ONE.value] -= num_above_one
    num_unselected = outcomes["usable"] - num_selected + num_above_one
    dropped = {
        f"dropped: {reason.value}": outcomes[reason.value]
        for reason in DropReason
        if outcomes.get(reason.value)  # a run of an earlier release has fewer reasons
    }
    kept = {"selected": num_selected, "usable, not selected": num_unselected}
    return {"rows read": manifest["num_rows"], **kept, **dropped}


def _section(title: str, facts: Iterable[tuple[str, Any]]) -> str:
    lines = [f"| {_markdown(key)} | {_cell(value)} |" for key, value in facts]
    return "\n".join([f"\n## {title}\n", "| | |", "| --- | --- |", *lines, ""])


def _cell(value: Any) -> str:
    """A value as one cell of a table."""
    if value is None:
        return "-"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return _markdown(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _markdown(text: str) -> str:
    """A text on one line, escaped so that Markdown and HTML show it literally."""
    return ACTIVE.sub(lambda match: f"\\{match[0]}", printable(" ".join(text.split())))


def _yaml(text: str) -> str:
    """A text as a YAML scalar."""
    return json.dumps(printable(text), ensure_ascii=False)


def _code_block(text: str) -> str:
    """A text as a code block, with a fence longer than any in the text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}bash\n{printable(text)}\n{fence}"
