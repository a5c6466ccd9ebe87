"""A LoRA adapter and its base: merged once, in fp32, into a checkpoint in the user's cache.

    merged/FINGERPRINT/              the merged model, named by the contents of adapter and base
    merged/FINGERPRINT/merged.json   where it comes from, and the SHA-256 of its other files

An engine then loads the merged model like any other. The folder appears in one step, once the
model in it has been read back and gives the log-probs of the base with the adapter applied.
"""

import logging
import re
import shutil
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cherry_vllm.engines.checkpoint import (
    Checkpoint,
    find_folder,
    open_checkpoint,
    read_checkpoint,
)
from cherry_vllm.engines.hub import TEMPLATES, TOKENIZER_FILES
from cherry_vllm.engines.weights import (
    ADAPTER,
    ADAPTER_WEIGHTS,
    INDEX,
    is_adapter,
    list_some,
    read_settings,
    read_shapes,
)
from cherry_vllm.errors import UserError
from cherry_vllm.runtime.processes import ChildError, isolate
from cherry_vllm.runtime.text import first_line
from cherry_vllm.store.files import atomic_folder, write_json
from cherry_vllm.store.hashes import cache_folder, fingerprint
from cherry_vllm.store.locks import changing

log = logging.getLogger(__name__)

SOURCE = "merged.json"
CONTENTS = "sha256"  # a key of SOURCE
OF_BASE = ("generation_config.json", "preprocessor_config.json", "processor_config.json")
NOT_COPIED = {"config.json", INDEX, ADAPTER, *OF_BASE}
# Settings under which no single network of the base's shape computes what the adapter does.
NOT_MERGED = ("alora_invocation_tokens", "arrow_config", "layer_replication")
TOLERANCE = 1e-3  # of a log-prob, on average; fp32 leaves about 1e-5
OF_TOKENS = re.compile(r"embed|lm_head|wte")
MISFIT = re.compile(r"size mismatch for (\S+): .*?Size\((.*?)\).*?Size\((.*?)\)")


def merge_adapter(adapter: Path, base: str | None, *, trust_remote_code: bool) -> Checkpoint:
    """The checkpoint in which an adapter is merged into its base, made unless the cache has it.

    ``base`` is a folder or a hub id; without it, the adapter's configuration names the base.

    Raises:
        UserError: it is not a LoRA adapter in safetensors, its base cannot be used or does not
            fit, or the merged model in the cache has been changed.
    """
    settings = _read_lora(adapter)
    model = _find_base(adapter, settings, base, trust_remote_code=trust_remote_code)
    parts = {"adapter": read_checkpoint(adapter).fingerprint, "base": model.fingerprint}
    name = fingerprint({**parts, "trust_remote_code": trust_remote_code})
    folder = cache_folder() / "merged" / name
    with changing(folder.parent, name, lock=f".{name}.lock"):
        if not folder.exists():
            log.info("%s: merging this LoRA adapter into %s, in fp32", adapter, model.folder)
            _merge_into(folder, adapter, model, trust_remote_code=trust_remote_code)
        merged = _open_merged(folder, trust_remote_code=trust_remote_code)
    log.info("%s: a LoRA adapter, merged into %s: %s", adapter, model.folder, folder)
    return replace(merged, fingerprint=name)


def _read_lora(adapter: Path) -> dict[str, Any]:
    """The adapter's settings.

    Raises:
        UserError: it is of another kind, or its weights are missing, damaged or a pickle.
    """
    settings = read_settings(adapter / ADAPTER)
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise UserError(
            f"{adapter / ADAPTER}: an adapter of type {kind}; only LORA can be merged here"
        )
    for name in NOT_MERGED:
        if settings.get(name):
            raise UserError(
                f"{adapter / ADAPTER}: an adapter with {name}, which cannot be merged into its "
                "base; only plain LoRA adapters can be scored"
            )
    if not (adapter / ADAPTER_WEIGHTS).is_file():
        raise UserError(
            f"{adapter}: no {ADAPTER_WEIGHTS}; adapter_model.bin is a pickle, which may hold code "
            "and is never loaded: save the adapter as safetensors (peft: save_pretrained)"
        )
    read_shapes(adapter / ADAPTER_WEIGHTS)
    if find_spec("peft") is None:
        raise UserError(f"{adapter}: a LoRA adapter, which peft merges; install cherry-vllm[lora]")
    return settings


def _find_base(
    adapter: Path, settings: dict[str, Any], base: str | None, *, trust_remote_code: bool
) -> Checkpoint:
    name = base or settings.get("base_model_name_or_path")
    if not name:
        raise UserError(f"{adapter / ADAPTER}: names no base; give it with model.base=...")
    try:
        folder = find_folder(
            name,
            key="model.base",
            with_code=trust_remote_code,
            revision=None if base else settings.get("revision"),
            check=_refuse_quantized,
        )
        if is_adapter(folder):
            raise UserError(f"{folder}: an adapter too; give the whole model with model.base=...")
        return open_checkpoint(folder, trust_remote_code=trust_remote_code)
    except UserError as error:
        if base:
            raise
        raise UserError(f"{adapter / ADAPTER}: its base cannot be used: {error}") from None


