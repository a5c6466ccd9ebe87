"""Files that runs wrote: they are input only if the user names them in full."""

import logging
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from cherry_vllm.errors import UserError
from cherry_vllm.store.files import read_json
from cherry_vllm.store.hashes import file_sha256
from cherry_vllm.store.marks import CONTENTS, is_ours, mark_path
from cherry_vllm.store.marks import SUFFIX as MARK_SUFFIX
from cherry_vllm.store.run_folder import File, is_run_file
from cherry_vllm.store.scores import check_scores_dir

MARK_KEYS = {"num_selected", "counts"}  # only our marks have one, also those of earlier releases

log = logging.getLogger(__name__)


def without_ours(files: Sequence[Path], named: Path, pattern: str) -> list[Path]:
    """The files that no run wrote, with a warning that counts the others.

    The files match a ``pattern``, in which the user named the folder ``named``.
    """
    inputs = [file for file in files if not _is_ours(file, named)]
    if len(inputs) < len(files):
        log.warning(
            "%s: %d files that cherry-vllm wrote are left out; name them in full to read them",
            pattern,
            len(files) - len(inputs),
        )
    return inputs


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
        return read_json(mark) if mark.is_file() else {}
    except (OSError, ValueError):
        return {}
