"""Models from the Hugging Face Hub: only the files that an engine reads, and one set of weights."""

from glob import escape
from pathlib import Path

from cherry_vllm.engines.weights import INDEX, SINGLE, listed_files
from cherry_vllm.errors import UserError

TOKENIZER_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
TEMPLATES = ("additional_chat_templates/*.jinja",)
CODE = "*.py"  # for the hub, * is also any folder


def download_model(name: str, *, with_code: bool) -> Path:
    """The folder of the model ``OWNER/NAME``; files that the hub's cache lacks are fetched.

    Of several sets of weights, only the one in the index or ``model.safetensors`` is fetched: no
    variants (``fp16/``, ``onnx/``), and no other format of the same weights (``consolidated*``).

    Raises:
        UserError: there is no such model, or the hub cannot be reached.
    """
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise UserError(f"{name}: no such folder; check model.path")
    folder = _fetch(name, list(TOKENIZER_FILES), ignored=["*/*"])
    weights = listed_files(folder / INDEX) if (folder / INDEX).is_file() else {SINGLE}
    # From the same commit, so that all files are in one folder.
    patterns = [*map(escape, sorted(weights)), *TEMPLATES, *([CODE] if with_code else [])]
    return _fetch(name, patterns, commit=folder.name)


def _fetch(
    name: str, patterns: list[str], *, ignored: list[str] | None = None, commit: str | None = None
) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name, revision=commit, allow_patterns=patterns, ignore_patterns=ignored
            )
        )
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{name}: not found locally or on the Hugging Face Hub ({reason}); check model.path, "
            "the network and HF_TOKEN"
        ) from None
