"""What a person reads at the end: a table like the paper's, and what to hold against it."""

from collections.abc import Mapping, Sequence

from cherry_vllm.evaluation.verdicts import Agreement, Tally, Verdict

MAX_LABEL_CHARS = 28
MAX_REASONS_SHOWN = 3


def show_tallies(tallies: Sequence[Tally]) -> str:
    """One line per test set and category: counts, winning score and its interval, flips."""
    counts = ("questions", *(verdict.value for verdict in Verdict), "flips")
    header = ["", *counts, "winning score", "95% interval"]
    rows = [header, *(_cells(row, counts) for row in tallies)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def _cells(row: Tally, counts: Sequence[str]) -> list[str]:
    label = row.testset or "all" if row.category is None else f"  {row.category}"
    score = "-" if row.winning_score is None else f"{row.winning_score:.3f}"
    interval = "-" if row.interval is None else "{:.3f} to {:.3f}".format(*row.interval)
    numbers = (f"{getattr(row, name):,}" for name in counts)
    return [label[:MAX_LABEL_CHARS], *numbers, score, interval]


def show_position_bias(total: Tally) -> str:
    """How many verdicts turn when the answers change places, and whom they favour."""
    num_decided = total.win + total.tie + total.loss
    line = f"position bias: {total.flips} of {num_decided} verdicts flip with the order"
    if not total.flips:
        return line
    return (
        f"{line} ({total.position_bias:.1%}), {total.flips_to_assistant_1} of them in favour of "
        "Assistant 1"
    )


def show_agreement(agreement: Agreement, name: str) -> str:
    """How far this judge agrees with the one whose verdicts ``name`` holds."""
    if agreement.equal is None:
        return (
            f"agreement with {name}: no question that both judges decided; it needs verdicts on "
            "the same answers, first and second in the same roles"
        )
    kappa = "undefined" if agreement.kappa is None else f"{agreement.kappa:.3f}"
    return (
        f"agreement with {name}: {agreement.equal:.1%} of {agreement.questions} questions, "
        f"Cohen's kappa {kappa}"
    )


def show_ratings(counts: Mapping[str, int], threshold: float) -> str:
    """How many rows were rated, how many reach the threshold, and why others have no rating."""
    labels = {"rated": "  rated", "reach_threshold": f"    {threshold:g} or higher"}
    width = max(len(name) for name in counts) + len("  without: ")
    return "\n".join(
        f"{labels.get(name, name if name == 'rows' else f'  without: {name}'):<{width}}{count:>10,}"
        for name, count in counts.items()
    )


def show_failures(reasons: Mapping[str, int]) -> str:
    """How many requests have no reply, and why: the most frequent reasons first."""
    ordered = sorted(reasons.items(), key=lambda item: -item[1])
    shown = "; ".join(f"{count} x {reason}" for reason, count in ordered[:MAX_REASONS_SHOWN])
    more = "; ..." if ordered[MAX_REASONS_SHOWN:] else ""
    return (
        f"{sum(reasons.values())} requests have no reply ({shown}{more}); "
        "the same command asks them again"
    )
