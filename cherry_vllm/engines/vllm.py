"""vLLM, on GPUs and CPUs: scoring in two ways, embeddings and answers."""

import io
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cherry_vllm.engines import Continuation, Decoding, Embedded, Span, until_stop
from cherry_vllm.engines.checkpoint import Checkpoint
from cherry_vllm.engines.settings import VllmSettings
from cherry_vllm.engines.vllm_loading import for_answer_model, for_generation, load_llm


class VllmEngine:
    """Scores with stock ``prompt_logprobs``."""

    def __init__(
        self,
        settings: VllmSettings,
        checkpoint: Checkpoint,
        *,
        max_length: int,
        trust_remote_code: bool,
    ) -> None:
        # Room for a prompt, and for the token that generate() makes.
        self._llm = load_llm(
            settings,
            checkpoint,
            max_length + 1,
            for_generation,
            trust_remote_code=trust_remote_code,
        )
        from vllm import SamplingParams

        self._params = SamplingParams(
            max_tokens=1, temperature=0, prompt_logprobs=0, flat_logprobs=True, detokenize=False
        )

    def logprobs(
        self, spans: Sequence[Span], on_scored: Callable[[int], None]
    ) -> list[NDArray[np.float32]]:
        """See :class:`cherry_vllm.engines.Engine`."""
        if not spans:
            return []
        prompts = [{"prompt_token_ids": span.token_ids} for span in spans]
        self._llm.enqueue(prompts, self._params, use_tqdm=False)
        outputs = self._llm.wait_for_completion(use_tqdm=partial(_Progress, on_scored=on_scored))
        return [_answer_logprobs(span, output) for span, output in zip(spans, outputs, strict=True)]


class FusedVllmEngine:
    """Scores and embeds with :mod:`answer_model`.

    The LM head sees answer rows only, and there is no object per token.
    """

    def __init__(
        self,
        settings: VllmSettings,
        checkpoint: Checkpoint,
        *,
        max_length: int,
        trust_remote_code: bool,
    ) -> None:
        """Loads the model.

        Raises:
            UserError: this vLLM has no such model class, or does not let it be replaced.
        """
        self._llm = load_llm(
            settings, checkpoint, max_length, for_answer_model, trust_remote_code=trust_remote_code
        )

    def logprobs(
        self, spans: Sequence[Span], on_scored: Callable[[int], None]
    ) -> list[NDArray[np.float32]]:
        """See :class:`cherry_vllm.engines.Engine`."""
        self._llm.reset_prefix_cache()  # else a resumed run would have other batches
        found = self._encode(spans, on_scored, use_cache=True)
        # A cached prefix that reaches into an answer has no hidden states there.
        missing = [index for index, floats in enumerate(found) if np.isposinf(floats).any()]
        again = self._encode([spans[index] for index in missing], _ignore, use_cache=False)
        for index, floats in zip(missing, again, strict=True):
            if np.isposinf(floats).any():
                raise RuntimeError("vLLM left out tokens of an answer")
            found[index] = floats
        return found

    def embed(self, prompts: Sequence[list[int]], on_embedded: Callable[[int], None]) -> Embedded:
        """See :class:`cherry_vllm.engines.Embedder`."""
        # Every token is scored but the first, and every token's hidden state is needed.
        spans = [Span.from_start(token_ids, 1) for token_ids in prompts]
        found = self._run(zip(prompts, spans, strict=True), on_embedded, use_cache=False, mean=True)
        width = self._llm.model_config.get_hidden_size()
        embeddings = np.empty((len(prompts), width), dtype=np.float32)
        for row, floats in enumerate(found):
            embeddings[row] = floats[:width]
        logprobs = [floats[width:] for floats in found]
        if any(np.isposinf(floats).any() for floats in logprobs):
            raise RuntimeError("vLLM left out tokens of a prompt")
        return Embedded(embeddings, logprobs)

    def _encode(
        self, spans: Sequence[Span], on_scored: Callable[[int], None], *, use_cache: bool
    ) -> list[NDArray[np.float32]]:
        # The last token is predicted, but predicts nothing.
        requests = ((span.token_ids[:-1], span) for span in spans)
        return self._run(requests, on_scored, use_cache=use_cache, mean=False)

    def _run(
        self,
        requests: Iterable[tuple[list[int], Span]],
        on_done: Callable[[int], None],
        *,
        use_cache: bool,
        mean: bool,
    ) -> list[NDArray[np.float32]]:
        """What the pooler returns for each prompt and the span that it begins."""
        from vllm.inputs.engine import tokens_input

        from cherry_vllm.engines.answer_model import MEAN, RANGES, TARGETS, TASK, Params

        for index, (token_ids, span) in enumerate(requests):
            targets = [token for start, stop in span.ranges for token in span.token_ids[start:stop]]
            params = Params(
                task=TASK,
                extra_kwargs={RANGES: span.ranges, TARGETS: targets, MEAN: mean},
                skip_reading_prefix_cache=not use_cache,
            )
            # Not LLM.encode(), which does a lot of work per request and needs a tokenizer.
            self._llm.llm_engine.add_request(str(index), tokens_input(token_ids), params)
        outputs = self._llm.wait_for_completion(use_tqdm=partial(_Progress, on_scored=on_done))
        return [output.outputs.data.numpy() for output in outputs]


