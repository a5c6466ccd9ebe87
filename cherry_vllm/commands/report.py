"""``cherry-vllm report``: turns a run into one page and its pictures."""

from pathlib import Path

from cherry_vllm.commands.job import Job, Outcome
from cherry_vllm.config import Config
from cherry_vllm.errors import UserError
from cherry_vllm.runtime.text import printable
from cherry_vllm.store.marks import mark_path


def report(config: Config, job: Job) -> Outcome:
    """Shows a run, whichever stages it has, as one page and as pictures."""
    from cherry_vllm.reporting.report import report as report_run

    run_dir, settings = Path(config.run_dir), config.report
    if not run_dir.is_dir():
        raise UserError(f"run_dir={run_dir}: no such folder; name the folder of a run")
    target, page = report_run(
        run_dir,
        Path(config.scores_dir),
        job.output_dir,
        mark_name=mark_path(Path(config.select.output)).name,
        fraction=settings.fraction,
        max_embeddings=settings.max_embeddings,
        num_clusters=settings.num_clusters,
        num_examples=settings.num_examples,
        seed=config.seed,
    )
    for item in page.missing:
        print(printable(f"not in this run: {item.what}; {item.command}"))
    print(printable(f"page: {target}  pictures: {target.with_suffix('')}"))
    return Outcome(target, {"figures": list(page.figures)})
