"""Fine-tunes a checkpoint on examples: weights in fp32, products in bf16, resumed after a kill."""

import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from cherry_vllm.engines import Span, hf
from cherry_vllm.engines.checkpoint import Checkpoint
from cherry_vllm.errors import UserError
from cherry_vllm.runtime.cpu import lacks_bf16
from cherry_vllm.runtime.progress import Progress
from cherry_vllm.store.files import sync_folder
from cherry_vllm.training.batches import LengthBatches, collate
from cherry_vllm.training.recipe import Machine, Recipe
from cherry_vllm.training.trainer import AnswerTrainer, Divergence

log = logging.getLogger(__name__)

GENERATION = "generation_config.json"
LOSS_COLUMNS = ("step", "epoch", "loss", "learning_rate", "grad_norm")


def fine_tune(
    checkpoint: Checkpoint,
    examples: Sequence[Span],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    recipe: Recipe,
    machine: Machine,
    seed: int,
    trust_remote_code: bool,
) -> list[dict[str, float]]:
    """Writes the tuned model, in fp32, to ``folder/model``; returns the loss of each step.

    The adapter of a LoRA run is merged into ``model`` and also kept in ``folder/adapter``. A killed
    run resumes from the newest complete checkpoint in ``folder/checkpoints``. An entry of the
    returned list has the keys of :data:`LOSS_COLUMNS`; its loss is the mean over the step's answer
    tokens, in nats.

    Raises:
        UserError: the loss diverged, memory ran out, or a setting does not suit the machine.
    """
    arguments = training_arguments(folder, recipe, machine, seed=seed)
    batches = _cut_batches(examples, recipe, machine, arguments.world_size, seed)
    arguments.warmup_steps = _count_warmup_steps(recipe, batches)
    arguments.gradient_accumulation_steps = batches.steps_per_update
    model = load_model(checkpoint, trust_remote_code=trust_remote_code)
    use_cache = vars(model.config).get("use_cache")  # the trainer turns it off for good
    model = _prepare(model, recipe, machine, seed)
    pad_token_id = tokenizer.pad_token_id
    trainer = AnswerTrainer(
        model,
        examples,
        batches,
        args=arguments,
        # Without a pad token any id will do: padding is masked and carries no loss.
        data_collator=partial(collate, pad_token_id=0 if pad_token_id is None else pad_token_id),
        callbacks=[StepProgress(), Divergence()],
    )
    trainer.remove_callback(PrinterCallback)
    # It warns if save_steps differs from the checkpoint's, which affects no weight.
    logging.getLogger("transformers.trainer_utils").setLevel(logging.ERROR)
    with _memory_errors_explained():
        trainer.train(resume_from_checkpoint=newest_whole_checkpoint(folder / "checkpoints"))
    if use_cache is None:
        del model.config.use_cache
    else:
        model.config.use_cache = use_cache
    _save(trainer, checkpoint, tokenizer, folder, trust_remote_code=trust_remote_code)
    history = trainer.state.log_history
    return [{key: entry[key] for key in LOSS_COLUMNS} for entry in history if "loss" in entry]


def training_arguments(
    folder: Path, recipe: Recipe, machine: Machine, *, seed: int
) -> TrainingArguments:
    """The trainer's settings on this machine, except those that depend on the number of rows.

    Raises:
        UserError: ``fsdp`` is set, but there are no GPUs or there is no torchrun.
    """
    on_cpu, is_distributed = not torch.cuda.is_available(), "WORLD_SIZE" in os.environ
    if machine.fsdp and (on_cpu or not is_distributed):
        raise UserError(
            "train.fsdp=true: needs GPUs and torchrun (without them the trainer would silently not "
            "shard); leave it out"
        )
    if on_cpu and recipe.bf16 and lacks_bf16():
        log.warning(
            "train.bf16=true: slow on this CPU, which has no bf16 instructions; train.bf16=false "
            "is several times faster"
        )
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=recipe.num_epochs,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type=recipe.lr_scheduler,
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        bf16=recipe.bf16,
        gradient_checkpointing=machine.gradient_checkpointing,
        fsdp=machine.fsdp or None,  # type: ignore[arg-type]
        ddp_backend="gloo" if on_cpu and is_distributed else None,
        ddp_find_unused_parameters=False,
        use_cpu=on_cpu,
        save_steps=machine.save_steps,
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=list(machine.report_to) or "none",
        run_name=folder.name,
        disable_tqdm=True,
        seed=seed,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one process never spreads over several devices
    return arguments


