"""The reference engine: a transformers forward pass, batched by length."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from cherry_vllm.engines import Span


class HfEngine:
    def __init__(
        self,
        model_path: Path,
        *,
        dtype: str,
        device: str,
        batch_tokens: int,
        trust_remote_code: bool,
    ) -> None:
        """``batch_tokens`` bounds a batch's padded tokens; 1 runs one sequence at a time."""
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self._batch_tokens = batch_tokens
        model: Any = AutoModelForCausalLM.from_pretrained(
            model_path,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
        )
        self._model = model.to(device).eval()

    @torch.inference_mode()
    def logprobs(
        self, spans: Sequence[Span], on_scored: Callable[[int], None]
    ) -> list[NDArray[np.float32]]:
        """See :class:`cherry_vllm.engines.Engine`."""
        results: list[NDArray[np.float32] | None] = [None] * len(spans)
        for batch in self._batches(spans):
            scored = self._score([spans[index] for index in batch])
            for index, logprobs in zip(batch, scored, strict=True):
                results[index] = logprobs
            on_scored(len(batch))
        return [logprobs for logprobs in results if logprobs is not None]

    def _batches(self, spans: Sequence[Span]) -> Iterator[list[int]]:
        """Indices of spans of like length, longest first, so that memory peaks at once."""
        batch: list[int] = []
        for index in sorted(range(len(spans)), key=lambda i: -len(spans[i].token_ids)):
            longest = len(spans[batch[0]].token_ids) if batch else 0
            if batch and longest * (len(batch) + 1) > self._batch_tokens:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _score(self, batch: list[Span]) -> Iterator[NDArray[np.float32]]:
        longest = max(len(span.token_ids) for span in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, span in enumerate(batch):
            ids[row, : len(span.token_ids)] = torch.tensor(span.token_ids)
            mask[row, : len(span.token_ids)] = 1
        ids, mask = ids.to(self._model.device), mask.to(self._model.device)
        # Logits are needed from the position before the earliest answer on, and nowhere else.
        first = min(span.start for span in batch) - 1
        logits = self._model(
            input_ids=ids, attention_mask=mask, use_cache=False, logits_to_keep=longest - first
        ).logits
        for row, span in enumerate(batch):
            targets = ids[row, span.start : len(span.token_ids)]
            rows = logits[row, span.start - 1 - first : len(span.token_ids) - 1 - first].float()
            chosen = rows.gather(-1, targets[:, None])[:, 0]
            yield (chosen - rows.logsumexp(-1)).cpu().numpy()
