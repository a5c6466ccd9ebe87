"""Questions to answers: a model answers a test set, with the prompt that it was trained with.

run_dir/questions/FINGERPRINT/   the test set, in shards
run_dir/answers/FINGERPRINT/     answers, shard for shard
.../answers.jsonl                what ``judge`` reads, with answers.jsonl.meta.json beside it
"""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm.conversation import USER, Conversation, Message
from cherry_vllm.engines import Continuation, Decoding, Generator, build_generator
from cherry_vllm.engines.checkpoint import Checkpoint, load_tokenizer, read_stop_ids
from cherry_vllm.engines.settings import EngineSettings
from cherry_vllm.errors import UserError
from cherry_vllm.prompts.spans import SpanBuilder
from cherry_vllm.schema import REASON, DropReason, Schema
from cherry_vllm.store.marks import MADE_BY, marked_file, read_mark
from cherry_vllm.store.run_folder import Folder
from cherry_vllm.store.shards import Shards
from cherry_vllm.workers.run import ModelRun, ModelUse

log = logging.getLogger(__name__)

COMMAND = "generate"

# One line per question, written by the answering stage.
ANSWERS: Schema = {
    "row": pl.Int64,
    "answer": pl.String,  # empty if the model said nothing
    "num_answer_tokens": pl.UInt32,  # without the stop token
    "truncated": pl.Boolean,  # the answer was cut at the limit
    "drop_reason": REASON,  # why there is no answer
}


def answer(
    run_dir: Path,
    questions: Shards,
    checkpoint: Checkpoint,
    use: ModelUse,
    *,
    decoding: Decoding,
    seed: int,
) -> Shards:
    """Shards of questions to shards of :data:`ANSWERS`.

    An answer ends at a token that the checkpoint calls end of text, after
    ``decoding.max_new_tokens``, or where prompt and answer fill ``max_length``.

    Raises:
        UserError: the model cannot be used, or cannot take ``max_length`` tokens.
    """
    drawn = {"seed": seed} if decoding.temperature else {}
    parameters = {**asdict(decoding), **drawn}
    model_run = ModelRun(run_dir / Folder.ANSWERS, questions, checkpoint, use, decoding=parameters)
    return model_run.run(
        "answering",
        partial(_open_generator, decoding=decoding),
        "generate",
        partial(answer_shard, seed=seed),
        done="answered",
    )


def _open_generator(
    settings: EngineSettings,
    checkpoint: Checkpoint,
    *,
    max_length: int,
    trust_remote_code: bool,
    decoding: Decoding,
) -> Generator:
    tokenizer = load_tokenizer(checkpoint.folder, trust_remote_code=trust_remote_code)
    stop_ids = read_stop_ids(checkpoint.folder, tokenizer, trust_remote_code=trust_remote_code)
    return build_generator(
        settings,
        checkpoint,
        max_length=max_length,
        trust_remote_code=trust_remote_code,
        decoding=decoding,
        stop_ids=stop_ids,
    )


def answer_shard(
    questions: pl.DataFrame,
    on_answered: Callable[[int], None],
    *,
    builder: SpanBuilder,
    model: Callable[..., list[Continuation]],
    seed: int,
) -> pl.DataFrame:
    """Answers one shard: a frame of :data:`testsets.QUESTIONS` to one of :data:`ANSWERS`.

    Spaces and line breaks around an answer are taken off. ``model`` is
    :meth:`engines.Generator.generate`.
    """
    asked = [
        Conversation((Message(USER, *texts),))
        for texts in questions.select("question", "input").iter_rows()
    ]
    encoded = [
        item if reason is None else DropReason(reason)
        for item, reason in zip(
            builder.encode_prompts(asked), questions["drop_reason"], strict=True
        )
    ]
    prompts = [item for item in encoded if isinstance(item, list)]
    first_row = int(questions["row"][0])
    written = iter(model(prompts, on_answered, seed=seed + first_row))
    lines: list[tuple[Any, ...]] = []
    for row, item in zip(questions["row"], encoded, strict=True):
        if isinstance(item, list):
            token_ids, is_whole = next(written)
            text = builder.decode(token_ids).strip()
            lines.append((row, text, len(token_ids), not is_whole, None))
        else:
            lines.append((row, None, None, None, item.value))
    return pl.DataFrame(lines, schema=ANSWERS, orient="row")


def write_answers(
    output: Path, questions: Shards, answers: Shards, *, may_replace: bool
) -> dict[str, Any]:
    """Writes one line of JSON per question, and a mark with the settings; returns the counts.

    A question without an answer has a null ``answer`` and a ``drop_reason``.

    Raises:
        UserError: ``output`` is a file that this function did not write, or holds answers of other
            settings and ``may_replace`` is False.
    """
    source, found = questions.scan().collect(), answers.scan().collect()
    if not source["row"].equals(found["row"]):
        raise RuntimeError(f"{answers.folder}: {found.height} lines for {source.height} questions")
    before = read_mark(output)
    if before and before.get("answers") != answers.fingerprint:
        if not may_replace:
            raise UserError(
                f"{output}: holds answers of other settings, which this sweep would replace; give "
                "each job a folder of its own, or delete it"
            )
        log.warning("%s: answers of other settings are replaced; their shards stay", output)
    both = pl.concat([source.drop("row", "drop_reason"), found.drop("row")], how="horizontal")
    counts = count_answers(both)
    facts = {MADE_BY: COMMAND, "answers": answers.fingerprint, "counts": counts, **answers.summary}
    with marked_file(output, facts) as path:
        lines = (json.dumps(line, ensure_ascii=False) for line in both.iter_rows(named=True))
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return counts


def count_answers(answers: pl.DataFrame) -> dict[str, Any]:
    """Counts of questions answered, by how the answer ended, and dropped, by reason."""
    dropped = answers["drop_reason"].drop_nulls().value_counts(sort=True)
    answered = answers.filter(pl.col("drop_reason").is_null())
    num_cut = int(answered["truncated"].sum())
    return {
        "questions": answers.height,
        "answered": {"ended": answered.height - num_cut, "cut at the limit": num_cut},
        "dropped": dict(dropped.iter_rows()),
        "empty answers": answered.filter(pl.col("answer") == "").height,
        "answer tokens": int(answered["num_answer_tokens"].sum()),
    }
