"""Paths, globs and hub addresses to local files."""

import glob
import json
import logging
import os
from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

from cherry_vllm.errors import UserError
from cherry_vllm.runtime.text import first_line
from cherry_vllm.sources.formats import COMPRESSIONS, find_format
from cherry_vllm.sources.hub import SCHEME, fetch_files, find_split
from cherry_vllm.sources.run_outputs import without_ours

ABOUT = {"dataset_info.json", "dataset_infos.json"}  # files about a data set, not of it

log = logging.getLogger(__name__)


def find_files(
    patterns: Iterable[str], *, split: str | None = None, config: str | None = None
) -> list[Path]:
    """The local files that paths, globs and ``hf://`` paths stand for, in the order given.

    A file that is named twice is read once, and globs and folders leave out files that runs wrote.
    ``split`` and ``config`` choose from a data set, on the hub or in a folder.

    Raises:
        UserError: nothing is found, or what is found is not a readable file with content.
    """
    found = [file for pattern in patterns for file in _expand(pattern, split, config)]
    if not found:
        raise UserError("data.path: an empty list; give a file, a glob or an hf:// path")
    by_place: dict[str, Path] = {}
    for file in found:
        by_place.setdefault(os.path.realpath(file), file)
    files = list(by_place.values())
    if len(files) < len(found):
        log.warning("data.path: %d files are named twice, and read once", len(found) - len(files))
    for file in files:
        _check(file)
    return files


def _check(file: Path) -> None:
    try:
        str(file).encode()
    except UnicodeEncodeError:
        raise UserError(f"{str(file)!a}: the file's name is not UTF-8; rename it") from None
    if file.is_dir():
        raise UserError(f"{file}: a folder; give its files, or the folder without a wildcard")
    try:
        with file.open("rb") as stream:
            if not stream.read(1):
                raise UserError(f"{file}: the file is empty; check data.path")
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; check data.path") from None


def _expand(pattern: str, split: str | None, config: str | None) -> list[Path]:
    if pattern.startswith(SCHEME):
        return fetch_files(pattern, split, config)
    if pattern.startswith(("http://", "https://")):
        raise UserError(f"{pattern}: URLs are not read; download the file, or give an hf:// path")
    path = Path(pattern).expanduser() if pattern.startswith("~/") else Path(pattern)
    if path.is_dir():
        return _open_folder(path, split, config)
    if (split, config) != (None, None):
        raise UserError(
            f"{pattern}: not a data set with splits; leave out data.split and data.config"
        )
    return [path] if path.exists() or not glob.has_magic(str(path)) else _match(str(path))


def _match(pattern: str) -> list[Path]:
    found = (Path(match) for match in sorted(glob.glob(pattern, recursive=True)))
    is_recursive = "**" in Path(pattern).parts  # which also matches each folder on the way
    matches = [path for path in found if not (is_recursive and path.is_dir())]
    if glob.has_magic(Path(pattern).name):
        matches = without_ours(matches, _named_folder(pattern), pattern)
    if not matches:
        raise UserError(f"{pattern}: no file matches; check data.path")
    return matches


def _named_folder(pattern: str) -> Path:
    """The part of a glob before its first wildcard."""
    parts = takewhile(lambda part: not glob.has_magic(part), Path(pattern).absolute().parts)
    return Path(*parts)


def _open_folder(folder: Path, split: str | None, config: str | None) -> list[Path]:
    """The data files in a folder: of one saved data set, or all, which must have one format.

    Raises:
        UserError: the folder holds several splits or formats, or no data, or cannot be read.
    """
    is_dict = (folder / "dataset_dict.json").is_file()
    if is_dict or (folder / "state.json").is_file():
        if config is not None:
            raise UserError(
                f"{folder}: a saved data set, which has no configurations; leave out data.config"
            )
        return _open_saved(_choose_split(folder, split) if is_dict else folder, split)
    if (split, config) != (None, None):
        try:
            return [Path(file) for file in find_split(str(folder.absolute()), split, config)]
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: {first_line(error)}; check data.split") from None
    found = [path for path in sorted(_walk(folder)) if _is_data(path, folder)]
    found = without_ours(found, folder.absolute(), str(folder))
    by_format = {str(find_format(file)): file for file in reversed(found)}
    if not by_format:
        raise UserError(f"{folder}: a folder without data files; check data.path")
    if len(by_format) > 1:
        ending = _ending(next(iter(by_format.values())))
        pattern = Path(glob.escape(str(folder)), "**", f"*{ending}")
        raise UserError(
            f"{folder}: a folder with files of several formats; give those of one, as in "
            f"data.path='{pattern}'"
        )
    log.info("%s: a folder of %d data files", folder, len(found))
    return found


def _walk(folder: Path) -> Iterator[Path]:
    """The files below a folder, those of linked folders included, each folder once."""
    seen = set[str]()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(place, name) for name in names)


def _ending(file: Path) -> str:
    """A file's suffixes from the one that names its format on."""
    *_, suffix = file.suffixes
    if suffix.lower() in COMPRESSIONS:
        return _ending(file.with_suffix("")) + suffix
    return suffix


def _is_data(path: Path, folder: Path) -> bool:
    """Whether a path in a folder is a data file: not hidden, not about the data set itself."""
    parts = path.relative_to(folder).parts
    is_hidden = any(part.startswith((".", "_")) for part in parts)
    return not is_hidden and path.name not in ABOUT and bool(find_format(path)) and path.is_file()


def _choose_split(folder: Path, split: str | None) -> Path:
    """The folder of a split, of a ``DatasetDict`` that was saved."""
    splits = [str(name) for name in _read(folder / "dataset_dict.json").get("splits", [])]
    names = ", ".join(splits)
    if split is None and len(splits) != 1:
        example = splits[0] if splits else "train"
        raise UserError(f"{folder}: several splits ({names}); add data.split={example}")
    if split is not None and split not in splits:
        raise UserError(f"{folder}: no split '{split}' (found: {names}); check data.split")
    return folder / (split or splits[0])


def _open_saved(folder: Path, split: str | None) -> list[Path]:
    """The files of a data set that ``Dataset.save_to_disk`` wrote."""
    state = _read(folder / "state.json")
    saved = state.get("_split")
    if split not in (None, saved):
        held = f"the split '{saved}' alone" if saved else "a data set without splits"
        raise UserError(f"{folder}: {held}; leave out data.split")
    names = [entry.get("filename") for entry in state.get("_data_files", [])]
    files = [folder / name for name in names if isinstance(name, str)]
    if not files:
        raise UserError(f"{folder}: a saved data set without files; save it again")
    return files


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable ({error}); save the data set again") from None
    return found if isinstance(found, dict) else {}
