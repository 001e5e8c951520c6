"""The reference policy of the KL term: replaced by the policy every N steps, and part of every checkpoint.

DeepSeek-R1 replaces it every 400 steps (section 2.1). TRL 1.16 does so for full weights only, and loses the replaced
reference when a run is resumed: it goes back to the initial model without a word. Here both kinds are refreshed, and
both come back from a checkpoint. With LoRA the reference is a frozen second adapter, `ref`, which PEFT saves and loads.
"""

from pathlib import Path

import torch
from safetensors.torch import load_model, save_model
from transformers import TrainerCallback

FILE = "reference.safetensors"


class ReferenceRefresh(TrainerCallback):
    """Replaces the reference every `steps` steps: ref <- (1 - alpha) ref + alpha policy; the paper's alpha is 1."""

    def __init__(self, trainer, steps: int, alpha: float):
        self.trainer, self.steps, self.alpha = trainer, steps, alpha

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps == 0:
            refresh(self.trainer, self.alpha)


@torch.no_grad()
def refresh(trainer, alpha: float = 1.0) -> None:
    """Move the trainer's reference towards its policy."""
    for reference, policy in _pairs(trainer):
        reference.copy_(torch.lerp(reference, policy.to(reference.dtype), alpha) if alpha != 1.0 else policy)


def _pairs(trainer):
    """(reference parameter, policy parameter), for full weights or for the adapters of a LoRA policy."""
    policy = trainer.accelerator.unwrap_model(trainer.model)
    if trainer.ref_model is not None:
        reference = trainer.accelerator.unwrap_model(trainer.ref_model)
        return list(zip(reference.parameters(), policy.parameters(), strict=True))
    named = dict(policy.named_parameters())
    return [(named[name.replace(".default.", ".ref.")], p) for name, p in named.items() if ".default." in name]


def save(trainer, checkpoint: Path) -> None:
    """Write the reference into a checkpoint. A LoRA reference is already there, in `ref/`."""
    if trainer.ref_model is not None and trainer.args.should_save:
        save_model(trainer.accelerator.unwrap_model(trainer.ref_model), str(checkpoint / FILE))


def restore(trainer, checkpoint: Path) -> None:
    """Load the reference that was in force when the checkpoint was written."""
    if trainer.ref_model is not None:
        load_model(trainer.accelerator.unwrap_model(trainer.ref_model), str(checkpoint / FILE))
