"""``scores.parquet`` and ``score.json``: written together, and read as one state.

The Parquet file carries the whole manifest in its metadata; ``score.json`` shows it to people, with
the SHA-256 of the Parquet file. ``score.json`` is written first, and names the old Parquet file too
until the new one is in place, so that readers find a matching pair at any moment.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm.errors import UserError
from cherry_vllm.schema import GAINS, SCHEMA_VERSION, SCORES
from cherry_vllm.store.files import ROW_GROUP_ROWS, atomic_path, read_json, write_json
from cherry_vllm.store.hashes import file_sha256
from cherry_vllm.store.locks import changing
from cherry_vllm.store.marks import mark_path
from cherry_vllm.store.run_folder import File, Folder
from cherry_vllm.store.shards import Shards

OWN_FILES = (File.SCORES, File.SCORE_MANIFEST, File.IFD_PICTURE)
OF_FILE = frozenset({"sha256", "bytes"})  # keys of score.json that describe scores.parquet
KEYS = OF_FILE | {
    "fingerprint",
    "num_rows",
    "outcomes",
    "read",
    "score",
    "schema_version",
    "rows",
}
S_IFD = "s_ifd"  # a key that later releases add: its share of the tokens, and their threshold
OPTIONAL = {"previous", S_IFD}
MAX_TRIES = 5  # to read a matching pair while a run writes


@dataclass(frozen=True)
class Scores:
    """Scores and how they were made, both read from one version of the file."""

    folder: Path
    frame: pl.DataFrame  # of schema.SCORES
    manifest: dict[str, Any]  # what score.json shows

    @property
    def fingerprint(self) -> str:
        """Names what the scores were made from."""
        return str(self.manifest["fingerprint"])

    @property
    def contents(self) -> str:
        """Names what the scores hold: rows that failed, once retried, have other scores."""
        return str(self.manifest["score"].get("contents"))

    @property
    def s_ifd_percent(self) -> float | None:
        """The share of the tokens that ``s_ifd`` counts; None if an earlier release scored."""
        found = self.manifest.get(S_IFD)
        return float(found["percent"]) if found else None

    @property
    def logprobs_folder(self) -> Path:
        """The folder of the log-prob shards, beside that of the row shards."""
        return self.rows_folder.parents[1] / Folder.LOGPROBS / self.fingerprint

    @property
    def rows_fingerprint(self) -> str:
        """Names the row shards that were scored."""
        return Path(self.manifest["rows"]).name

    @property
    def rows_folder(self) -> Path:
        """The folder of the row shards that were scored, even if the run folder has moved."""
        real, name = self.folder.resolve(), self.rows_fingerprint
        above = (self.folder.absolute(), *self.folder.absolute().parents, *real.parents)
        places = [real / self.manifest["rows"], *(folder / Folder.ROWS / name for folder in above)]
        found: Path = next((place for place in places if place.is_dir()), places[0])
        return found.resolve()

    def open_rows(self) -> Shards:
        """The row shards that were scored.

        Raises:
            UserError: they are gone.
        """
        return Shards.open(self.rows_folder)


def open_scores(scores_dir: Path, wanted: str | None = None) -> Scores:
    """The scores that a run left; only those with the fingerprint ``wanted``, if it is given.

    Raises:
        UserError: there are none, they are damaged, or another release or other settings made them.
    """
    scores = _open(scores_dir)
    if wanted not in (None, scores.fingerprint):
        raise UserError(
            f"{scores_dir / File.SCORES}: replaced by another run since it was made; give the same "
            "command again, while no other run uses this folder"
        )
    return scores


def _open(scores_dir: Path) -> Scores:
    source = scores_dir / File.SCORES
    for _ in range(MAX_TRIES):
        try:
            content = source.read_bytes()
        except FileNotFoundError:
            raise UserError(
                f"{source}: no such file; run `cherry-vllm score` with this run_dir first"
            ) from None
        # A run that ends between the two reads makes them differ once.
        if hashlib.sha256(content).hexdigest() in _known_contents(scores_dir):
            return _parse(scores_dir, content)
    raise UserError(
        f"{source}: damaged, or does not match {File.SCORE_MANIFEST} beside it; run "
        "`cherry-vllm score` again"
    )


def scores_fingerprint(scores_dir: Path) -> str | None:
    """The fingerprint of the scores in a folder; None if :func:`open_scores` refuses them."""
    try:
        return open_scores(scores_dir).fingerprint
    except UserError:
        return None


def changing_scores(scores_dir: Path) -> AbstractContextManager[None]:
    """Lets only this process write the scores of a folder and their picture in the block."""
    mark = mark_path(Path(File.IFD_PICTURE), hidden=True).name
    return changing(scores_dir, *OWN_FILES, mark)


def write_scores(
    scores_dir: Path, frame: pl.DataFrame, rows: Path, manifest: Mapping[str, Any]
) -> Scores:
    """Writes the pair, inside :func:`changing_scores`; ``rows`` is the folder of the row shards.

    Raises:
        UserError: files that no run wrote would be replaced.
    """
    check_scores_dir(scores_dir)
    target, shown = scores_dir / File.SCORES, scores_dir / File.SCORE_MANIFEST
    manifest = {
        **manifest,
        "schema_version": SCHEMA_VERSION,
        # Relative, between real paths: a run folder can move, and links do not matter.
        "rows": os.path.relpath(rows.resolve(), scores_dir.resolve()),
    }
    with atomic_path(target) as path:
        frame.write_parquet(
            path,
            row_group_size=ROW_GROUP_ROWS,
            metadata={"manifest": json.dumps(manifest, ensure_ascii=True)},
        )
        new = {**manifest, "sha256": file_sha256(path), "bytes": path.stat().st_size}
        old = {"previous": file_sha256(target)} if target.is_file() else {}
        write_json(shown, {**new, **old})
    write_json(shown, new)
    return Scores(scores_dir, frame, manifest)


def check_scores_dir(scores_dir: Path) -> None:
    """Raises a UserError if writing scores would replace files that no run wrote, or edited ones.

    A file that is damaged, or left by a run of other settings, may be replaced.
    """
    found = [name for name in OWN_FILES if (scores_dir / name).exists()]
    if found and not any(_signatures(scores_dir)):
        raise UserError(
            f"{scores_dir / found[0]}: exists and is not from cherry-vllm; choose another run_dir "
            "or scores_dir"
        )
    for name, is_edited in ((File.SCORES, _is_edited), (File.SCORE_MANIFEST, _has_other_keys)):
        if is_edited(scores_dir):
            raise UserError(
                f"{scores_dir / name}: edited, or not from cherry-vllm; move it away, or choose "
                "another run_dir or scores_dir"
            )


def refuse_as_input(files: Iterable[Path], scores_dir: Path) -> None:
    """Raises a UserError for an input that the scores, their manifest or picture would replace."""
    own = {(scores_dir / name).resolve() for name in OWN_FILES}
    for file in files:
        if file.resolve() in own:
            raise UserError(
                f"{file}: `score` writes this file, so it can't be its input; copy it, or choose "
                "another run_dir or scores_dir"
            )


def _signatures(scores_dir: Path) -> Iterator[bool]:
    """For each of the two files: whether it says that a run of any release wrote it."""
    yield "fingerprint" in _read_manifest(scores_dir)
    with suppress(OSError, pl.exceptions.PolarsError):
        yield _is_signed(scores_dir / File.SCORES)


def _is_signed(scores: Path) -> bool:
    try:
        metadata = pl.read_parquet_metadata(scores)
    except pl.exceptions.PanicException:  # some damage
        return False
    return "manifest" in metadata or "fingerprint" in metadata


def _is_edited(scores_dir: Path) -> bool:
    """Whether the scores are a whole Parquet file that no run wrote.

    A file of the size that was written is at most damaged: writing it again changes its size.
    """
    scores = scores_dir / File.SCORES
    try:
        if scores.stat().st_size == _read_manifest(scores_dir).get("bytes"):
            return False
        if file_sha256(scores) in _known_contents(scores_dir):
            return False
        found = pl.read_parquet_schema(scores)
        earlier = {name: SCORES[name] for name in SCORES if name not in GAINS}
        return found not in (SCORES, earlier) or not _is_signed(scores)
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return False


def _has_other_keys(scores_dir: Path) -> bool:
    """Whether the manifest is whole JSON that no run wrote.

    Damage may change a key, but adds none.
    """
    shown = _read_manifest(scores_dir)
    if shown.get("schema_version") != SCHEMA_VERSION:
        return bool(shown) and "fingerprint" not in shown  # else it is of another release
    return len(shown.keys() - KEYS - OPTIONAL) > len(KEYS - shown.keys())


def _read_manifest(scores_dir: Path) -> dict[str, Any]:
    """What ``score.json`` holds; nothing if it is missing or damaged."""
    try:
        return read_json(scores_dir / File.SCORE_MANIFEST)
    except (OSError, ValueError):
        return {}


def _known_contents(scores_dir: Path) -> set[str]:
    """The SHA-256 of each version of the scores that the manifest describes."""
    shown = _read_manifest(scores_dir)
    return {str(shown[key]) for key in ("sha256", "previous") if key in shown}


def _parse(scores_dir: Path, content: bytes) -> Scores:
    metadata = pl.read_parquet_metadata(io.BytesIO(content))
    manifest = json.loads(metadata.get("manifest", "{}"))
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{scores_dir / File.SCORES}: scores of another release of cherry-vllm, which cannot "
            "be used; run `cherry-vllm score` again"
        )
    return Scores(scores_dir, pl.read_parquet(io.BytesIO(content)), manifest)
