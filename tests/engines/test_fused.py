"""The fused engine against a plain forward pass, where vLLM cuts, caches, preempts and mixes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engines.models import ARCHITECTURES, assert_close, expected_logprobs, make_spans
from tests.engines.process import score

pytestmark = pytest.mark.engine
Run = Callable[..., Any]
ModelOf = Callable[[str], Path]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_log_probs_of_every_architecture(
    architecture: str, model_of: ModelOf, in_process: Run
) -> None:
    checkpoint, spans = model_of(architecture), make_spans()
    expected = expected_logprobs(checkpoint, spans)
    assert np.std(np.concatenate(expected)) > 0.1
    scored = in_process(score, checkpoint, spans)
    assert scored.num_uncached >= 1
    assert_close(spans, scored.logprobs, expected)


def test_preemption_leaves_no_gap(model_of: ModelOf, in_process: Run) -> None:
    checkpoint, spans = model_of("Llama"), make_spans()  # the engine of the test before
    scored = in_process(score, checkpoint, spans, preempt=True)
    assert scored.num_preemptions >= 5
    assert_close(spans, scored.logprobs, expected_logprobs(checkpoint, spans))


def test_the_same_spans_again_give_the_same_bits(model_of: ModelOf, in_process: Run) -> None:
    checkpoint, spans = model_of("Llama"), make_spans()
    first, second = (in_process(score, checkpoint, spans).logprobs for _ in range(2))
    assert all(np.array_equal(left, right) for left, right in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("has_tiles", "product"), [(False, "UnquantizedLinearMethod"), (True, "TorchLinearMethod")]
)
def test_log_probs_with_either_kind_of_product(
    *, has_tiles: bool, product: str, model_of: ModelOf, in_process: Run
) -> None:
    checkpoint, spans = model_of("Qwen2"), make_spans()
    scored = in_process(score, checkpoint, spans, has_tiles=has_tiles)
    assert scored.products == {product}
    assert_close(spans, scored.logprobs, expected_logprobs(checkpoint, spans))


def test_compiled_log_probs_are_the_same(model_of: ModelOf, in_process: Run) -> None:
    checkpoint, spans = model_of("Qwen2"), make_spans()
    scored = in_process(score, checkpoint, spans, name="vllm_fused")
    assert_close(spans, scored.logprobs, expected_logprobs(checkpoint, spans))
