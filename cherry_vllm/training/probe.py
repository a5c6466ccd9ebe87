"""Whether a copy of a tuned model still knows what it was taught."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cherry_vllm.engines import Span, build_engine
from cherry_vllm.engines.checkpoint import Checkpoint
from cherry_vllm.engines.settings import HfSettings
from cherry_vllm.training.examples import Example

log = logging.getLogger(__name__)

KEPT_ENOUGH = 0.9  # of what training took off the loss


def probe_losses(
    examples: Sequence[Example | None],
    models: Mapping[str, Checkpoint],
    *,
    num_rows: int,
    eos_token_id: int,
    trust_remote_code: bool,
) -> dict[str, Any]:
    """Each model's answer loss on ``num_rows`` rows spread over the training set.

    Returns ``rows``, their positions, and ``losses``, by model the mean over all their answer
    tokens in nats, EOS left out as in scoring. Products are in fp32, so that two losses differ by
    the weights alone.
    """
    usable = [row for row, example in enumerate(examples) if example is not None]
    rows = [usable[i] for i in sorted({i * len(usable) // num_rows for i in range(num_rows)})]
    chosen = [example for example in (examples[row] for row in rows) if example is not None]
    spans = [_without_eos(example, eos_token_id) for example in chosen]
    measured = models if spans else {}
    losses = {
        name: answer_loss(path, spans, trust_remote_code=trust_remote_code)
        for name, path in measured.items()
    }
    return {"rows": rows, "losses": losses}


def answer_loss(model: Checkpoint, spans: Sequence[Span], *, trust_remote_code: bool) -> float:
    """A model's mean loss over the answer tokens of all spans, in nats, computed in fp32."""
    engine = build_engine(
        HfSettings(name="hf", dtype="float32", device="auto", batch_tokens=2048),
        model,
        max_length=max(len(span.token_ids) for span in spans),
        trust_remote_code=trust_remote_code,
    )
    return -float(np.concatenate(engine.logprobs(spans, lambda _count: None)).mean())


def gain_kept(base: float, tuned: float, copy: float) -> float | None:
    """The share of what training took off the loss that a copy keeps; None if it took nothing."""
    return (base - copy) / (base - tuned) if tuned < base else None


def warn_of_lost_gain(name: str, base: float, tuned: float, copy: float) -> None:
    """Logs a warning if training gained nothing, or ``name`` keeps too little of it."""
    kept = gain_kept(base, tuned, copy)
    if kept is None:
        log.warning("training did not lower the loss: %.4f before, %.4f after", base, tuned)
    elif kept < KEPT_ENOUGH:
        log.warning(
            "%s keeps %.0f%% of what training taught (loss %.4f before, %.4f after, %.4f here); "
            "score with engine.dtype=float32, or with train.scorer_dtype=bfloat16",
            name,
            100 * kept,
            base,
            tuned,
            copy,
        )


def _without_eos(example: Example, eos_token_id: int) -> Span:
    ends = example.token_ids[-1] == eos_token_id and len(example.token_ids) > example.start + 1
    return Span(example.token_ids[:-1] if ends else example.token_ids, example.start)
