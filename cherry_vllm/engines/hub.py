"""Models from the Hugging Face Hub: only the files that an engine reads, and one set of weights."""

from collections.abc import Callable
from glob import escape
from pathlib import Path

from cherry_vllm.engines.weights import ADAPTER_WEIGHTS, INDEX, SINGLE, listed_files
from cherry_vllm.errors import UserError
from cherry_vllm.runtime.text import first_line

TOKENIZER_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
TEMPLATES = ("additional_chat_templates/*.jinja",)
CODE = "*.py"  # for the hub, * is also any folder


def download_model(
    name: str,
    *,
    with_code: bool,
    key: str,
    revision: str | None = None,
    check: Callable[[Path], None] | None = None,
    with_weights: bool = True,
) -> Path:
    """The folder of the model ``OWNER/NAME`` or ``NAME``, fetched unless the hub's cache has it.

    Of several sets of weights, only the one in the index or ``model.safetensors`` is fetched: no
    variants (``fp16/``, ``onnx/``), and no other format of the same weights (``consolidated*``).
    An adapter's weights are fetched too. ``key`` is the setting that names the model; ``check``
    sees the folder before its weights are fetched.

    Raises:
        UserError: there is no such model, or the hub cannot be reached.
    """
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"{name}: no such folder; check {key}")
    folder = _fetch(name, list(TOKENIZER_FILES), key, ignored=["*/*"], revision=revision)
    if check is not None:
        check(folder)
    weights = listed_files(folder / INDEX) if (folder / INDEX).is_file() else {SINGLE}
    named = map(escape, sorted(weights | {ADAPTER_WEIGHTS}) if with_weights else ())
    # From the same commit, so that all files are in one folder.
    patterns = [*named, *TEMPLATES, *([CODE] if with_code else [])]
    return _fetch(name, patterns, key, revision=folder.name)


def _fetch(
    name: str,
    patterns: list[str],
    key: str,
    *,
    ignored: list[str] | None = None,
    revision: str | None = None,
) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=patterns, ignore_patterns=ignored
            )
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"{name}: not found locally or on the Hugging Face Hub ({first_line(error)}); check "
            f"{key}, the network and HF_TOKEN"
        ) from None
