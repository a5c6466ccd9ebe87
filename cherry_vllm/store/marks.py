"""Which outputs are ours: a mark beside each names its contents, so that nothing else is replaced.

The mark of ``cherry.json`` is ``cherry.json.meta.json``, and that of a folder ``cherry`` is
``cherry.meta.json``. It holds what is worth knowing about the output, and the SHA-256 of the file,
or of each file in the folder. While the output is replaced, the mark also keeps what it said of the
old one, so that a kill at any moment leaves an output that its mark knows.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from cherry_vllm.errors import UserError
from cherry_vllm.store.files import (
    atomic_folder,
    atomic_path,
    file_sha256,
    read_json,
    write_json,
)
from cherry_vllm.store.locks import changing

CONTENTS, PREVIOUS = "sha256", "previous"  # keys of a mark; the others are the caller's
LOCK = ".cherry-vllm.lock"


def mark_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.meta.json")


def read_mark(output: Path) -> dict[str, Any] | None:
    """What its mark says of an output; None if it has no mark, or is not what was written."""
    mark = _load(mark_path(output))
    contents = _contents(output)
    if mark is None or contents is None:
        return None
    previous = mark.pop(PREVIOUS, None)
    for known in (mark, previous):
        if known and known[CONTENTS] == contents:
            return dict(known)
    return None


def is_ours(output: Path) -> bool:
    """Whether an output is, to the byte, what this program wrote there; a link never is."""
    return read_mark(output) is not None


def check_replaceable(output: Path) -> None:
    """Raises a UserError if a file or folder would be lost with the writing of ``output``."""
    if _exists(output) and not is_ours(output):
        raise UserError(
            f"{output}: exists and is not what cherry-vllm wrote; choose another output or move it"
        )
    mark = mark_path(output)
    if _exists(mark) and _load(mark) is None:
        raise UserError(
            f"{mark}: exists and is not from cherry-vllm; choose another output or move it"
        )


@contextmanager
def marked_file(output: Path, facts: Mapping[str, Any]) -> Iterator[Path]:
    """Yields a temporary path that becomes ``output``, whose mark holds ``facts``.

    Raises:
        UserError: something else is there.
    """
    with _marked(atomic_path, output, facts) as path:
        yield path


@contextmanager
def marked_folder(output: Path, facts: Mapping[str, Any]) -> Iterator[Path]:
    """As :func:`marked_file`, for a folder that the block fills."""
    with _marked(atomic_folder, output, facts) as path:
        yield path


@contextmanager
def _marked(
    atomic: Callable[[Path], AbstractContextManager[Path]],
    output: Path,
    facts: Mapping[str, Any],
) -> Iterator[Path]:
    with changing(output.parent, output.name, mark_path(output).name, lock=LOCK):
        check_replaceable(output)
        with atomic(output) as temporary:
            yield temporary
            check_replaceable(output)  # the block may have taken long
            mark = {**facts, CONTENTS: _contents(temporary)}
            write_json(mark_path(output), {**mark, PREVIOUS: read_mark(output)})
        write_json(mark_path(output), mark)


def _load(mark: Path) -> dict[str, Any] | None:
    try:
        found = read_json(mark)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and CONTENTS in found else None


def _contents(output: Path) -> str | dict[str, str] | None:
    """SHA-256 of a file, or of every file in a folder; None if links or empty folders are there."""
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
