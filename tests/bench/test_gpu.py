"""The measurement for a GPU, in miniature: a random model on this machine's CPU."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from bench import gpu
from cherry_vllm.engines import Span


def test_ifd_is_the_ratio_of_the_losses_of_each_rows_two_spans() -> None:
    spans = [Span([1, 2, 3, 4], ((2, 4),)), Span([2, 3, 4], ((1, 3),))] * 2
    logprobs = np.array([-1, -3, -2, -2, -6, -3, -1, -2], np.float32)
    np.testing.assert_allclose(gpu.ifd_of(logprobs, spans), [2 / 2, 4.5 / 1.5])


def test_log_probs_of_several_answers_are_picked_from_those_of_all_tokens() -> None:
    scores = np.arange(5, dtype=np.float32)[:, None]
    assert gpu.pick(Span([9] * 7, ((2, 4), (6, 7))), scores).tolist() == [0, 1, 4]


@pytest.mark.engine
@pytest.mark.process
def test_a_failing_step_is_a_line_with_its_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = [[[5, 6, 7, 8, 9], [[2, 5]]], [[6, 7, 8, 9], [[1, 4]]]]
    (tmp_path / "spans.json").write_text(json.dumps({"compared": spans, "many": spans}))
    options = ["--random", "tiny", "--out", str(tmp_path), "--kv-bytes", str(2**28)]
    steps = ["hf, fp32", "hf", "chosen ids, fp32 head"]  # of these, the last needs a GPU
    monkeypatch.setattr(sys, "argv", ["gpu", *options, "--repeats", "1", "--only", *steps])
    gpu.main()
    found = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert list(found) == steps
    assert len(found["hf"]["passes"]) == 1
    assert "V2 model runner" in found["chosen ids, fp32 head"]["failed"]
    shown = capsys.readouterr().out
    assert "| hf, fp32 | 1.00000 | 0.0e+00 |" in shown or "| hf, fp32 | nan | 0.0e+00 |" in shown
    assert "| chosen ids, fp32 head | exit code 1: " in shown
