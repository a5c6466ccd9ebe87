"""Embeddings and perplexities of prompts that are too short, too long, or make no number."""

from typing import Any

import numpy as np
import polars as pl

from cherry_vllm.conversation import Conversation, frame_messages, single_turn
from cherry_vllm.engines import Embedded
from cherry_vllm.experience.embeddings import embed_shard
from cherry_vllm.schema import EMBEDDINGS, REASON, DropReason


class Builder:
    """Makes as many tokens as an instruction has letters."""

    def encode_prompts(self, conversations: list[Conversation]) -> list[Any]:
        texts = [conversation.messages[0].content for conversation in conversations]
        return [DropReason.PROMPT_TOO_LONG if len(text) > 5 else [7] * len(text) for text in texts]


def rows(*instructions: str) -> pl.DataFrame:
    messages = frame_messages([single_turn(text, "", "x").messages for text in instructions])
    columns = {"row": range(len(instructions)), "messages": messages, "tools": None}
    return pl.DataFrame(columns).with_columns(drop_reason=pl.lit(None, REASON))


def embed(prompts: list[list[int]], _on_embedded: Any) -> Embedded:
    lengths = [len(prompt) for prompt in prompts]
    vectors = np.array([[length] * 2 for length in lengths], np.float32).reshape(-1, 2)
    vectors[vectors == 3] = np.nan
    logprobs = [np.full(length - 1, -1e9 if length == 4 else -1, np.float32) for length in lengths]
    return Embedded(vectors, logprobs)


def test_a_prompt_of_one_token_is_embedded_and_has_no_perplexity() -> None:
    shard = rows("a", "ab", "abc", "abcd", "too long")
    found = embed_shard(shard, len, builder=Builder(), model=embed)  # type: ignore[arg-type]
    assert found.columns[:1] + found.columns[2:] == list(EMBEDDINGS)
    assert found["embedding"].to_list() == [[1, 1], [2, 2], None, [4, 4], None]
    assert found["drop_reason"].to_list() == [None, None, "non_finite", None, "prompt_too_long"]
    assert found["num_prompt_tokens"].to_list() == [1, 2, 3, 4, None]
    # Of the first there is none, and that of the fourth is not a finite number.
    assert found["perplexity"].is_null().to_list() == [True, False, False, True, True]
    assert found["perplexity"][1] == np.exp(1)


def test_a_shard_without_a_usable_row_has_all_columns() -> None:
    found = embed_shard(rows("too long"), len, builder=Builder(), model=embed)  # type: ignore[arg-type]
    assert found["drop_reason"].to_list() == ["prompt_too_long"]
    assert found.columns[:1] + found.columns[2:] == list(EMBEDDINGS)
