"""Makes any causal language model of vLLM return log-probs of tokens, and mean hidden states.

Row p of the hidden states, made from the tokens up to p, predicts token p + 1:

    prompt          p0 p1 a0 a1 p2 p3 b0         ranges = (2, 4), (6, 8), targets = a0 a1 b0 b1
    rows used          ^  ^        ^  ^
    log-probs          a0 a1       b0 b1

The LM head sees only these rows, some at a time, and one float per answer token leaves the device.
The prompt ends before the last answer's last token, which predicts nothing. A request may also ask
for the mean of its rows, which then stands before the log-probs. A step copies to the device once,
and back once: between two copies a GPU would wait for the host.
vLLM looks a class up as ``MODULE:NAME``; here NAME is the path of the class to be wrapped, as in
``cherry_vllm.engines.answer_model:vllm.model_executor.models.llama.LlamaForCausalLM``.
"""

from collections.abc import Callable, Iterator, Sequence, Set
from functools import partial
from importlib import import_module
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.pooler import PoolingParamsUpdate
from vllm.model_executor.layers.pooler.abstract import Pooler
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
)
from vllm.platforms import current_platform
from vllm.pooling_params import PoolingParams
from vllm.tasks import PoolingTask
from vllm.utils.torch_utils import PIN_MEMORY
from vllm.v1.pool.metadata import PoolingMetadata

from cherry_vllm.engines.weights import list_some
from cherry_vllm.errors import UserError

TASK: PoolingTask = "token_classify"
# In a request's extra_kwargs: its answers' places and tokens, and whether it asks for the mean.
RANGES, TARGETS, MEAN = "ranges", "targets", "mean"
HEAD_ROWS = 1024  # enough for a fast product, few enough that their logits take little memory
UNSCORED = float("inf")  # stands for a log-prob that no step has computed


class Params(PoolingParams):  # type: ignore[misc]
    """A request's parameters. vLLM copies them token by token, but no two requests share these."""

    def clone(self) -> "Params":
        """See :meth:`PoolingParams.clone`."""
        return self


def __getattr__(name: str) -> type[Any]:
    module, _, class_name = name.rpartition(".")
    if not module:
        raise AttributeError(name)
    return answer_model(getattr(import_module(module), class_name))


def answer_model(causal_lm: type[Any]) -> type[Any]:
    """A subclass whose pooler returns log-probs; it loads its weights as ``causal_lm`` does."""

    class AnswerModel(causal_lm):  # type: ignore[misc]
        is_pooling_model = True

        def __init__(self, *, vllm_config: Any, prefix: str = "", **kwargs: Any) -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix, **kwargs)
            self._is_quantized = vllm_config.quant_config is not None
            to_logprobs = choose_log_softmax(is_eager=vllm_config.model_config.enforce_eager)
            self.pooler = AnswerPooler(self.compute_logits, to_logprobs)
            spare_quantized_head(self)
            if current_platform.is_cpu() and torch.cpu.get_capabilities().get("amx_bf16"):
                for module in self.modules():
                    if type(getattr(module, "quant_method", None)) is UnquantizedLinearMethod:
                        module.quant_method = TorchLinearMethod()

        def load_weights(self, weights: Any) -> Any:
            loaded = super().load_weights(weights)
            # A quantized model has parameters that are in no file.
            if loaded is not None and not self._is_quantized:
                refuse_unloaded({name for name, _ in self.named_parameters()} - loaded)
            return loaded

    AnswerModel.__name__ = f"Answer{causal_lm.__name__}"
    return AnswerModel


def refuse_unloaded(names: Set[str]) -> None:
    """Raises a UserError for parameters that vLLM's model got no weights for.

    vLLM itself checks only some layers, and leaves the others uninitialised.
    """
    if names:
        raise UserError(
            f"vLLM found no weights for {list_some(sorted(names))}; use engine=hf, and report it "
            "to vLLM"
        )


def spare_quantized_head(model: torch.nn.Module) -> None:
    """Lets a quantized head make logits in the model's type.

    vLLM gives pooling models logits in fp32, which it refuses to make with a quantized head.
    """
    plain = (UnquantizedEmbeddingMethod, UnquantizedLinearMethod)
    modules = list(model.modules())
    heads = [module for module in modules if isinstance(module, ParallelLMHead)]
    if any(not isinstance(head.quant_method, plain) for head in heads):
        for module in modules:
            if isinstance(module, LogitsProcessor):
                module.head_dtype = None


