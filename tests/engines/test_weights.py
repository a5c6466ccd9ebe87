"""Weights that are missing, left over, doubled or packed: refused, or known to be harmless."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from cherry_vllm.engines.checkpoint import find_checkpoint
from cherry_vllm.engines.weights import check_weights
from cherry_vllm.errors import UserError
from tests.engines.models import make_checkpoint, quantize

DOWN = "model.layers.1.mlp.down_proj.weight"
NORM = "model.norm.weight"
Tensors = dict[str, torch.Tensor]
SMALL = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small random model, its tensors or configuration changed."""

    def write(
        change: Callable[[Tensors], Any] = lambda _: None,
        *,
        kind: str = "Llama",
        config: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Path:
        torch.manual_seed(0)
        made = getattr(transformers, f"{kind}Config")(**SMALL, **settings)
        auto: Any = transformers.AutoModelForCausalLM
        auto.from_config(made).save_pretrained(tmp_path)
        file = tmp_path / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})
        saved = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**saved, **(config or {})}))
        return tmp_path

    return write


def check(folder: Path) -> None:
    check_weights(folder, trust_remote_code=False)


def split(folder: Path, *, doubled: str | None = None) -> None:
    """Puts a model's tensors into two files and an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {name: f"model-{1 + i % 2:05}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(files.values())):
        part = {name: tensors[name] for name in names if files[name] == file or name == doubled}
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("kind", ["Llama", "Mixtral", "GPT2"])
@pytest.mark.parametrize("tie", [True, False])
def test_a_whole_model_is_taken(save: Callable[..., Path], kind: str, *, tie: bool) -> None:
    folder = save(kind=kind, tie_word_embeddings=tie)
    find_checkpoint(str(folder))
    check(folder)


def test_a_model_in_parts_is_taken(save: Callable[..., Path]) -> None:
    folder = save()
    split(folder)
    find_checkpoint(str(folder))
    check(folder)


def test_a_buffer_of_older_releases_is_harmless(save: Callable[..., Path]) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    check(save(lambda tensors: tensors.update({name: torch.zeros(4)})))


def drop(*names: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in names:
            del tensors[name]

    return change


def test_parameters_without_weights_are_named(save: Callable[..., Path]) -> None:
    folder = save(drop(DOWN, "lm_head.weight"))
    with pytest.raises(UserError, match=f"no weights for lm_head.weight, {DOWN}; fetch"):
        check(folder)


def test_the_list_of_missing_weights_is_short(save: Callable[..., Path]) -> None:
    folder = save(lambda tensors: tensors.clear() or tensors.update(a=torch.zeros(1)))
    with pytest.raises(UserError, match=r"no weights for \S+, \S+, \S+ and 18 more;"):
        check(folder)


def test_an_expert_without_weights_is_refused(save: Callable[..., Path]) -> None:
    folder = save(
        drop("model.layers.0.block_sparse_moe.experts.1.w1.weight"),
        kind="Mixtral",
        num_local_experts=4,
    )
    with pytest.raises(UserError, match="weights are missing or have another shape"):
        check(folder)


def test_weights_without_a_parameter_are_named(save: Callable[..., Path]) -> None:
    folder = save(lambda tensors: tensors.update({"base_model.lora_A": torch.zeros(2, 2)}))
    with pytest.raises(UserError, match=r"without a parameter in the model: base_model.lora_A"):
        check(folder)


def test_weights_of_another_shape_are_named(save: Callable[..., Path]) -> None:
    folder = save(config={"vocab_size": 61})
    with pytest.raises(UserError, match=r"another shape .*: lm_head.weight, model.embed_tokens"):
        check(folder)


def pack(tensors: Tensors) -> None:
    """As quantizers write: other names, other shapes, scales beside them."""
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        del tensors[name]
        for packed in ("qweight", "qzeros", "scales"):
            tensors[name.replace("weight", packed)] = torch.zeros(4, dtype=torch.int32)


GPTQ = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}
FP8 = {"quantization_config": {"quant_method": "fp8"}}


def test_a_quantized_model_is_taken(save: Callable[..., Path]) -> None:
    check(save(pack, config=GPTQ))
    scale = {DOWN.replace("weight", "weight_scale"): torch.zeros(1)}
    check(save(lambda tensors: tensors.update(scale), config=FP8))


def test_a_quantized_model_without_some_weights_is_refused(save: Callable[..., Path]) -> None:
    def damage(tensors: Tensors) -> None:
        pack(tensors)
        for name in [name for name in tensors if name.startswith(DOWN.removesuffix("weight"))]:
            del tensors[name]
        del tensors[NORM]

    folder = save(damage, config=GPTQ)
    with pytest.raises(UserError, match=f"no weights for {DOWN}, {NORM};"):
        check(folder)


PARTS_OF = {
    "int8": (DOWN, f"{DOWN}_scale"),
    "fp8": (DOWN, f"{DOWN}_scale"),
    "int4": (f"{DOWN}_packed", f"{DOWN}_scale", f"{DOWN}_shape"),
}


@pytest.mark.parametrize("kind", PARTS_OF)
def test_each_tensor_of_a_quantized_model_is_missed(tmp_path: Path, kind: str) -> None:
    folder = quantize(make_checkpoint("Llama", tmp_path), kind)
    check(folder)
    file = folder / "model.safetensors"
    whole = load_file(file)
    for name in ("lm_head.weight", NORM, *PARTS_OF[kind]):
        rest = {other: whole[other] for other in whole if other != name}
        save_file(rest, file, metadata={"format": "pt"})
        with pytest.raises(UserError, match=f"no weights for {name};"):
            check(folder)


def test_an_architecture_that_transformers_lacks_is_left_to_the_engine(
    save: Callable[..., Path],
) -> None:
    check(save(config={"model_type": "t5"}))


# --- two sets of weights


@pytest.mark.parametrize(
    "name", ["consolidated.safetensors", "model.fp16.safetensors", "adapter_model.safetensors"]
)
def test_a_second_file_of_weights_is_refused(save: Callable[..., Path], name: str) -> None:
    folder = save()
    save_file({"w": torch.zeros(1)}, folder / name)
    with pytest.raises(UserError, match=f"two sets of weights, model.safetensors and {name}"):
        find_checkpoint(str(folder))


def test_a_single_file_beside_an_index_is_refused(save: Callable[..., Path]) -> None:
    folder = save()
    whole = (folder / "model.safetensors").read_bytes()
    split(folder)
    (folder / "model.safetensors").write_bytes(whole)
    with pytest.raises(
        UserError, match=r"two sets of weights, model.safetensors and model.safetensors.index.json"
    ):
        find_checkpoint(str(folder))


def test_a_tensor_in_two_files_is_refused(save: Callable[..., Path]) -> None:
    folder = save()
    split(folder, doubled=NORM)
    with pytest.raises(UserError, match=f"safetensors: holds {NORM}, as model-00001"):
        find_checkpoint(str(folder))


def test_files_that_no_engine_reads_are_harmless(save: Callable[..., Path]) -> None:
    folder = save()
    (folder / "pytorch_model.bin").touch()
    (folder / "fp16").mkdir()
    save_file({"w": torch.zeros(1)}, folder / "fp16" / "model.safetensors")
    find_checkpoint(str(folder))
    split(folder)
    save_file({"w": torch.zeros(1)}, folder / "consolidated.safetensors")
    find_checkpoint(str(folder))


def test_a_missing_or_damaged_part_is_named(save: Callable[..., Path]) -> None:
    folder = save()
    split(folder)
    part = folder / "model-00002-of-00002.safetensors"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(UserError, match=f"{part}: damaged or missing"):
        find_checkpoint(str(folder))
    part.unlink()
    with pytest.raises(UserError, match=f"{part}: damaged or missing"):
        find_checkpoint(str(folder))
    (folder / "model.safetensors.index.json").write_text("{")
    with pytest.raises(UserError, match=r"index\.json: damaged; fetch it again"):
        find_checkpoint(str(folder))
