"""The corridor: each stage calls its rooms in order and leaves its results in the run folder.

    run_dir/rows/FINGERPRINT/       read: the input, one shard per ``shard_rows`` rows
    run_dir/logprobs/FINGERPRINT/   score: token log-probs, shard for shard
    run_dir/scores.parquet          aggregate: one line per input row
    run_dir/score.json, ifd.png     what was done, and how the scores lie
    .../cherry.json                 select: the chosen rows, with cherry.meta.json beside them

What a run with the same settings has finished is not done again.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm.commands.summary import count_outcomes
from cherry_vllm.engines import build_engine
from cherry_vllm.errors import UserError
from cherry_vllm.evaluation.ratings import read_ratings
from cherry_vllm.runtime.processes import ChildError, isolate
from cherry_vllm.runtime.progress import progress_bar
from cherry_vllm.schema import SCHEMA_VERSION
from cherry_vllm.scoring.ifd import aggregate_logprobs
from cherry_vllm.scoring.shard import score_shard, sum_shard
from cherry_vllm.selection.card import write_card
from cherry_vllm.selection.export import (
    PATTERN,
    check_output,
    find_records,
    write_dataset,
    write_records,
)
from cherry_vllm.selection.ranking import add_ratings, count_unrated, select_rows
from cherry_vllm.sources import Columns, DataFormat, read_rows
from cherry_vllm.store.files import (
    ROW_GROUP_ROWS,
    Shards,
    atomic_path,
    file_sha256,
    fingerprint,
    read_json,
    write_json,
)
from cherry_vllm.workers.run import WHOLE, Inference, Share

log = logging.getLogger(__name__)


def read(
    run_dir: Path,
    files: Sequence[Path],
    *,
    data_format: DataFormat,
    columns: Columns,
    censure: Sequence[str],
    max_rows: int | None = None,
    shard_rows: int,
) -> Shards:
    """Files to row shards. See :func:`sources.read_rows` for the arguments.

    Raises:
        UserError: a file cannot be read, or changes meanwhile.
    """
    states = [_state(file) for file in files]
    settings = {
        "schema_version": SCHEMA_VERSION,
        "files": [[file_sha256(file), *file.suffixes] for file in files],
        "format": data_format.value,
        "columns": columns._asdict(),
        "censure": list(censure),
        "max_rows": max_rows,
        "shard_rows": shard_rows,
    }
    rows = Shards(run_dir / "rows", settings)
    # Shards of a folder that was never closed may be of a file that changed while it was read.
    missing = rows.missing(range(rows.num_shards)) if rows.is_closed() else None
    if missing == []:
        return rows
    rows.reopen()
    frames = partial(
        read_rows,
        files,
        data_format=data_format,
        columns=columns,
        censure=censure,
        max_rows=max_rows,
        batch_rows=shard_rows,
    )
    try:
        # Polars may not fail on a damaged file but end the process.
        num_rows, num_shards = isolate(write_rows, rows, missing, frames)
    except ChildError as lost:
        names = ", ".join(map(str, files))
        raise UserError(
            f"{names}: not readable, the reader {lost}; check that it is whole"
        ) from None
    for file, state in zip(files, states, strict=True):
        if _state(file) != state:
            raise UserError(f"{file}: changed while it was read; run again once it is at rest")
    rows.close(num_shards, num_rows=num_rows, files=[str(file) for file in files])
    return rows


def write_rows(
    rows: Shards, wanted: Sequence[int] | None, frames: Callable[[], Iterator[pl.DataFrame]]
) -> tuple[int, int]:
    """Writes frames to row shards, only to those ``wanted`` if that is not None.

    Returns the number of rows and of shards.
    """
    num_rows = num_shards = 0
    with progress_bar("reading") as bar:
        for frame in frames():
            if wanted is None or num_shards in wanted:
                rows.discard(num_shards)
                rows.write(num_shards, frame)
            num_rows, num_shards = num_rows + frame.height, num_shards + 1
            bar.update(frame.height)
    return num_rows, num_shards


def _state(file: Path) -> tuple[int, int, int]:
    found = file.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def score(
    run_dir: Path,
    scores_dir: Path,
    rows: Shards,
    checkpoint: Path,
    *,
    may_replace: bool,
    keep_logprobs: bool = True,
    share: Share = WHOLE,
    **use: Any,
) -> Shards:
    """Row shards to log-prob shards, or to their sums alone where ``keep_logprobs`` is False.

    ``use`` holds the settings of :class:`inference.Inference`.

    Raises:
        UserError: the model cannot be used, or cannot take ``max_length`` tokens; or scores of
        other settings lie in ``scores_dir``, and ``may_replace`` is False.
    """
    scoring = Inference(run_dir / "logprobs", rows, checkpoint, keep_logprobs=keep_logprobs, **use)
    held = _scores_fingerprint(scores_dir)
    if not may_replace and held not in (None, scoring.target.fingerprint):
        raise UserError(
            f"{scores_dir}: holds scores of other settings, which this sweep would replace; give "
            "each job a folder of its own, as in run_dir='runs/${max_length}'"
        )
    return scoring.run(
        "scoring",
        build_engine,
        score_shard if keep_logprobs else sum_shard,
        done="scored",
        units_per_row=2,  # two passes
        share=share,
    )


def aggregate(scores_dir: Path, rows: Shards, logprobs: Shards) -> pl.DataFrame:
    """Log-prob shards to ``scores.parquet``, which is returned, a picture and ``score.json``."""
    target, manifest = scores_dir / "scores.parquet", scores_dir / "score.json"
    made_by = _scores_fingerprint(scores_dir)
    if made_by == logprobs.fingerprint:
        return pl.read_parquet(target, glob=False)
    if made_by is not None:
        log.warning("%s: scores of other settings are replaced; their shards stay", target)
    origin = {
        "rows": os.path.relpath(rows.folder, scores_dir),  # so that a run folder can move
        "fingerprint": logprobs.fingerprint,
    }
    with atomic_path(target) as path:
        aggregate_logprobs(logprobs.scan()).sink_parquet(
            path, row_group_size=ROW_GROUP_ROWS, metadata=origin
        )
    scores = pl.read_parquet(target, glob=False)
    num_rows = rows.summary["num_rows"]
    if scores.height != num_rows:
        raise RuntimeError(f"{target}: {scores.height} lines for {num_rows} input rows")
    _draw(scores, scores_dir / "ifd.png")
    write_json(
        manifest,
        {
            **origin,
            "sha256": file_sha256(target),
            "num_rows": num_rows,
            "outcomes": count_outcomes(scores),
            "read": rows.summary,
            "score": logprobs.summary,
        },
    )
    return scores


def _draw(scores: pl.DataFrame, target: Path) -> None:
    from cherry_vllm.figures.figure import save_png
    from cherry_vllm.figures.scores import draw_ifd, draw_scores

    with atomic_path(target) as path:
        save_png(path, draw_ifd(scores), draw_scores(scores))


def _scores_fingerprint(scores_dir: Path) -> str | None:
    """What the scores in a folder were made from; None without scores, or with damaged ones."""
    scores = scores_dir / "scores.parquet"
    try:
        made = read_json(scores_dir / "score.json")
        is_whole = made["sha256"] == file_sha256(scores)
    except (FileNotFoundError, ValueError, KeyError):
        return None
    return str(made["fingerprint"]) if is_whole else None


def select(
    scores_dir: Path,
    output: Path,
    *,
    ratings: Path | None = None,
    command: str = "",
    **choice: Any,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Chooses rows by ``scores_dir/scores.parquet`` and writes them, with all their fields.

    ``choice`` holds the arguments of :func:`selection.select_rows`; the suffix of ``output`` is
    its format, and none that of a data set folder, whose card names the ``command``; ``ratings``
    are added to the scores. Returns the scores and the chosen ones.

    Raises:
        UserError: there are no scores yet, or the choice is empty or impossible.
    """
    check_output(output)
    scores = read_scores(scores_dir)
    rated: dict[str, Any] = {}
    if ratings is not None:
        origin = name_data(read_json(_rows_folder(scores_dir) / "complete.json")["settings"])
        scores = add_ratings(scores, read_ratings(ratings, origin))
        rated = {"ratings": file_sha256(ratings), "without_rating": count_unrated(scores)}
    chosen = select_rows(scores, **choice)
    meta = {
        "scores": name_scores(scores_dir),
        "num_selected": chosen.height,
        "num_answer_tokens": int(chosen["num_answer_tokens"].sum()),
        "num_usable": count_outcomes(scores)["usable"],
        **{key: getattr(value, "value", value) for key, value in choice.items()},
        **rated,
    }
    records = find_records(scan_rows(scores_dir), chosen["row"])
    if output.suffix:
        write_records(records, output)
    else:
        card = partial(
            write_card,
            title=output.name,
            pattern=PATTERN,
            manifest=read_json(scores_dir / "score.json"),
            choice=meta,
            command=command,
        )
        write_dataset(records, output, card)
    write_json(output.with_suffix(".meta.json"), meta)
    return scores, chosen


def read_scores(scores_dir: Path) -> pl.DataFrame:
    """The scores (:data:`schema.SCORES`) that a run left.

    Raises:
        UserError: there are none yet.
    """
    source = scores_dir / "scores.parquet"
    if not source.is_file():
        raise UserError(f"{source}: no such file; run `cherry-vllm score` with this run_dir first")
    return pl.read_parquet(source, glob=False)


def name_scores(scores_dir: Path) -> str:
    """The fingerprint of what the scores of a folder were made from."""
    return str(pl.read_parquet_metadata(scores_dir / "scores.parquet")["fingerprint"])


def scan_rows(scores_dir: Path) -> pl.LazyFrame:
    """The input rows (:data:`schema.ROWS`) that ``scores_dir/scores.parquet`` is about."""
    return pl.scan_parquet(sorted(_rows_folder(scores_dir).glob("part-*.parquet")), glob=False)


def name_data(settings: dict[str, Any]) -> str:
    """Names the data that row numbers count in, by the settings of its row shards."""
    return fingerprint({"files": settings["files"]})


def _rows_folder(scores_dir: Path) -> Path:
    return scores_dir / pl.read_parquet_metadata(scores_dir / "scores.parquet")["rows"]
