"""Columns and drop reasons: what each stage adds to a row, and why a row is dropped."""

from enum import StrEnum

import polars as pl

SCHEMA_VERSION = 4  # part of every fingerprint: raise it when a file's meaning changes


class DropReason(StrEnum):
    """Why a row is not usable: the first reason that was met, from reading to scoring."""

    MALFORMED = "malformed"  # not a record, a field missing or of the wrong type, not valid text
    BROKEN_TURNS = "broken_turns"  # an assistant turn first, or two in a row
    NO_SCORED_TURN = "no_scored_turn"  # a conversation without an answer, or all are masked
    EMPTY_ANSWER = "empty_answer"  # null, blank, or no token of its own after the prompt
    REFUSAL = "refusal"  # the answer holds a phrase of refusals.phrases
    TEMPLATE_REFUSED = "template_refused"  # the prompt has no place for such a conversation
    PROMPT_TOO_LONG = "prompt_too_long"  # the prompt alone fills max_length
    OUT_OF_VOCABULARY = "out_of_vocabulary"  # the tokenizer made an id the model does not have
    PROMPT_TOO_SHORT = "prompt_too_short"  # no token
    ENGINE_FAILED = "engine_failed"  # the engine died twice on this row alone
    NON_FINITE = "non_finite"  # a log-probability or the IFD is not a finite number
    IFD_ABOVE_ONE = "ifd_above_one"  # scored; the instruction does not help (paper, section 2.3)


Schema = dict[str, pl.DataType | type[pl.DataType]]
REASON = pl.Enum([reason.value for reason in DropReason])

# A message of a conversation; see conversation.Message.
MESSAGE = pl.Struct(
    {
        "role": pl.String,
        "content": pl.String,
        "input": pl.String,
        "is_answer": pl.Boolean,
        "extra": pl.String,
    }
)

# One line per input row, written by the reading stage.
ROWS: Schema = {
    "row": pl.Int64,  # 0-based position in the input, over all its files
    "record": pl.String,  # the input row as JSON, every original field
    "messages": pl.List(MESSAGE),  # null if the row is dropped as malformed
    "tools": pl.String,  # as JSON; null where there are none
    "drop_reason": REASON,
}

# One line per input row, written by the embedding stage. After "row" comes "embedding", an array of
# Float32 as wide as the model's hidden states.
EMBEDDINGS: Schema = {
    "row": pl.Int64,
    "num_prompt_tokens": pl.UInt32,
    "perplexity": pl.Float64,  # of the prompt; null for a single token, or if it is not finite
    "drop_reason": REASON,
}

# One line per input row, written by the scoring stage.
LOGPROBS: Schema = {
    "row": pl.Int64,
    # Of each scored turn, the log-prob of each answer token ...
    "conditioned_logprobs": pl.List(pl.List(pl.Float32)),  # ... given all that precedes it
    "direct_logprobs": pl.List(pl.List(pl.Float32)),  # ... given the marker
    "truncated": pl.Boolean,  # answers were cut at max_length, or left out
    "drop_reason": REASON,
}

PASSES = ("conditioned_logprobs", "direct_logprobs")  # the columns of the two passes

# Only what the scores need: the scoring stage writes this if score.keep_logprobs=false.
SUMS: Schema = {
    "row": pl.Int64,
    # Of each scored turn:
    "num_answer_tokens": pl.List(pl.UInt32),
    "conditioned_sum": pl.List(pl.Float64),  # of their log-probs, given all that precedes them
    "num_direct_tokens": pl.List(pl.UInt32),  # differs if an answer merges with what precedes it
    "direct_sum": pl.List(pl.Float64),  # of their log-probs, given the marker
    "num_helped_tokens": pl.UInt32,  # of all turns: likelier given what precedes them; may be null
    "truncated": pl.Boolean,
    "drop_reason": REASON,
}

# One line per input row: scores.parquet.
SCORES: Schema = {
    "row": pl.Int64,
    "num_turns": pl.UInt32,  # that are scored
    "num_answer_tokens": pl.UInt32,  # of all scored turns
    "conditioned_score": pl.Float64,  # s(A|Q), nats per token
    "direct_score": pl.Float64,  # s(A), nats per token
    "ifd": pl.Float64,  # s(A|Q) / s(A)
    "turn_ifd": pl.List(pl.Float64),  # of each scored turn; null where it is not a finite number
    "ifd_ppl": pl.Float64,  # exp(s(A|Q)) / exp(s(A))
    # See scoring.gains; null where a row has no gains:
    "share_helped": pl.Float64,  # of the answer tokens, those that the instruction makes likelier
    "nats_saved": pl.Float64,  # by the instruction, in all
    "s_ifd": pl.Float64,  # of the tokens that the instruction changes most
    "truncated": pl.Boolean,
    "drop_reason": REASON,
}
GAINS = ("share_helped", "nats_saved", "s_ifd")  # earlier runs have scores without these columns
