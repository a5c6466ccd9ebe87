"""Conversations to token ids with the places of their answers.

The text up to an answer's end is encoded at once, and the answer starts at the length of the
encoded text before it, as in the paper's code. Pieces that are encoded separately and joined would
give other ids.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from cherry_vllm.conversation import Conversation
from cherry_vllm.engines import Span
from cherry_vllm.engines.checkpoint import Checkpoint, load_tokenizer, read_limits
from cherry_vllm.errors import UserError
from cherry_vllm.prompts.control_tokens import ControlTokens
from cherry_vllm.prompts.encoder import Encoder
from cherry_vllm.prompts.prompt import Prompt
from cherry_vllm.prompts.templates import PromptTemplate, RefusedError, build_template
from cherry_vllm.schema import DropReason

# The turns of each conversation that are encoded first; then twice as many, and so on. So those
# beyond the cut are not even rendered.
FIRST_TURNS = 4


class AnswerSpans(NamedTuple):
    """The spans of a row's two passes, which score the same answer tokens, turn by turn."""

    conditioned: list[Span]  # in order; a range per turn
    direct: list[Span]  # a span per turn
    truncated: bool  # answers were cut at max_length, or left out


class Turn(NamedTuple):
    """A scored turn, encoded."""

    num_prompt_tokens: int  # of all that precedes the answer
    conditioned: list[int]  # up to the answer's end
    direct: list[int]  # marker and answer


