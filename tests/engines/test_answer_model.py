"""The pooler's arithmetic, and that no parameter of the wrapped model stays without weights."""

from typing import Any

import pytest
import torch

from cherry_vllm.errors import UserError

pytestmark = pytest.mark.engine  # importing it imports vLLM


@pytest.mark.parametrize("way", ["slice_by_slice", "compiled_one_pass"])
def test_log_probs_that_one_pass_cannot_hold(way: str) -> None:
    from cherry_vllm.engines import answer_model

    logits = 8 * torch.randn(40, 5000, generator=torch.Generator().manual_seed(0))
    logits[3, 7], logits[4] = 200, torch.linspace(-300, 300, 5000)
    logits[5, 9] = -float("inf")
    targets = torch.full([40], 9)
    exact = logits.double().log_softmax(-1)[:, 9]
    assert exact[3] < -150
    assert exact[4] < -500
    found = answer_model.target_logprobs(getattr(answer_model, way), logits, targets)
    assert found.dtype == torch.float32
    assert found[5] == exact[5] == -float("inf")
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-4)


def test_parameters_that_vllm_left_out_are_named() -> None:
    from cherry_vllm.engines.answer_model import refuse_unloaded

    refuse_unloaded(set())
    with pytest.raises(UserError, match=r"^vLLM found no weights for a, b, c and 1 more; use"):
        refuse_unloaded(set("dabc"))


def test_parts_of_a_prompt_with_several_answers() -> None:
    from cherry_vllm.engines.answer_model import cut_part

    ranges, targets = ((2, 4), (6, 8)), [10, 11, 12, 13]
    whole = cut_part(ranges, targets, range(7), 100, is_last=True)
    assert whole[:5] == ([101, 102, 105, 106], targets, 0, 4, True)
    first = cut_part(ranges, targets, range(2), 0, is_last=False)
    assert first[:5] == ([1], [10], 0, 4, False)
    between = cut_part(ranges, targets, range(3, 5), 0, is_last=False)
    assert between[:2] == ([], [])
    last = cut_part(ranges, targets, range(2, 7), 50, is_last=True)
    assert last[:5] == ([50, 53, 54], [11, 12, 13], 1, 4, True)
    asked = cut_part(ranges, targets, range(2, 7), 50, is_last=True, mean=True)
    assert (last.summed, asked.summed) == (slice(0, 0), slice(50, 55))


@pytest.mark.parametrize("is_quantized", [False, True])
def test_only_a_quantized_head_makes_logits_in_the_models_type(*, is_quantized: bool) -> None:
    from vllm.model_executor.layers.logits_processor import LogitsProcessor
    from vllm.model_executor.layers.vocab_parallel_embedding import (
        ParallelLMHead,
        UnquantizedEmbeddingMethod,
    )

    from cherry_vllm.engines.answer_model import spare_quantized_head

    model: Any = torch.nn.Module()
    for name, kind in (("logits", LogitsProcessor), ("head", ParallelLMHead)):
        module = kind.__new__(kind)
        torch.nn.Module.__init__(module)
        setattr(model, name, module)
    plain = UnquantizedEmbeddingMethod.__new__(UnquantizedEmbeddingMethod)
    model.head.quant_method = object() if is_quantized else plain
    model.logits.head_dtype = torch.float32
    spare_quantized_head(model)
    assert model.logits.head_dtype is (None if is_quantized else torch.float32)
