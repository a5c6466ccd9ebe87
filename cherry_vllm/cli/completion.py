"""Shell completion: stages, keys, and the values of groups, choices and switches.

``eval "$(cherry-vllm -sc install=bash)"`` installs it; in zsh, run ``bashcompinit`` first.
"""

import os
import re
from collections.abc import Callable, Sequence

from cherry_vllm.cli.help import STAGES
from cherry_vllm.errors import UserError

FLAGS = ("--cfg", "--config-dir", "--help", "--multirun", "--resolve")

# Bash splits the line at "=" before it asks, and expects only the part after it.
BASH = """\
_cherry_vllm() {
    local word choice
    word="${COMP_LINE:0:COMP_POINT}"
    word="${word##* }"
    COMPREPLY=()
    while IFS= read -r choice; do
        [[ -z $choice ]] || COMPREPLY+=("${choice#"${word%"${word##*[=:]}"}"}")
    done < <(COMP_LINE="$COMP_LINE" COMP_POINT="$COMP_POINT" "${COMP_WORDS[0]}" -sc query=bash)
}
complete -o nospace -o default -F _cherry_vllm cherry-vllm"""


def complete(words: Sequence[str]) -> str:
    """What ``cherry-vllm -sc WORD`` prints.

    Raises:
        UserError: the word names another shell or an unknown action.
    """
    line = os.environ.get("COMP_LINE", "")
    point = os.environ.get("COMP_POINT", "")
    position = int(point) if point.isdecimal() else len(line)
    answers: dict[str, Callable[[], str]] = {
        "install=bash": lambda: BASH,
        "uninstall=bash": lambda: "complete -r cherry-vllm; unset -f _cherry_vllm",
        "query=bash": lambda: "\n".join(list_choices(line[:position])),
    }
    if len(words) != 1 or words[0] not in answers:
        given = " ".join(words)
        raise UserError(
            f"-sc {given}: give install=bash or uninstall=bash; other shells are not supported"
        )
    return answers[words[0]]()


def list_choices(line: str) -> list[str]:
    """The possible completions of the last word of a command line."""
    *before, begun = re.split(" +", line.lstrip(" "))
    if len(before) < 2:
        return _beginning([f"{name} " for name in STAGES], begun)
    if before[-1] in ("--cfg", "-c"):
        return _beginning([f"{part} " for part in ("all", "hydra", "job")], begun)
    return list_words(begun)


def list_words(begun: str) -> list[str]:
    """The keys, groups, flags or values that complete a word."""
    from cherry_vllm.cli.keys import known_keys, list_groups, list_values

    if begun.startswith("-"):
        return _beginning([f"{flag} " for flag in FLAGS], begun)
    word = begun.lstrip("+~")
    prefix = begun.removesuffix(word)
    key, equals, given = word.partition("=")
    if equals:
        found = known_keys().get(key)
        values = list_groups().get(key) or (list_values(found.kind, found.limit) if found else [])
        start = begun.removesuffix(given.rpartition(",")[2])  # with the values of a sweep so far
        return _beginning([f"{start}{value} " for value in values], begun)
    names = [f"{name}=" for name in [*known_keys(), *list_groups()]]
    # One level at a time: `select.` before the keys of `select`.
    levels = {_to_next_dot(name, len(word)) for name in names if name.startswith(word)}
    return sorted(f"{prefix}{name}" for name in levels)


def _to_next_dot(name: str, start: int) -> str:
    dot = name.find(".", start)
    return name if dot < 0 else name[: dot + 1]


def _beginning(choices: Sequence[str], begun: str) -> list[str]:
    return [choice for choice in choices if choice.startswith(begun)]
