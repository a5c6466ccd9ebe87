"""``cherry-vllm select``: scores to cherry data."""

from pathlib import Path

from cherry_vllm.commands import summary as report
from cherry_vllm.commands.inputs import Job, Outcome
from cherry_vllm.config import Config
from cherry_vllm.options import Strategy
from cherry_vllm.selection.export import find_data
from cherry_vllm.selection.ratings import count_unrated
from cherry_vllm.selection.run import select_records
from cherry_vllm.store.run_folder import scan_rows


def select(config: Config, job: Job) -> Outcome:
    """Selects rows of a scored run and prints what was chosen."""
    scores_dir = Path(config.scores_dir)
    output = job.output_dir / config.select.output
    by_rating = config.select.strategy is Strategy.rating
    scores, chosen = select_records(
        scores_dir,
        output,
        strategy=config.select.strategy,
        fraction=config.select.fraction,
        count=config.select.count,
        num_tokens=config.select.num_tokens,
        command=job.command,
        ratings=Path(config.select.ratings) if by_rating else None,
        threshold=config.select.threshold if by_rating else None,
        order=config.select.order,
        rule=config.select.rule,
        seed=config.seed,
    )
    print(report.summarize(scores, chosen.height))
    if by_rating:
        print(report.describe("usable rows without a rating", count_unrated(scores)))
    if config.select.num_examples and not job.is_sweep:
        rows = scan_rows(scores_dir)
        print(report.show_extremes(scores, rows, config.select.num_examples))
    print(f"{config.select.strategy.value}: {chosen.height} rows in {output}")
    facts = {
        "num_selected": chosen.height,
        "num_answer_tokens": int(chosen["num_answer_tokens"].sum()),
    }
    return Outcome(find_data(output), facts)
