"""Columns and drop reasons: what each stage adds to a row, and why a row is dropped."""

from enum import StrEnum

import polars as pl

SCHEMA_VERSION = 3  # part of every fingerprint: raise it when a file's meaning changes


class DropReason(StrEnum):
    """Why a row is not usable: the first reason that was met, from reading to scoring."""

    MALFORMED = "malformed"  # not a record, a field missing or of the wrong type, not valid text
    EMPTY_ANSWER = "empty_answer"  # null, blank, or no token of its own after the prompt
    REFUSAL = "refusal"  # the answer holds a phrase of refusals.phrases
    PROMPT_TOO_LONG = "prompt_too_long"  # the prompt alone fills max_length
    OUT_OF_VOCABULARY = "out_of_vocabulary"  # the tokenizer made an id the model does not have
    PROMPT_TOO_SHORT = "prompt_too_short"  # a single token has no perplexity; the row is embedded
    ENGINE_FAILED = "engine_failed"  # the engine died twice on this row alone
    NON_FINITE = "non_finite"  # a log-probability or the IFD is not a finite number
    IFD_ABOVE_ONE = "ifd_above_one"  # scored; the instruction does not help (paper, section 2.3)


Schema = dict[str, pl.DataType | type[pl.DataType]]
REASON = pl.Enum([reason.value for reason in DropReason])

# One line per input row, written by the reading stage.
ROWS: Schema = {
    "row": pl.Int64,  # 0-based position in the input, over all its files
    "record": pl.String,  # the input row as JSON, every original field
    "instruction": pl.String,
    "input": pl.String,  # "" where there is none
    "answer": pl.String,
    "drop_reason": REASON,
}

# One line per input row, written by the embedding stage. Between these two comes "embedding", an
# array of Float32 as wide as the model's hidden states.
EMBEDDINGS: Schema = {"row": pl.Int64, "drop_reason": REASON}

# One line per input row, written by the perplexity stage.
PERPLEXITIES: Schema = {
    "row": pl.Int64,
    "num_prompt_tokens": pl.UInt32,
    "perplexity": pl.Float64,  # of the prompt under the base model
    "drop_reason": REASON,
}

# One line per input row, written by the scoring stage.
LOGPROBS: Schema = {
    "row": pl.Int64,
    "conditioned_logprobs": pl.List(pl.Float32),  # of each answer token, given the prompt
    "direct_logprobs": pl.List(pl.Float32),  # of each answer token, given the marker
    "truncated": pl.Boolean,  # the answer was cut at max_length
    "drop_reason": REASON,
}

# Only what the scores need: the scoring stage writes this if score.keep_logprobs=false.
SUMS: Schema = {
    "row": pl.Int64,
    "num_answer_tokens": pl.UInt32,
    "conditioned_sum": pl.Float64,  # of these tokens' log-probs, given the prompt
    "num_direct_tokens": pl.UInt32,  # differs if the answer's start merges with the text before it
    "direct_sum": pl.Float64,  # of these tokens' log-probs, given the marker
    "truncated": pl.Boolean,
    "drop_reason": REASON,
}

# One line per input row: scores.parquet.
SCORES: Schema = {
    "row": pl.Int64,
    "num_answer_tokens": pl.UInt32,
    "conditioned_score": pl.Float64,  # s(A|Q), nats per token
    "direct_score": pl.Float64,  # s(A), nats per token
    "ifd": pl.Float64,  # s(A|Q) / s(A)
    "ifd_ppl": pl.Float64,  # exp(s(A|Q)) / exp(s(A))
    "truncated": pl.Boolean,
    "drop_reason": REASON,
}
