import json
from pathlib import Path

import pytest

from cherry_vllm.engines import Span
from cherry_vllm.engines.checkpoint import read_checkpoint
from cherry_vllm.prompts.spans import open_span_builder
from cherry_vllm.training.examples import build_training_set
from tests.conftest import ROWS
from tests.training.support import MAX_LENGTH, PROMPT, RECIPE, Tuned, frame_of, tune


@pytest.fixture(scope="session")
def examples(tiny: Path) -> list[Span]:
    """Examples of the shipped rows under a short prompt."""
    records = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    records = [record for record in records if isinstance(record.get("output"), str)]
    builder = open_span_builder(
        read_checkpoint(tiny), prompt=PROMPT, max_length=MAX_LENGTH, trust_remote_code=False
    )
    rows = frame_of(records)
    training_set = build_training_set(rows, builder, eos_token_id=2, max_length=MAX_LENGTH)
    return list(training_set.examples)


@pytest.fixture(scope="session")
def tuned(tiny: Path, examples: list[Span], tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """The tiny model, trained by :data:`RECIPE`."""
    return tune(tiny, examples, tmp_path_factory.mktemp("tuned"), RECIPE)


@pytest.fixture(scope="session")
def multimodal(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of text and images, in bf16, with the tiny model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, Gemma3Config, Gemma3ForConditionalGeneration

    folder = tmp_path_factory.mktemp("multimodal") / "multimodal"
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    text = {
        "model_type": "gemma3_text",
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "sliding_window": 64,
        "dtype": "bfloat16",
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "dtype": "bfloat16",
    }
    config = Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=1000,
        boi_token_index=1001,
        eoi_token_index=1002,
    )
    torch.manual_seed(0)
    Gemma3ForConditionalGeneration(config).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
