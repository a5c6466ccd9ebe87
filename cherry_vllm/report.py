"""What a person looks at: the summary, a few rows, a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm.schema import DropReason

MAX_SHOWN_CHARS = 100
MAX_POINTS = 20_000
BIN_WIDTH = 0.025
SCORE_NAMES = ("direct_score", "conditioned_score")
MISFIT_SHARE = 1 / 3
MAX_MARKED_STEPS = 60


def count_outcomes(scores: pl.DataFrame) -> dict[str, int]:
    """How many rows are usable, and how many fell to each drop reason: all rows together."""
    counts = dict(scores["drop_reason"].value_counts().iter_rows())
    reasons = {reason.value: counts.get(reason.value, 0) for reason in DropReason}
    return {"usable": counts.get(None, 0), **reasons}


def summarize(scores: pl.DataFrame, num_selected: int | None = None) -> str:
    """The summary table of a frame of :data:`schema.SCORES`."""
    outcomes = count_outcomes(scores)
    num_scored = scores["ifd"].count()
    num_cut = int(scores["truncated"].sum())
    lines = [("rows read", scores.height), ("  scored", num_scored)]
    lines += [("    of these, answer cut at max_length", num_cut)]
    dropped = [reason.value for reason in DropReason if outcomes[reason]]
    lines += [(f"  dropped: {reason}", outcomes[reason]) for reason in dropped]
    lines += [("  usable", outcomes["usable"])]
    if num_selected is not None:
        lines += [("  selected", num_selected)]
    table = [f"{label:<40}{value:>10,}{_share(value, scores.height):>8}" for label, value in lines]
    usable = scores.filter(pl.col("drop_reason").is_null())["ifd"]
    if usable.len():
        quartiles = "  ".join(f"{usable.quantile(q, 'linear'):.3f}" for q in (0.25, 0.5, 0.75))
        table.append(f"{'IFD quartiles of usable rows':<40}{quartiles:>20}")
    return "\n".join(table)


def describe(title: str, facts: dict[str, Any]) -> str:
    """A stage's counts, in lines of two columns; nested ones are indented."""
    lines = [title]
    for key, value in facts.items():
        name = "  " + key.removeprefix("num_").replace("_", " ")
        if isinstance(value, dict):
            lines += [name] if value else []
            lines += [f"    {part:<36}{_show(number):>10}" for part, number in value.items()]
        else:
            lines.append(f"{name:<40}{_show(value):>10}")
    return "\n".join(lines)


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _share(value: int, total: int) -> str:
    return f"{value / total:.1%}" if total else ""


def misfit_warning(scores: pl.DataFrame) -> str | None:
    """A warning, with the remedy, when too many rows have an IFD above 1."""
    num_scored = scores["ifd"].count()
    above = count_outcomes(scores)[DropReason.IFD_ABOVE_ONE]
    if not num_scored or above / num_scored <= MISFIT_SHARE:
        return None
    return (
        f"{above} of {num_scored} scored rows have an IFD above 1: the prompt makes answers "
        "harder. Most often the template is not the one the model knows: try prompt=chat for a "
        "chat model, prompt=alpaca for a base model"
    )


def show_extremes(scores: pl.DataFrame, rows: pl.LazyFrame, count: int) -> str:
    """The ``count`` usable rows with the highest IFD and with the lowest, a line or two each."""
    usable = scores.filter(pl.col("drop_reason").is_null()).sort(["ifd", "row"])
    count = min(count, usable.height // 2)
    groups = {"highest IFD": usable.tail(count).reverse(), "lowest IFD": usable.head(count)}
    lines: list[str] = []
    for title, group in groups.items():
        texts = rows.join(group.lazy().select("row"), on="row", how="semi").collect()
        lines.append(f"{title}:")
        for found in group.join(texts, on="row", maintain_order="left").iter_rows(named=True):
            question = " ".join(f"{found['instruction']} {found['input']}".split())
            answer = " ".join(found["answer"].split())
            lines.append(f"  {found['ifd']:.3f}  row {found['row']}: {_shorten(question)}")
            lines.append(f"         -> {_shorten(answer)}")
    return "\n".join(lines)


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 3] + "..."


def draw_scores(scores: pl.DataFrame, path: Path) -> None:
    """Draws the distribution of IFD, and the two scores that it is the ratio of."""
    from matplotlib.figure import Figure

    scored = scores.filter(pl.col("ifd").is_not_null())
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    histogram, scatter = figure.subplots(1, 2)
    last_bin = max(50, round((scored["ifd"].quantile(0.995) or 0) / BIN_WIDTH))
    edges = [BIN_WIDTH * index for index in range(last_bin + 1)]  # one of them is 1
    histogram.hist(scored["ifd"].clip(0, edges[-1]), bins=edges, color="#b3294e")
    histogram.axvline(1, color="black", linewidth=1, linestyle="--")
    histogram.set(xlabel="IFD = s(A|Q) / s(A)", ylabel="rows")
    histogram.set_title(f"{scored.height:,} scored rows; right of the line: dropped", fontsize=10)
    shown = scored.sample(min(MAX_POINTS, scored.height), seed=0)
    colors = shown["drop_reason"].is_null().replace_strict({True: "#b3294e", False: "#999999"})
    scatter.scatter(*(shown[name] for name in SCORE_NAMES), s=6, c=colors, alpha=0.5)
    limit = 1.05 * max(shown[name].quantile(0.99) or 1 for name in SCORE_NAMES)
    scatter.plot([0, limit], [0, limit], color="black", linewidth=1, linestyle="--")
    scatter.set(xlabel="direct score s(A), nats per token", ylabel="conditioned score s(A|Q)")
    scatter.set(xlim=(0, limit), ylim=(0, limit))
    scatter.set_title("below the line the instruction helps", fontsize=10)
    figure.savefig(path, dpi=120)


def draw_losses(losses: Sequence[dict[str, float]], path: Path) -> None:
    """Draws a training run: loss and learning rate of every optimizer step."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    steps = [entry["step"] for entry in losses]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    marker = "o" if len(steps) <= MAX_MARKED_STEPS else None
    axes.plot(
        steps, [entry["loss"] for entry in losses], color="#b3294e", marker=marker, markersize=3
    )
    axes.set(xlabel="optimizer step", ylabel="loss, nats per answer token")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    rate = axes.twinx()
    rate.plot(steps, [entry["learning_rate"] for entry in losses], color="#999999", linewidth=1)
    rate.set(ylabel="learning rate (grey)")
    rate.set_ylim(bottom=0)
    figure.savefig(path, dpi=120)
