"""Texts to token ids; of a text that is far too long, only the first token ids."""

from collections.abc import Sequence
from typing import Any

from cherry_vllm.errors import UserError
from cherry_vllm.prompts.control_tokens import ControlTokens

CHARS_PER_TOKEN = 64  # a text longer than this for each token wanted is cut before it is encoded
MARGIN_TOKENS = 64  # this close to a cut, tokens may differ from those of the whole text


class Encoder:
    """A tokenizer that puts its BOS, if it has one, before a text, and no EOS after it."""

    def __init__(
        self, tokenizer: Any, *, adds_special_tokens: bool, control: ControlTokens | None = None
    ) -> None:
        """Without ``adds_special_tokens``, texts already contain their special tokens.

        With ``control``, texts are those that it has prepared.
        """
        self._tokenizer, self._control = tokenizer, control
        self._prefix = _special_prefix(tokenizer) if adds_special_tokens else []

    def encode(self, texts: Sequence[str], num_tokens: int) -> list[list[int]]:
        """The token ids of each text: all, or of a very long text more than ``num_tokens``."""
        limit = CHARS_PER_TOKEN * (num_tokens + MARGIN_TOKENS)
        whole = iter(self._encode([text for text in texts if len(text) <= limit]))
        return [
            next(whole) if len(text) <= limit else self._encode_head(text, num_tokens, limit)
            for text in texts
        ]

    def decode(self, token_ids: Sequence[int], *, with_special: bool = False) -> str:
        """The text of token ids, without special tokens unless these are asked for."""
        return str(
            self._tokenizer.decode(
                token_ids, skip_special_tokens=not with_special, clean_up_tokenization_spaces=False
            )
        )

    def _encode_head(self, text: str, num_tokens: int, limit: int) -> list[int]:
        """The first tokens of a long text, from a part of it.

        Tokens that do not depend on where the text is cut are those of the whole text.
        """
        wanted = num_tokens + 1
        while limit < len(text):
            cut, shorter = self._encode([text[:limit], text[: limit - 1]])
            if len(shorter) >= wanted + MARGIN_TOKENS and cut[:wanted] == shorter[:wanted]:
                return cut
            limit *= 8
        return self._encode([text])[0]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        if self._control:
            encoded = self._control.encode(texts)
        else:
            encoded = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [self._prefix + ids for ids in encoded]


def _special_prefix(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text: its BOS, or nothing."""
    plain = tokenizer.encode("a", add_special_tokens=False)
    full = tokenizer.encode("a")
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return list(full[:start])
    raise UserError(
        "model.path: this tokenizer changes a text's tokens when it adds special ones; use another "
        "model"
    )
