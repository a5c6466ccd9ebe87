"""A tuned model with what was measured of it, as its folder holds them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cherry_vllm.engines.checkpoint import Checkpoint, read_checkpoint
from cherry_vllm.errors import DamagedFileError, UserError
from cherry_vllm.store.files import read_json
from cherry_vllm.store.run_folder import Inner
from cherry_vllm.training.probe import TUNED, Probe

ROUNDED = "bfloat16"  # the copy for the scorer


@dataclass(frozen=True)
class TunedModel:
    """The result of a training."""

    artifact: Path  # its folder
    facts: dict[str, Any]  # the most important ones
    model: Checkpoint  # in fp32
    scorer: Checkpoint  # the copy that the scorer loads
    probe: Probe


def open_tuned(folder: Path) -> TunedModel:
    """The result of a finished training.

    Raises:
        UserError: a checkpoint in the folder is not the one that training saved, or train.json is
            damaged.
    """
    facts = read_json(folder / Inner.TRAINING)
    names = ("num_rows", "num_trained", "dropped", "num_tokens", "num_steps", "seconds")
    try:
        saved = {str(name): str(model) for name, model in facts["checkpoints"].items()}
        probe = Probe.from_json(facts["probe"])
        short = {name: facts[name] for name in names} | {"loss on probe rows": probe.losses}
    except (KeyError, TypeError, AttributeError, ValueError):
        saved = {}
    if TUNED not in saved:
        raise DamagedFileError(
            f"{folder / Inner.TRAINING}: damaged; restore it, or remove {folder} to train again"
        )
    copies = {name: read_checkpoint(folder / name) for name in saved}
    for name, copy in copies.items():
        refuse_other_model(copy, saved[name])
    return TunedModel(folder, short, copies[TUNED], copies.get(ROUNDED, copies[TUNED]), probe)


def refuse_other_model(copy: Checkpoint, saved: str | None) -> None:
    """Raises a UserError if a model is not the one with the fingerprint ``saved``."""
    if copy.fingerprint != saved:
        raise UserError(
            f"{copy.folder}: not the model that training saved there; restore its files, or "
            f"remove {copy.folder.parent} to train again"
        )
