"""Data sets and files of the Hugging Face Hub, fetched into the hub's own cache."""

import glob
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cherry_vllm.errors import UserError
from cherry_vllm.runtime.text import first_line

SCHEME = "hf://"
DATA_SETS = f"{SCHEME}datasets/"

log = logging.getLogger(__name__)


def fetch_files(pattern: str, split: str | None, config: str | None) -> list[Path]:
    """The local copies of an ``hf://`` path: a data set's id, a file, or a glob of files.

    Raises:
        UserError: the hub does not have it, or it is not clear which split is meant.
    """
    from huggingface_hub.errors import HfHubHTTPError

    name = pattern.removeprefix(DATA_SETS)
    is_data_set = pattern.startswith(DATA_SETS) and name.strip("/").count("/") < 2
    try:
        if is_data_set and not glob.has_magic(name):
            return _download(find_split(pattern.rstrip("/"), split, config))
        if (split, config) != (None, None):
            raise UserError(f"{pattern}: files of the hub; leave out data.split and data.config")
        files = _download(_match(pattern))
    except (OSError, ValueError, NotImplementedError, *HfHubHTTPError.__bases__) as error:
        # The bases are OSError and the HTTP library's error; the first line says what is wrong.
        raise UserError(
            f"{pattern}: {first_line(error)}; check the path, the network and HF_TOKEN"
        ) from None
    if not files:
        raise UserError(f"{pattern}: no file matches; check data.path")
    return files


def find_split(data_set: str, split: str | None, config: str | None) -> list[str]:
    """The paths of the files of a split of a data set: of an ``hf://`` path, or of a folder.

    None is the only split, or the default configuration.

    Raises:
        UserError: there is no such split or configuration, or ``datasets`` is not installed.
        OSError, ValueError: there is no such data set.
    """
    files = _find_splits(data_set, config)
    names = ", ".join(map(str, files))
    if split is None and len(files) > 1:
        raise UserError(f"{data_set}: several splits ({names}); add data.split={next(iter(files))}")
    if split is not None and split not in files:
        raise UserError(f"{data_set}: no split '{split}' (found: {names}); check data.split")
    found = files[split] if split is not None else next(iter(files.values()))
    log.info("%s: %d files", data_set, len(found))
    return list(map(str, found))


def _find_splits(data_set: str, config: str | None) -> dict[str, Sequence[Any]]:
    try:
        from datasets import load_dataset_builder
    except ImportError:
        raise UserError(
            f"{data_set}: the package datasets, which finds splits, is not installed; "
            "install cherry-vllm[hub], or name the files, as in hf://datasets/NAME/data/*.parquet"
        ) from None
    is_remote = data_set.startswith(DATA_SETS)
    path, _, revision = data_set.partition("@") if is_remote else (data_set, "", "")
    try:
        builder = load_dataset_builder(path, config, revision=revision or None)
    except RuntimeError as error:  # it has code of its own
        raise ValueError(str(error)) from None
    except ValueError as error:
        if "config" not in str(error).lower():
            raise
        reason = " ".join(str(error).split("\nExample")[0].split())
        raise UserError(f"{data_set}: {reason}; set data.config") from None
    return dict(builder.config.data_files or {})


def _match(pattern: str) -> list[str]:
    from huggingface_hub import HfFileSystem

    found = HfFileSystem().glob(pattern) if glob.has_magic(pattern) else [pattern]
    return sorted(map(str, found))


def _download(paths: Sequence[str]) -> list[Path]:
    """Fetches the files one by one; what is in the cache is not fetched again."""
    from huggingface_hub import HfFileSystem, hf_hub_download

    hub = HfFileSystem()
    places = [hub.resolve_path(path) for path in paths]
    return [
        Path(
            hf_hub_download(
                place.repo_id,
                place.path_in_repo,
                repo_type=place.repo_type,
                revision=place.revision,
            )
        )
        for place in places
    ]
