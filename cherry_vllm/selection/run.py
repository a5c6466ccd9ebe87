"""Scores to chosen rows in files, with what was chosen beside them."""

from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm.scoring.ifd import count_outcomes
from cherry_vllm.selection.card import write_card
from cherry_vllm.selection.export import (
    PATTERN,
    check_output,
    find_records,
    write_dataset,
    write_records,
)
from cherry_vllm.selection.ranking import select_rows
from cherry_vllm.selection.ratings import add_ratings, count_unrated, read_ratings
from cherry_vllm.store.files import file_sha256, read_json, write_json
from cherry_vllm.store.run_folder import (
    name_data,
    name_scores,
    read_scores,
    rows_folder,
    scan_rows,
)


def select_records(
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
        origin = name_data(read_json(rows_folder(scores_dir) / "complete.json")["settings"])
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
