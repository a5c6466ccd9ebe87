"""Errors of Hydra, OmegaConf and YAML in one line that says what to do."""

import re
import traceback
from collections.abc import Sequence
from pathlib import Path

import yaml
from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    GrammarParseError,
    InterpolationKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from cherry_vllm.cli.keys import SCHEMA, advise, known_keys, suggest
from cherry_vllm.errors import UserError
from cherry_vllm.runtime.text import first_line

IN_FILE = re.compile(r"In '([^']+)': ")
ADD_PACKAGE = "add `# @package _global_` as its first line, and keys with their values below"


def explain(error: Exception) -> str:
    """A failed composition in one line, with the fix if it is known."""
    text, cause = str(error), _cause(error)
    if isinstance(error, yaml.YAMLError):
        return _explain_yaml(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _explain_missing(text, error.missing_cfg_file, error.options)
    if match := re.match(r"Could not override '([^']+)'", text):
        return _explain_key(match[1])
    if match := re.match(r"Error merging override ([^=]+)=(.*)", text, re.DOTALL):
        advice = advise(match[1], match[2]) or first_line(cause)
        return f"{match[1]}={match[2]}: {advice}"
    match = IN_FILE.match(text)
    file = match[1] if match else ""
    if isinstance(cause, OmegaConfBaseException):
        reason = _explain_setting(cause, file)
    else:
        advice = "; fix the configuration file" if isinstance(error, ValueError) else ""
        reason = " ".join(IN_FILE.sub("", text).split()) + advice
    return f"{file}.yaml: {reason}" if file else reason


def _cause(error: Exception) -> BaseException:
    """The error that says more; Hydra raises its own from it, or while it handles it."""
    if isinstance(error, OmegaConfBaseException):
        return error
    return error.__cause__ or error.__context__ or error


def _explain_key(key: str) -> str:
    """Why a key cannot be set."""
    found = known_keys().get(key)
    if found and found.owner:
        group = found.owner.partition("=")[0]
        return f"{key}: not a setting of the chosen {group}; it goes with {found.owner}"
    advice = "--hydra-help lists Hydra's own" if key.startswith("hydra") else suggest(key)
    return f"{key}: no such key; {advice}"


def _explain_setting(error: OmegaConfBaseException, file: str) -> str:
    """What is wrong with a setting, which may come from a file."""
    key, reason = error.full_key or "", first_line(error)
    if isinstance(error, InterpolationKeyError) and (match := re.search("'(.*)'", reason)):
        return f"{key}=${{{match[1]}}}: no such key; {suggest(match[1])}"
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        is_name = key == file.partition("/")[0] and key not in known_keys()
        return ADD_PACKAGE if is_name else _explain_key(key)
    if isinstance(error, MissingMandatoryValue):
        return f"{key}: not given; add {key}=..."
    if isinstance(error, GrammarParseError):
        return f"{key}: a ${{...}} in its value cannot be read; close its brackets"
    return _explain_value(key, reason)


def _explain_value(key: str, reason: str) -> str:
    """What is wrong with a value, given OmegaConf's reason."""
    if match := re.match(r"Merge error: .* value: (.*)", reason):
        return f"{match[1]}: a value where a group of settings belongs; write its keys below it"
    if match := re.match("(?:Invalid v|V)alue '(.*?)'", reason):
        return f"{key}={match[1]}: {advise(key, match[1]) or reason}"
    return f"{key}: {reason}" if key else reason


def _explain_missing(text: str, name: str, options: Sequence[str] | None) -> str:
    group, _, option = name.rpartition("/")
    known = [option for option in options or () if not option.endswith(SCHEMA)]
    if known:
        return f"{group}={option}: no such option; choose from {', '.join(known)}"
    if match := IN_FILE.match(text):
        place = "" if match[1] == "config" else f"{match[1]}.yaml: defaults: "  # "": the command
        return f"{place}{name}.yaml: no such file; check the name"
    return f"--config-name {name}: no such file; give --config-dir, the folder that it is in"


def _explain_yaml(error: yaml.YAMLError) -> str:
    """What is wrong with a YAML file, and in which line."""
    mark, start = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    if mark is None:
        return f"YAML: {' '.join(str(error).split())}; fix the file"
    reason = f"{mark.name}, line {mark.line + 1}: {getattr(error, 'problem', 'not YAML')}"
    if start is not None:
        reason += f" {getattr(error, 'context', '')}, which starts in line {start.line + 1}"
    return f"{reason}; fix the file"


def refuse_other_encodings(folder: Path) -> None:
    """Finds the configuration file that is not UTF-8, which the decoder's error does not name.

    Raises:
        UserError: a file of the folder is not UTF-8.
    """
    for file in sorted(folder.rglob("*.yaml")):
        content = file.read_bytes()
        try:
            content.decode()
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise UserError(f"{file}, line {line}: not UTF-8; save the file as UTF-8") from None


def is_explained(error: Exception) -> bool:
    """Whether an error comes from the composition, and so from what the user wrote."""
    if isinstance(error, HydraException | OmegaConfBaseException | yaml.YAMLError):
        return True
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    raised_in = frames[-1].f_globals.get("__name__", "") if frames else ""
    return isinstance(error, ValueError) and raised_in.startswith("hydra.")
