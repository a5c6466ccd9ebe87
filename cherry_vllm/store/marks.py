"""Marks beside our outputs: only a file or folder that still matches its mark is ever replaced.

The mark of ``cherry.json`` is ``cherry.json.meta.json``, and that of a folder ``cherry`` is
``cherry.meta.json``. It holds facts about the output, the command that made it, and the SHA-256 of
the file, or of each file in the folder. The mark of an output whose name the user does not choose
is hidden: ``.report.html.meta.json``.

While an output is being replaced, its mark also describes the old one, so that the mark matches
the output after a kill at any moment.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from cherry_vllm.errors import UserError
from cherry_vllm.store.files import atomic_folder, atomic_path, read_json, write_json
from cherry_vllm.store.hashes import file_sha256
from cherry_vllm.store.locks import changing

CONTENTS, PREVIOUS = "sha256", "previous"  # keys of a mark; the others are the caller's
MADE_BY = "made_by"  # a key that every caller gives: the command that wrote the output
SUFFIX = ".meta.json"
LOCK = ".cherry-vllm.lock"


def mark_path(output: Path, *, hidden: bool = False) -> Path:
    """Where the mark of an output is."""
    return output.with_name(f"{'.' if hidden else ''}{output.name}{SUFFIX}")


def read_mark(output: Path) -> dict[str, Any] | None:
    """What the mark says about an output; None if it has no mark or has changed since."""
    contents = _contents(output)
    if contents is None:
        return None
    for hidden in (False, True):
        mark = _load(mark_path(output, hidden=hidden)) or {}
        for known in (mark, mark.pop(PREVIOUS, None)):
            if known and known.get(CONTENTS) == contents:
                return dict(known)
    return None


def is_ours(output: Path) -> bool:
    """Whether an output is byte for byte what this program wrote there; a link never is."""
    return read_mark(output) is not None


def check_replaceable(output: Path, made_by: str) -> None:
    """Raises a UserError if writing ``output`` would destroy something that is not ours to replace.

    That includes what a command other than ``made_by`` wrote, and a file in the place of the mark.
    """
    found = read_mark(output)
    if _exists(output) and found is None:
        raise UserError(
            f"{output}: exists and is not what cherry-vllm wrote; choose another output or move it"
        )
    if found and found[MADE_BY] != made_by:
        raise UserError(
            f"{output}: written by another command of cherry-vllm; choose another output"
        )
    for place in (mark_path(output), mark_path(output, hidden=True)):
        mark = _load(place)
        if _exists(place) and (mark is None or mark[MADE_BY] != made_by):
            raise UserError(
                f"{place}: exists and is not the mark of a file that cherry-vllm wrote; choose "
                "another output or move it"
            )


@contextmanager
def marked_file(output: Path, facts: Mapping[str, Any]) -> Iterator[Path]:
    """Yields a temporary path that becomes ``output``, whose mark holds ``facts``.

    They name the command that writes it, by the key :data:`MADE_BY`.

    Raises:
        UserError: ``output`` exists and is not ours to replace.
    """
    with _marked(atomic_path, output, facts, hidden=False) as path:
        yield path


@contextmanager
def marked_folder(output: Path, facts: Mapping[str, Any]) -> Iterator[Path]:
    """Like :func:`marked_file`, for a folder that the block fills."""
    with _marked(atomic_folder, output, facts, hidden=False) as path:
        yield path


@contextmanager
def own_file(output: Path, made_by: str, **facts: Any) -> Iterator[Path]:
    """Like :func:`marked_file`, for a file whose name the user does not choose.

    Raises:
        UserError: ``output`` exists and was not written by the command ``made_by``.
    """
    with _marked(atomic_path, output, {MADE_BY: made_by, **facts}, hidden=True) as path:
        yield path


@contextmanager
def own_folder(output: Path, made_by: str) -> Iterator[Path]:
    """Like :func:`own_file`, for a folder that the block fills."""
    with _marked(atomic_folder, output, {MADE_BY: made_by}, hidden=True) as path:
        yield path


@contextmanager
def _marked(
    atomic: Callable[[Path], AbstractContextManager[Path]],
    output: Path,
    facts: Mapping[str, Any],
    *,
    hidden: bool,
) -> Iterator[Path]:
    place = mark_path(output, hidden=hidden)
    with changing(output.parent, output.name, place.name, lock=LOCK):
        check_replaceable(output, facts[MADE_BY])
        with atomic(output) as temporary:
            yield temporary
            check_replaceable(output, facts[MADE_BY])  # the block may have taken long
            mark = {**facts, CONTENTS: _contents(temporary)}
            write_json(place, {**mark, PREVIOUS: read_mark(output)})
        write_json(place, mark)


def _load(mark: Path) -> dict[str, Any] | None:
    try:
        found = read_json(mark)
    except (OSError, ValueError):
        return None
    return found if {CONTENTS, MADE_BY} <= found.keys() and not mark.is_symlink() else None


def _contents(output: Path) -> str | dict[str, str] | None:
    """SHA-256 of a file, or of every file in a folder.

    None if it does not exist, is a link, or holds links or empty folders.
    """
    if output.is_symlink():
        return None
    if output.is_file():
        return file_sha256(output)
    if not output.is_dir():
        return None
    paths = list(output.rglob("*"))
    files = [path for path in paths if path.is_file() and not path.is_symlink()]
    parents = {parent for path in files for parent in path.parents}
    if any(path not in parents for path in paths if path not in files):
        return None
    return {path.relative_to(output).as_posix(): file_sha256(path) for path in files}


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()
