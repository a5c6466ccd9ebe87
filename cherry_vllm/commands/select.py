"""``cherry-vllm select``: chooses cherry data by its scores."""

from functools import partial
from pathlib import Path

from cherry_vllm.commands.job import Job, Outcome, find_output
from cherry_vllm.commands.summary import describe, show_choice, show_extremes, summarize
from cherry_vllm.config import Config, as_list, choice_of
from cherry_vllm.errors import UserError
from cherry_vllm.experience.clusters import find_clusters
from cherry_vllm.experience.stored_embeddings import find_embeddings
from cherry_vllm.runtime.text import printable
from cherry_vllm.selection.run import Extras, SelectedRows, select_records
from cherry_vllm.store.marks import read_mark


def select(config: Config, job: Job) -> Outcome:
    """Selects rows of a scored run and prints what was chosen."""
    return select_from(config, job, Path(config.scores_dir))


def select_from(config: Config, job: Job, scores_dir: Path, scores: str | None = None) -> Outcome:
    """Selects rows by the scores in ``scores_dir``; see :func:`select`.

    ``scores`` is their fingerprint, if another stage made them.
    """
    output, choice = find_output(job, "select.output", config.select.output), choice_of(config)
    held = read_mark(output) if job.is_sweep else None
    asked = choice.to_json() | {
        name: getattr(config.select, name) for name in ("num_clusters", "with_scores")
    }
    if held and not asked.items() <= held.items():
        raise UserError(
            f"{output}: holds another selection, which this sweep would replace; give each job a "
            "folder of its own, or delete it"
        )
    selected = select_records(
        scores_dir,
        output,
        choice,
        run_dirs=(Path(config.run_dir), job.output_dir),
        extras=extras_of(config),
        command=job.command,
        wanted=scores,
    )
    _print(selected, num_examples=0 if job.is_sweep else config.select.num_examples)
    facts = {key: selected.facts[key] for key in ("num_selected", "num_answer_tokens")}
    return Outcome(selected.path, facts)


def extras_of(config: Config) -> Extras:
    """What a selection reads and writes beside the scores and the rows."""
    settings = config.select
    embeddings = Path(settings.embeddings) if settings.embeddings else None
    return Extras(
        tables=[Path(table) for table in as_list(settings.join)],
        ratings=Path(settings.ratings),
        find_clusters=partial(find_clusters, num_clusters=settings.num_clusters, seed=config.seed),
        num_clusters=settings.num_clusters,
        find_embeddings=partial(find_embeddings, Path(config.run_dir), folder=embeddings),
        with_scores=settings.with_scores,
        s_ifd_percent=config.score.s_ifd_percent,
    )


def _print(selected: SelectedRows, num_examples: int) -> None:
    facts = selected.facts
    print(summarize(selected.scores, selected.count))
    if "without_rating" in facts:
        print(describe("rows without a rating", facts["without_rating"]))
    print(show_choice(facts))
    if num_examples:
        print(show_extremes(selected.scores, selected.rows, num_examples))
    print(printable(f"{facts['strategy']}: {selected.count:,} rows in {selected.output}"))
