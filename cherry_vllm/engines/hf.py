"""The reference engine: a transformers forward pass, batched by length."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from inspect import signature
from io import StringIO
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, GenerationConfig

from cherry_vllm.engines import Continuation, Decoding, Embedded, Span, until_stop
from cherry_vllm.engines.checkpoint import Checkpoint
from cherry_vllm.engines.settings import HfSettings
from cherry_vllm.engines.weights import check_report, check_weights, read_settings
from cherry_vllm.errors import UserError
from cherry_vllm.runtime.console import is_verbose
from cherry_vllm.runtime.progress import hide_transformers_bars


def load_model(checkpoint: Checkpoint, *, trust_remote_code: bool, **options: Any) -> Any:
    """The checkpoint's causal language model; ``options`` go to ``from_pretrained``.

    Raises:
        UserError: the weights do not fit the model, or transformers does not know its type.
    """
    check_weights(checkpoint.folder, trust_remote_code=trust_remote_code)
    hide_transformers_bars()
    if _caps_attention(checkpoint):  # torch's fused attention would ignore the cap
        options["attn_implementation"] = "eager"
    auto: Any = AutoModelForCausalLM
    try:
        with nullcontext() if is_verbose() else redirect_stderr(StringIO()):  # more bars
            model, report = auto.from_pretrained(
                checkpoint.folder,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **options,
            )
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        raise UserError(
            f"{checkpoint.folder}: transformers {transformers.__version__} has no causal language "
            "model of this type; try engine=vllm"
        ) from None
    check_report(checkpoint.folder, {**report, "unexpected_keys": ()})
    return model


def _caps_attention(checkpoint: Checkpoint) -> bool:
    """Whether the model caps the logits of its attention, as Gemma 2 does."""
    config = read_settings(checkpoint.folder / "config.json")
    return bool((config | config.get("text_config", {})).get("attn_logit_softcapping"))


def _find_device(name: str) -> torch.device:
    """The device of that name; raises a UserError if this machine has none."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise UserError(
            f"engine.device={name}: torch finds no such device here; give auto, cpu, cuda or cuda:N"
        ) from None
    return device


class HfModel:
    """A model, and its inputs in batches of similar length."""

    def __init__(
        self,
        settings: HfSettings,
        checkpoint: Checkpoint,
        *,
        max_length: int,  # noqa: ARG002 - a forward pass takes any length
        trust_remote_code: bool,
    ) -> None:
        device = _find_device(settings.device)
        self._batch_tokens = settings.batch_tokens
        model = load_model(checkpoint, dtype=settings.dtype, trust_remote_code=trust_remote_code)
        self._model = model.to(device).eval()
        # Older models, and many with code of their own, return the logits of all positions.
        self._can_keep_logits = "logits_to_keep" in signature(model.forward).parameters

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Batches of indices, similar in length, longest first, so that memory peaks at once."""
        batch: list[int] = []
        for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            longest = lengths[batch[0]] if batch else 0
            if batch and longest * (len(batch) + 1) > self._batch_tokens:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _pad(self, sequences: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask of one batch, padded on the right."""
        longest = max(map(len, sequences))
        ids = torch.zeros(len(sequences), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, token_ids in enumerate(sequences):
            ids[row, : len(token_ids)] = torch.tensor(token_ids)
            mask[row, : len(token_ids)] = 1
        return ids.to(self._model.device), mask.to(self._model.device)


class HfEngine(HfModel):
    @torch.inference_mode()
    def logprobs(
        self, spans: Sequence[Span], on_scored: Callable[[int], None]
    ) -> list[NDArray[np.float32]]:
        """See :class:`cherry_vllm.engines.Engine`."""
        results: list[NDArray[np.float32] | None] = [None] * len(spans)
        for batch in self._batches([len(span.token_ids) for span in spans]):
            scored = self._score([spans[index] for index in batch])
            for index, logprobs in zip(batch, scored, strict=True):
                results[index] = logprobs
            on_scored(len(batch))
        return [logprobs for logprobs in results if logprobs is not None]

    def _score(self, batch: list[Span]) -> Iterator[NDArray[np.float32]]:
        ids, mask = self._pad([span.token_ids for span in batch])
        # Logits are needed only from the position before the earliest answer on.
        first = min(span.start for span in batch) - 1 if self._can_keep_logits else 0
        kept = {"logits_to_keep": ids.shape[1] - first} if self._can_keep_logits else {}
        logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False, **kept).logits
        for row, span in enumerate(batch):
            of_ranges = []
            for start, stop in span.ranges:
                rows = logits[row, start - 1 - first : stop - 1 - first].float()
                chosen = rows.gather(-1, ids[row, start:stop, None])[:, 0]
                of_ranges.append(chosen - rows.logsumexp(-1))
            yield torch.cat(of_ranges).cpu().numpy()


