"""Muon for a model's matrices and AdamW for the rest, as the one optimizer that a Trainer takes."""

import itertools

import torch
from torch import nn


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon orthogonalises the update of a matrix, so it is for the hidden layers' weights (arXiv 2502.16982); the
    embedding, an output layer named "lm_head", and the norms are AdamW's. One learning rate serves both: Muon's updates
    are scaled to the size of AdamW's."""

    def __init__(self, model: nn.Module, lr: float, weight_decay: float = 0.0):
        hidden, others = [], []
        for name, weight in model.named_parameters():
            is_hidden = weight.ndim == 2 and "embed" not in name and "lm_head" not in name
            (hidden if is_hidden else others).append(weight)
        self.parts = (
            torch.optim.Muon(hidden, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay),
        )
        # The groups are the parts' own: a scheduler that sets their rates sets the parts' rates.
        super().__init__(itertools.chain.from_iterable(part.param_groups for part in self.parts), {"lr": lr})

    def step(self, closure=None):
        loss = closure() if closure else None
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
