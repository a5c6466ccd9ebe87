"""Scores to chosen rows in files, with a mark that records the choice."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm.scoring.ifd import count_outcomes
from cherry_vllm.scoring.run import with_gains
from cherry_vllm.selection.card import write_card
from cherry_vllm.selection.choice import Choice
from cherry_vllm.selection.chosen_rows import ROWS, encode_rows
from cherry_vllm.selection.columns import RATING, Sources
from cherry_vllm.selection.explanation import SHARES, explain
from cherry_vllm.selection.export import add_scores, export, find_records
from cherry_vllm.selection.outputs import COMMAND, check_format, check_output
from cherry_vllm.selection.ranking import choose
from cherry_vllm.selection.ratings import count_unrated
from cherry_vllm.sources.row_shards import name_data
from cherry_vllm.store.hashes import file_sha256, fingerprint
from cherry_vllm.store.marks import MADE_BY
from cherry_vllm.store.scores import Scores, open_scores
from cherry_vllm.store.shards import Shards

FindClusters = Callable[[Shards], pl.DataFrame]
FindEmbeddings = Callable[[Scores, str], Shards]


@dataclass(frozen=True)
class SelectedRows:
    """Chosen rows in a file."""

    output: Path  # a file, or a data set folder
    path: Path  # the file with the rows
    fingerprint: str  # names the scores and the choice
    facts: dict[str, Any]  # as in the output's mark
    scores: pl.DataFrame  # of all rows
    rows: pl.LazyFrame  # of schema.ROWS: the rows that were scored

    @property
    def count(self) -> int:
        """How many rows were chosen."""
        return int(self.facts["num_selected"])


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What a selection reads and writes beside the scores and the rows."""

    tables: Sequence[Path] = ()  # joined by row
    ratings: Path | None = None
    find_clusters: FindClusters | None = None  # columns row and cluster
    num_clusters: int | None = None  # that it looks for
    find_embeddings: FindEmbeddings | None = None  # of schema.EMBEDDINGS; who needs them
    with_scores: bool = False  # written into the rows
    s_ifd_percent: float = 75  # for scores of an earlier release, which lack s_ifd


NO_EXTRAS = Extras()


def select_records(
    scores_dir: Path,
    output: Path,
    choice: Choice,
    *,
    run_dirs: Sequence[Path] = (),
    extras: Extras = NO_EXTRAS,
    command: str = "",
    wanted: str | None = None,
) -> SelectedRows:
    """Chooses rows by ``scores_dir/scores.parquet`` and writes them, with all their fields.

    The suffix of ``output`` names its format; without a suffix it becomes a data set folder, whose
    card names the ``command``. ``run_dirs`` are folders, in addition to ``scores_dir``, in which a
    run keeps its own files. ``wanted`` is the fingerprint that the scores must have.

    Raises:
        UserError: there are no scores yet, the choice is empty or impossible, the rows are damaged,
            or ``output`` must not be replaced.
    """
    check_format(output)
    scored = open_scores(scores_dir, wanted)
    read = [*extras.tables, *([extras.ratings] if extras.ratings else [])]
    check_output(output, scored, run_dirs, read)
    scores, rows, sources = open_columns(scored, extras)
    chosen = choose(scores, choice, sources)
    explained = explain(chosen)
    facts = {
        MADE_BY: COMMAND,
        "scores": scored.fingerprint,
        "contents": scored.contents,
        "num_selected": chosen.rows.height,
        "num_answer_tokens": explained["lengths"]["selected"]["answer_tokens"],
        "num_usable": count_outcomes(scores)["usable"],
        "num_above_one": chosen.rows["drop_reason"].count(),  # of the selected rows
        **choice.to_json(),
        "num_clusters": extras.num_clusters,
        "with_scores": extras.with_scores,
        "tables": {name: file_sha256(table) for name, table in sources.used.items()},
        **explained,
    }
    if RATING in sources.used:
        facts["without_rating"] = count_unrated(chosen.pool)
    shown = {key: value for key, value in facts.items() if key != SHARES}
    card = partial(
        write_card, title=output.name, manifest=scored.manifest, choice=shown, command=command
    )
    records = find_records(rows, chosen.rows["row"])
    if extras.with_scores:
        records = add_scores(records, chosen.rows)
    mark = {**facts, ROWS: encode_rows(chosen.rows["row"])}
    path = export(records, output, mark, card)
    return SelectedRows(output, path, fingerprint(mark), mark, scores, rows)


def open_columns(scored: Scores, extras: Extras) -> tuple[pl.DataFrame, pl.LazyFrame, Sources]:
    """The scores, the rows that were scored, and the sources of further columns.

    Raises:
        UserError: the rows are damaged, or log-probs that an earlier release's scores need.
    """
    shards = scored.open_rows()
    rows, scores = shards.scan(), with_gains(scored, s_ifd_percent=extras.s_ifd_percent)
    sources = Sources(
        rows=rows,
        num_rows=scores.height,
        tables=extras.tables,
        ratings=extras.ratings,
        find_clusters=extras.find_clusters,
        find_embeddings=partial(extras.find_embeddings, scored) if extras.find_embeddings else None,
        origin=name_data(shards.summary["settings"]),
    )
    return scores, rows, sources
