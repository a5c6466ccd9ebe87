"""Fine-tuning a checkpoint on examples: weights in fp32, products in bf16, resumed after a kill."""

import json
import logging
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
    AutoModelForCausalLM,
    PreTrainedTokenizerBase,
    PrinterCallback,
    SchedulerType,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from cherry_vllm.engines.checkpoint import Checkpoint
from cherry_vllm.errors import UserError
from cherry_vllm.runtime.progress import hide_transformers_bars, progress_bar
from cherry_vllm.training.batches import LengthBatches, collate
from cherry_vllm.training.examples import Example
from cherry_vllm.training.trainer import AnswerTrainer, Divergence

log = logging.getLogger(__name__)

LOSS_COLUMNS = ("step", "epoch", "loss", "learning_rate", "grad_norm")


def fine_tune(
    checkpoint: Checkpoint,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    global_batch_size: int,
    micro_batch_tokens: int,
    compile_layers: bool,
    lora_rank: int,
    lora_alpha: int,
    lora_dropout: float,
    seed: int,
    trust_remote_code: bool,
    **optimization: Any,
) -> list[dict[str, float]]:
    """Writes the tuned model, in fp32, to ``folder/model``; returns the loss of each step.

    ``compile_layers`` has torch compile the decoder layer, once for all of them: it takes up to a
    minute before the first step, and the layer's small operations no longer each pass over memory.
    ``lora_rank`` above 0 trains adapters on every linear layer but the head, merged at the end;
    ``optimization`` holds the arguments of :func:`training_arguments`. A killed run goes on from
    the newest whole checkpoint in ``folder/checkpoints``. An entry of the returned list has the
    keys of :data:`LOSS_COLUMNS`; its loss is the mean over the step's answer tokens, in nats.

    Raises:
        UserError: the loss diverged, memory ran out, or a setting does not suit the machine.
    """
    arguments = training_arguments(folder, seed=seed, **optimization)
    batches = _batches(
        examples,
        global_batch_size=global_batch_size,
        micro_batch_tokens=micro_batch_tokens,
        num_processes=arguments.world_size,
        seed=seed,
    )
    arguments.gradient_accumulation_steps = batches.steps_per_update
    model = load_model(checkpoint, trust_remote_code=trust_remote_code)
    use_cache = model.config.use_cache  # the trainer turns it off for good
    if lora_rank:
        set_seed(seed)
        model = _add_adapters(model, r=lora_rank, lora_alpha=lora_alpha, lora_dropout=lora_dropout)
    if compile_layers:
        _compile_layers(model)
    pad_token_id = tokenizer.pad_token_id
    trainer = AnswerTrainer(
        model,
        examples,
        batches,
        args=arguments,
        # Without a pad token any id serves: padding is masked and carries no loss.
        data_collator=partial(collate, pad_token_id=0 if pad_token_id is None else pad_token_id),
        callbacks=[Progress(), Divergence()],
    )
    trainer.remove_callback(PrinterCallback)
    # It warns of another save_steps than the checkpoint's, which decides no weight.
    logging.getLogger("transformers.trainer_utils").setLevel(logging.ERROR)
    with _memory_errors_told():
        trainer.train(resume_from_checkpoint=newest_whole_checkpoint(folder / "checkpoints"))
    model.config.use_cache = use_cache
    _save(trainer, checkpoint, tokenizer, folder, trust_remote_code=trust_remote_code)
    history = trainer.state.log_history
    return [{key: entry[key] for key in LOSS_COLUMNS} for entry in history if "loss" in entry]