class StepProgress(TrainerCallback):
    """A progress bar over optimizer steps."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._progress = Progress(
            "training", unit="steps", total=state.max_steps, initial=state.global_step
        )
        self._progress.start()

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        logs = kwargs["logs"]
        if "loss" in logs:
            self._progress.reach(state.global_step, f"loss {logs['loss']:.4f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._progress.close()


def newest_whole_checkpoint(checkpoints: Path) -> str | None:
    """The checkpoint with the most steps among those that were written completely."""
    whole = {}
    for state in checkpoints.glob("checkpoint-*/trainer_state.json"):  # written last
        try:
            whole[int(json.loads(state.read_text())["global_step"])] = str(state.parent)
        except (ValueError, KeyError):
            continue
    return whole[max(whole)] if whole else None


def load_model(checkpoint: Checkpoint, *, trust_remote_code: bool) -> Any:
    """The checkpoint's causal language model in fp32, in whatever type it was saved.

    Raises:
        UserError: the files have changed since the checkpoint was found, or the weights do not fit
            the model.
    """
    model = hf.load_model(
        checkpoint,
        dtype=torch.float32,
        # On CPUs, plain attention trains faster than torch's fused one.
        attn_implementation=None if torch.cuda.is_available() else "eager",
        trust_remote_code=trust_remote_code,
    )
    checkpoint.verify()
    if (checkpoint.folder / GENERATION).is_file():
        # A released one may break rules that are checked on saving, so its file is copied instead.
        model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    return model


def _cut_batches(
    examples: Sequence[Span], recipe: Recipe, machine: Machine, num_processes: int, seed: int
) -> LengthBatches:
    if len(examples) < num_processes:
        raise UserError(
            f"{len(examples)} examples to train on for {num_processes} processes; use fewer "
            "processes"
        )
    return LengthBatches(
        [len(example.token_ids) for example in examples],
        global_batch_size=recipe.global_batch_size,
        micro_batch_tokens=machine.micro_batch_tokens,
        num_processes=num_processes,
        seed=seed,
    )


def _count_warmup_steps(recipe: Recipe, batches: LengthBatches) -> int:
    num_steps = recipe.num_epochs * batches.num_updates
    warmup_steps = recipe.warmup_steps(num_steps)
    if warmup_steps < math.ceil(recipe.warmup_ratio * num_steps):
        log.warning(
            "%d optimizer step(s) in all: the warm-up is %d of them, since a longer one would "
            "leave no step to train in",
            num_steps,
            warmup_steps,
        )
    return warmup_steps


def _prepare(model: Any, recipe: Recipe, machine: Machine, seed: int) -> Any:
    """The model ready to train: with adapters for LoRA, without gradients of unused parts."""
    unused = _modules_without_text(model)
    if recipe.lora_rank:
        set_seed(seed)
        model = _add_adapters(model, recipe)
    for module in unused:  # other processes would wait for their gradients
        module.requires_grad_(requires_grad=False)
    if machine.compile_layers:
        _compile_layers(model)
    return model


def _modules_without_text(model: Any) -> list[nn.Module]:
    """The parts of a multimodal model that text does not use, such as a vision tower."""
    text, head = model.get_decoder(), model.get_output_embeddings()

    def find(parent: nn.Module) -> Iterator[nn.Module]:
        for child in parent.children():
            if child in (text, head):
                continue
            if any(inner is text for inner in child.modules()):
                yield from find(child)
            else:
                yield child

    return [] if model.config.get_text_config() is model.config else list(find(model))


def _add_adapters(model: Any, recipe: Recipe) -> Any:
    from peft import LoraConfig, get_peft_model

    model.enable_input_require_grads()  # else gradient checkpointing would detach the adapters
    config = LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def _compile_layers(model: nn.Module) -> None:
    if not torch.cuda.is_available() and shutil.which(os.environ.get("CXX", "g++")) is None:
        log.warning("no C++ compiler: train.compile_layers has no effect, training is slower")
        return
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):  # transformers' name for such a layer
            module.compile(dynamic=True)


def _save(
    trainer: AnswerTrainer,
    checkpoint: Checkpoint,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    trust_remote_code: bool,
) -> None:
    """Puts the whole model in ``folder/model`` in one step, and its adapter, if any, beside it.

    They need two folders: one that holds both would load as the model with the adapter applied.
    """
    scratch, target, adapter = (folder / name for name in (".model.tmp", "model", "adapter"))
    if trainer.is_world_process_zero():
        for leftover in (scratch, target, adapter):
            shutil.rmtree(leftover, ignore_errors=True)
    trainer.save_model(str(scratch))  # every process takes part
    if not trainer.is_world_process_zero():
        return
    (scratch / "training_args.bin").unlink()  # a pickle
    if (scratch / "adapter_config.json").is_file():
        from peft import PeftModel

        os.replace(scratch, adapter)
        model = load_model(checkpoint, trust_remote_code=trust_remote_code)
        merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        merged.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    if (checkpoint.folder / GENERATION).is_file():
        shutil.copyfile(checkpoint.folder / GENERATION, scratch / GENERATION)
    sync_folder(scratch)
    os.replace(scratch, target)


@contextmanager
def _memory_errors_explained() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch raises several kinds
        if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
            raise
        raise UserError(
            "training ran out of memory; lower train.micro_batch_tokens or max_length, or set "
            "train.gradient_checkpointing=true. The last good checkpoint is kept"
        ) from None
