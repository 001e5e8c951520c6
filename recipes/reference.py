"""The reference policy of the KL term: replaced by the policy every N steps, and part of every checkpoint.

DeepSeek-R1 replaces it every 400 steps (section 2.1). TRL 1.16 does so for full weights only, and loses the replaced
reference when a run is resumed: it goes back to the initial model without a word. Here both kinds are refreshed, and
both come back from a checkpoint, however `recipes.sharded` finds them held. With LoRA the reference is a frozen second
adapter, `ref`.
"""

from pathlib import Path

from recipes import sharded

import torch
from transformers import TrainerCallback

FOLDER = "reference"


class ReferenceRefresh(TrainerCallback):
    """Replaces the reference every `steps` steps: ref <- (1 - alpha) ref + alpha policy; the paper's alpha is 1.
    `steps` None: never."""

    def __init__(self, trainer, steps: int | None, alpha: float):
        self.trainer, self.steps, self.alpha = trainer, steps, alpha

    def on_train_begin(self, args, state, control, **kwargs):
        # One process a machine reads the weights under FSDP2, and TRL shards a reference without sending them round.
        if state.global_step == 0:
            refresh(self.trainer)

    def on_step_end(self, args, state, control, **kwargs):
        if self.steps and state.global_step % self.steps == 0:
            refresh(self.trainer, self.alpha)


def refresh(trainer, alpha: float = 1.0) -> None:
    """Move the trainer's reference towards its policy."""
    for reference, policy in _pairs(trainer):
        sharded.mix(reference, policy, alpha)


def _pairs(trainer) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(reference tensor, policy tensor), for full weights or for the adapters of a LoRA policy."""
    policy = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.ref_model is not None:
        reference = trainer.accelerator.unwrap_model(trainer.ref_model)
        own, theirs = (dict([*one.named_parameters(), *one.named_buffers()]) for one in (reference, policy))
        return [(one, theirs[name]) for name, one in own.items()]
    named = dict(policy.named_parameters())
    return [(named[name.replace(".default.", ".ref.")], p) for name, p in named.items() if ".default." in name]


def _named(trainer) -> dict[str, torch.nn.Parameter]:
    """The reference's parameters; {} where there is none, or it is the policy without its adapter."""
    if trainer.ref_model is not None:
        return dict(trainer.accelerator.unwrap_model(trainer.ref_model).named_parameters())
    policy = trainer.accelerator.unwrap_model(trainer.model)
    return {name: one for name, one in policy.named_parameters() if ".ref." in name}


def save(trainer, checkpoint: Path) -> None:
    """Write the reference into a checkpoint. What PEFT writes to `ref/` is not read back: DeepSpeed and FSDP2 leave out
    what is frozen."""
    if named := _named(trainer):
        sharded.store(named, checkpoint / FOLDER, trainer.args.should_save)


def restore(trainer, checkpoint: Path) -> None:
    """Load the reference that was in force when the checkpoint was written."""
    if named := _named(trainer):
        sharded.restore(named, checkpoint / FOLDER)
