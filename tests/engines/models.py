"""Small random models of several architectures, spans for them, and what the log-probs must be."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from cherry_vllm.engines import Embedded, Span

VOCABULARY = 300
MAX_LENGTH = 200
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "initializer_range": 0.2,
}
HEAD_32 = {"head_dim": 32}
GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 256}
# What is special about each: tied or untied heads, biases, normed queries, capped or scaled logits,
# sliding windows, learned positions.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Qwen2": SMALL | {"tie_word_embeddings": True},
    "Qwen3": SMALL | HEAD_32,
    "Gemma2": SMALL
    | HEAD_32
    | {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 1.0, "sliding_window": 32},
    "Gemma3Text": SMALL | HEAD_32 | {"sliding_window": 32},
    "Granite": SMALL | {"logits_scaling": 4.0},
    "GPT2": GPT2 | {name: SMALL[name] for name in ("vocab_size", "bos_token_id", "eos_token_id")},
    "Llama": SMALL,
}


def make_checkpoint(architecture: str, folder: Path) -> Path:
    """A small random model; large weights, so that its predictions are far from even."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**ARCHITECTURES[architecture])
    auto: Any = transformers.AutoModelForCausalLM
    auto.from_config(config).save_pretrained(folder)
    return folder


def make_spans() -> list[Span]:
    """Spans of all sorts: long, short, with a common prefix, the same twice, longer by a bit."""
    generator = np.random.default_rng(0)

    def tokens(count: int) -> list[int]:
        return [int(token) for token in generator.integers(3, VOCABULARY, count)]

    prefix, question = tokens(70), tokens(100)
    spans = [
        Span.from_start(tokens(length), start)
        for length, start in [(2, 1), (9, 8), (200, 1), (200, 199)]
    ]
    spans += [Span.from_start(prefix + tokens(30), start) for start in (70, 80, 40, 99)]
    spans += [
        Span.from_start(question + prefix, 100)
    ] * 2  # in the cache to the end, the second time
    spans += [Span.from_start(question + prefix, start) for start in (130, 1)]
    # Several answers: side by side, of one token, over the ends of blocks and of steps.
    spans.append(Span(prefix + tokens(60), ((1, 2), (20, 33), (33, 34), (47, 97), (128, 130))))
    spans.append(Span(prefix + tokens(20), ((72, 75), (80, 90))))
    return spans + [
        Span.from_start(tokens(length), length // 2) for length in (48, 49, 96, 33, 32, 31)
    ]


def load(checkpoint: Path) -> Any:
    """The model, in fp32, to compare with."""
    auto: Any = transformers.AutoModelForCausalLM
    return auto.from_pretrained(
        checkpoint,
        dtype=torch.float32,
        attn_implementation="eager",  # others leave the cap of Gemma 2 out
    ).eval()


def expected_logprobs(model: Any, spans: list[Span]) -> list[NDArray[np.float32]]:
    """By a plain forward pass of a model or checkpoint, one span at a time."""
    model = load(model) if isinstance(model, Path) else model
    results = []
    for span in spans:
        with torch.no_grad():
            logits = model(torch.tensor([span.token_ids])).logits[0]
        results.append(pick(span, logits.log_softmax(-1)))
    return results


def pick(span: Span, logprobs: Any) -> NDArray[np.float32]:
    """The log-probs of a span's answer tokens, from those of all tokens at all places."""
    places = [place for start, stop in span.ranges for place in range(start, stop)]
    return np.array([logprobs[place - 1, span.token_ids[place]] for place in places], np.float32)


def assert_close(spans: list[Span], found: Any, expected: Any) -> None:
    for span, left, right in zip(spans, found, expected, strict=True):
        assert left.shape == (span.num_answer_tokens,)
        np.testing.assert_allclose(left, right, atol=2e-4)


def assert_plain_pass(checkpoint: Path, prompts: list[list[int]], found: Embedded) -> None:
    """Checks the mean hidden states and the log-probs of prompts."""
    model = load(checkpoint)
    for prompt, embedding in zip(prompts, found.embeddings, strict=True):
        with torch.no_grad():
            states = model(torch.tensor([prompt]), output_hidden_states=True).hidden_states[-1][0]
        np.testing.assert_allclose(embedding, states.mean(0), atol=1e-4)
    spans = [Span.from_start(prompt, 1) for prompt in prompts if len(prompt) > 1]
    expected = iter(expected_logprobs(model, spans))
    for prompt, logprobs in zip(prompts, found.logprobs, strict=True):
        assert logprobs.shape == (len(prompt) - 1,)
        if len(prompt) > 1:
            np.testing.assert_allclose(logprobs, next(expected), atol=2e-4)


REMOTE = """
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput


class OwnConfig(PretrainedConfig):
    model_type = "own"


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, use_cache=None):
        return CausalLMOutput(logits=self.head(self.embedding(input_ids).cumsum(1).tanh()))
"""


def make_remote(folder: Path) -> Path:
    """A model with code of its own, whose forward pass knows no ``logits_to_keep``."""
    (folder / "own.py").write_text(REMOTE)
    config = {
        "architectures": ["OwnModel"],
        "model_type": "own",
        "dtype": "float32",
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    tensors = {"embedding.weight": torch.randn(VOCABULARY, 16)}
    tensors["head.weight"] = torch.randn(VOCABULARY, 16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def make_multimodal(folder: Path) -> Path:
    """A model of texts and images."""
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    torch.manual_seed(0)
    config = transformers.Gemma3Config(
        text_config=ARCHITECTURES["Gemma3Text"],
        vision_config=vision,
        mm_tokens_per_image=4,
        image_token_index=VOCABULARY - 1,
        boi_token_index=VOCABULARY - 2,
        eoi_token_index=VOCABULARY - 3,
    )
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def quantize(folder: Path, kind: str) -> Path:
    """Packs the layers of a model as ``compressed-tensors`` does: "int8", "fp8" or "int4"."""
    whole: dict[str, Any] = {"type": "float" if kind == "fp8" else "int", "symmetric": True}
    weights = whole | {"num_bits": 8, "strategy": "channel", "dynamic": False}
    activations: Any = whole | {"num_bits": 8, "strategy": "token", "dynamic": True}
    if kind == "int4":
        weights |= {"num_bits": 4, "strategy": "group", "group_size": 32}
        activations = None
    form = {"int8": "int-quantized", "fp8": "float-quantized", "int4": "pack-quantized"}[kind]
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        tensors |= _packed(name, tensors.pop(name), kind)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _packed(name: str, weight: torch.Tensor, kind: str) -> dict[str, torch.Tensor]:
    rows = weight.reshape(len(weight), -1, 32) if kind == "int4" else weight
    # Of int8 only 7 bits, whose products no CPU overflows.
    largest = {"int8": 63, "fp8": 448, "int4": 7}[kind]
    scale = rows.abs().amax(-1, keepdim=True) / largest
    exact = rows / scale
    if kind == "fp8":
        return {name: exact.to(torch.float8_e4m3fn), f"{name}_scale": scale}
    rounded = exact.round().to(torch.int8)
    if kind == "int8":
        return {name: rounded, f"{name}_scale": scale}
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    return {
        f"{name}_packed": pack_to_int32(rounded.reshape(weight.shape), 4),
        f"{name}_scale": scale[..., 0].contiguous(),
        f"{name}_shape": torch.tensor(weight.shape),
    }
