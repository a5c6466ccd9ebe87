"""Rounds a tuned model to bf16 so that it keeps what it learned.

A fine-tuning step moves a weight by less than half a bf16 step, and a released checkpoint often
lies on the bf16 grid: rounding to nearest undoes most of the training. Rounding up or down at
random, in proportion to the distance, keeps every weight's expectation and so the model's gain.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cherry_vllm.store.files import read_json, write_json


def export_bfloat16(model: Path, target: Path, *, seed: int) -> None:
    """Writes a copy of the checkpoint ``model``, stochastically rounded to bf16, to ``target``.

    Files are converted one at a time. The same seed gives the same bits.
    """
    from safetensors.torch import load_file, save_file

    scratch = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(model, scratch, ignore=shutil.ignore_patterns("*.safetensors"))
    generator = torch.Generator().manual_seed(seed)
    for file in sorted(model.glob("*.safetensors")):
        tensors = load_file(file)
        rounded = {name: round_stochastically(tensors[name], generator) for name in tensors}
        save_file(rounded, scratch / file.name, metadata={"format": "pt"})
    write_json(scratch / "config.json", _declare_bfloat16(read_json(model / "config.json")))
    shutil.rmtree(target, ignore_errors=True)
    os.replace(scratch, target)


def round_stochastically(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """A float tensor in bf16, each value rounded to one of its two neighbours.

    The upper one is taken with probability (value - lower) / (upper - lower). Values that bf16 can
    hold, and tensors of other types, do not change.
    """
    if not tensor.is_floating_point():
        return tensor
    # bf16 is the upper half of fp32: a random number added to the lower half carries over into the
    # upper half with the right probability.
    bits = tensor.float().contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32, generator=generator)
    return ((bits + noise) & ~0xFFFF).view(torch.float32).to(torch.bfloat16)


def _declare_bfloat16(config: dict[str, Any]) -> dict[str, Any]:
    """A model's configuration with bf16 as its dtype and as that of the models inside it."""
    inner = {
        key: _declare_bfloat16(value)
        for key, value in config.items()
        if isinstance(value, dict) and {"dtype", "torch_dtype"} & value.keys()
    }
    declared = {key: value for key, value in config.items() if key != "torch_dtype"}
    return declared | inner | {"dtype": "bfloat16"}
