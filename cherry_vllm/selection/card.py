"""The card of an exported data set: where its rows come from, and how they were chosen."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cherry_vllm import __version__
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
    path: {pattern}
---
"""
INTRODUCTION = """
# {title}

{num_selected:,} of {num_rows:,} instruction rows, chosen by cherry-vllm {version}, which scores
a row by its Instruction-Following Difficulty, IFD = s(A|Q) / s(A)
([arXiv 2308.12032](https://arxiv.org/abs/2308.12032)). Each has all fields of its source, whose
licence holds for it.
"""


def write_card(
    path: Path,
    *,
    title: str,
    pattern: str,
    manifest: Mapping[str, Any],
    choice: Mapping[str, Any],
    command: str,
) -> None:
    """Writes the card in Markdown.

    ``manifest`` is the ``score.json`` of the run, ``choice`` the settings and counts of the
    selection, ``pattern`` finds the rows below the card's folder, ``command`` made them.
    """
    read, score = manifest["read"], manifest["score"]
    settings = score["settings"]
    files = zip(read["files"], read["settings"]["files"], strict=True)
    scoring = {
        "model": f"{Path(score.get('model', '')).name} (fingerprint {settings['model']})",
        **{key: settings[key] for key in ("max_length", "engine", "prompt")},
        "scores": manifest["fingerprint"],
    }
    sections = {
        "Source": [
            *((Path(name).name, f"SHA-256 {found[0]}") for name, found in files),
            ("columns", read["settings"]["columns"]),
            ("max_rows", read["settings"]["max_rows"]),
            ("refusal phrases", len(read["settings"]["refusals"])),
        ],
        "Scores": scoring.items(),
        "Choice": choice.items(),
        "Every row": _ledger(manifest, choice["num_selected"]).items(),
        "Versions": score["versions"].items(),
    }
    parts = [
        HEADER.format(title=json.dumps(title), pattern=json.dumps(pattern)),
        INTRODUCTION.format(
            title=title,
            num_selected=choice["num_selected"],
            num_rows=manifest["num_rows"],
            version=__version__,
        ),
        *(_section(name, facts) for name, facts in sections.items()),
        f"\n## Command\n\n```bash\n{command}\n```\n",
    ]
    path.write_text("".join(parts), encoding="utf-8")


def _ledger(manifest: Mapping[str, Any], num_selected: int) -> dict[str, int]:
    """The rows read, by what became of them: selected, not selected and dropped make up all."""
    outcomes = manifest["outcomes"]
    dropped = {
        f"dropped: {reason.value}": outcomes[reason] for reason in DropReason if outcomes[reason]
    }
    kept = {"selected": num_selected, "usable, not selected": outcomes["usable"] - num_selected}
    return {"rows read": manifest["num_rows"], **kept, **dropped}


def _section(title: str, facts: Iterable[tuple[str, Any]]) -> str:
    lines = [f"| {_cell(key)} | {_cell(value)} |" for key, value in facts]
    return "\n".join([f"\n## {title}\n", "| | |", "| --- | --- |", *lines, ""])


def _cell(value: Any) -> str:
    """A value as one cell of a table, whatever characters it holds."""
    if value is None:
        return "-"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