class TorchLinearMethod(UnquantizedLinearMethod):  # type: ignore[misc]
    """Uses torch's own product instead of vLLM's packed weights.

    It is faster for thousands of rows if the CPU has matrix tiles (AMX).
    """

    def process_weights_after_loading(self, layer: Any) -> None:
        pass

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return torch.nn.functional.linear(x, layer.weight, bias)


class Part(NamedTuple):
    """What one step computes of one prompt."""

    rows: list[int]  # of the step's hidden states
    targets: list[int]  # the token ids that these rows predict
    first: int  # the position among the answers' tokens of the first of them
    num_answer_tokens: int
    is_last: bool
    step: range  # the positions in the prompt that it computes
    summed: slice  # of the step's hidden states: all of the part's, if the mean is asked for


class AnswerPooler(Pooler):  # type: ignore[misc]
    """Hidden states to log-probs, one part of a prompt at a time."""

    def __init__(
        self,
        compute_logits: Callable[[Tensor], Tensor | None],
        to_logprobs: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        super().__init__()
        self._compute_logits, self._to_logprobs = compute_logits, to_logprobs

    def get_supported_tasks(self) -> Set[PoolingTask]:
        return {TASK}

    def get_pooling_updates(self, task: PoolingTask) -> PoolingParamsUpdate:  # noqa: ARG002
        return PoolingParamsUpdate()

    def forward(
        self, hidden_states: Tensor, pooling_metadata: PoolingMetadata
    ) -> list[Tensor | None]:
        """Floats of each prompt (float32); None if this step does not end it.

        They are the log-probs of its answer tokens, after the mean of its hidden states (width) if
        that is asked for. ``hidden_states`` are of shape [scheduled tokens, width], prompt after
        prompt. A prompt may come in parts, and starts again after a preemption; its state keeps
        the log-probs and the sum so far.
        """
        parts = list(split_step(pooling_metadata))
        both = [
            [row for it in parts for row in it.rows],
            [one for it in parts for one in it.targets],
        ]
        on_host = torch.tensor(both, dtype=torch.long, pin_memory=PIN_MEMORY)
        rows, targets = on_host.to(hidden_states.device, non_blocking=True)
        asked = [part.summed for part in parts]
        sums = [hidden_states[some].sum(0, dtype=torch.float32) for some in asked if some.stop]
        floats = torch.cat([self._logprobs(hidden_states, rows, targets), *sums]).cpu()
        sizes = [len(part.rows) for part in parts]
        sizes += [hidden_states.shape[1] if some.stop else 0 for some in asked]
        found = torch.split(floats, sizes)
        states = pooling_metadata.pooling_states
        return [
            _collect(part, logprobs, total, state.hidden_states_cache)
            for part, logprobs, total, state in zip(
                parts, found[: len(parts)], found[len(parts) :], states, strict=True
            )
        ]

    def _logprobs(self, hidden_states: Tensor, rows: Tensor, targets: Tensor) -> Tensor:
        """log P(target) after each of ``rows``, in float32."""
        # In a tensor-parallel group, ranks other than the first may get no logits, but take part.
        found = torch.zeros(len(rows), device=rows.device)
        for begin in range(0, len(rows), HEAD_ROWS):
            some = slice(begin, begin + HEAD_ROWS)
            logits = self._compute_logits(hidden_states[rows[some]])
            if logits is not None:
                found[some] = self._to_logprobs(logits, targets[some])
        return found


def split_step(metadata: PoolingMetadata) -> Iterator[Part]:
    """The parts of prompts that a step computes, in the order of its rows."""
    cursor = metadata.get_pooling_cursor()
    first_row = 0
    for params, num_tokens, end, length in zip(
        metadata.pooling_params,
        cursor.num_scheduled_tokens_cpu.tolist(),
        cursor.seq_lens_cpu.tolist(),
        metadata.prompt_lens.tolist(),
        strict=True,
    ):
        # The warm-up run has none of them.
        ranges, targets, mean = itemgetter(RANGES, TARGETS, MEAN)(
            params.extra_kwargs or {RANGES: ((1, length + 1),), TARGETS: [0] * length, MEAN: True}
        )
        step = range(end - num_tokens, end)
        yield cut_part(ranges, targets, step, first_row, is_last=end == length, mean=mean)
        first_row += num_tokens


def cut_part(
    ranges: Sequence[tuple[int, int]],
    targets: list[int],
    step: range,
    first_row: int,
    *,
    is_last: bool,
    mean: bool = False,
) -> Part:
    """The part of a prompt whose positions ``step`` are computed, from the row ``first_row`` on.

    ``targets`` are the answers' tokens, and ``mean`` asks for the mean hidden state.
    """
    rows: list[int] = []
    first = num_before = 0
    for start, stop in ranges:
        low, high = max(step.start, start - 1), min(step.stop, stop - 1)
        if low < high:
            if not rows:
                first = num_before + low - (start - 1)
            rows += range(low - step.start + first_row, high - step.start + first_row)
        num_before += stop - start
    return Part(
        rows=rows,
        targets=targets[first : first + len(rows)],
        first=first,
        num_answer_tokens=num_before,
        is_last=is_last,
        step=step,
        summed=slice(first_row, first_row + len(step)) if mean else slice(0, 0),
    )


def choose_log_softmax(*, is_eager: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """What turns logits and targets into log-probs fastest on this machine."""
    if current_platform.is_cuda():
        from vllm.v1.worker.gpu.sample.logprob import compute_token_logprobs

        # One kernel, in float32, which the host need not wait for.
        return lambda logits, targets: compute_token_logprobs(logits, targets[:, None])[:, 0]
    return partial(target_logprobs, slice_by_slice if is_eager else compiled_one_pass)


def target_logprobs(
    in_one_pass: Callable[[Tensor, Tensor], Tensor], logits: Tensor, targets: Tensor
) -> Tensor:
    """log softmax(logits)[target] in float32: [rows, vocabulary] and [rows] to [rows]."""
    found = in_one_pass(logits, targets)
    overflown = ~found.isfinite()  # exp() overflows if a log-prob is below about -88
    if overflown.any():
        exact = logits[overflown].float().log_softmax(-1)
        found[overflown] = exact.gather(1, targets[overflown, None])[:, 0]
    return found


def one_pass(logits: Tensor, targets: Tensor) -> Tensor:
    """-log sum exp(logits - logits[target]), which needs no pass to find the largest logit."""
    exact = logits.float()
    return -(exact - exact.gather(1, targets[:, None])).exp().sum(-1).log()


# One kernel, without a float32 copy of the logits.
compiled_one_pass = torch.compile(one_pass, dynamic=True)


def slice_by_slice(logits: Tensor, targets: Tensor) -> Tensor:
    """Like :func:`one_pass`, in slices whose float32 copies fit the cores' caches or fill a GPU."""
    is_on_cpu = logits.device.type == "cpu"
    num_elements = 2**18 * torch.get_num_threads() if is_on_cpu else 2**26
    num_rows = max(1, num_elements // logits.shape[1])
    slices = zip(torch.split(logits, num_rows), torch.split(targets, num_rows), strict=True)
    return torch.cat([one_pass(*slice_) for slice_ in slices])


def _collect(part: Part, logprobs: Tensor, total: Tensor, waiting: list[Tensor]) -> Tensor | None:
    """Puts a part's log-probs where they belong, and adds its sum ``total``, which may be empty.

    Returns the mean and the log-probs of the whole prompt after its last part.
    """
    if part.is_last and not len(total) and len(logprobs) == part.num_answer_tokens:
        waiting.clear()
        return logprobs
    if not waiting:
        unscored = logprobs.new_full((part.num_answer_tokens,), UNSCORED)
        waiting += [unscored, torch.zeros_like(total)]
    whole, sum_so_far = waiting
    whole[part.first : part.first + len(logprobs)] = logprobs
    if part.step.start == 0:  # it may be the second time
        sum_so_far.zero_()
    sum_so_far += total
    if not part.is_last:
        return None
    waiting.clear()
    return torch.cat([sum_so_far / part.step.stop, whole])
