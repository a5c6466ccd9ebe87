"""Turns what a user types into words that Hydra understands.

Hydra reads values by a grammar in which spaces, brackets, ``=``, ``,`` and ``~`` have a meaning,
but file names may contain all of them. So if a key takes text and the value can only be meant
literally, it is quoted here. If it could also be a list or a sweep, one line says how to write
either. For a key that does not exist, similar keys are suggested.
"""

import re
import shlex
from collections.abc import Collection, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, ValueType
from hydra.errors import HydraException

from cherry_vllm.checks import Each
from cherry_vllm.cli.keys import BECAME_OPTIONS, SCHEMA, is_open, known_keys, list_groups, suggest
from cherry_vllm.errors import UserError

# Old names, refused with the new one.
RENAMED_KEYS = {"censure": "refusals", "shard": "share"}
RENAMED_OPTIONS = {"engine=vllm_eager": "engine=vllm_fused_eager"}

# Hydra's settings that do not work here, and settings that no longer exist.
USELESS = {
    "judge.backoff_s": "no longer a setting: the openai client chooses its pauses; leave it out",
    "judge.max_wait_s": "no longer a setting: the openai client chooses its pauses; leave it out",
    "hydra.run.dir": "not used; a run's files are in run_dir, a sweep's in hydra.sweep.dir",
    "hydra.job.chdir": "not supported: paths would be looked up in the job's folder; leave it out",
}


# Hydra's flags that a value follows.
VALUE_FLAGS = {"-c", "--cfg", "-cd", "--config-dir", "-cn", "--config-name", "-cp", "--config-path"}
VALUE_FLAGS |= {"-i", "--info", "-p", "--package"}


class Word(NamedTuple):
    """A word of the command line, as in ``+key=value``."""

    prefix: str  # "", "+", "++" or "~"
    key: str
    value: str | None

    def __str__(self) -> str:
        return f"{self.prefix}{self.key}" + ("" if self.value is None else f"={self.value}")


def name_values(words: Sequence[str], keys: Sequence[str]) -> list[str]:
    """The words with ``keys`` before those that are values alone, in order.

    A value of one of Hydra's flags stays as it is.
    """
    left, named = list(keys), list[str]()
    for before, word in pairwise(["", *words]):
        is_value = "=" not in word and word[:1] not in "-~+" and before not in VALUE_FLAGS
        named.append(f"{left.pop(0)}={word}" if left and is_value else word)
    return named


def read_words(
    words: Sequence[str], *, is_sweep: bool, more_groups: Collection[str] = ()
) -> list[str]:
    """The overrides for Hydra; ``more_groups`` are the groups of the user's own folder.

    Raises:
        UserError: a key does not exist, or a value can be understood in two ways.
    """
    return [str(_read(_split(word), more_groups, is_sweep=is_sweep)) for word in words]


def _read(word: Word, more_groups: Collection[str], *, is_sweep: bool) -> Word:
    key = word.key.partition("@")[0]
    _refuse_old_names(word)
    if key in USELESS:
        raise UserError(f"{word}: {USELESS[key]}")
    if _is_left_to_hydra(key, more_groups):
        return _checked(word, is_sweep=is_sweep)
    if word.prefix == "~":
        return _removed(word)
    if key in list_groups() or "/" in key:
        return _option(word, is_sweep=is_sweep)
    found = known_keys().get(key)
    if found is None and not is_open(key):
        raise UserError(f"{word.prefix}{key}: no such key; {suggest(key)}")
    if found is None:
        return _checked(word, is_sweep=is_sweep)
    word = word._replace(prefix="")  # `+key` and `++key` of a key that exists mean `key`
    is_text = found.kind is str or (isinstance(found.limit, Each) and found.limit.one_will_do)
    return (_as_text if is_text else _checked)(word, is_sweep=is_sweep)


def _is_left_to_hydra(key: str, more_groups: Collection[str]) -> bool:
    """Whether a key is Hydra's own, or of a group that only the user's folder has."""
    first = re.split(r"[./]", key)[0]
    is_known = first in list_groups() or key in known_keys()
    return first == "hydra" or (first in more_groups and not is_known)


def _split(text: str) -> Word:
    match = re.fullmatch(r"(~|\+{0,2})([^=]*)(?:=(.*))?", text, re.DOTALL)
    if match is None or not match[2] or (match[3] is None and match[1] != "~"):
        raise UserError(f"{text}: give key=value, as in data.path=alpaca.json")
    if any("\ud800" <= letter <= "\udfff" for letter in text):  # bytes that are not UTF-8
        raise UserError(f"{text}: not UTF-8; rename the file")
    return Word(match[1], match[2], match[3])


