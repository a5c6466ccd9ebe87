"""A model on disk: found, checked and fingerprinted before anything heavy is loaded."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

from cherry_vllm.engines.hub import TEMPLATES, TOKENIZER_FILES, download_model
from cherry_vllm.engines.weights import WEIGHTS, find_weights, is_adapter, read_settings
from cherry_vllm.errors import UserError
from cherry_vllm.runtime.text import first_line
from cherry_vllm.store.hashes import Stamp, fingerprint, read_stamp, stamped_sha256

# The files that decide a score: weights, architecture, tokenizer, code.
SCORED_BY = (WEIGHTS, *TOKENIZER_FILES, *TEMPLATES, "**/*.py")


@dataclass(frozen=True)
class ModelFile:
    """A file that decides a score, in its state when the checkpoint was found."""

    name: str  # relative to the checkpoint's folder
    stamp: Stamp
    sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """A model folder whose contents are known; only these may be loaded under its fingerprint."""

    patterns: ClassVar[Sequence[str]] = SCORED_BY

    folder: Path
    fingerprint: str
    files: tuple[ModelFile, ...]

    def verify(self) -> None:
        """Raises a UserError that names the first file that has changed since it was hashed."""
        before = {file.name: file for file in self.files}
        now = _scoring_files(self.folder, self.patterns)
        for name in sorted(before.keys() | now.keys()):
            if name not in now:
                change = "is gone"
            elif name not in before:
                change = "is new"
            elif (
                read_stamp(now[name]) == before[name].stamp
                or stamped_sha256(now[name])[1] == before[name].sha256
            ):
                continue
            else:
                change = "has changed"
            raise UserError(
                f"{self.folder / name}: {change} since this run began; restore the old files "
                "to continue, or score the new model in a run_dir of its own"
            )

    def settle(self, folder: Path) -> Self:  # noqa: ARG002 - its files say all there is to know
        """The model as the run whose shards are in ``folder`` knows it."""
        return self


class Limits(NamedTuple):
    """What a model accepts: at most ``max_length`` token ids, each below ``vocab_size``."""

    vocab_size: int
    max_length: int | None


def find_checkpoint(
    path: str, *, base: str | None = None, trust_remote_code: bool = False
) -> Checkpoint:
    """The checkpoint at ``path``, fetched from the hub if that is not a local folder.

    A LoRA adapter gives the checkpoint in which it is merged into ``base``, or else into the model
    that its configuration names.

    Raises:
        UserError: there is no such model; it lacks its configuration or weights, or has two sets
            of weights; its code would come from elsewhere; or an adapter does not fit its base.
    """
    folder = find_folder(path, key="model.path", with_code=trust_remote_code)
    if is_adapter(folder):
        from cherry_vllm.engines.adapters import merge_adapter

        return merge_adapter(folder, base, trust_remote_code=trust_remote_code)
    if base is not None:
        raise UserError(f"model.base={base}: {folder} is not a LoRA adapter; leave model.base out")
    return open_checkpoint(folder, trust_remote_code=trust_remote_code)


def find_folder(
    path: str,
    *,
    key: str,
    with_code: bool,
    revision: str | None = None,
    check: Callable[[Path], None] | None = None,
    with_weights: bool = True,
) -> Path:
    """The local folder at ``path``, or that of a model of the hub: see :mod:`engines.hub`."""
    folder = Path(path).expanduser()
    if not folder.exists():
        return download_model(
            path,
            with_code=with_code,
            key=key,
            revision=revision,
            check=check,
            with_weights=with_weights,
        )
    if check is not None:
        check(folder)
    return folder


def open_checkpoint(folder: Path, *, trust_remote_code: bool) -> Checkpoint:
    """The checkpoint in a folder, which is checked first; see :func:`find_checkpoint`."""
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no config.json; model.path takes a Hugging Face model folder")
    find_weights(folder)
    if trust_remote_code:
        _refuse_code_elsewhere(folder)
    return read_checkpoint(folder)


def _refuse_code_elsewhere(folder: Path) -> None:
    """Raises a UserError for code that is not among the files of the folder.

    The fingerprint would not notice a change of that code.
    """
    known = _scoring_files(folder)
    for file in (folder / "config.json", folder / "tokenizer_config.json"):
        named = read_settings(file).get("auto_map") if file.is_file() else None
        for reference in _strings(named):
            repository, is_elsewhere, inner = reference.rpartition("--")
            if is_elsewhere:
                raise UserError(
                    f"{file}: auto_map takes code from the repository {repository}, where it may "
                    f"change; copy its *.py files to {folder} and remove '{repository}--' from "
                    "auto_map"
                )
            if f"{inner.partition('.')[0]}.py" not in known:
                raise UserError(
                    f"{file}: auto_map takes code from {reference}, which is not a file in "
                    f"{folder}; copy it there and name it by its path, as in modeling_own.Model"
                )


def _strings(value: Any) -> Iterator[str]:
    """Every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def read_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in a folder that is known to hold one, named by its contents."""
    return Checkpoint(folder, *read_files(folder, SCORED_BY))


def read_files(folder: Path, patterns: Sequence[str]) -> tuple[str, tuple[ModelFile, ...]]:
    """The files of a folder that match a pattern, after a fingerprint of their contents."""
    files = []
    for name, path in sorted(_scoring_files(folder, patterns).items()):
        files.append(ModelFile(name, *stamped_sha256(path)))
    return fingerprint({file.name: file.sha256 for file in files}), tuple(files)


def _scoring_files(folder: Path, patterns: Sequence[str] = SCORED_BY) -> dict[str, Path]:
    return {
        file.relative_to(folder).as_posix(): file
        for pattern in patterns
        for file in folder.glob(pattern)
    }


def checkpoint_dtype(folder: Path) -> str:
    """The floating-point type that a checkpoint says its weights have, such as "bfloat16"."""
    config = read_settings(folder / "config.json")
    text = config.get("text_config", {})
    found = (config | text).get("dtype") or (config | text).get("torch_dtype")
    return str(found or "float32")


def load_tokenizer(folder: Path, *, trust_remote_code: bool) -> Any:
    """The checkpoint's tokenizer.

    Raises:
        UserError: the folder has none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no usable tokenizer ({first_line(error)})") from None


def read_limits(folder: Path, *, trust_remote_code: bool) -> Limits:
    """The model's vocabulary size and context length, from its configuration.

    Raises:
        UserError: transformers does not know the architecture.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no usable config.json ({first_line(error)})") from None
    text = config.get_text_config()
    return Limits(text.vocab_size, getattr(text, "max_position_embeddings", None))


def read_stop_ids(folder: Path, tokenizer: Any, *, trust_remote_code: bool) -> list[int]:
    """The tokens that end an answer.

    The tokenizer, the model and its generation settings may each name different ones: all count.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    text = config.get_text_config()
    settings = folder / "generation_config.json"
    named = [tokenizer.eos_token_id, text.eos_token_id]
    named += [read_settings(settings).get("eos_token_id")] if settings.is_file() else []
    lists = [name if isinstance(name, list) else [name] for name in named]
    found = {token for tokens in lists for token in tokens if token is not None}
    return sorted(token for token in found if token < text.vocab_size)