def training_arguments(
    folder: Path,
    *,
    num_epochs: int,
    learning_rate: float,
    lr_scheduler: str,
    warmup_ratio: float,
    weight_decay: float,
    max_grad_norm: float,
    bf16: bool,
    gradient_checkpointing: bool,
    fsdp: bool,
    save_steps: float,
    report_to: Sequence[str],
    seed: int,
) -> TrainingArguments:
    """The trainer's settings on this machine.

    Weights and optimizer are in fp32, because steps of fine-tuning vanish in bf16; ``bf16`` runs
    the matrix products in it. ``save_steps`` below 1 is a share of all steps.

    Raises:
        UserError: the scheduler is unknown, or there is nothing to shard over.
    """
    if lr_scheduler not in list(SchedulerType):
        known = ", ".join(kind.value for kind in SchedulerType)
        raise UserError(f"train.lr_scheduler={lr_scheduler}: choose from {known}")
    on_cpu, is_distributed = not torch.cuda.is_available(), "WORLD_SIZE" in os.environ
    if fsdp and (on_cpu or not is_distributed):
        raise UserError(
            "train.fsdp=true: needs GPUs and torchrun (elsewhere the trainer would quietly do "
            "something else); leave it out"
        )
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        num_train_epochs=num_epochs,
        learning_rate=learning_rate,
        lr_scheduler_type=lr_scheduler,
        warmup_steps=warmup_ratio,
        weight_decay=weight_decay,
        max_grad_norm=max_grad_norm,
        bf16=bf16,
        gradient_checkpointing=gradient_checkpointing,
        fsdp=fsdp or None,  # type: ignore[arg-type]
        ddp_backend="gloo" if on_cpu and is_distributed else None,
        ddp_find_unused_parameters=False,
        use_cpu=on_cpu,
        save_steps=save_steps,
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to=list(report_to) or "none",
        run_name=folder.name,
        disable_tqdm=True,
        seed=seed,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one process never spreads over several devices
    return arguments


class Progress(TrainerCallback):
    """A bar over optimizer steps, on the first process."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._bar = progress_bar(
            "training", unit=" steps", total=state.max_steps, initial=state.global_step
        )

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        logs = kwargs["logs"]
        if "loss" in logs:
            self._bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)
            self._bar.update(state.global_step - self._bar.n)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._bar.close()


def newest_whole_checkpoint(checkpoints: Path) -> str | None:
    """The checkpoint with the most steps among those that were written to their end."""
    whole = {}
    for state in checkpoints.glob("checkpoint-*/trainer_state.json"):  # written last
        try:
            whole[int(json.loads(state.read_text())["global_step"])] = str(state.parent)
        except (ValueError, KeyError):
            continue
    return whole[max(whole)] if whole else None


def load_model(checkpoint: Checkpoint, *, trust_remote_code: bool) -> Any:
    """The checkpoint's causal language model, in fp32 whatever it was saved in."""
    hide_transformers_bars()
    return AutoModelForCausalLM.from_pretrained(
        checkpoint.folder,
        dtype=torch.float32,
        # On CPUs, plain attention trains faster than torch's fused one.
        attn_implementation=None if torch.cuda.is_available() else "eager",
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
    )


def _batches(examples: Sequence[Example], *, num_processes: int, **settings: Any) -> LengthBatches:
    if len(examples) < num_processes:
        raise UserError(
            f"{len(examples)} rows to train on for {num_processes} processes; use fewer"
        )
    lengths = [len(example.token_ids) for example in examples]
    return LengthBatches(lengths, num_processes=num_processes, **settings)


def _add_adapters(model: Any, **settings: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    model.enable_input_require_grads()  # else gradient checkpointing would cut the adapters off
    config = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", **settings)
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
    """Puts the whole model in ``folder/model`` at once, adapters merged in."""
    scratch, target = folder / ".model.tmp", folder / "model"
    for leftover in (scratch, target):
        if trainer.is_world_process_zero():
            shutil.rmtree(leftover, ignore_errors=True)
    trainer.save_model(str(scratch))  # every process takes part
    if not trainer.is_world_process_zero():
        return
    if (scratch / "adapter_config.json").is_file():
        from peft import PeftModel

        model = load_model(checkpoint, trust_remote_code=trust_remote_code)
        merged = PeftModel.from_pretrained(model, scratch).merge_and_unload()
        merged.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    (scratch / "training_args.bin").unlink()  # a pickle
    os.replace(scratch, target)


@contextmanager
def _memory_errors_told() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch raises several kinds
        if isinstance(error, RuntimeError) and "memory" not in str(error).lower():
            raise
        raise UserError(
            "training ran out of memory; lower train.micro_batch_tokens or max_length, or set "
            "train.gradient_checkpointing=true. The last good checkpoint is kept"
        ) from None