def _refuse_quantized(folder: Path) -> None:
    """Raises a UserError for a base whose weights are quantized, as those of QLoRA are."""
    config = folder / "config.json"
    quantized = read_settings(config).get("quantization_config") if config.is_file() else None
    if quantized:
        raise UserError(
            f"{folder}: its weights are quantized ({quantized.get('quant_method')}), but an "
            "adapter is merged in fp32; give the unquantized model with model.base=..."
        )


def _open_merged(folder: Path, *, trust_remote_code: bool) -> Checkpoint:
    """The merged model in the cache.

    Raises:
        UserError: a file of it is not as it was written.
    """
    known = read_settings(folder / SOURCE) if (folder / SOURCE).is_file() else {}
    if known.get(CONTENTS) != _contents(folder):
        raise UserError(f"{folder}: changed since it was merged; remove it to merge it again")
    return open_checkpoint(folder, trust_remote_code=trust_remote_code)


def _contents(folder: Path) -> dict[str, str]:
    files = read_checkpoint(folder).files
    return {file.name: file.sha256 for file in files if file.name != SOURCE}


def _merge_into(target: Path, adapter: Path, base: Checkpoint, *, trust_remote_code: bool) -> None:
    """Writes the merged model, in a process of its own, which returns the memory."""
    with atomic_folder(target) as scratch:
        try:
            isolate(write_merged, scratch, adapter, base, trust_remote_code=trust_remote_code)
        except ChildError as lost:
            raise UserError(
                f"{adapter}: the process that merged it into {base.folder} {lost}; it takes the "
                "memory of the base in fp32"
            ) from None
        source = {
            "adapter": str(adapter.absolute()),
            "base": str(base.folder.absolute()),
            CONTENTS: _contents(scratch),
        }
        write_json(scratch / SOURCE, source)


def write_merged(target: Path, adapter: Path, base: Checkpoint, *, trust_remote_code: bool) -> None:
    """Merges an adapter into its base, and checks what another process will load.

    Raises:
        UserError: the adapter does not fit the base, or the merged model differs from both.
    """
    import torch
    from transformers import GenerationConfig

    from cherry_vllm.engines import hf

    how: Any = {"dtype": torch.float32, "trust_remote_code": trust_remote_code}
    adapted = _apply(adapter, hf.load_model(base, **how), base.folder)
    base.verify()
    expected = _logprobs(adapted)
    try:
        model = adapted.merge_and_unload()
    except RuntimeError as error:  # biases for layers without, for example
        raise UserError(f"{adapter}: cannot be merged: {first_line(error)}") from None
    # The base's own may break rules that are checked on saving, so its file is copied instead.
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    model.save_pretrained(target)
    del adapted, model
    _copy_texts(adapter, base.folder, target)
    difference = (_logprobs(hf.load_model(read_checkpoint(target), **how)) - expected).abs().mean()
    if not difference <= TOLERANCE:  # also if it is not a number
        raise UserError(
            f"{adapter}: merged into {base.folder}, it would change log-probs by "
            f"{float(difference):.2g} on average, so it cannot be merged (for example, an adapter "
            "of embeddings that the head shares)"
        )


def _apply(adapter: Path, model: Any, base: Path) -> Any:
    """The model with the adapter in place, which has given each tensor that it has."""
    from peft import LoraConfig, PeftModel

    def misfit(reason: str) -> UserError:
        return UserError(
            f"{adapter}: the adapter does not fit {base}: {reason}; give the model that it was "
            "trained on with model.base=..."
        )

    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            config = LoraConfig.from_pretrained(str(adapter))
        for warning in said:  # settings that this release of peft does not know
            log.warning("%s: %s", adapter / ADAPTER, str(warning.message).partition(". ")[0])
        adapted = PeftModel(model, config)
        report = adapted.load_adapter(str(adapter), "default", torch_device="cpu")
    except KeyError as error:
        raise misfit(f"no tensor {error.args[0]} in {ADAPTER_WEIGHTS}") from None
    except (TypeError, ValueError) as error:
        raise misfit(first_line(error)) from None
    except RuntimeError as error:
        if found := MISFIT.search(str(error)):
            name, there, here = found.groups()
            hint = (
                " (if training added tokens, add them to the base, too)"
                if OF_TOKENS.search(name)
                else ""
            )
            raise misfit(f"{name} has the shape {there}, but needs {here}{hint}") from None
        raise
    if report.missing_keys:
        raise misfit(f"no tensor for {list_some(sorted(report.missing_keys))}")
    if report.unexpected_keys:
        raise misfit(f"no place for {list_some(sorted(report.unexpected_keys))}")
    return adapted.eval()


def _logprobs(model: Any) -> Any:
    """The log-probs after each of 32 tokens from all of the vocabulary."""
    import torch

    last = model.config.get_text_config().vocab_size - 1
    with torch.no_grad():
        logits = model(input_ids=torch.linspace(0, last, 32).long()[None], use_cache=False).logits
        return logits.log_softmax(-1)


def _copy_texts(adapter: Path, base: Path, target: Path) -> None:
    """Copies the tokenizer of the adapter, or else of the base, and other settings of the base."""
    source = adapter if (adapter / "tokenizer_config.json").is_file() else base
    patterns = (*TOKENIZER_FILES, *TEMPLATES)
    files = [file.relative_to(source) for pattern in patterns for file in source.glob(pattern)]
    copied = {file: source for file in files if file.name not in NOT_COPIED}
    copied |= {Path(name): base for name in OF_BASE if (base / name).is_file()}
    for file, folder in copied.items():
        (target / file).parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / file, target / file)
