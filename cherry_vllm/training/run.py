"""The room's own corridor: row shards and a checkpoint to a tuned model.

run_dir/models/NAME-FINGERPRINT/
  model/        the tuned checkpoint, in fp32
  bfloat16/     the same for the scorer, stochastically rounded
  losses.csv    loss, learning rate and gradient norm of every optimizer step; losses.png
  train.json    settings, counts, times, and the loss before and after; written last
"""

import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from cherry_vllm.engines.checkpoint import Checkpoint, load_tokenizer, read_checkpoint
from cherry_vllm.errors import UserError
from cherry_vllm.prompts.prompt import Prompt
from cherry_vllm.prompts.spans import open_span_builder
from cherry_vllm.runtime.processes import ChildError, isolate, preload_malloc
from cherry_vllm.runtime.versions import installed_versions
from cherry_vllm.schema import SCHEMA_VERSION
from cherry_vllm.store.files import atomic_path, fingerprint, read_json, write_json
from cherry_vllm.store.shards import Shards
from cherry_vllm.training.examples import Example, build_examples
from cherry_vllm.training.probe import probe_losses, warn_of_lost_gain

log = logging.getLogger(__name__)

# What decides memory, disk and reports, and no weight beyond its last bits.
MACHINE_SETTINGS = (
    "micro_batch_tokens",
    "gradient_checkpointing",
    "compile_layers",
    "fsdp",
    "save_steps",
    "report_to",
)


def train(
    run_dir: Path,
    rows: Shards,
    checkpoint: Checkpoint,
    *,
    name: str,
    prompt: Prompt,
    max_length: int,
    recipe: dict[str, Any],
    scorer_dtype: str,
    num_probe_rows: int,
    seed: int,
    trust_remote_code: bool,
) -> Path:
    """Fine-tunes ``checkpoint`` on every usable row; returns the folder named above.

    ``recipe`` holds the training arguments of :func:`tuning.fine_tune`. ``scorer_dtype``
    "bfloat16" makes the rounded copy, "float32" none. Every model's answer loss on
    ``num_probe_rows`` of the rows goes into ``train.json``.

    Raises:
        UserError: no row can be trained on, or training ran out of memory or of numbers.
    """
    settings = {
        "schema_version": SCHEMA_VERSION,
        "rows": rows.fingerprint,
        "model": checkpoint.fingerprint,
        "prompt": prompt.as_json(),
        "max_length": max_length,
        "recipe": {key: recipe[key] for key in recipe if key not in MACHINE_SETTINGS},
        "scorer_dtype": scorer_dtype,
        "seed": seed,
    }
    folder = run_dir / "models" / f"{name}-{fingerprint(settings)}"
    if (folder / "train.json").is_file():
        log.info("%s: trained before, nothing to do", folder)
        return folder
    check_trackers(recipe["report_to"])
    tokenizer = _load_tokenizer(checkpoint, trust_remote_code=trust_remote_code)
    builder = open_span_builder(
        checkpoint, prompt=prompt, max_length=max_length, trust_remote_code=trust_remote_code
    )
    examples, dropped = build_examples(
        rows.scan().select("instruction", "input", "answer", "drop_reason").collect(),
        builder,
        eos_token_id=tokenizer.eos_token_id,
        max_length=max_length,
    )
    if dropped.total() == len(examples):
        raise UserError(f"no row to train on: {_count(examples, dropped)}")
    log.info("%s: training on %s", folder, _count(examples, dropped))
    common = {"seed": seed, "trust_remote_code": trust_remote_code}
    _tune(folder, checkpoint, examples, tokenizer, **recipe, **common)
    if not is_first_process():
        return folder
    probe = probe_losses(
        examples,
        {"base": checkpoint, **_make_copies(folder, scorer_dtype, seed)},
        num_rows=num_probe_rows,
        eos_token_id=tokenizer.eos_token_id,
        trust_remote_code=trust_remote_code,
    )
    if "bfloat16" in probe["losses"]:
        warn_of_lost_gain("the copy in bfloat16", *probe["losses"].values())
    facts = {
        **_measure(examples, dropped),
        **read_json(folder / "tuned.json"),
        "probe": probe,
        "settings": settings,
        "machine": {key: recipe[key] for key in MACHINE_SETTINGS},
        "versions": installed_versions(),
    }
    write_json(folder / "train.json", facts)
    (folder / "tuned.json").unlink()
    return folder


