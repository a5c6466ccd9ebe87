"""Control tokens in the text of the data: found, and encoded as the text that they are."""

import copy
from collections.abc import Sequence
from typing import Any

from cherry_vllm.conversation import Conversation
from cherry_vllm.errors import UserError

# Unicode reserves these characters for a program's own use; no text that is exchanged has them.
HIDDEN, ALIAS, END = "\ufdd0", "\ufdd1", "\ufdd2"


def control_tokens(tokenizer: Any) -> list[str]:
    """The texts that a tokenizer takes for tokens of its own, such as <|im_end|>, longest first."""
    added = tokenizer.added_tokens_decoder.values()
    names = {token.content for token in added if token.special} | {*tokenizer.all_special_tokens}
    return sorted(names, key=lambda name: (-len(name), name))


class ControlTokens:
    """Tells control tokens of the template from those in the data, which are encoded as text.

    What stands in the data is hidden before a template is rendered. Then each control token that
    is found is the template's, and gets an alias that only a copy of the tokenizer knows.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Takes the model's tokenizer.

        Raises:
            UserError: it is not one of the fast tokenizers, or knows no other way to encode a
                control token.
        """
        if not tokenizer.is_fast:
            raise UserError(
                "prompt.split_special_tokens=true: needs a fast tokenizer (tokenizer.json), which "
                "this model lacks"
            )
        from transformers import AddedToken

        self._names = control_tokens(tokenizer)
        self._tokenizer = copy.deepcopy(tokenizer)
        known = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
        self._tokenizer.add_tokens(
            [
                AddedToken(
                    f"{ALIAS}{number}{END}",
                    special=False,
                    normalized=known[name].normalized,
                    lstrip=known[name].lstrip,
                    rstrip=known[name].rstrip,
                    single_word=known[name].single_word,
                )
                for number, name in enumerate(self._names)
            ]
        )
        self._ids = {
            self._tokenizer.convert_tokens_to_ids(f"{ALIAS}{number}{END}"): own
            for number, own in enumerate(tokenizer.convert_tokens_to_ids(self._names))
        }
        for name, ids in zip(self._names, self.encode(self._names), strict=True):
            own = tokenizer.convert_tokens_to_ids(name)
            if own in ids and name != tokenizer.unk_token:
                raise UserError(
                    f"prompt.split_special_tokens=true: this tokenizer has no other way to encode "
                    f"{name}; leave it out"
                )

    def hide(self, conversation: Conversation) -> Conversation:
        """The conversation with its control tokens out of the template's sight."""
        messages = tuple(
            message._replace(
                content=self._hide(message.content),
                input=self._hide(message.input),
                extra=message.extra and self._hide(message.extra),
            )
            for message in conversation.messages
        )
        tools = conversation.tools and self._hide(conversation.tools)
        return Conversation(messages, tools)

    def reveal(self, rendered: str) -> str:
        """A rendered text, with aliases for the template's tokens and the data's as they were."""
        for number, name in enumerate(self._names):
            rendered = rendered.replace(name, f"{ALIAS}{number}{END}")
        for number, name in enumerate(self._names):
            rendered = rendered.replace(f"{HIDDEN}{number}{END}", name)
        return rendered

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of texts that :meth:`reveal` returned, or of the data's own."""
        encoded = self._tokenizer(
            list(texts), add_special_tokens=False, verbose=False, split_special_tokens=True
        )["input_ids"]
        return [[self._ids.get(token, token) for token in ids] for ids in encoded]

    def _hide(self, text: str) -> str:
        for number, name in enumerate(self._names):
            text = text.replace(name, f"{HIDDEN}{number}{END}")
        return text
