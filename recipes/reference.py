"""The reference policy of the KL term. The policy replaces it every N steps, and every checkpoint contains it.

DeepSeek-R1 replaces it every 400 steps (section 2.1). TRL 1.16 does so only for full weights, and a resumed run
silently goes back to the initial model. Here the references of full weights and of LoRA are both refreshed and
restored from checkpoints, whichever way `recipes.sharded` finds them held. With LoRA the reference is a second, frozen
adapter, `ref`.
"""

from pathlib import Path

from recipes import sharded

import torch
from transformers import TrainerCallback

FOLDER = "reference"


class ReferenceRefresh(TrainerCallback):
    """Updates the reference every `steps` steps: ref <- (1 - alpha) ref + alpha policy. The paper's alpha is 1. If
    `steps` is None, it never does."""

    def __init__(self, trainer, steps: int | None, alpha: float):
        self.trainer, self.steps, self.alpha = trainer, steps, alpha

    def on_train_begin(self, args, state, control, **kwargs):
        # Under FSDP2 one process of a machine reads the weights, and TRL shards a reference without broadcasting them.
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
    """The parameters of the reference; {} if there is none, or if it is the policy without its adapter."""
    if trainer.ref_model is not None:
        return dict(trainer.accelerator.unwrap_model(trainer.ref_model).named_parameters())
    policy = trainer.accelerator.unwrap_model(trainer.model)
    return {name: one for name, one in policy.named_parameters() if ".ref." in name}


def save(trainer, checkpoint: Path) -> None:
    """Write the reference into a checkpoint. PEFT's `ref/` is not used, because DeepSpeed and FSDP2 leave frozen
    weights out of it."""
    if named := _named(trainer):
        sharded.store(named, checkpoint / FOLDER, trainer.args.should_save)


def restore(trainer, checkpoint: Path) -> None:
    """Load the reference of the step at which the checkpoint was written."""
    if named := _named(trainer):
        sharded.restore(named, checkpoint / FOLDER)
