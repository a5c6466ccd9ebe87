"""Scores to chosen rows in files, with a mark that records the choice."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm.scoring.ifd import count_outcomes
from cherry_vllm.selection.card import write_card
from cherry_vllm.selection.choice import Choice
from cherry_vllm.selection.export import export, find_records
from cherry_vllm.selection.outputs import COMMAND, check_format, check_output
from cherry_vllm.selection.ranking import select_rows
from cherry_vllm.selection.ratings import add_ratings, count_unrated, read_ratings
from cherry_vllm.store.files import file_sha256, fingerprint
from cherry_vllm.store.marks import MADE_BY
from cherry_vllm.store.run_folder import name_data
from cherry_vllm.store.scores import open_scores


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


def select_records(
    scores_dir: Path,
    output: Path,
    choice: Choice,
    *,
    run_dirs: Sequence[Path] = (),
    ratings: Path | None = None,
    command: str = "",
    wanted: str | None = None,
) -> SelectedRows:
    """Chooses rows by ``scores_dir/scores.parquet`` and writes them, with all their fields.

    The suffix of ``output`` names its format; without a suffix it becomes a data set folder, whose
    card names the ``command``. ``ratings`` are added to the scores. ``run_dirs`` are folders, in
    addition to ``scores_dir``, in which a run keeps its own files. ``wanted`` is the fingerprint
    that the scores must have.

    Raises:
        UserError: there are no scores yet, the choice is empty or impossible, the rows are damaged,
            or ``output`` must not be replaced.
    """
    check_format(output)
    scored = open_scores(scores_dir, wanted)
    check_output(output, scored, run_dirs)
    shards = scored.open_rows()
    rows = shards.scan()
    scores, rated = scored.frame, dict[str, Any]()
    if ratings is not None:
        origin = name_data(shards.summary["settings"])
        scores = add_ratings(scores, read_ratings(ratings, origin))
        rated = {"ratings": file_sha256(ratings), "without_rating": count_unrated(scores)}
    chosen = select_rows(scores, choice)
    facts = {
        MADE_BY: COMMAND,
        "scores": scored.fingerprint,
        "contents": scored.contents,
        "num_selected": chosen.height,
        "num_answer_tokens": int(chosen["num_answer_tokens"].sum()),
        "num_usable": count_outcomes(scores)["usable"],
        **choice.to_json(),
        **rated,
    }
    card = partial(
        write_card, title=output.name, manifest=scored.manifest, choice=facts, command=command
    )
    path = export(find_records(rows, chosen["row"]), output, facts, card)
    return SelectedRows(output, path, fingerprint(facts), facts, scores, rows)
