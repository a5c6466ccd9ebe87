"""A file's format, compression and encoding."""

import codecs
import gzip
import io
import json
import logging
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, NamedTuple

from backports import zstd

from cherry_vllm.errors import UserError
from cherry_vllm.options import DataFormat

SUFFIXES = {
    ".json": DataFormat.json,
    ".jsonl": DataFormat.jsonl,
    ".ndjson": DataFormat.jsonl,
    ".csv": DataFormat.csv,
    ".tsv": DataFormat.csv,
    ".parquet": DataFormat.parquet,
    ".pq": DataFormat.parquet,
    ".arrow": DataFormat.arrow,
    ".feather": DataFormat.arrow,
}
COMPRESSIONS = (".gz", ".zst")
READ_ERRORS = (OSError, EOFError, zlib.error, zstd.ZstdError)  # what a damaged file may raise
TABLES = (DataFormat.parquet, DataFormat.arrow)
JSON = (DataFormat.json, DataFormat.jsonl)
# The longest first: UTF-32's begins with UTF-16's.
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF8: "UTF-8-sig",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
# How files begin that aren't text, and what to do then.
NOT_TEXT = {
    b"\x1f\x8b": "compressed by gzip; add .gz to its name",
    b"\x28\xb5\x2f\xfd": "compressed by Zstandard; add .zst to its name",
    b"PAR1\x15": "Parquet; set data.format=parquet",
    b"ARROW1\0\0": "Arrow; set data.format=arrow",
    b"PK\x03\x04": "a zip archive; unpack it",
}
LFS_POINTER = b"version https://git-lfs"
BOM = "\ufeff"  # a byte order mark, decoded
NOT_UTF8 = "its bytes are not UTF-8; name the encoding, as in data.encoding=gbk or windows-1252"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Layout:
    """How the records lie in the files. What is auto or None is found out file by file."""

    format: DataFormat = DataFormat.auto
    field: str | None = None  # of a JSON object: the one that holds the records; "." is the object
    encoding: str | None = None  # of JSON and CSV; None is UTF-8, or what a byte order mark says
    delimiter: str | None = None  # of CSV: one character, or "tab"

    def settle(self, file: Path) -> "Layout":
        """The layout of a file, with its format.

        Raises:
            UserError: the suffix names no format, or a setting has no meaning for this format.
        """
        found = detect_format(file) if self.format is DataFormat.auto else self.format
        if self.field is not None and found not in JSON:
            raise UserError(f"{file}: {found.value} has no field to go into; leave out data.field")
        if self.delimiter is not None and found is not DataFormat.csv:
            raise UserError(f"{file}: {found.value} has no delimiter; leave out data.delimiter")
        if self.encoding is not None and found in TABLES:
            raise UserError(f"{file}: {found.value} is always UTF-8; leave out data.encoding")
        _check_contents(file, found)
        return replace(self, format=found)


class Encoding(NamedTuple):
    """How a file's bytes become text."""

    name: str
    fault: str  # what to say of bytes that are not text


def _check_contents(file: Path, data_format: DataFormat) -> None:
    """Raises a UserError if a file's first bytes show that it is not what it should be."""
    with file.open("rb") as stream:
        head = stream.read(len(LFS_POINTER))
    if head == LFS_POINTER:
        raise UserError(f"{file}: a Git LFS pointer, not the data; fetch it with git lfs pull")
    if data_format in TABLES or file.suffix.lower() in COMPRESSIONS:
        return
    for mark, advice in NOT_TEXT.items():
        if head.startswith(mark):
            raise UserError(f"{file}: not {data_format.value}, but {advice}")


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


def find_encoding(file: Path, named: str | None) -> Encoding:
    """The encoding of a text file: by its byte order mark, else the one that is ``named``.

    Raises:
        UserError: there is no such encoding, or none is named and the file is not UTF-8.
    """
    if named is not None:
        _check_encoding(named)
    with open_bytes(file) as stream:
        head = stream.read(4)
    for mark, name in BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            shown = name.removesuffix("-sig")
            if named is not None and not _is_same(named, shown):
                log.warning(
                    "%s: read as %s, as its byte order mark says, not as data.encoding=%s",
                    *(file, shown, named),
                )
            return Encoding(name, f"its bytes are not {shown}, as its byte order mark says")
    if named is not None:
        return Encoding(named, f"its bytes are not {named}; check data.encoding")
    looks = json.detect_encoding(head)
    if looks != "utf-8":
        raise UserError(f"{file}: looks like {looks.upper()}; if it is, add data.encoding={looks}")
    return Encoding("UTF-8", NOT_UTF8)


def _is_same(named: str, marked: str) -> bool:
    """Whether an encoding is the one that a byte order mark names, of either order of bytes."""
    return codecs.lookup(named).name.startswith(codecs.lookup(marked).name)


def _check_encoding(name: str) -> None:
    try:
        "".encode(name)  # codecs that are not text encodings are refused here
        "a".encode(name).decode(name, "surrogateescape")  # and those without such errors
    except (LookupError, UnicodeError):
        raise UserError(
            f"data.encoding={name}: no such encoding; give one such as gbk or windows-1252"
        ) from None


def open_text(file: Path, encoding: Encoding, *, is_strict: bool) -> IO[str]:
    """Opens a text file without changing its line breaks.

    Bytes that are not text raise UnicodeDecodeError, or, if not ``is_strict``, become lone
    surrogates where the encoding allows it.
    """
    errors = "surrogatepass" if encoding.name.startswith("UTF-") else "surrogateescape"
    if encoding.name.startswith("UTF-8"):
        errors = "surrogateescape"
    return io.TextIOWrapper(
        open_bytes(file),
        encoding=encoding.name,
        errors="strict" if is_strict else errors,
        newline="" if is_strict else "\n",
    )


def unreadable(file: Path, error: Exception) -> UserError:
    """The error for a file whose reading raised one of :data:`READ_ERRORS`."""
    return UserError(f"{file}: not readable ({error}); check that it is complete")
