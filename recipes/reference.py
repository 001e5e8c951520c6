"""The reference policy of the KL term: replaced by the policy every N steps, and part of every checkpoint.

DeepSeek-R1 replaces it every 400 steps (section 2.1). TRL 1.16 does so for full weights only, and loses the replaced
reference when a run is resumed: it goes back to the initial model without a word. Here both kinds are refreshed, and
both come back from a checkpoint. With LoRA the reference is a frozen second adapter, `ref`, which PEFT saves and loads.
With weights that FSDP2 shards, every process copies, saves and loads its own part of them.
"""

from pathlib import Path

import torch
import torch.distributed.checkpoint as sharded
from safetensors.torch import load_model, save_model
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

FILE = "reference.safetensors"
FOLDER = "reference"  # of sharded weights


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
    if trainer.ref_model is None:
        return
    reference = trainer.accelerator.unwrap_model(trainer.ref_model)
    if _is_sharded(reference):
        sharded.save(reference.state_dict(), checkpoint_id=checkpoint / FOLDER)
    elif trainer.args.should_save:
        save_model(reference, str(checkpoint / FILE))


def restore(trainer, checkpoint: Path) -> None:
    """Load the reference that was in force when the checkpoint was written."""
    if trainer.ref_model is None:
        return
    reference = trainer.accelerator.unwrap_model(trainer.ref_model)
    if _is_sharded(reference):
        sharded.load(reference.state_dict(), checkpoint_id=checkpoint / FOLDER)  # in place
    else:
        load_model(reference, str(checkpoint / FILE))


def _is_sharded(model: torch.nn.Module) -> bool:
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())
