"""The weights of a model folder: one complete set of files, with a tensor for every parameter.

Engines choose files by rules of their own. transformers takes ``model.safetensors`` and then the
files of the index; vLLM takes the files of the index and then all there are. Parameters without a
tensor are left random by transformers and uninitialised by vLLM. A folder where this matters is
refused here, before an engine loads it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from copy import deepcopy
from io import StringIO
from pathlib import Path
from typing import Any

from cherry_vllm.errors import UserError
from cherry_vllm.store.files import read_json

WEIGHTS = "*.safetensors"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLED = "pytorch_model*.bin*"  # weights that no engine reads, since they may hold code
FETCH_AGAIN = "fetch the model again, all of its files, into an empty folder"


def read_settings(file: Path) -> dict[str, Any]:
    """The object in a model's JSON file.

    Raises:
        UserError: the file is damaged.
    """
    try:
        found = read_json(file)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{file}: damaged; fetch it again")
    return found


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and no model beside it.

    Raises:
        UserError: it holds both; transformers would load the model with the adapter applied.
    """
    if not (folder / ADAPTER).is_file():
        return False
    whole = {file.name for pattern in (WEIGHTS, INDEX, PICKLED) for file in folder.glob(pattern)}
    if beside := sorted(whole - {ADAPTER_WEIGHTS}):
        raise UserError(
            f"{folder / ADAPTER}: an adapter beside a model ({list_some(beside)}), to which "
            "transformers would apply it; remove the adapter_* files if it is merged already, or "
            "else move them to a folder of their own"
        )
    return True


def find_weights(folder: Path) -> list[Path]:
    """The files that every engine loads.

    Raises:
        UserError: there are none, they are damaged, or two engines would load different ones.
    """
    present = {file.name for file in folder.glob(WEIGHTS)}
    index = folder / INDEX
    listed = listed_files(index) if index.is_file() else set()
    if not listed and SINGLE not in present:
        raise UserError(
            f"{folder}: no {SINGLE} and no {INDEX}; save the model with save_pretrained, or fetch "
            "what is missing"
        )
    by_transformers = {SINGLE} if SINGLE in present else listed
    by_vllm = listed or present
    if by_transformers != by_vllm:
        others = sorted(by_vllm - by_transformers)
        named = INDEX if listed else list_some(others)
        raise UserError(f"{folder}: two sets of weights, {SINGLE} and {named}; remove one of them")
    files = [folder / name for name in sorted(by_vllm)]
    _refuse_shared_names(files)
    return files


def listed_files(index: Path) -> set[str]:
    """The names of the files that an index lists.

    Raises:
        UserError: the index is damaged, or lists a file that the fingerprint would not notice.
    """
    files = read_settings(index).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise UserError(f"{index}: damaged; fetch it again")
    names = {str(name) for name in files.values()}
    for name in sorted(names):
        if "/" in name or not name.endswith(WEIGHTS[1:]):
            raise UserError(
                f"{index}: lists {name}; keep all weights beside the index, as {WEIGHTS}, and list "
                "them by name"
            )
    return names


def _refuse_shared_names(files: Iterable[Path]) -> None:
    """Raises a UserError for damaged files, and for a tensor that is in two files."""
    seen: dict[str, Path] = {}
    for file in files:
        for name in read_shapes(file):
            if name in seen:
                raise UserError(
                    f"{file}: holds {name}, as {seen[name].name} does: two sets of weights; save "
                    "the model again into an empty folder, or fetch it again"
                )
            seen[name] = file


def read_shapes(file: Path) -> dict[str, list[int]]:
    """Names and shapes of a file's tensors, from its header.

    Raises:
        UserError: the file is damaged or missing.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as tensors:
            return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: damaged or missing ({error}); fetch it again") from None


def check_weights(folder: Path, *, trust_remote_code: bool) -> None:
    """Compares the names and shapes in the weights' headers with the model's parameters.

    transformers builds the model without memory and reports what is left over; it knows renamed
    and tied tensors. If it does not know the architecture, the engine has to check the weights.

    Raises:
        UserError: a parameter has no tensor or one of another shape, or a tensor has no parameter.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shapes = [read_shapes(file) for file in find_weights(folder)]
    auto: Any = AutoModelForCausalLM
    with _quiet_transformers(), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        tensors = {name: torch.empty(it[name]) for it in shapes for name in it}
        quantized = getattr(config, "quantization_config", None)
        if quantized is not None:
            del config.quantization_config
        try:
            model_class = type(auto.from_config(config, trust_remote_code=trust_remote_code))
        except (ValueError, NotImplementedError):
            return  # transformers has no such causal language model, or cannot build it this way
        if quantized is not None:
            missing = _missing_of_quantized(model_class, config, quantized, tensors)
            report = {"missing_keys": missing, "unexpected_keys": (), "mismatched_keys": ()}
        else:
            try:
                report = _compare(model_class, config, tensors)
            except RuntimeError:  # experts that cannot be stacked
                raise UserError(
                    f"{folder}: weights are missing or have another shape than config.json says; "
                    f"{FETCH_AGAIN}"
                ) from None
    if config.get_text_config() is not config:  # what it needs for images is not used here
        report["unexpected_keys"] = ()
    check_report(folder, report)


def _compare(model_class: Any, config: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """transformers' report on loading tensors without memory.

    Nothing is initialized, which fails for quantized parameters.
    """
    same = {"__module__": model_class.__module__, "initialize_weights": lambda _self: None}
    bare: Any = type(model_class.__name__, (model_class,), same)
    _, report = bare.from_pretrained(
        None,
        config=config,
        state_dict=tensors,
        device_map="meta",
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    return dict(report)


def _missing_of_quantized(
    model_class: Any, plain: Any, quantized: Any, tensors: dict[str, Any]
) -> set[str]:
    """The parameters of a quantized model that have no tensor.

    Where transformers cannot build it on this machine, its modules are compared with those of the
    plain model: each must have a tensor of some name.
    """
    config = deepcopy(plain)
    config.quantization_config = quantized
    with suppress(Exception):  # each kind of quantization has a library, with errors of its own
        return set(_compare(model_class, config, tensors)["missing_keys"])
    with suppress(RuntimeError):  # experts that cannot be stacked
        report = _compare(model_class, plain, tensors)
        return _without_packed(report["missing_keys"], report["unexpected_keys"])
    return set()


def check_report(folder: Path, report: dict[str, Any]) -> None:
    """Raises a UserError for a fault in transformers' report on loading weights."""
    for fault, names in (
        ("no weights for", report["missing_keys"]),
        ("weights without a parameter in the model:", report["unexpected_keys"]),
        ("of another shape than config.json says:", [n for n, *_ in report["mismatched_keys"]]),
    ):
        if names:
            raise UserError(f"{folder}: {fault} {list_some(sorted(names))}; {FETCH_AGAIN}")


def _without_packed(missing: Iterable[str], packed: Iterable[str]) -> set[str]:
    """The missing parameters of modules that have no packed tensor either.

    Quantized weights have tensors of other names.
    """
    names = list(packed)
    return {
        name
        for name in missing
        if not any(other.startswith(name.rpartition(".")[0] + ".") for other in names)
    }


def list_some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keeps transformers' own report and bars from the terminal."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with redirect_stderr(StringIO()):  # compressed-tensors has bars that nothing disables
            yield
    finally:
        logging.set_verbosity(level)