def _refuse_old_names(word: Word) -> None:
    group, dot, rest = word.key.partition(".")
    new = RENAMED_KEYS.get(group)
    if new and group not in list_groups() and not any(_is_of(key, group) for key in known_keys()):
        now = word._replace(key=f"{new}{dot}{rest}")
        raise UserError(f"{word.key}: has a new name; write {now}")
    if became := BECAME_OPTIONS.get(word.key):
        value = word.value or "NAME"
        raise UserError(f"{word.key}: no longer a setting; write {became}={value}")
    if option := RENAMED_OPTIONS.get(f"{word.key}={word.value}"):
        key, _, value = option.partition("=")
        if value in list_groups().get(key, ()):
            raise UserError(f"{word.key}={word.value}: has a new name; write {option}")


def _is_of(key: str, group: str) -> bool:
    return key == group or key.startswith(f"{group}.")


def _removed(word: Word) -> Word:
    if is_open(word.key):
        return word
    if word.key in known_keys() or word.key in list_groups():
        raise UserError(f"~{word.key}: cannot be left out; give it another value")
    raise UserError(f"~{word.key}: no such key; {suggest(word.key)}")


def _option(word: Word, *, is_sweep: bool) -> Word:
    """A group's option; Hydra checks whether it exists, as it also searches --config-dir."""
    options = ", ".join(list_groups().get(word.key, []))
    for value in (word.value or "").split(","):
        if value.endswith(SCHEMA) or value in ("", "null") or _is_no_name(word):
            raise UserError(f"{word.key}={value}: no such option; choose from {options}")
    word = word._replace(prefix="+" if word.key == "experiment" else "")
    return _checked(word, is_sweep=is_sweep)


def _is_no_name(word: Word) -> bool:
    """Whether Hydra reads the value as a number, a switch or a mapping."""
    parsed = _parse(word)
    if parsed is None or parsed.value_type is not ValueType.ELEMENT:
        return False
    return isinstance(parsed.value(), bool | int | float | dict)


def _checked(word: Word, *, is_sweep: bool) -> Word:
    """The word, if Hydra's grammar can read it; Hydra's own error would not say what to do."""
    parsed = _parse(word)
    if parsed is None:
        quoted = _shell(str(word._replace(value=_quote(word.value or ""))))
        raise UserError(f"{word}: Hydra cannot read this value; a text needs quotes: {quoted}")
    _check_sweep(word, parsed, is_sweep=is_sweep)
    return word


def _check_sweep(word: Word, parsed: Override, *, is_sweep: bool) -> None:
    if parsed.is_sweep_override() and not is_sweep:
        raise UserError(f"{word}: several values; add -m to run them all, or give one")
    if parsed.value_type is ValueType.GLOB_CHOICE_SWEEP and word.key in known_keys():
        raise UserError(f"{word}: glob() finds options of groups; list the values, as in 1,2,3")


def _with_line_breaks(word: Word) -> Word:
    """In a prompt's double quotes, \\n is a line break, as in YAML; Hydra would not change it."""
    value = word.value or ""
    if not re.match(r"(judge\.)?prompt\.", word.key) or not re.fullmatch(r'".*"', value, re.DOTALL):
        return word
    return word._replace(value=re.sub(r"(?<!\\)\\n", "\n", value))


def _as_text(word: Word, *, is_sweep: bool) -> Word:
    """The word of a key that takes text, quoted if the value can only be meant literally."""
    word = _with_line_breaks(word)
    value, parsed = word.value or "", _parse(word)
    quoted = word._replace(value=_quote(value))
    if _exists(value):
        return quoted
    if parsed is not None and (is_sweep or not _is_plain_sweep(parsed)):
        _check_sweep(word, parsed, is_sweep=is_sweep)
        return quoted if _is_no_name(word) else word
    if value.startswith("[") and value.endswith("]"):
        items = ",".join(_quote(item.strip()) for item in value[1:-1].split(","))
        listed = _shell(str(word._replace(value=f"[{items}]")))
        raise UserError(f"{word}: quote each item of the list: {listed}")
    if "," in value and (parsed is not None or is_sweep):
        items = ",".join(_quote(item.strip()) for item in value.split(","))
        sweep = _shell(str(word._replace(value=items)))
        text = _shell(str(quoted))
        raise UserError(f"{word}: for one text write {text}, for a sweep -m {sweep}")
    return quoted


def _exists(path: str) -> bool:
    try:
        return bool(path) and Path(path).exists()
    except OSError:  # such as a name that is too long
        return False


def _parse(word: Word) -> Override | None:
    try:
        return OverridesParser.create().parse_override(str(word))
    except HydraException:
        return None


def _is_plain_sweep(parsed: Override) -> bool:
    return parsed.value_type is ValueType.SIMPLE_CHOICE_SWEEP


def _shell(text: str) -> str:
    """The text quoted for a shell, in double quotes if they suffice."""
    return shlex.quote(text) if set(text) & set('"$`!\\') else f'"{text}"'


def _quote(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()
