"""What the terminal shows of judgements: tables like the paper's, and warnings about them."""

from collections.abc import Mapping, Sequence
from typing import Any

from cherry_vllm.evaluation.aspects import COUNTS, SIDES
from cherry_vllm.evaluation.judge_agreement import JudgeAgreement
from cherry_vllm.evaluation.tally import Tally
from cherry_vllm.evaluation.verdicts import Verdict
from cherry_vllm.runtime.text import in_columns, printable

MAX_LABEL_CHARS = 28
MAX_REASONS_SHOWN = 3
MAX_NAMES_SHOWN = 3


def show_tallies(tallies: Sequence[Tally]) -> str:
    """One line per test set and category: counts, winning score and its interval, flips."""
    counts = ("questions", *(verdict.value for verdict in Verdict), "flips")
    header = ["", *counts, "winning score", "95% interval"]
    return in_columns([header, *(_cells(row, counts) for row in tallies)])


def _cells(row: Tally, counts: Sequence[str]) -> list[str]:
    label = row.testset or "all" if row.category is None else f"  {row.category}"
    score = "-" if row.winning_score is None else f"{row.winning_score:.3f}"
    interval = "-" if row.interval is None else "{:.3f} to {:.3f}".format(*row.interval)
    numbers = (f"{getattr(row, name):,}" for name in counts)
    return [printable(label)[:MAX_LABEL_CHARS], *numbers, score, interval]


def show_position_bias(total: Tally) -> str:
    """How many verdicts depend on the order of the answers, and which side they favour."""
    num_decided = total.win + total.tie + total.loss
    line = f"position bias: {total.flips} of {num_decided} verdicts flip with the order"
    if not total.flips:
        return line
    return (
        f"{line} ({total.position_bias:.1%}), {total.flips_to_assistant_1} of them in favour of "
        "Assistant 1"
    )


def show_agreement(agreement: JudgeAgreement, name: str) -> str:
    """How far this judge agrees with the one whose verdicts ``name`` holds."""
    if agreement.equal is None:
        return (
            f"agreement with {name}: no question that both judges decided; give verdicts on the "
            "same answers, with first and second in the same roles"
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
    """How many requests have no reply, and why, with the most frequent reasons first."""
    ordered = sorted(reasons.items(), key=lambda item: -item[1])
    shown = "; ".join(f"{count} x {reason}" for reason, count in ordered[:MAX_REASONS_SHOWN])
    more = "; ..." if ordered[MAX_REASONS_SHOWN:] else ""
    return (
        f"{sum(reasons.values())} requests have no reply ({shown}{more}); "
        "the same command sends them again"
    )


def show_markers(names: Sequence[str | int], unit: str) -> str:
    """How many judgements may have been manipulated, and which."""
    shown = ", ".join(map(str, names[:MAX_NAMES_SHOWN]))
    more = ", ..." if names[MAX_NAMES_SHOWN:] else ""
    return (
        f"{unit} that contain markers of the judge's prompt, which may mislead it: {len(names)} "
        f"({shown}{more}); read the replies about them"
    )


def show_aspects(summary: Mapping[str, Any]) -> str:
    """The means of both sides, aspect by aspect, below the counts."""
    top, least = (summary[side] for side in SIDES)
    lines = [f"{'':<24}{'highest IFD':>14}{'lowest IFD':>14}{'difference':>14}"]
    lines += [f"{name:<24}{top[name]:>14,}{least[name]:>14,}" for name in COUNTS]
    for name in top["means"]:
        high, low = top["means"][name], least["means"][name]
        difference = "-" if high is None or low is None else f"{high - low:+.2f}"
        cells = (_mean(high), _mean(low), difference)
        lines.append(f"{printable(name):<24}" + "".join(f"{text:>14}" for text in cells))
    return "\n".join(lines)


def _mean(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
