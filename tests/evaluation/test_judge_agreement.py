"""Two judges on the same answers: the share of equal verdicts, and Cohen's kappa."""

import random
from pathlib import Path

import pytest
from sklearn.metrics import cohen_kappa_score

from cherry_vllm.evaluation.answers import AnswerPair
from cherry_vllm.evaluation.judge_agreement import compare_judges
from cherry_vllm.evaluation.replies import Reply
from cherry_vllm.evaluation.tally import tally
from cherry_vllm.evaluation.verdicts import Judgement, decide
from tests.judging import verdicts_of


def test_agreement_is_the_share_of_equals_and_cohens_kappa() -> None:
    draw = random.Random(0)
    pairs = [AnswerPair("t", str(n), None, f"question {n % 40}", "", "a", "b") for n in range(60)]
    replies = ("9 1", "5 5", "1 9", "no idea")
    frames = [
        decide(
            [Judgement(p, Reply(text), Reply(text[::-1])) for p, text in zip(pairs, t, strict=True)]
        )
        for t in (draw.choices(replies, k=60), draw.choices(replies, k=60))
    ]
    both = [
        (a, b)
        for a, b in zip(*(frame["verdict"] for frame in frames), strict=True)
        if "unparsed" not in (a, b)
    ]
    agreement = compare_judges(*frames)
    assert agreement.questions == len(both) < 60
    assert agreement.equal == pytest.approx(sum(a == b for a, b in both) / len(both))
    assert agreement.kappa == pytest.approx(cohen_kappa_score(*zip(*both, strict=True)))
    assert compare_judges(frames[0], frames[0])[1:] == (1, 1)
    assert compare_judges(frames[0], frames[1].clear()).equal is None
    other_inputs = decide(Judgement(p._replace(input="i"), None, None) for p in pairs)
    assert set(other_inputs["pair"]).isdisjoint(frames[0]["pair"])
    level = frames[0].filter(verdict="tie")
    assert compare_judges(level, level)[1:] == (1, None)  # chance alone makes all equal


def test_the_recorded_judges_agree_and_lean_as_far_as_counted_by_hand(
    recorded: dict[str, Path],
) -> None:
    gpt4, gpt35 = (verdicts_of(recorded[f"vicuna_wrap_reviews_gpt{n}"]) for n in ("4", "3.5"))
    agreement = compare_judges(gpt4, gpt35)
    verdicts = [frame["verdict"].to_list() for frame in (gpt4, gpt35)]
    assert agreement.questions == 80
    assert agreement.equal == sum(a == b for a, b in zip(*verdicts, strict=True)) / 80
    assert agreement.kappa == pytest.approx(cohen_kappa_score(*verdicts))
    total = tally(gpt35)
    assert (total.flips, total.flips_to_assistant_1) == (58, 0)  # always to Assistant 2
