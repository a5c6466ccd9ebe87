"""What an earlier release left in a run folder."""

import logging
from contextlib import suppress
from pathlib import Path

from cherry_vllm.schema import SCHEMA_VERSION
from cherry_vllm.store.files import read_json
from cherry_vllm.store.run_folder import NAMED, Inner

log = logging.getLogger(__name__)


def warn_of_earlier_release(run_dir: Path) -> None:
    """Warns in one line that an earlier release left shards, which this one has to make again.

    Once this release has begun to make them, there is no more warning.
    """
    found = set[int]()
    for path in run_dir.glob("*/*/*.json"):
        if path.parts[-3] in NAMED and path.name in (Inner.SETTINGS, Inner.COMPLETE):
            with suppress(OSError, ValueError, KeyError, TypeError):
                content = read_json(path)
                settings = content if path.name == Inner.SETTINGS else content["settings"]
                found.add(settings["schema_version"])
    if found and max(found) < SCHEMA_VERSION:
        log.warning(
            "%s: holds shards and scores of an earlier cherry-vllm (schema %d), which this one "
            "cannot use; they are made again",
            run_dir,
            max(found),
        )
