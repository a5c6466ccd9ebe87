"""What the terminal shows of a run: the summary and a few rows."""

from typing import Any

import polars as pl

from cherry_vllm.conversation import show_conversations
from cherry_vllm.runtime.text import printable
from cherry_vllm.schema import DropReason
from cherry_vllm.scoring.ifd import count_outcomes
from cherry_vllm.selection.explanation import SHARES
from cherry_vllm.selection.overlap import BOTH
from cherry_vllm.selection.sides import Side, label_sides

MAX_SHOWN_CHARS = 100
FEWEST_STEPS = 3  # of a selection, which the table above shows: read, pool, selected
MAX_SHOWN_STRATA = 20
MAX_SHOWN_NAMES = 3
MISFIT_SHARE = 1 / 3


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
    if outcomes[DropReason.ENGINE_FAILED]:
        table.append(
            "engine_failed: `score` with executor.retry_failed=true tries these rows again"
        )
    return "\n".join(table)


def describe(title: str, facts: dict[str, Any]) -> str:
    """A stage's counts, in lines of two columns; nested counts are indented."""
    lines = [printable(title)]
    for key, value in facts.items():
        name = "  " + printable(key).removeprefix("num_").replace("_", " ")
        if isinstance(value, dict):
            lines += [name] if value else []
            lines += [
                f"    {printable(part):<36}{_show(number):>10}" for part, number in value.items()
            ]
        else:
            lines.append(f"{name:<40}{_show(value):>10}")
    return "\n".join(lines)


def show_choice(facts: dict[str, Any]) -> str:
    """How many rows each step took, and the pool beside the choice, from a selection's mark."""
    steps = list(facts["steps"].items())
    lines = [f"  {name:<38}{count:>10,}" for name, count in steps[1:]]
    lines = ["rows left after each step", *lines] if len(steps) > FEWEST_STEPS else []
    dropped = {name: count for name, count in facts["dropped"].items() if count}
    lines += [f"  {f'dropped: {name}':<38}{count:>10,}" for name, count in dropped.items()]
    lines.append(f"{'':<40}{'rows':>10}{'tokens':>12}  quartiles of a row's answer tokens")
    for name, held in facts["lengths"].items():
        quartiles = "  ".join(f"{value:,.0f}" for value in held["quartiles"])
        counts = f"{held['rows']:>10,}{held['answer_tokens']:>12,}"
        lines.append(f"  {name:<38}{counts}  {quartiles}")
    shares = facts.get(SHARES)
    lines += _show_shares(shares) if shares else []
    return "\n".join(map(printable, lines))


def _show_shares(shares: dict[str, dict[str, Any]]) -> list[str]:
    totals = {key: sum(held[key] for held in shares.values()) for key in ("pool", "selected")}
    lines = [f"{'stratum':<40}{'pool':>18}{'selected':>18}"]
    for name, held in list(shares.items())[:MAX_SHOWN_STRATA]:
        counts = (f"{held[key]:>10,}{_share(held[key], totals[key]):>8}" for key in totals)
        lines.append(f"  {name[:37]:<38}" + "".join(counts))
    if len(shares) > MAX_SHOWN_STRATA:
        lines.append(f"  and {len(shares) - MAX_SHOWN_STRATA:,} more, in the .meta.json")
    short = [name for name, held in shares.items() if held["is_short"]]
    if short:
        fate = "gave their places to the others" if len(short) < len(shares) else "are taken whole"
        lines.append(
            f"  {len(short)} of {len(shares)} strata are too small, and {fate}: "
            f"{', '.join(short[:MAX_SHOWN_NAMES])}"
        )
    return lines


