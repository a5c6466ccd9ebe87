"""The keys and groups that the command line takes, read from the schema and from ``conf/``."""

from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from enum import Enum
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from cherry_vllm.checks import AUTO, LIMIT, Limit, Named, Quota, Switch
from cherry_vllm.config import CONF, Config, register

SCHEMA = "_schema"  # the end of names that only conf/ refers to
MAX_SUGGESTIONS = 3
# Settings that have become the options of a group.
BECAME_OPTIONS = {"select.strategy": "select"}


class Key(NamedTuple):
    """A setting: its type without None, its limit, and its option if not all options have it."""

    kind: Any
    limit: Limit | None
    owner: str | None = None  # such as "engine=hf"


@cache
def known_keys() -> dict[str, Key]:
    """All settings by their dotted keys, including those of every option of every group."""
    keys = dict(_keys_of(Config))
    register()
    store = ConfigStore.instance()
    for group in list_groups():
        for name in store.list(group) if group in store.repo else []:
            option = name.removesuffix(f"{SCHEMA}.yaml")
            settings = OmegaConf.get_type(store.load(f"{group}/{name}").node)
            for key, found in _keys_of(settings, f"{group}."):
                keys.setdefault(key, found._replace(owner=f"{group}={option}"))
    return keys


def _keys_of(settings: Any, prefix: str = "") -> list[tuple[str, Key]]:
    kinds, found = get_type_hints(settings), []
    for field in fields(settings):
        kind = _without_none(kinds[field.name])
        if is_dataclass(kind):
            found += _keys_of(kind, f"{prefix}{field.name}.")
        else:
            found.append((f"{prefix}{field.name}", Key(kind, field.metadata.get(LIMIT))))
    return found


def _without_none(kind: Any) -> Any:
    if get_origin(kind) not in (Union, UnionType):
        return kind
    (rest,) = [item for item in get_args(kind) if item is not type(None)]
    return rest


@cache
def list_groups() -> dict[str, list[str]]:
    """The configuration groups and the options that each offers."""
    groups = {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(Path(CONF).iterdir())
        if folder.is_dir() and folder.name != "hydra"
    }
    return groups | {"train@pre_experience": groups["train"]}


def suggest(key: str) -> str:
    """A suggestion of keys that a key that does not exist may have meant."""
    if key in BECAME_OPTIONS:
        return f"write {BECAME_OPTIONS[key]}=NAME"
    known = [*known_keys(), *list_groups()]
    last = key.rsplit(".", 1)[-1]
    same = [name for name in known if name.rsplit(".", 1)[-1] == last]
    near = same or get_close_matches(key, known, n=1, cutoff=0.7)
    near = near or [
        name
        for name in known
        if get_close_matches(last, [name.rsplit(".", 1)[-1]], n=1, cutoff=0.8)
    ]
    if not near:
        return "`cherry-vllm STAGE --cfg job` prints all keys, docs/usage.md explains them"
    return f"did you mean {' or '.join(near[:MAX_SUGGESTIONS])}?"


def advise(key: str, value: str) -> str | None:
    """What to give instead of a value that a setting does not take, if the setting is known."""
    found = known_keys().get(key)
    if found is None:
        return None
    if found.limit:
        return f"give {found.limit.advice(value)}"
    if found.kind is bool:
        return "give true or false"
    choices = list_values(found.kind)
    return f"choose from {', '.join(choices)}" if choices else None


def list_values(kind: Any, limit: Limit | None = None) -> list[str]:
    """The values of a switch or a choice; none for other types."""
    if isinstance(limit, Switch):
        return [AUTO, "false", "true"]
    if kind is bool:
        return ["false", "true"]
    is_choice = isinstance(kind, type) and issubclass(kind, Enum)
    return [item.name for item in kind] if is_choice else []


def is_open(key: str) -> bool:
    """Whether a key belongs to a dictionary that takes any names, such as ``judge.parameters``."""
    parent, _, _ = key.rpartition(".")
    found = known_keys().get(parent)
    if found is None:
        return bool(parent) and is_open(parent)
    return get_origin(found.kind) is dict or isinstance(found.limit, Named | Quota)
