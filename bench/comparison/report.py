"""What is shown and written after each seed."""

from collections.abc import Callable
from pathlib import Path

from bench.comparison.picture import draw_differences
from bench.comparison.results import find_overlaps, frame_rows, summarize
from bench.comparison.run import Comparison, Run
from bench.comparison.table import show_table, to_json, write_markdown
from cherry_vllm.figures.figure import save_png
from cherry_vllm.store.files import atomic_path, write_json


def report(comparison: Comparison, run: Run, folder: Path, say: Callable[[str], None]) -> None:
    """Says the table of what is known, line by line, and writes it with picture and numbers."""
    lines = summarize(run.results, comparison.entries, comparison.num_tokens)
    overlaps = find_overlaps(run.results, comparison.entries)
    notes = [
        f"seed {found.seed}, {found.strategy}: with and without experience, {found.num_shared:,} "
        f"of {found.num_rows:,} rows are the same (Jaccard {found.jaccard:.2f})"
        for found in overlaps
    ]
    notes += [f"seed {seed}, {name}: {why}" for (name, seed), why in run.failures.items()]
    for line in ["", *show_table(lines).splitlines(), *notes, ""]:
        say(line)
    sets = [str(rows) for rows in (comparison.pool, *comparison.sets)]
    with atomic_path(folder / "comparison.md") as path:
        path.write_text(write_markdown(lines, [*sets, *notes]), encoding="utf-8")
    numbers = to_json(lines, overlaps) | {"sets": sets, "failures": list(run.failures.values())}
    write_json(folder / "comparison.json", numbers)
    with atomic_path(folder / "rows.parquet") as path:
        frame_rows(run.results, comparison.num_tokens).write_parquet(path)
    say(f"table: {folder / 'comparison.md'}")
    if figures := draw_differences(lines):
        with atomic_path(folder / "comparison.png") as path:
            save_png(path, *figures)
        say(f"picture: {folder / 'comparison.png'}")