class VllmGenerator:
    def __init__(
        self,
        settings: VllmSettings,
        checkpoint: Checkpoint,
        *,
        max_length: int,
        trust_remote_code: bool,
        decoding: Decoding,
        stop_ids: Sequence[int],
    ) -> None:
        self._llm = load_llm(
            settings, checkpoint, max_length, for_generation, trust_remote_code=trust_remote_code
        )
        self._max_length, self._decoding, self._stop_ids = max_length, decoding, list(stop_ids)

    def generate(
        self, prompts: Sequence[list[int]], on_answered: Callable[[int], None], *, seed: int
    ) -> list[Continuation]:
        """See :class:`cherry_vllm.engines.Generator`."""
        if not prompts:
            return []
        self._llm.reset_prefix_cache()
        params = [self._params(prompt, seed + place) for place, prompt in enumerate(prompts)]
        self._llm.enqueue(
            [{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False
        )
        outputs = self._llm.wait_for_completion(use_tqdm=partial(_Progress, on_scored=on_answered))
        return [
            until_stop(output.outputs[0].token_ids, limit.max_tokens, self._stop_ids)
            for output, limit in zip(outputs, params, strict=True)
        ]

    def _params(self, prompt: list[int], seed: int) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            max_tokens=self._decoding.limit(prompt, self._max_length),
            temperature=self._decoding.temperature,
            top_p=self._decoding.top_p,
            top_k=self._decoding.top_k,
            seed=seed,
            stop_token_ids=self._stop_ids,
            detokenize=False,
        )


def _ignore(_count: int) -> None:
    pass


class _Progress(tqdm):  # type: ignore[misc]
    """Hands vLLM's progress on instead of drawing it."""

    def __init__(self, *, on_scored: Callable[[int], None], **kwargs: Any) -> None:
        self._on_scored = on_scored
        super().__init__(**kwargs, file=io.StringIO(), leave=False)

    def update(self, n: float | None = 1) -> Any:
        self._on_scored(int(n or 0))
        return super().update(n)

    def display(self, *_args: Any, **_kwargs: Any) -> None:
        pass


def _answer_logprobs(span: Span, output: Any) -> NDArray[np.float32]:
    flat = output.prompt_logprobs
    # One entry per token but the first. Some releases have returned those of other tokens.
    if flat.token_ids != span.token_ids[1:]:
        raise RuntimeError("vLLM returned log-probs of tokens that are not the prompt's")
    of_ranges = (flat.logprobs[start - 1 : stop - 1] for start, stop in span.ranges)
    return np.asarray(list(chain.from_iterable(of_ranges)), dtype=np.float32)
