"""Where chosen rows may be written: never over the data, a run's own files, or anyone else's."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from cherry_vllm.errors import UserError
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


def check_output(output: Path, scores: Scores, run_dirs: Sequence[Path]) -> None:
    """Raises a UserError if writing ``output`` would destroy or mix up something.

    It can't be one of a run's own files in the ``run_dirs``, the data that was scored, or anything
    that ``select`` did not write.
    """
    for folder in (*run_dirs, scores.folder):
        if is_reserved(output, folder):
            raise UserError(
                f"{output}: a name that the run keeps for its own files; choose another "
                "select.output"
            )
    check_replaceable(output, COMMAND)
    for source in _sources_within(output, scores):
        raise UserError(
            f"{output}: holds data that this run scored ({source}); choose another select.output"
        )


def _sources_within(output: Path, scores: Scores) -> Iterator[str]:
    """The input files that replacing ``output`` would destroy, even if they have moved."""
    mark = read_mark(output)
    if mark is None:
        return
    read = scores.manifest["read"]
    held = mark[CONTENTS]
    contents = held if isinstance(held, dict) else {"": held}
    for name, (sha256, *_) in zip(read["files"], read["settings"]["files"], strict=True):
        for part in [part for part in contents if contents[part] == sha256]:
            file, source = output / part, Path(name)
            if not source.exists() or source.samefile(file):
                yield name
