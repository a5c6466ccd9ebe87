"""Figures of judged models: their captions say what they leave out."""

from pathlib import Path

from cherry_vllm.evaluation.answers import AnswerPair
from cherry_vllm.evaluation.pairwise import Judged, conclude, find_results
from cherry_vllm.evaluation.replies import Reply
from cherry_vllm.evaluation.verdicts import Judgement
from cherry_vllm.figures.models import draw_verdicts
from cherry_vllm.figures.results import JobResult

PAIR = AnswerPair("t", "1", None, "q", "", "a", "b")
WON = Judgement(PAIR, Reply("9 1"), Reply("1 9"))


def caption(tmp_path: Path, *judgements: Judgement) -> str:
    results = find_results(tmp_path)
    conclude(results, Judged(judgements), others=None, settings={})
    summary = results.read_summary()
    assert summary
    return draw_verdicts([JobResult(".", None, {".": summary})]).caption


def test_the_caption_counts_all_that_is_left_out(tmp_path: Path) -> None:
    unparsed = Judgement(PAIR, Reply("9 1"), Reply("I cannot say."))
    failed = Judgement(PAIR, Reply("9 1"), None)
    unanswered = Judgement(PAIR._replace(first=None), None, None)
    judgements = (WON, unparsed, failed, unanswered, unanswered)
    assert "4 without a verdict are left out" in caption(tmp_path, *judgements)


def test_the_caption_of_a_clean_round_speaks_of_no_gap(tmp_path: Path) -> None:
    assert "without a verdict" not in caption(tmp_path, WON)
