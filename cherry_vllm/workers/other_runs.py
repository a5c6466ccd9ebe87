"""Runs that were begun beside this one: with other files, on another day, with other settings."""

import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from cherry_vllm.errors import DamagedFileError, UserError
from cherry_vllm.schema import SCHEMA_VERSION
from cherry_vllm.store.files import read_json
from cherry_vllm.store.hashes import fingerprint
from cherry_vllm.store.run_folder import Inner
from cherry_vllm.store.shards import Shards

log = logging.getLogger(__name__)


def refuse_changed_input(target: Shards, rows: Shards) -> None:
    """Raises a UserError if a file of the ``rows`` was scored here with other contents."""
    files = _files_of(rows.folder)
    for _, settings in _begun(target):
        before = _files_of(rows.folder.parent / str(settings.get("rows")))
        for file in files.keys() & before.keys():
            if files[file] != before[file]:
                raise UserError(
                    f"{file}: changed since this run began; restore the old file to continue, "
                    "or give the changed one a run_dir of its own"
                )


def warn_of_other_dates(target: Shards) -> None:
    """Warns of runs that differ only in the date in their prompts, and says how to resume."""
    for folder, before in _begun(target):
        if before.get("schema_version") != SCHEMA_VERSION:
            continue
        date = before["prompt"].get("date")
        if date and _without_date(before) == _without_date(target.settings):
            log.warning(
                "%s: begun with prompt.date=%s, which resumes it; another date begins a new run",
                folder,
                date,
            )


def warn_of_other_shares(target: Shards) -> None:
    """Warns of unfinished runs over the same rows: shares must agree in all settings."""
    for folder, before in _begun(target):
        if before.get("rows") == target.settings["rows"] and not (folder / Inner.COMPLETE).exists():
            keys = [key for key in target.settings if target.settings[key] != before.get(key)]
            log.warning(
                "%s: begun with another %s and not finished; only shares with the same "
                "settings finish a run",
                folder,
                ", ".join(keys) or "release",
            )


def _begun(target: Shards) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folders of runs beside this one, with their settings if these are whole."""
    for path in sorted(target.folder.parent.glob(f"*/{Inner.SETTINGS}")):
        with suppress(DamagedFileError):
            settings = read_json(path)
            if fingerprint(settings) == path.parent.name:
                yield path.parent, settings


def _without_date(settings: dict[str, Any]) -> dict[str, Any]:
    prompt = settings["prompt"]
    bare = {key: prompt[key] for key in prompt if key not in ("date", "rendered")}
    return {**settings, "prompt": bare}


def _files_of(rows: Path) -> dict[Path, Any]:
    """The input files of a folder of row shards, and what its settings say of each."""
    try:
        summary = read_json(rows / Inner.COMPLETE)
        found = zip(map(Path, summary["files"]), summary["settings"]["files"], strict=True)
        named = list(found)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}
    # Nobody knows any more which folder a relative path was in.
    return {file.resolve(): content for file, content in named if file.is_absolute()}