def check_trackers(report_to: Sequence[str]) -> None:
    """Raises a UserError for a tracker that is not installed here."""
    if not report_to:
        return
    from transformers import integrations

    available: list[str] = integrations.get_available_reporting_integrations()  # type: ignore
    for name in report_to:
        if name not in available:
            raise UserError(
                f"train.report_to={name}: not installed, or not known to transformers; here: "
                f"{', '.join(available) or 'none'}"
            )


def _tune(
    folder: Path,
    checkpoint: Checkpoint,
    examples: Sequence[Example | None],
    tokenizer: Any,
    **settings: Any,
) -> None:
    """Leaves ``model/``, the loss curve and, once these are there, ``tuned.json``."""
    if (folder / "tuned.json").is_file():
        return
    import torch

    from cherry_vllm.training.tuning import fine_tune

    started = time.monotonic()
    usable = [example for example in examples if example is not None]
    work = partial(fine_tune, checkpoint, usable, tokenizer, folder, **settings)
    if "WORLD_SIZE" in os.environ:  # torchrun's processes have found each other already
        losses = work()
    else:
        environment = {} if torch.cuda.is_available() else preload_malloc()
        try:
            losses = isolate(work, environment=environment)
        except ChildError as lost:
            raise UserError(
                f"training: its process {lost}; the same command resumes, and needs less memory "
                "with a lower train.micro_batch_tokens"
            ) from None
    if is_first_process():
        seconds = round(time.monotonic() - started, 1)
        _write_losses(losses, folder)
        write_json(folder / "tuned.json", {"num_steps": len(losses), "seconds": seconds})
        shutil.rmtree(folder / "checkpoints")


def _measure(examples: Sequence[Example | None], dropped: Counter[str]) -> dict[str, Any]:
    usable = [example for example in examples if example is not None]
    return {
        "num_rows": len(examples),
        "num_trained": len(usable),
        "dropped": dict(dropped),
        "num_tokens": sum(len(token_ids) for token_ids, _ in usable),
        "num_answer_tokens": sum(len(token_ids) - start for token_ids, start in usable),
    }


def is_first_process() -> bool:
    """Whether this is the process that reads and writes the run folder; under torchrun, rank 0."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def first_process_first() -> Iterator[None]:
    """Under torchrun, lets the first process through the block before the others."""
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    import torch
    from accelerate import PartialState

    on_cpu = not torch.cuda.is_available()
    state = PartialState(cpu=on_cpu, backend="gloo") if on_cpu else PartialState()
    with state.main_process_first():
        yield


def describe(folder: Path) -> dict[str, Any]:
    """What ``train.json`` tells of a trained model, in short."""
    facts = read_json(folder / "train.json")
    names = ("num_rows", "num_trained", "dropped", "num_tokens", "num_steps", "seconds")
    short = {name: facts[name] for name in names}
    return short | {"loss on probe rows": facts["probe"]["losses"]}


def scorer_checkpoint(folder: Path) -> Path:
    """The copy of a trained model that the scorer is to load."""
    rounded = folder / "bfloat16"
    return rounded if rounded.is_dir() else folder / "model"


def _make_copies(folder: Path, scorer_dtype: str, seed: int) -> dict[str, Checkpoint]:
    """The tuned model and its copies, by name."""
    copies = {"model": folder / "model"}
    if scorer_dtype == "bfloat16":
        from cherry_vllm.training.rounding import export_bfloat16

        copies["bfloat16"] = folder / "bfloat16"
        export_bfloat16(copies["model"], copies["bfloat16"], seed=seed)
    return {name: read_checkpoint(copy) for name, copy in copies.items()}


def _write_losses(losses: list[dict[str, float]], folder: Path) -> None:
    from cherry_vllm.figures.figure import save_png
    from cherry_vllm.figures.models import draw_losses

    table = pl.DataFrame(losses)
    with atomic_path(folder / "losses.csv") as path:
        table.write_csv(path)
    with atomic_path(folder / "losses.png") as path:
        save_png(path, draw_losses(table.with_columns(model=pl.lit(folder.name))))


def _load_tokenizer(checkpoint: Checkpoint, *, trust_remote_code: bool) -> Any:
    tokenizer = load_tokenizer(checkpoint.folder, trust_remote_code=trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{checkpoint.folder}: the tokenizer has no EOS token, which has to end every "
            "answer; name one in its tokenizer_config.json"
        )
    return tokenizer


def _count(examples: Sequence[Example | None], dropped: Counter[str]) -> str:
    reasons = "".join(f", {count} {reason}" for reason, count in sorted(dropped.items()))
    return f"{len(examples) - dropped.total()} of {len(examples)} rows{reasons}"