def show_overlap(facts: dict[str, Any]) -> str:
    """What two selections share and prefer, from :func:`overlap.compare`."""
    lines = [
        f"{side:<8}{facts[side]['strategy']}: {facts[side]['num_selected']:,} rows, "
        f"{facts[side]['num_answer_tokens']:,} answer tokens, {facts[side]['output']}"
        for side in ("first", "second")
    ]
    counts = facts["num_rows"]
    shares = [counts[BOTH] / facts[side]["num_selected"] for side in ("first", "second")]
    lines.append(
        f"both    {counts[BOTH]:,} rows: {shares[0]:.1%} of the first, {shares[1]:.1%} of the "
        f"second, Jaccard {facts['jaccard']:.3f}"
    )
    lines.append(f"{'quartiles':<20}" + "".join(f"{_words(name):>24}" for name in counts))
    for name, found in facts["quartiles"].items():
        cells = (_quartiles(found[group]) for group in counts)
        lines.append(f"  {name[:17]:<18}" + "".join(f"{cell:>24}" for cell in cells))
    lines += _show_strata(facts["strata"])
    return "\n".join(map(printable, lines))


def _show_strata(strata: dict[str, dict[str, int]]) -> list[str]:
    if not strata:
        return []
    sides = ("pool", "first", "second")
    totals = {side: sum(held[side] for held in strata.values()) for side in sides}
    lines = [f"{'stratum':<20}" + "".join(f"{side:>24}" for side in sides)]
    for name, held in list(strata.items())[:MAX_SHOWN_STRATA]:
        cells = (f"{held[side]:,}{_share(held[side], totals[side]):>8}" for side in sides)
        lines.append(f"  {name[:17]:<18}" + "".join(f"{cell:>24}" for cell in cells))
    if len(strata) > MAX_SHOWN_STRATA:
        lines.append(f"  and {len(strata) - MAX_SHOWN_STRATA:,} more, in compare.output")
    return lines


def _words(name: str) -> str:
    return name.replace("_", " ")


def _quartiles(values: list[float] | None) -> str:
    return "-" if values is None else "  ".join(f"{value:.4g}" for value in values)


def _show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else printable(value)


def _share(value: int, total: int) -> str:
    return f"{value / total:.1%}" if total else ""


def misfit_warning(scores: pl.DataFrame) -> str | None:
    """A warning, with the remedy, if too many rows have an IFD above 1; else None."""
    num_scored = scores["ifd"].count()
    above = count_outcomes(scores)[DropReason.IFD_ABOVE_ONE]
    if not num_scored or above / num_scored <= MISFIT_SHARE:
        return None
    return (
        f"{above} of {num_scored} scored rows have an IFD above 1: the prompt makes answers "
        "harder. Most often the model was trained with another template: try prompt=chat for a "
        "chat model, prompt=alpaca for a base model"
    )


def show_extremes(scores: pl.DataFrame, rows: pl.LazyFrame, count: int) -> str:
    """The ``count`` usable rows with the highest IFD and with the lowest, two lines per row."""
    ranked = label_sides(scores, count=count)
    groups = {
        "highest IFD": ranked.filter(side=Side.TOP.value),
        "lowest IFD": ranked.filter(side=Side.LEAST.value).reverse(),
    }
    lines = [line for title, group in groups.items() for line in show_rows(title, group, rows)]
    return "\n".join(lines)


def show_rows(title: str, scores: pl.DataFrame, rows: pl.LazyFrame) -> list[str]:
    """Lines of scores under a title, two for each row, with the beginnings of its texts."""
    held = rows.join(scores.lazy().select("row"), on="row", how="semi").collect()
    texts = show_conversations(held)
    lines = [f"{title}:"]
    for found in scores.join(texts, on="row", maintain_order="left").iter_rows(named=True):
        question = f"{found['instruction']} {found['input']}"
        lines.append(f"  {found['ifd']:.3f}  row {found['row']}: {_shorten(question)}")
        lines.append(f"         -> {_shorten(found['answer'])}")
    return lines


def _shorten(text: str) -> str:
    """The beginning of a text, on one line that is safe to print."""
    line = printable(" ".join(text.strip()[: 10 * MAX_SHOWN_CHARS].split()))
    return line if len(line) <= MAX_SHOWN_CHARS else line[: MAX_SHOWN_CHARS - 3] + "..."
