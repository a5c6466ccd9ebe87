"""Generators: where an answer ends, and that batching does not change it."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from cherry_vllm.engines import Decoding, build_generator, until_stop
from cherry_vllm.engines.checkpoint import read_checkpoint, read_stop_ids
from cherry_vllm.engines.settings import HfSettings


def test_an_answer_ends_before_its_first_stop_token_or_at_the_limit() -> None:
    assert until_stop([5, 6, 2, 7], 9, [2, 3]) == ([5, 6], True)
    assert until_stop([5, 6, 2, 7], 2, [2, 3]) == ([5, 6], False)
    assert until_stop([2], 9, [2]) == ([], True)
    assert Decoding(0, 1, 0, None).limit([1, 2, 3], 8) == 5
    assert Decoding(0, 1, 0, 4).limit([1, 2, 3], 8) == 4


def test_stop_tokens_are_all_that_the_checkpoint_names(tiny: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    assert read_stop_ids(tiny, tokenizer, trust_remote_code=False) == [tokenizer.eos_token_id]
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((tiny / name).read_bytes())
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 2, 999999]}')
    tokenizer.eos_token = "<repo_name>"
    found = read_stop_ids(tmp_path, tokenizer, trust_remote_code=False)
    assert found == sorted({0, 2, tokenizer.eos_token_id})


@pytest.mark.checkpoint
@pytest.mark.engine
def test_batching_changes_no_greedy_answer(checkpoint: Path) -> None:
    prompts = [[504, 2967, 282], [5000], [1, 4093, 198, 1780, 314, 260], [28, 354]]
    answers = []
    for batch_tokens in (1, 1024):
        generator = build_generator(
            HfSettings(name="hf", dtype="float32", device="cpu", batch_tokens=batch_tokens),
            read_checkpoint(checkpoint),
            max_length=14,
            trust_remote_code=False,
            decoding=Decoding(0, 1, 0, None),
            stop_ids=[2],
        )
        answers.append(generator.generate(prompts, lambda _count: None, seed=0))
    assert answers[0] == answers[1]
    assert [len(answer.token_ids) for answer in answers[0] if not answer.is_whole]
