"""Where chosen rows may be written: never over the data, a run's own files, or anyone else's."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from cherry_vllm.errors import UserError
from cherry_vllm.store.hashes import file_sha256
from cherry_vllm.store.marks import CONTENTS, check_replaceable, read_mark
from cherry_vllm.store.marks import SUFFIX as MARK_SUFFIX
from cherry_vllm.store.run_folder import is_reserved
from cherry_vllm.store.scores import Scores

SUFFIXES = (".json", ".jsonl", ".parquet")
COMMAND = "select"


def check_format(output: Path) -> None:
    """Raises a UserError if the suffix of ``output`` names no format.

    No suffix is fine: it stands for a data set folder.
    """
    if output.name.endswith(MARK_SUFFIX):
        raise UserError(
            f"select.output={output.name}: {MARK_SUFFIX} is the end of a file that describes an "
            "output; choose another name"
        )
    if output.suffix and output.suffix not in SUFFIXES:
        raise UserError(
            f"select.output={output.name}: end it in one of {', '.join(SUFFIXES)}, or leave the "
            "suffix out for a data set folder"
        )


def check_output(
    output: Path, scores: Scores, run_dirs: Sequence[Path], tables: Sequence[Path] = ()
) -> None:
    """Raises a UserError if writing ``output`` would destroy or mix up something.

    It can't be one of a run's own files in the ``run_dirs``, the data that was scored, one of the
    ``tables`` that are read, or anything that ``select`` did not write.
    """
    for folder in (*run_dirs, scores.folder):
        if is_reserved(output, folder):
            raise UserError(
                f"{output}: a name that the run keeps for its own files; choose another "
                "select.output"
            )
    check_replaceable(output, COMMAND)
    for table in tables:
        if table.resolve().is_relative_to(output.resolve()):
            raise UserError(
                f"{output}: select.join or select.ratings reads {table}; choose another "
                "select.output"
            )
    for source in _sources_within(output, scores):
        raise UserError(
            f"{output}: holds data that this run scored ({source}); choose another select.output"
        )


def _sources_within(output: Path, scores: Scores) -> Iterator[str]:
    """The input files whose contents ``output`` holds, whatever their names are now.

    A selection of these very scores may hold all rows: it is not an input while the input exists.
    """
    mark = read_mark(output)
    if mark is None:
        return
    read, is_selection = scores.manifest["read"], mark.get("scores") == scores.fingerprint
    held = mark[CONTENTS]
    contents = set(held.values()) if isinstance(held, dict) else {held}
    for name, (sha256, *_) in zip(read["files"], read["settings"]["files"], strict=True):
        if sha256 in contents and not (is_selection and _is_kept(Path(name), sha256, output)):
            yield name


def _is_kept(source: Path, sha256: str, output: Path) -> bool:
    """Whether a file still holds what was read, and is not within ``output``."""
    is_elsewhere = not source.resolve().is_relative_to(output.resolve())
    return is_elsewhere and source.is_file() and file_sha256(source) == sha256
