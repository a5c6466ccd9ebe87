"""LoRA adapters: merged once into what the base with the adapter computes, or refused."""

import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cherry_vllm.engines import adapters
from cherry_vllm.engines.adapters import write_merged
from cherry_vllm.engines.checkpoint import (
    Checkpoint,
    checkpoint_dtype,
    find_checkpoint,
    read_checkpoint,
)
from cherry_vllm.errors import UserError
from tests.conftest import TOKENIZER, children
from tests.engines.adapters import ADAPTER, ADAPTER_WEIGHTS, logits_of, make_adapter
from tests.engines.models import make_checkpoint, make_multimodal

ModelOf = Callable[[str], Path]
Q_PROJ = "base_model.model.model.layers.1.self_attn.q_proj"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cherry-vllm" / "merged"


@pytest.fixture
def base(model_of: ModelOf) -> Path:
    return model_of("Llama")


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    make_adapter(tmp_path / "adapter", base)
    return tmp_path / "adapter"


def merge(adapter: Path, base: Path) -> Path:
    """Merges in this process, without the cache."""
    target = adapter.parent / "merged"
    target.mkdir(exist_ok=True)
    write_merged(target, adapter, read_checkpoint(base), trust_remote_code=False)
    return target


def edit(adapter: Path, **settings: Any) -> None:
    content = json.loads((adapter / ADAPTER).read_text())
    (adapter / ADAPTER).write_text(json.dumps({**content, **settings}))


