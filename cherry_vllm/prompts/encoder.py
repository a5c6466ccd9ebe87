"""Texts to token ids; of a text that is far too long, only the first."""

from collections.abc import Sequence
from typing import Any

from cherry_vllm.errors import UserError

CHARS_PER_TOKEN = 64  # a text longer than this for each token wanted is cut before it is encoded
MARGIN_TOKENS = 64  # so close to a cut, tokens may not be those of the whole text


class Encoder:
    """A tokenizer that puts its BOS before a text, if it has one, and no EOS behind it."""

    def __init__(self, tokenizer: Any, *, adds_special_tokens: bool) -> None:
        """Without ``adds_special_tokens``, texts hold their special tokens already."""
        self._tokenizer = tokenizer
        self._prefix = _special_prefix(tokenizer) if adds_special_tokens else []

    def encode(self, texts: Sequence[str], num_tokens: int) -> list[list[int]]:
        """All token ids of each text, or more than the first ``num_tokens`` of a longer one."""
        limit = CHARS_PER_TOKEN * (num_tokens + MARGIN_TOKENS)
        whole = iter(self._encode([text for text in texts if len(text) <= limit]))
        return [
            next(whole) if len(text) <= limit else self._encode_head(text, num_tokens, limit)
            for text in texts
        ]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        return str(
            self._tokenizer.decode(
                token_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def _encode_head(self, text: str, num_tokens: int, limit: int) -> list[int]:
        """Tokens that do not depend on where the text is cut are those of the whole text."""
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
        encoded = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return [self._prefix + ids for ids in encoded]


def _special_prefix(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text (its BOS, or nothing); what it puts after is left."""
    plain = tokenizer.encode("a", add_special_tokens=False)
    full = tokenizer.encode("a")
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return list(full[:start])
    raise UserError("model.path: this tokenizer changes a text's tokens when it adds special ones")
