"""Hashes that name contents: of settings, and of files, cached on disk for large ones."""

import fcntl
import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from cherry_vllm.store.files import atomic_path

SMALL_BYTES = 2**20  # smaller files are faster to hash than to look up


def fingerprint(settings: dict[str, Any]) -> str:
    """Names JSON-like settings: equal settings give the same 16 hex digits, in any key order."""
    canonical = json.dumps(settings, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Stamp(NamedTuple):
    """What the file system says about a file; it differs after any change of the contents."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


def read_stamp(path: Path) -> Stamp:
    """The stamp of the file that ``path`` is or links to."""
    found = path.stat()
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def stamped_sha256(path: Path) -> tuple[Stamp, str]:
    """A file's stamp and the SHA-256 of its contents at that stamp, in hexadecimal.

    The hash of a large file is looked up in the user's cache folder, by path and stamp.
    """
    while True:
        stamp = read_stamp(path)
        found = file_sha256(path) if stamp.size < SMALL_BYTES else _remembered(path, stamp)
        if read_stamp(path) == stamp:  # else it changed while it was read
            return stamp, found


def _remembered(path: Path, stamp: Stamp) -> str:
    key = str(path.resolve())
    known = _known.get(key) or _read_cache().get(key)
    if known is None or known[0] != stamp:
        known = (stamp, file_sha256(path))
        with suppress(OSError):  # a cache that cannot be written only costs time
            _write_cache(key, known)
    _known[key] = known
    return known[1]


_known: dict[str, tuple[Stamp, str]] = {}


def cache_folder() -> Path:
    """The user's folder for what can be made again."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "cherry-vllm"


def _cache_file() -> Path:
    return cache_folder() / "hashes.json"


def _read_cache() -> dict[str, tuple[Stamp, str]]:
    try:
        content = json.loads(_cache_file().read_text(encoding="utf-8"))
        return {key: (Stamp(*stamp), str(sha)) for key, (stamp, sha) in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write_cache(key: str, entry: tuple[Stamp, str]) -> None:
    file = _cache_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    with (file.parent / ".hashes.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kept = {path: known for path, known in _read_cache().items() if Path(path).exists()}
        with atomic_path(file) as temporary:
            temporary.write_text(json.dumps({**kept, key: entry}, indent=1), encoding="utf-8")
