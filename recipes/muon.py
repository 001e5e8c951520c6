"""Muon for a model's matrices and AdamW for the rest, combined in one optimizer for a Trainer."""

import itertools
import math

import torch
from torch import nn


def product_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 as usual for Muon; float32 on CPUs without bf16 matmul, where it takes a 25th of the time."""
    slow = device.type == "cpu" and not torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.float32 if slow else torch.bfloat16


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"` and matmul in `dtype`. All weights are matrices."""

    momentum, steps, coefficients, eps = 0.95, 5, (3.4445, -4.775, 2.0315), 1e-7  # torch's

    def __init__(self, weights: list[nn.Parameter], lr: float, weight_decay: float, dtype: torch.dtype):
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight.grad)
                mean = state["momentum_buffer"].lerp_(weight.grad, 1 - self.momentum)
                update = self.orthogonal(weight.grad.lerp(mean, self.momentum))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(weight.shape)))

    def orthogonal(self, update: torch.Tensor) -> torch.Tensor:
        """The nearest matrix whose singular values are about 1, by Newton and Schulz's iteration."""
        a, b, c = self.coefficients
        tall = update.size(0) > update.size(1)
        x = update.to(self.dtype, copy=True)
        x = x.T if tall else x
        x.div_(x.norm().clamp(min=self.eps))
        for _ in range(self.steps):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x.T if tall else x


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon orthogonalises the update of a matrix, so it trains the weights of the hidden layers (arXiv 2502.16982).
    AdamW trains the embedding, an output layer named "lm_head", and the norms. Both use one learning rate, because
    Muon's updates are scaled to the size of AdamW's."""

    def __init__(self, model: nn.Module, lr: float, weight_decay: float = 0.0):
        hidden, others = [], []
        for name, weight in model.named_parameters():
            is_hidden = weight.ndim == 2 and "embed" not in name and "lm_head" not in name
            (hidden if is_hidden else others).append(weight)
        self.parts = (
            Muon(hidden, lr, weight_decay, product_dtype(hidden[0].device)),
            torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay),
        )
        # The groups are those of the parts, so a scheduler sets the parts' learning rates.
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
