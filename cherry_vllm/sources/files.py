"""Paths, globs and hub addresses to local files, and a file's format and compression."""

import glob
import gzip
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO

from backports import zstd

from cherry_vllm.errors import UserError
from cherry_vllm.options import DataFormat

SUFFIXES = {
    ".json": DataFormat.json,
    ".jsonl": DataFormat.jsonl,
    ".ndjson": DataFormat.jsonl,
    ".csv": DataFormat.csv,
    ".parquet": DataFormat.parquet,
    ".pq": DataFormat.parquet,
}
COMPRESSIONS = (".gz", ".zst")
READ_ERRORS = (OSError, EOFError, zlib.error, zstd.ZstdError)  # what a damaged file may raise


def find_files(patterns: Iterable[str]) -> list[Path]:
    """The local files that paths, globs and ``hf://`` paths stand for, in the order given.

    Raises:
        UserError: nothing is found, or what is found is not a readable file with content.
    """
    files = [file for pattern in patterns for file in _expand(pattern)]
    if not files:
        raise UserError("data.path: an empty list; give a file, a glob or an hf:// path")
    for file in files:
        if file.is_dir():
            raise UserError(f"{file}: a folder; give its files, as in data.path='{file}/*.jsonl'")
        try:
            with file.open("rb") as stream:
                if not stream.read(1):
                    raise UserError(f"{file}: the file is empty; check data.path")
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}; check data.path") from None
    return files


def _expand(pattern: str) -> list[Path]:
    if pattern.startswith("hf://"):
        return _download(pattern)
    if not glob.has_magic(pattern) or Path(pattern).exists():
        return [Path(pattern)]
    matches = sorted(glob.glob(pattern, recursive=True))
    if not matches:
        raise UserError(f"{pattern}: no file matches; check data.path")
    return [Path(match) for match in matches]


def _download(pattern: str) -> list[Path]:
    """Fetches hub files into the hub's own cache, so that they are read like any local file."""
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


def detect_format(file: Path) -> DataFormat:
    """The format that a file's suffix names, compression aside.

    A ``.json`` file that begins with ``{`` holds one record per line, as many do.

    Raises:
        UserError: the suffix names none.
    """
    suffixes = [suffix for suffix in file.suffixes if suffix not in COMPRESSIONS]
    found = SUFFIXES.get(suffixes[-1].lower()) if suffixes else None
    if found is None:
        known = ", ".join(SUFFIXES)
        raise UserError(
            f"{file}: the suffix names no format ({known}, also with .gz or .zst); set data.format"
        )
    if found is DataFormat.json:
        try:
            with open_bytes(file) as stream:
                head = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        except READ_ERRORS as error:
            raise unreadable(file, error) from None
        return DataFormat.jsonl if head.startswith(b"{") else found
    return found


def open_bytes(file: Path) -> IO[bytes]:
    """Opens a file for reading, through its decompressor if the suffix names one."""
    if file.suffix == ".gz":
        return gzip.open(file, "rb")  # type: ignore[return-value]
    if file.suffix == ".zst":
        return zstd.open(file, "rb")  # type: ignore[return-value]
    return file.open("rb")


def unreadable(file: Path, error: Exception) -> UserError:
    """The line for a file that one of :data:`READ_ERRORS` cut short."""
    return UserError(f"{file}: not readable ({error}); check that it is whole")
