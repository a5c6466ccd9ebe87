"""A model that vLLM servers hold: what is known of it, and how each server is compared with it.

A server says only the name of its model. So the log-probs of a fixed text (the probe) stand for the
weights: they are recorded when a run begins, and each server must give them again before and after
every shard that it takes part in.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from cherry_vllm.engines.checkpoint import (
    SCORED_BY,
    Checkpoint,
    find_folder,
    load_tokenizer,
    read_files,
)
from cherry_vllm.engines.server import (
    Floats,
    Server,
    ServerDownError,
    ServerRefusedError,
    open_servers,
)
from cherry_vllm.engines.settings import ServerSettings
from cherry_vllm.engines.weights import WEIGHTS
from cherry_vllm.errors import UserError
from cherry_vllm.store.files import read_json, write_json
from cherry_vllm.store.run_folder import Inner

log = logging.getLogger(__name__)

# Everyday text, since rare tokens may stand for images: several scripts, numbers, code.
PROBE = (
    "The river rose in the night, and by morning the lower fields were under water. "
    "Der Zug nach Wien fährt um 17:45 Uhr ab. La réponse est simple, mais elle demande du temps. "
    "今天天气很好，我们去公园散步。 Сегодня я читал книгу о море. "  # noqa: RUF001
    "def area(r):\n    return 3.14159 * r ** 2\n\n"
    "1. Mix the flour with 250 ml of milk. 2. Add two eggs. 3. Bake for 40 minutes at 180 °C. "
    'She asked: "Which of the three roads leads to the harbour?" Nobody knew.'
)


@dataclass(frozen=True)
class ServedModel(Checkpoint):
    """The tokenizer and configuration in a folder, and the probe's log-probs in nats."""

    patterns: ClassVar[Sequence[str]] = [name for name in SCORED_BY if name != WEIGHTS]

    probe: tuple[int, ...] = ()  # token ids
    logprobs: tuple[float, ...] = ()  # of all but the first
    tolerance: float = 0.0  # of their mean absolute difference
    configurations: tuple[str, ...] = ()  # as the servers name them, with vLLM's version

    def settle(self, folder: Path) -> Self:
        """The model with the log-probs that were recorded when the run in ``folder`` began.

        Raises:
            UserError: the servers hold another model now.
        """
        record = folder / Inner.SERVED
        if not record.exists():
            found = {"probe": self.probe, "logprobs": self.logprobs}
            write_json(record, {**found, "system_fingerprints": self.configurations})
            return self
        known = read_json(record)
        if known.get("probe") != list(self.probe):  # the probe of another release
            raise UserError(f"{record}: of another release; give this one a run_dir of its own")
        before = replace(self, logprobs=tuple(known["logprobs"]))
        before.compare("engine.base_url", np.array(self.logprobs), "the one this run began with")
        return before

    def compare(self, place: str, logprobs: Floats, other: str) -> None:
        """Raises a UserError if the probe's log-probs differ from those of this model.

        ``place`` gave them; ``other`` names this model in the message.
        """
        difference = float(np.abs(logprobs - np.array(self.logprobs)).mean())
        if not difference <= self.tolerance:  # also if it is not a number
            raise UserError(
                f"{place}: another model than {other}: its log-probs of the same "
                f"{len(self.logprobs)} tokens differ by {difference:.3f} nats on average; serve "
                "the same model and type everywhere, or give the new one a run_dir of its own "
                f"(engine.tolerance={self.tolerance:g})"
            )


def find_served(
    path: str, settings: ServerSettings, *, num_tokens: int, trust_remote_code: bool
) -> ServedModel:
    """The model that the servers hold; ``path`` is the folder or hub id of its tokenizer.

    Every server that answers is checked: it must take ``num_tokens`` tokens, give prompt log-probs,
    encode text as the tokenizer does, and hold the same model as the others.

    Raises:
        UserError: a server cannot be used, or none answers.
    """
    folder = find_folder(path, key="model.path", with_code=trust_remote_code, with_weights=False)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder}: no config.json; model.path takes the folder of the served model, which "
            "needs no weights here"
        )
    tokenizer = load_tokenizer(folder, trust_remote_code=trust_remote_code)
    token_ids = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    model = ServedModel(
        folder,
        *read_files(folder, ServedModel.patterns),
        probe=tuple(token_ids[: max(2, num_tokens - 1)]),
        tolerance=settings.tolerance,
    )
    return asyncio.run(_meet(settings, model, token_ids, num_tokens))


async def _meet(
    settings: ServerSettings, model: ServedModel, token_ids: Sequence[int], num_tokens: int
) -> ServedModel:
    first = ""
    async with open_servers(settings, num_tokens, {}) as servers:
        found = await asyncio.gather(*(_greet(server, model, token_ids) for server in servers))
    for server, answer in zip(servers, found, strict=True):
        if isinstance(answer, ServerDownError):
            log.warning("%s: %s; the others go on without it", server.url, answer)
        elif not first:
            first, model = server.url, replace(model, logprobs=tuple(map(float, answer)))
        else:
            model.compare(server.url, answer, f"that of {first}")
    if not first:
        raise UserError(
            f"{servers[0].url}: {found[0]}; no server answers: check engine.base_url and start "
            "them, then give the same command again"
        )
    names = {name for server in servers for name in server.configurations}
    return replace(model, configurations=tuple(sorted(names)))


async def _greet(
    server: Server, model: ServedModel, token_ids: Sequence[int]
) -> Floats | ServerDownError:
    """The probe's log-probs, or why the server does not answer."""
    try:
        logprobs = await server.probe(model.probe)
        encoded = await server.encode(PROBE)
    except ServerDownError as fault:
        return fault
    except ServerRefusedError as refusal:
        raise UserError(
            f"{server.url}: {refusal}; check engine.base_url, engine.model, engine.api_key_env and "
            "that vLLM serves a model that generates"
        ) from None
    if not np.isfinite(logprobs).all():
        raise UserError(f"{server.url}: its log-probs are not finite; check the served model")
    if encoded is None:
        log.warning(
            "%s: does not say how it encodes text, so tokenizers are not compared", server.url
        )
    elif encoded != list(token_ids):
        raise UserError(
            f"{server.url}: encodes text differently from the tokenizer in {model.folder}; "
            "model.path must be the served model's own folder or hub id"
        )
    return logprobs
