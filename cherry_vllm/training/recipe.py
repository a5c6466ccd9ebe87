"""The settings that decide a tuned model, and those that only decide how it is made here."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings that decide the weights; training results are named by them.

    ``learning_rate`` is the peak: the rate rises from 0 during the warm-up and then follows
    ``lr_scheduler``. ``bf16`` runs the matrix products in bf16; weights and optimizer are in fp32,
    because fine-tuning steps vanish in bf16. ``lora_rank`` above 0 trains adapters on every linear
    layer but the head, which are merged at the end.
    """

    num_epochs: int
    learning_rate: float
    lr_scheduler: str
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    global_batch_size: int
    bf16: bool
    lora_rank: int
    lora_alpha: int
    lora_dropout: float

    def warmup_steps(self, num_steps: int) -> int:
        """The share ``warmup_ratio`` of ``num_steps``, rounded up, but never all of them.

        The first warm-up step has learning rate 0: a run of that step alone would train nothing.
        """
        return min(math.ceil(self.warmup_ratio * num_steps), num_steps - 1)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The settings that decide memory, time, disk and reports, and at most a weight's last bits.

    ``compile_layers`` has torch compile the decoder layer, once for all layers. This takes up to a
    minute before the first step; then the layer's small operations share passes over memory.
    ``save_steps`` below 1 is a share of all steps.
    """

    micro_batch_tokens: int
    gradient_checkpointing: bool
    compile_layers: bool
    fsdp: bool
    save_steps: float
    report_to: tuple[str, ...]
