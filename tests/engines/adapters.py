"""LoRA adapters of small models, as peft saves them."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from cherry_vllm.engines.weights import ADAPTER, ADAPTER_WEIGHTS

__all__ = ["ADAPTER", "ADAPTER_WEIGHTS", "logits_of", "make_adapter"]


def make_adapter(folder: Path, base: Path, **settings: Any) -> torch.Tensor:
    """Saves a random adapter of ``base``; returns the logits of the base with it."""
    from peft import LoraConfig, get_peft_model

    auto: Any = AutoModelForCausalLM
    model = auto.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **settings}
    )
    torch.manual_seed(3)
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad and "lora_A" not in name:
                parameter.add_(torch.randn_like(parameter) / 5)
    adapted.save_pretrained(folder)
    return logits_of(adapted.eval())


def logits_of(model: Any) -> torch.Tensor:
    """The logits after some tokens."""
    if isinstance(model, Path):
        auto: Any = AutoModelForCausalLM
        model = auto.from_pretrained(model, dtype=torch.float32).eval()
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=torch.arange(3, 60)[None]).logits[0])
