"""``cherry-vllm generate``: a model answers a test set."""

import logging
from dataclasses import asdict
from pathlib import Path

from cherry_vllm.commands import summary
from cherry_vllm.commands.inputs import find_prompt, find_used_model, model_use
from cherry_vllm.commands.job import Job, Outcome, find_output
from cherry_vllm.config import Config
from cherry_vllm.engines import Decoding
from cherry_vllm.errors import UserError
from cherry_vllm.evaluation import generation, testsets
from cherry_vllm.evaluation.testsets import QuestionColumns
from cherry_vllm.runtime.text import printable
from cherry_vllm.schema import DropReason
from cherry_vllm.store.locks import exclusive
from cherry_vllm.store.marks import check_replaceable
from cherry_vllm.store.run_folder import is_reserved

log = logging.getLogger(__name__)


def generate(config: Config, job: Job) -> Outcome:
    """Has a model answer a test set and prints the counts."""
    file, decoding = _find_testset(config), _decoding(config)
    checkpoint, run_dir = (
        find_used_model(config, num_tokens=config.max_length),
        Path(config.run_dir),
    )
    prompt = find_prompt(config, checkpoint)
    output = find_output(job, "generate.output", config.generate.output)
    if output.resolve() == file.resolve():
        raise UserError(f"generate.output={output}: is testset.path; choose another output")
    if any(is_reserved(output, folder) for folder in (run_dir, job.output_dir)):
        raise UserError(
            f"generate.output={output}: a name that the run keeps for its own files; choose another"
        )
    check_replaceable(output, generation.COMMAND)
    with exclusive(run_dir):
        questions = testsets.read(
            run_dir,
            file,
            name=config.testset.name,
            columns=QuestionColumns(**asdict(config.testset.columns)),
            shard_questions=config.generate.shard_questions,
        )
        answers = generation.answer(
            run_dir,
            questions,
            checkpoint,
            model_use(config, prompt),
            decoding=decoding,
            seed=config.seed,
        )
        counts = generation.write_answers(output, questions, answers, may_replace=not job.is_sweep)
    print(summary.describe("generate", counts))
    print(printable(f"answers: {output}"))
    num_too_long = counts["dropped"].get(DropReason.PROMPT_TOO_LONG)
    if num_too_long:
        log.warning(
            "max_length=%d: the prompts of %d of %d questions fill it, so they have no answer; "
            "raise it for all models",
            config.max_length,
            num_too_long,
            counts["questions"],
        )
    return Outcome(output, counts)


def _find_testset(config: Config) -> Path:
    if not config.testset.path:
        raise UserError("testset.path: not given; add testset.path=... (a file of questions)")
    return Path(config.testset.path)


def _decoding(config: Config) -> Decoding:
    settings = config.generate
    return Decoding(settings.temperature, settings.top_p, settings.top_k, settings.max_new_tokens)
