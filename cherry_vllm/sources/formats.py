"""A file's format, compression and encoding."""

import gzip
import json
import zlib
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
    ".arrow": DataFormat.arrow,
    ".feather": DataFormat.arrow,
}
COMPRESSIONS = (".gz", ".zst")
READ_ERRORS = (OSError, EOFError, zlib.error, zstd.ZstdError)  # what a damaged file may raise
HEAD_BYTES = 2**20
NOT_UTF8 = (
    "its bytes are not UTF-8; convert the file, as in iconv -f WINDOWS-1252 (or GBK, ...) -t UTF-8"
)


def detect_format(file: Path) -> DataFormat:
    """The format that a file's suffix names, compression aside.

    Raises:
        UserError: the suffix names no format.
    """
    found = find_format(file)
    if found is None:
        known = ", ".join(SUFFIXES)
        raise UserError(
            f"{file}: the suffix names no format ({known}, also with .gz or .zst); set data.format"
        )
    return found


def find_format(file: Path) -> DataFormat | None:
    """The format that a file's suffix names, in upper or lower case; None if it names none."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    named = [suffix for suffix in suffixes if suffix not in COMPRESSIONS]
    return SUFFIXES.get(named[-1]) if named else None


def open_bytes(file: Path) -> IO[bytes]:
    """Opens a file for reading, through its decompressor if the suffix names one."""
    match file.suffix.lower():
        case ".gz":
            return gzip.open(file, "rb")  # type: ignore[return-value]
        case ".zst":
            return zstd.open(file, "rb")  # type: ignore[return-value]
    return file.open("rb")


def read_head(file: Path) -> bytes:
    """The beginning of a text file, decompressed.

    Raises:
        UserError: it is in an encoding of two or four bytes per character.
    """
    with open_bytes(file) as stream:
        head = stream.read(HEAD_BYTES)
    encoding = json.detect_encoding(head).removesuffix("-sig").upper()
    if encoding != "UTF-8":
        raise UserError(f"{file}: {encoding} text; convert it, as in iconv -f {encoding} -t UTF-8")
    return head


def unreadable(file: Path, error: Exception) -> UserError:
    """The error for a file whose reading raised one of :data:`READ_ERRORS`."""
    return UserError(f"{file}: not readable ({error}); check that it is complete")
