"""``cherry-vllm select``: chooses cherry data by its scores."""

from pathlib import Path

from cherry_vllm.commands.inputs import Job, Outcome, find_output
from cherry_vllm.commands.summary import describe, show_extremes, summarize
from cherry_vllm.config import Config
from cherry_vllm.errors import UserError
from cherry_vllm.options import Strategy
from cherry_vllm.runtime.text import printable
from cherry_vllm.selection.choice import Choice
from cherry_vllm.selection.run import SelectedRows, select_records
from cherry_vllm.store.marks import read_mark


def select(config: Config, job: Job) -> Outcome:
    """Selects rows of a scored run and prints what was chosen."""
    return select_from(config, job, Path(config.scores_dir))


def select_from(config: Config, job: Job, scores_dir: Path, scores: str | None = None) -> Outcome:
    """Selects rows by the scores in ``scores_dir``; see :func:`select`.

    ``scores`` is their fingerprint, if another stage made them.
    """
    by_rating = config.select.strategy is Strategy.rating
    output, choice = find_output(job, "select.output", config.select.output), _choice(config)
    held = read_mark(output) if job.is_sweep else None
    if held and not choice.to_json().items() <= held.items():
        raise UserError(
            f"{output}: holds another selection, which this sweep would replace; give each job a "
            "folder of its own, or delete it"
        )
    selected = select_records(
        scores_dir,
        output,
        choice,
        run_dirs=(Path(config.run_dir), job.output_dir),
        ratings=Path(config.select.ratings) if by_rating else None,
        command=job.command,
        wanted=scores,
    )
    _print(selected, num_examples=0 if job.is_sweep else config.select.num_examples)
    facts = {key: selected.facts[key] for key in ("num_selected", "num_answer_tokens")}
    return Outcome(selected.path, facts)


def _choice(config: Config) -> Choice:
    settings = config.select
    return Choice(
        strategy=settings.strategy,
        fraction=settings.fraction,
        count=settings.count,
        num_tokens=settings.num_tokens,
        threshold=settings.threshold if settings.strategy is Strategy.rating else None,
        order=settings.order,
        rule=settings.rule,
        seed=config.seed,
    )


def _print(selected: SelectedRows, num_examples: int) -> None:
    print(summarize(selected.scores, selected.count))
    if "without_rating" in selected.facts:
        print(describe("usable rows without a rating", selected.facts["without_rating"]))
    if num_examples:
        print(show_extremes(selected.scores, selected.rows, num_examples))
    strategy = selected.facts["strategy"]
    print(printable(f"{strategy}: {selected.count:,} rows in {selected.output}"))
