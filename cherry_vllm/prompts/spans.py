"""Prompts and answers to token ids with the position where the answer starts.

The whole string is encoded at once, and the answer starts at the length of the encoded prefix, as
in the paper's code. Pieces that are encoded separately and joined would give other ids.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from cherry_vllm.engines import Span
from cherry_vllm.engines.checkpoint import Checkpoint, load_tokenizer, read_limits
from cherry_vllm.errors import UserError
from cherry_vllm.prompts.encoder import Encoder
from cherry_vllm.prompts.prompt import Prompt
from cherry_vllm.prompts.templates import PromptTemplate, build_template
from cherry_vllm.schema import DropReason


class AnswerSpans(NamedTuple):
    """The spans of a row's two passes, which score the same answer tokens."""

    conditioned: Span
    direct: Span
    truncated: bool  # the answer was cut at max_length


class SpanBuilder:
    """Builds the two spans of each row, or says why there are none.

    With I the number of prompt tokens, K that of the marker and L ``max_length``, the conditioned
    text is cut on the right at L tokens and the direct text at L - I + K, so that both passes
    score the same first L - I answer tokens. A BOS counts where the tokenizer adds one; no EOS is
    ever scored.
    """

    def __init__(
        self, tokenizer: Any, template: PromptTemplate, *, max_length: int, vocab_size: int
    ) -> None:
        self._encoder = Encoder(tokenizer, adds_special_tokens=template.adds_special_tokens)
        self._template = template
        self._max_length = max_length
        self._vocab_size = vocab_size
        marker = template.render("", "").marker
        self._num_marker_tokens = len(self._encoder.encode([marker], max_length)[0])
        if self._num_marker_tokens == 0:
            raise UserError(
                "prompt.marker: empty, and this tokenizer adds no BOS, so the first answer token "
                "has nothing to follow in the direct pass; give a marker"
            )

    def build(
        self, instructions: Sequence[str], inputs: Sequence[str], answers: Sequence[str]
    ) -> list[AnswerSpans | DropReason]:
        """One result per row, in order; answers are not blank."""
        rows = zip(instructions, inputs, strict=True)
        prompts = [self._template.render(*row) for row in rows]
        paired = list(zip(prompts, answers, strict=True))
        encode, length = self._encoder.encode, self._max_length
        prompt_ids = encode([prompt.text for prompt in prompts], length)
        conditioned_ids = encode([prompt.text + answer for prompt, answer in paired], length)
        direct_ids = encode(
            [prompt.marker + answer for prompt, answer in paired], length + self._num_marker_tokens
        )
        return [
            self._cut(len(prompt), conditioned, direct)
            for prompt, conditioned, direct in zip(
                prompt_ids, conditioned_ids, direct_ids, strict=True
            )
        ]

    def encode_prompts(
        self, instructions: Sequence[str], inputs: Sequence[str]
    ) -> list[list[int] | DropReason]:
        """The token ids of each row's prompt, without answer, or the reason why it is dropped."""
        rows = zip(instructions, inputs, strict=True)
        texts = [self._template.render(*row).text for row in rows]
        encoded = self._encoder.encode(texts, self._max_length)
        return [self._check_prompt(token_ids) for token_ids in encoded]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return self._encoder.decode(token_ids)

    def _check_prompt(self, token_ids: list[int]) -> list[int] | DropReason:
        if len(token_ids) >= self._max_length:
            return DropReason.PROMPT_TOO_LONG
        if max(token_ids) >= self._vocab_size:
            return DropReason.OUT_OF_VOCABULARY
        return token_ids

    def _cut(
        self, num_prompt_tokens: int, conditioned: list[int], direct: list[int]
    ) -> AnswerSpans | DropReason:
        room = self._max_length - num_prompt_tokens
        if room <= 0:
            return DropReason.PROMPT_TOO_LONG
        spans = AnswerSpans(
            Span(conditioned[: self._max_length], num_prompt_tokens),
            Span(direct[: room + self._num_marker_tokens], self._num_marker_tokens),
            truncated=len(conditioned) > self._max_length,
        )
        if spans.conditioned.num_answer_tokens <= 0 or spans.direct.num_answer_tokens <= 0:
            return DropReason.EMPTY_ANSWER  # all of it merged into the prefix's last token
        if max(*spans.conditioned.token_ids, *spans.direct.token_ids) >= self._vocab_size:
            return DropReason.OUT_OF_VOCABULARY
        return spans


def open_span_builder(
    checkpoint: Checkpoint, *, prompt: Prompt, max_length: int, trust_remote_code: bool
) -> SpanBuilder:
    """The span builder for a checkpoint.

    Raises:
        UserError: the checkpoint cannot take ``max_length`` tokens, or the prompt does not suit it.
    """
    limits = read_limits(checkpoint.folder, trust_remote_code=trust_remote_code)
    if limits.max_length is not None and max_length > limits.max_length:
        raise UserError(
            f"max_length={max_length}: {checkpoint.folder} takes {limits.max_length} tokens; "
            "lower it"
        )
    tokenizer = load_tokenizer(checkpoint.folder, trust_remote_code=trust_remote_code)
    template = build_template(tokenizer, prompt)
    return SpanBuilder(tokenizer, template, max_length=max_length, vocab_size=limits.vocab_size)
