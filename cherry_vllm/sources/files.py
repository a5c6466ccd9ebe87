"""Paths, globs and hub addresses to local files."""

import glob
import json
import logging
import os
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path
from typing import Any

from cherry_vllm.errors import UserError
from cherry_vllm.sources.formats import find_format
from cherry_vllm.store.files import file_sha256
from cherry_vllm.store.marks import CONTENTS, is_ours, mark_path
from cherry_vllm.store.marks import SUFFIX as MARK_SUFFIX
from cherry_vllm.store.run_folder import File, is_run_file
from cherry_vllm.store.scores import check_scores_dir

MARK_KEYS = {"num_selected", "counts"}  # only our marks have one, also those of earlier releases

log = logging.getLogger(__name__)


def find_files(patterns: Iterable[str]) -> list[Path]:
    """The local files that paths, globs and ``hf://`` paths stand for, in the order given.

    A file that is named twice is read once, and a glob leaves out files that runs wrote.

    Raises:
        UserError: nothing is found, or what is found is not a readable file with content.
    """
    found = [file for pattern in patterns for file in _expand(pattern)]
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
        raise UserError(f"{file}: a folder; {_files_within(file)}")
    try:
        with file.open("rb") as stream:
            if not stream.read(1):
                raise UserError(f"{file}: the file is empty; check data.path")
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; check data.path") from None


def _files_within(folder: Path) -> str:
    """The advice what to give instead of a folder."""
    for file in sorted(folder.rglob("*")):
        if file.is_file() and find_format(file):
            pattern = file.parent / f"*{''.join(file.suffixes[-1:])}"
            return f"give its files, as in data.path='{pattern}'"
    return "it has no file of a known format; check data.path"


def _expand(pattern: str) -> list[Path]:
    if pattern.startswith("hf://"):
        return _download(pattern)
    if pattern.startswith(("http://", "https://")):
        raise UserError(f"{pattern}: URLs are not read; download the file, or give an hf:// path")
    pattern = os.path.expanduser(pattern)  # noqa: PTH111 - an unknown ~name stays as it is
    if not glob.has_magic(pattern) or Path(pattern).exists():
        return _open_saved(Path(pattern))
    matches = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    if glob.has_magic(Path(pattern).name):
        inputs = [match for match in matches if not _is_ours(match, _named_folder(pattern))]
        if len(inputs) < len(matches):
            log.warning(
                "%s: %d files that cherry-vllm wrote are left out; name them in full to read them",
                pattern,
                len(matches) - len(inputs),
            )
        matches = inputs
    if not matches:
        raise UserError(f"{pattern}: no file matches; check data.path")
    return matches


def _named_folder(pattern: str) -> Path:
    """The part of a glob before its first wildcard."""
    parts = takewhile(lambda part: not glob.has_magic(part), Path(pattern).absolute().parts)
    return Path(*parts)


def _is_ours(file: Path, named: Path) -> bool:
    """Whether a run wrote a file: as one of its own, as an output or in one, or as a mark.

    A data set folder of ours is read if the user has ``named`` it, or a folder in it.
    """
    file = file.absolute()
    outputs = (file, *takewhile(lambda folder: folder != named, file.parents))
    return (
        is_run_file(file)
        or _is_of_scores(file)
        or _is_mark(file)
        or any(_is_output(output, file) for output in outputs)
        or _is_selection_of_old(file)
    )


def _is_of_scores(file: Path) -> bool:
    """Whether a file belongs to scores, which a folder without a run may hold."""
    if file.name not in (File.SCORES, File.SCORE_MANIFEST):
        return False
    try:
        check_scores_dir(file.parent)
    except UserError:
        return False
    return True


def _is_mark(file: Path) -> bool:
    output = file.with_name(file.name.removesuffix(MARK_SUFFIX).removeprefix(".") or file.name)
    return file.name.endswith(MARK_SUFFIX) and (
        not MARK_KEYS.isdisjoint(_read_mark(file)) or is_ours(output)
    )


def _is_output(output: Path, file: Path) -> bool:
    """Whether a mark says that ``output`` is ours and that ``file`` is it, or one of its files."""
    for mark in map(_read_mark, (mark_path(output), mark_path(output, hidden=True))):
        held = mark.get(CONTENTS)
        known = held.get(file.relative_to(output).as_posix()) if isinstance(held, dict) else held
        # An edited selection is still no input.
        is_named = known is not None and (isinstance(held, dict) or output == file)
        if is_named and (not MARK_KEYS.isdisjoint(mark) or known == file_sha256(file)):
            return True
    return False


def _is_selection_of_old(file: Path) -> bool:
    """Whether release 0.1.0 wrote a file: its marks hold no SHA-256."""
    mark = _read_mark(file.with_suffix(MARK_SUFFIX))
    return CONTENTS not in mark and not MARK_KEYS.isdisjoint(mark)


def _read_mark(mark: Path) -> dict[str, Any]:
    try:
        return _read(mark) if mark.is_file() else {}
    except UserError:
        return {}


def _open_saved(path: Path) -> list[Path]:
    """The files of a folder that ``Dataset.save_to_disk`` wrote; any other path is returned as is.

    Raises:
        UserError: the folder holds several splits, or cannot be read.
    """
    if (path / "dataset_dict.json").is_file():
        splits = [str(name) for name in _read(path / "dataset_dict.json").get("splits", [])]
        raise UserError(
            f"{path}: a folder of several splits ({', '.join(splits)}); give one of them, as in "
            f"data.path='{path / splits[0] if splits else path}'"
        )
    if not (path / "state.json").is_file():
        return [path]
    names = [entry.get("filename") for entry in _read(path / "state.json").get("_data_files", [])]
    files = [path / name for name in names if isinstance(name, str)]
    return files or [path]


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not readable ({error}); save the data set again") from None
    return found if isinstance(found, dict) else {}


def _download(pattern: str) -> list[Path]:
    """Fetches hub files into the hub's own cache; from there they are read like local files."""
    from huggingface_hub import HfFileSystem, hf_hub_download

    try:
        hub = HfFileSystem()
        names = sorted(hub.glob(pattern)) if glob.has_magic(pattern) else [pattern]
        places = [hub.resolve_path(str(name)) for name in names]
        files = [
            hf_hub_download(
                place.repo_id,
                place.path_in_repo,
                repo_type=place.repo_type,
                revision=place.revision,
            )
            for place in places
        ]
    except (OSError, ValueError) as error:
        # The hub's errors are OSErrors; the first line says what is wrong.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{pattern}: {reason}; check the path, the network and HF_TOKEN") from None
    if not files:
        raise UserError(f"{pattern}: no file matches; check data.path")
    return [Path(file) for file in files]