class HfEmbedder(HfEngine):
    @torch.inference_mode()
    def embed(self, prompts: Sequence[list[int]], on_embedded: Callable[[int], None]) -> Embedded:
        """See :class:`cherry_vllm.engines.Embedder`."""
        width = self._model.config.get_text_config().hidden_size
        embeddings = np.empty((len(prompts), width), dtype=np.float32)
        found: dict[int, NDArray[np.float32]] = {}
        for batch in self._batches([len(token_ids) for token_ids in prompts]):
            with self._last_states() as kept:
                scored = self._score([Span.from_start(prompts[index], 1) for index in batch])
                found.update(zip(batch, scored, strict=True))
            for index, states in zip(batch, kept.pop().float(), strict=True):
                embeddings[index] = states[: len(prompts[index])].mean(0).cpu().numpy()
            on_embedded(len(batch))
        return Embedded(embeddings, [found[index] for index in range(len(prompts))])

    @contextmanager
    def _last_states(self) -> Iterator[list[torch.Tensor]]:
        """A list to which each forward pass adds the last hidden states, [rows, longest, width]."""
        kept: list[torch.Tensor] = []

        def keep(_module: torch.nn.Module, _inputs: Any, output: Any) -> None:
            kept.append(output.last_hidden_state)

        hook = self._model.base_model.register_forward_hook(keep)
        try:
            yield kept
        finally:
            hook.remove()


class HfGenerator(HfModel):
    def __init__(
        self,
        settings: HfSettings,
        checkpoint: Checkpoint,
        *,
        max_length: int,
        trust_remote_code: bool,
        decoding: Decoding,
        stop_ids: Sequence[int],
    ) -> None:
        limits: Any = {"max_length": max_length, "trust_remote_code": trust_remote_code}
        super().__init__(settings, checkpoint, **limits)
        self._max_length, self._decoding, self._stop_ids = max_length, decoding, stop_ids
        names = ("temperature", "top_p", "top_k") if decoding.temperature else ()
        # Replaces the checkpoint's own, which may sample.
        self._model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=bool(names),
            eos_token_id=list(stop_ids) or None,
            pad_token_id=0,
            **{name: getattr(decoding, name) for name in names},
        )

    @torch.inference_mode()
    def generate(
        self, prompts: Sequence[list[int]], on_answered: Callable[[int], None], *, seed: int
    ) -> list[Continuation]:
        """See :class:`cherry_vllm.engines.Generator`."""
        torch.manual_seed(seed)
        limits = [self._decoding.limit(prompt, self._max_length) for prompt in prompts]
        lengths = [len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True)]
        found: dict[int, Continuation] = {}
        for batch in self._batches(lengths):
            # Padded on the left, so that every answer begins in the same column.
            ids, mask = self._pad([prompts[index][::-1] for index in batch])
            written = self._model.generate(
                ids.flip(1),
                attention_mask=mask.flip(1),
                max_new_tokens=max(limits[index] for index in batch),
            )[:, ids.shape[1] :].tolist()
            for index, tokens in zip(batch, written, strict=True):
                found[index] = until_stop(tokens, limits[index], self._stop_ids)
            on_answered(len(batch))
        return [found[index] for index in range(len(prompts))]