def change(adapter: Path, how: Callable[[Tensors], Any]) -> None:
    tensors = load_file(adapter / ADAPTER_WEIGHTS)
    how(tensors)
    save_file(tensors, adapter / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


# --- merged


@pytest.mark.engine
@pytest.mark.process
def test_an_adapter_is_merged_once_and_found_again(
    base: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    caplog.set_level(logging.INFO)
    expected = make_adapter(tmp_path / "adapter", base)
    merged = find_checkpoint(str(tmp_path / "adapter"))
    assert_same(logits_of(merged.folder), expected)
    assert float((expected - logits_of(base)).abs().max()) > 0.1
    assert merged.folder == cache / merged.fingerprint
    assert f"{tmp_path / 'adapter'}: a LoRA adapter, merged into {base}: {merged.folder}" in (
        caplog.text
    )
    monkeypatch.setattr(adapters, "isolate", None)
    assert find_checkpoint(str(tmp_path / "adapter")) == merged
    assert find_checkpoint(str(tmp_path / "adapter"), base=str(base)) == merged
    merged.verify()


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merges in this process, which has loaded the libraries."""
    monkeypatch.setattr(adapters, "isolate", lambda function, *args, **kw: function(*args, **kw))


@pytest.mark.engine
@pytest.mark.usefixtures("in_this_process")
def test_adapter_and_base_decide_the_fingerprint(adapter: Path, tmp_path: Path) -> None:
    other = make_checkpoint("Llama", tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] *= 2
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    found = [find_checkpoint(str(adapter)), find_checkpoint(str(adapter), base=str(other))]
    change(adapter, lambda tensors: tensors[f"{Q_PROJ}.lora_A.weight"].mul_(2))
    found += [find_checkpoint(str(adapter)), read_checkpoint(other), read_checkpoint(adapter)]
    assert len({checkpoint.fingerprint for checkpoint in found}) == 5


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all linear layers": {"target_modules": "all-linear"},
    "rank stabilized": {"use_rslora": True},
    "decomposed": {"use_dora": True},
    "a head of its own": {"modules_to_save": ["lm_head"]},
    "embeddings too": {"target_modules": ["q_proj", "embed_tokens"]},
    "some layers": {"layers_to_transform": [1]},
}
TIED = pytest.mark.filterwarnings("ignore:.*tie_word_embeddings")


@pytest.mark.engine
@TIED
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("architecture", ["Llama", "Qwen2"])
def test_the_merged_model_is_the_base_with_the_adapter(
    architecture: str, variant: str, model_of: ModelOf, tmp_path: Path
) -> None:
    base = model_of(architecture)
    expected = make_adapter(tmp_path / "adapter", base, **VARIANTS[variant])
    if (architecture, variant) == ("Qwen2", "embeddings too"):  # whose head shares them
        with pytest.raises(UserError, match=r"merged into .*, it would change log-probs by \d"):
            merge(tmp_path / "adapter", base)
        return
    assert_same(logits_of(merge(tmp_path / "adapter", base)), expected)


@pytest.mark.engine
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_base_in_half_precision_is_merged_in_fp32(
    dtype: torch.dtype, base: Path, tmp_path: Path
) -> None:
    rounded = Path(shutil.copytree(base, tmp_path / "rounded"))
    tensors = load_file(rounded / "model.safetensors")
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    save_file(tensors, rounded / "model.safetensors", metadata={"format": "pt"})
    expected = make_adapter(tmp_path / "adapter", rounded)
    merged = merge(tmp_path / "adapter", rounded)
    assert checkpoint_dtype(merged) == "float32"
    assert_same(logits_of(merged), expected)


@pytest.mark.engine
def test_an_adapter_of_a_multimodal_model_is_merged(tmp_path: Path) -> None:
    base = make_multimodal(tmp_path / "base")
    target = r".*language_model.*q_proj"
    expected = make_adapter(tmp_path / "adapter", base, target_modules=target)
    merged = merge(tmp_path / "adapter", base)
    assert_same(logits_of(merged), expected)
    assert checkpoint_dtype(merged) == "float32"


@pytest.mark.engine
@pytest.mark.usefixtures("in_this_process")
def test_the_tokenizer_is_the_adapters_if_it_has_one(base: Path, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(base, tmp_path / "whole"))
    shutil.copytree(TOKENIZER, whole, dirs_exist_ok=True)
    (whole / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    make_adapter(tmp_path / "adapter", whole)

    def names() -> dict[str, str]:
        folder = find_checkpoint(str(tmp_path / "adapter")).folder
        return {path.name: path.read_text() for path in folder.glob("*.j*") if path.is_file()}

    before = names()
    assert before["chat_template.jinja"] == (TOKENIZER / "chat_template.jinja").read_text()
    (tmp_path / "adapter" / "tokenizer_config.json").write_text('{"chat_template": "x"}')
    after = names()
    assert after["tokenizer_config.json"] == '{"chat_template": "x"}'
    assert "chat_template.jinja" not in after  # it would be used instead
    assert before["generation_config.json"] == after["generation_config.json"]


@pytest.mark.engine
@pytest.mark.usefixtures("in_this_process")
def test_a_configuration_of_the_base_beside_the_adapter_is_harmless(
    base: Path, adapter: Path
) -> None:
    shutil.copy(base / "config.json", adapter)
    merged = find_checkpoint(str(adapter))
    assert merged.folder.parent.name == "merged"
    assert "adapter_config.json" not in {file.name for file in merged.files}


@pytest.mark.engine
@pytest.mark.usefixtures("in_this_process")
def test_settings_of_a_newer_release_are_named(adapter: Path, caplog: Any) -> None:
    edit(adapter, a_new_feature=True)
    find_checkpoint(str(adapter))
    assert "adapter_config.json: Unexpected keyword arguments ['a_new_feature']" in caplog.text


# --- refused


def widen(tensors: Tensors) -> None:
    tensors[f"{Q_PROJ}.lora_A.weight"] = torch.zeros(4, 128)


def move(tensors: Tensors) -> None:
    for end in ("lora_A", "lora_B"):
        name = f"{Q_PROJ}.{end}.weight"
        tensors[name.replace("layers.1", "layers.7")] = tensors[name].clone()


@pytest.mark.engine
@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (
            widen,
            rf"{Q_PROJ}\.lora_A\.default\.weight has the shape \[4, 128\], but needs \[4, 64\]",
        ),
        (move, r"no place for base_model\.model\.model\.layers\.7\.self_attn\.q_proj\.lora_A"),
        (
            lambda tensors: tensors.pop(f"{Q_PROJ}.lora_B.weight"),
            rf"no tensor for {Q_PROJ}\.lora_B",
        ),
    ],
)
def test_tensors_that_do_not_fit_the_base_are_named(
    how: Callable[[Tensors], Any], reason: str, base: Path, adapter: Path
) -> None:
    change(adapter, how)
    with pytest.raises(UserError, match=rf"{adapter}: the adapter does not fit {base}: {reason}"):
        merge(adapter, base)


@pytest.mark.engine
def test_an_adapter_for_other_layers_is_named(adapter: Path, model_of: ModelOf) -> None:
    with pytest.raises(
        UserError, match=r"does not fit .*: Target modules .* not found in the base"
    ):
        merge(adapter, model_of("GPT2"))


@pytest.mark.engine
def test_an_adapter_of_another_vocabulary_is_named(base: Path, tmp_path: Path) -> None:
    make_adapter(tmp_path / "adapter", base, modules_to_save=["embed_tokens", "lm_head"])
    name = "base_model.model.lm_head.weight"
    change(tmp_path / "adapter", lambda tensors: tensors.update({name: torch.zeros(310, 64)}))
    with pytest.raises(
        UserError,
        match=r"lm_head.* has the shape \[310, 64\], but needs \[300, 64\] \(if training added tok",
    ):
        merge(tmp_path / "adapter", base)
    change(tmp_path / "adapter", lambda tensors: tensors.pop(name))
    with pytest.raises(UserError, match=rf"no tensor {name} in adapter_model\.safetensors"):
        merge(tmp_path / "adapter", base)


@pytest.mark.engine
def test_a_weight_that_is_not_a_number_is_refused(base: Path, adapter: Path) -> None:
    change(adapter, lambda tensors: tensors[f"{Q_PROJ}.lora_A.weight"].fill_(float("nan")))
    with pytest.raises(UserError, match="it would change log-probs by nan on average"):
        merge(adapter, base)


def write_adapter(folder: Path, **settings: Any) -> Path:
    """An adapter that is refused before its weights are read."""
    folder.mkdir()
    content = {"base_model_name_or_path": "/no/base", "peft_type": "LORA"}
    (folder / ADAPTER).write_text(json.dumps({**content, **settings}))
    save_file({"base_model.lora_A": torch.zeros(1)}, folder / ADAPTER_WEIGHTS)
    return folder


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"peft_type": "IA3"}, r"adapter_config\.json: an adapter of type IA3; only LORA can be"),
        ({"layer_replication": [[0, 2]]}, r"an adapter with layer_replication, which cannot be"),
        (
            {"alora_invocation_tokens": [1]},
            r"an adapter with alora_invocation_tokens, which cannot",
        ),
        ({"base_model_name_or_path": None}, r"adapter_config\.json: names no base; give it with"),
        (
            {},
            r"adapter_config\.json: its base cannot be used: /no/base: no such folder; check m",
        ),
    ],
)
def test_what_an_adapter_lacks_is_named(
    settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=reason):
        find_checkpoint(str(write_adapter(tmp_path / "adapter", **settings)))


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    (folder / ADAPTER_WEIGHTS).rename(folder / "adapter_model.bin")
    with pytest.raises(UserError, match=r"no adapter_model\.safetensors; adapter_model\.bin is a"):
        find_checkpoint(str(folder))


def test_a_quantized_base_is_refused_with_the_remedy(base: Path, tmp_path: Path) -> None:
    quantized = Path(shutil.copytree(base, tmp_path / "base-bnb-4bit"))
    config = json.loads((quantized / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantized / "config.json").write_text(json.dumps(config))
    folder = write_adapter(tmp_path / "adapter", base_model_name_or_path=str(quantized))
    with pytest.raises(
        UserError,
        match=r"its base cannot be used: .*-bnb-4bit: its weights are quantized \(bitsandbytes\), "
        r"but an adapter is merged in fp32; give the unquantized model with model\.base=",
    ):
        find_checkpoint(str(folder))


def test_a_base_that_is_an_adapter_is_refused(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"^\S+/adapter: an adapter too; give the whole model with"):
        find_checkpoint(str(folder), base=str(folder))


def test_a_base_without_an_adapter_is_refused(base: Path) -> None:
    with pytest.raises(
        UserError, match=r"model\.base=/x: \S+ is not a LoRA adapter; leave model\.base"
    ):
        find_checkpoint(str(base), base="/x")


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "model.safetensors.index.json", "pytorch_model-00001-of-00002.bin"],
)
def test_an_adapter_beside_a_model_is_refused(name: str, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    (folder / name).touch()
    with pytest.raises(UserError, match=rf"an adapter beside a model \({name}\), to which"):
        find_checkpoint(str(folder))


def test_without_peft_the_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match=r"which peft merges; install cherry-vllm\[lora\]"):
        find_checkpoint(str(write_adapter(tmp_path / "adapter")))


# --- the cache


@pytest.mark.engine
@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "merged.json"])
def test_a_merged_model_that_was_changed_is_refused(name: str, adapter: Path) -> None:
    file = find_checkpoint(str(adapter)).folder / name
    file.write_text("{}")
    with pytest.raises(UserError, match=rf"{file.parent}: changed since it was merged; remove it"):
        find_checkpoint(str(adapter))
    file.unlink()
    with pytest.raises(UserError, match="changed since it was merged"):
        find_checkpoint(str(adapter))
    shutil.rmtree(file.parent)
    assert find_checkpoint(str(adapter)).folder == file.parent


@pytest.mark.engine
@pytest.mark.usefixtures("in_this_process")
def test_two_at_once_merge_once(
    adapter: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Path] = []

    def write_slowly(target: Path, *args: Any, **keywords: Any) -> None:
        begun.append(target)
        time.sleep(0.5)
        write_merged(target, *args, **keywords)

    monkeypatch.setattr(adapters, "write_merged", write_slowly)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(find_checkpoint, [str(adapter)] * 2))
    assert found[0] == found[1]
    assert len(begun) == 1
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [found[0].fingerprint]


@pytest.mark.engine
@pytest.mark.process
def test_a_killed_merge_leaves_nothing_behind(adapter: Path, cache: Path) -> None:
    known = set(children(os.getpid()))

    def kill() -> None:
        while not (born := set(children(os.getpid())) - known):
            time.sleep(0.01)
        os.kill(born.pop(), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(UserError, match=r"was killed by SIGKILL, .*memory of the base in fp32"):
        find_checkpoint(str(adapter))
    killer.join()
    assert not [path for path in cache.iterdir() if path.is_dir()]
    assert isinstance(find_checkpoint(str(adapter)), Checkpoint)


@pytest.mark.engine
def test_biases_for_layers_without_one_are_refused(base: Path, tmp_path: Path) -> None:
    make_adapter(tmp_path / "adapter", base, lora_bias=True)
    with pytest.raises(UserError, match=r"cannot be merged: .*the base layer has no bias"):
        merge(tmp_path / "adapter", base)
