"""Embeddings and perplexities of prompts that are too short, too long, or make no number."""

from typing import Any

import numpy as np
import polars as pl

from cherry_vllm.conversation import Conversation, frame_messages, single_turn
from cherry_vllm.experience.embeddings import embed_shard, measure_shard
from cherry_vllm.schema import REASON, DropReason


class Builder:
    """Makes as many tokens as an instruction has letters."""

    def encode_prompts(self, conversations: list[Conversation]) -> list[Any]:
        texts = [conversation.messages[0].content for conversation in conversations]
        return [DropReason.PROMPT_TOO_LONG if len(text) > 5 else [7] * len(text) for text in texts]


def rows(*instructions: str) -> pl.DataFrame:
    messages = frame_messages([single_turn(text, "", "x").messages for text in instructions])
    columns = {"row": range(len(instructions)), "messages": messages, "tools": None}
    return pl.DataFrame(columns).with_columns(drop_reason=pl.lit(None, REASON))


def embed(prompts: list[list[int]], _on_embedded: Any) -> Any:
    return np.array([[len(prompt)] * 2 for prompt in prompts], np.float32).reshape(-1, 2)


def logprobs(spans: Any, _on_scored: Any) -> Any:
    assert all(span.num_answer_tokens for span in spans)
    return [np.full(span.num_answer_tokens, -1, np.float32) for span in spans]


def test_a_prompt_of_one_token_is_embedded_and_has_no_perplexity() -> None:
    shard, builder = rows("a", "ab", "too long"), Builder()
    embedded = embed_shard(shard, len, builder=builder, model=embed)  # type: ignore[arg-type]
    assert embedded["embedding"].to_list() == [[1, 1], [2, 2], None]
    assert embedded["drop_reason"].to_list() == [None, None, "prompt_too_long"]
    measured = measure_shard(shard, len, builder=builder, model=logprobs)  # type: ignore[arg-type]
    assert measured["drop_reason"].to_list() == ["prompt_too_short", None, "prompt_too_long"]
    assert measured["perplexity"].is_null().to_list() == [True, False, True]


def test_a_shard_of_nothing_but_single_tokens_is_measured() -> None:
    measured = measure_shard(rows("a"), len, builder=Builder(), model=logprobs)  # type: ignore[arg-type]
    assert measured["drop_reason"].to_list() == ["prompt_too_short"]
