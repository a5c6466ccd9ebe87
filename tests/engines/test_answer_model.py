"""The pooler's arithmetic, and that no parameter of the wrapped model stays without weights."""

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
    with pytest.raises(UserError, match=r"^vLLM found no weights for a, b, c and more; use"):
        refuse_unloaded(set("dabc"))