class SpanBuilder:
    """Builds the spans of each row, or says why there are none.

    With I the number of tokens before an answer, K that of the marker and L ``max_length``, the
    conditioned text is cut on the right at L tokens and the direct text at L - I + K, so that both
    passes score the same first L - I answer tokens. A BOS counts where the tokenizer adds one; no
    EOS is ever scored.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: PromptTemplate,
        *,
        max_length: int,
        vocab_size: int,
        split_special_tokens: bool = False,
    ) -> None:
        """With ``split_special_tokens``, control tokens in the data's text are encoded as text."""
        self._control = ControlTokens(tokenizer) if split_special_tokens else None
        self._encoder = Encoder(
            tokenizer, adds_special_tokens=template.adds_special_tokens, control=self._control
        )
        self._template = template
        self._max_length = max_length
        self._vocab_size = vocab_size
        self._marker = self._control.reveal(template.marker) if self._control else template.marker
        self._num_marker_tokens = len(self._encoder.encode([self._marker], max_length)[0])
        if self._num_marker_tokens == 0:
            raise UserError(
                "prompt.marker: empty, and this tokenizer adds no BOS, so the first answer token "
                "has nothing to follow in the direct pass; give a marker"
            )

    def build(self, conversations: Sequence[Conversation]) -> list[AnswerSpans | DropReason]:
        """One result per conversation, in order; each has an answer, and no answer is blank."""
        turns: list[list[Turn] | None] = [[] for _ in conversations]  # None: refused
        first, count = 0, FIRST_TURNS
        open_ones = list(range(len(conversations)))
        while open_ones:
            some = [conversations[place] for place in open_ones]
            more = self._encode_turns(some, first, first + count)
            for place, found in zip(open_ones, more, strict=True):
                before = turns[place]
                turns[place] = None if before is None or found is None else before + found
            first, count = first + count, 2 * count
            open_ones = [i for i in open_ones if self._goes_on(conversations[i], turns[i], first)]
        return [
            DropReason.TEMPLATE_REFUSED if found is None else self._cut(found, len(one.answers))
            for found, one in zip(turns, conversations, strict=True)
        ]

    def encode_prompts(self, conversations: Sequence[Conversation]) -> list[list[int] | DropReason]:
        """The token ids of what precedes each conversation's first answer, or a drop reason."""
        prompts = [self._render_prompt(conversation) for conversation in conversations]
        texts = [prompt for prompt in prompts if not isinstance(prompt, DropReason)]
        encoded = iter(self._encoder.encode(texts, self._max_length))
        return [
            prompt if isinstance(prompt, DropReason) else self._check_prompt(next(encoded))
            for prompt in prompts
        ]

    def decode(self, token_ids: Sequence[int], *, with_special: bool = False) -> str:
        """The text of token ids, without special tokens unless these are asked for."""
        return self._encoder.decode(token_ids, with_special=with_special)

    def _goes_on(self, conversation: Conversation, turns: list[Turn] | None, count: int) -> bool:
        """Whether a turn after the first ``count`` may begin within ``max_length``."""
        if not turns or len(conversation.answers) <= count:
            return False
        return turns[-1].num_prompt_tokens < self._max_length

    def _render_turns(
        self, conversation: Conversation, first: int, stop: int
    ) -> list[tuple[str, str]] | None:
        """The text before some of the answers, and the answer; None if it is refused."""
        hidden = self._hide(conversation)
        try:
            return [
                (self._render(hidden, place), conversation.messages[place].content)
                for place in conversation.answers[first:stop]
            ]
        except RefusedError:
            return None

    def _render_prompt(self, conversation: Conversation) -> str | DropReason:
        """The text before the first answer, or before the one that would follow."""
        place = next(iter(conversation.answers), len(conversation.messages))
        try:
            return self._render(self._hide(conversation), place)
        except RefusedError:
            return DropReason.TEMPLATE_REFUSED

    def _hide(self, conversation: Conversation) -> Conversation:
        return self._control.hide(conversation) if self._control else conversation

    def _render(self, hidden: Conversation, place: int) -> str:
        text = self._template.render(hidden, place)
        return self._control.reveal(text) if self._control else text

    def _encode_turns(
        self, conversations: Sequence[Conversation], first: int, stop: int
    ) -> list[list[Turn] | None]:
        """Some turns of each conversation, all encoded at once; None where it is refused."""
        texts = [self._render_turns(one, first, stop) for one in conversations]
        encoded = iter(self._encode([pair for pairs in texts if pairs for pair in pairs]))
        return [None if pairs is None else [next(encoded) for _ in pairs] for pairs in texts]

    def _encode(self, turns: Sequence[tuple[str, str]]) -> list[Turn]:
        encode, length, marker = self._encoder.encode, self._max_length, self._marker
        prompt_ids = encode([prompt for prompt, _ in turns], length)
        conditioned_ids = encode([prompt + answer for prompt, answer in turns], length)
        direct_ids = encode(
            [marker + answer for _, answer in turns], length + self._num_marker_tokens
        )
        return [
            Turn(len(prompt), conditioned, direct)
            for prompt, conditioned, direct in zip(
                prompt_ids, conditioned_ids, direct_ids, strict=True
            )
        ]

    def _check_prompt(self, token_ids: list[int]) -> list[int] | DropReason:
        if not token_ids:
            return DropReason.PROMPT_TOO_SHORT
        if len(token_ids) >= self._max_length:
            return DropReason.PROMPT_TOO_LONG
        if max(token_ids) >= self._vocab_size:
            return DropReason.OUT_OF_VOCABULARY
        return token_ids

    def _cut(self, turns: Sequence[Turn], num_answers: int) -> AnswerSpans | DropReason:
        """Both passes over the turns that begin within ``max_length``."""
        length = self._max_length
        if turns[0].num_prompt_tokens == 0:
            return DropReason.PROMPT_TOO_SHORT
        within = [turn for turn in turns if turn.num_prompt_tokens < length]
        if not within:
            return DropReason.PROMPT_TOO_LONG
        conditioned: list[Span] = []
        direct: list[Span] = []
        for turn in within:
            room = length - turn.num_prompt_tokens + self._num_marker_tokens
            alone = Span.from_start(turn.direct[:room], self._num_marker_tokens)
            start, stop = turn.num_prompt_tokens, min(len(turn.conditioned), length)
            if start >= stop or alone.num_answer_tokens <= 0:
                continue  # all of it merged into the last token before it
            direct.append(alone)
            _append_turn(conditioned, turn.conditioned[:stop], (start, stop))
        if not direct:
            return DropReason.EMPTY_ANSWER
        if max(max(span.token_ids) for span in conditioned + direct) >= self._vocab_size:
            return DropReason.OUT_OF_VOCABULARY
        return AnswerSpans(
            conditioned,
            direct,
            truncated=len(within) < num_answers
            or any(len(turn.conditioned) > length for turn in within),
        )


def _append_turn(spans: list[Span], token_ids: list[int], place: tuple[int, int]) -> None:
    """Adds a turn to the last span if that is how it begins; else it gets a span of its own.

    It does not begin so where the template renders an earlier turn in another way once it is past,
    or where the tokenizer joins an answer's end and what follows it.
    """
    before = spans[-1] if spans else Span([], ())
    end = len(before.token_ids)
    if before.ranges and place[0] >= end and token_ids[:end] == before.token_ids:
        spans[-1] = Span(token_ids, (*before.ranges, place))
    else:
        spans.append(Span(token_ids, (place,)))


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
    return SpanBuilder(
        tokenizer,
        template,
        max_length=max_length,
        vocab_size=limits.vocab_size,
        split_special_tokens=prompt.split_special_tokens,
    )
