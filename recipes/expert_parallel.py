"""Expert parallelism for QLoRA: N processes share the experts of each layer, and are data parallel in all else.

Each process holds E / N of a layer's E experts, in the order of their numbers. A token's row is sent to the process
that holds its expert, and the expert's output is sent back; no token is dropped (Switch Transformers, arXiv 2101.03961,
without their capacity). An expert's adapter is trained by the one process that holds it, on the rows of all processes.
"""

import contextlib
from collections.abc import Iterable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

from data_prep.runs import ConfigError
from recipes import qlora_proof

import torch
from safetensors.torch import load_file, save_file
from torch import distributed, nn
from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME


def fault(processes: int, started: int, ddp: bool = True) -> str:
    """Why `processes` cannot share experts if `started` ones are there and `ddp` spreads them; "" if they can."""
    if processes not in (1, started):
        return (
            f"expert_parallel: {processes} processes are to share the experts, but there are {started}. Start "
            f"{processes}, or write expert_parallel: {started}."
        )
    if processes > 1 and not ddp:
        return "expert_parallel: DeepSpeed would average the adapters of different experts. Use DDP."
    return ""


def held(count: int, processes: int) -> range:
    """The numbers of the experts that this process holds, of `count` in a layer. Raises ConfigError if the processes
    cannot share them evenly."""
    if count % processes:
        raise ConfigError(
            f"expert_parallel: {processes} processes cannot share the {count} experts of a layer evenly. Write a "
            f"divisor of {count}, and start as many processes."
        )
    each = count // processes
    first = each * distributed.get_rank() if processes > 1 else 0
    return range(first, first + each)


# The exchange of rows


class _Swap(torch.autograd.Function):
    """Sends `sent[p]` rows to each process p, and returns the `came[p]` rows that each process has sent here. The
    gradient travels back the same way."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, sent: list[int], came: list[int], group) -> torch.Tensor:
        ctx.sizes, ctx.group = (sent, came), group
        made = x.new_empty(sum(came), *x.shape[1:])
        distributed.all_to_all_single(made, x.contiguous(), came, sent, group=group)
        return made

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        sent, came = ctx.sizes
        return _Swap.apply(gradient, came, sent, ctx.group), None, None, None


class Exchange:
    """The way of one layer's rows to their experts and back. Every process has to take it, with rows or without.

    rows: (experts,), the rows that this process has for each expert of the layer. `here`: (experts held,), the rows
    that it gets for each of its own.
    """

    def __init__(self, rows: torch.Tensor, processes: int, group: distributed.ProcessGroup | None):
        sent, self.group = rows.view(processes, -1), group
        came = torch.empty_like(sent)
        distributed.all_to_all_single(came, sent.contiguous(), group=group)
        self.sent, self.came = torch.stack([sent.sum(1), came.sum(1)]).tolist()
        self.here = came.sum(0)
        experts = torch.arange(sent.shape[1], device=rows.device).repeat(processes)
        self.order = experts.repeat_interleave(came.flatten()).argsort(stable=True)

    def there(self, x: torch.Tensor) -> torch.Tensor:
        """This process's rows in expert order -> those of all processes for the experts held here, in expert order."""
        return _Swap.apply(x, self.sent, self.came, self.group)[self.order]

    def back(self, y: torch.Tensor) -> torch.Tensor:
        """The reverse of `there`."""
        return _Swap.apply(y[self.order.argsort()], self.came, self.sent, self.group)


# The adapter


@contextlib.contextmanager
def all_experts(model: nn.Module) -> Iterator[None]:
    """Inside, each layer also has the experts that other processes hold, without memory. So a new adapter draws the
    random numbers that one process would draw, on every process."""
    shared = [module for module in qlora_proof.experts(model).values() if module.processes > 1]
    kept = [module._modules for module in shared]
    for module in shared:
        module._modules = {str(number): module.missing() for number in range(module.num_experts)} | module._modules
    try:
        yield
    finally:
        for module, names in zip(shared, kept, strict=True):
            module._modules = {name: module._modules[name] for name in names}


def owned(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that only this process holds; none if all processes hold all experts."""
    found = qlora_proof.experts(model).items()
    return {
        name: one
        for path, module in found
        if module.processes > 1
        for name, one in module.named_parameters(prefix=path)
    }


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that only this process trains."""
    return {name: one for name, one in owned(model).items() if one.requires_grad}


def average(gradient: torch.Tensor, processes: int) -> torch.Tensor:
    """The gradient of an expert's adapter as DDP scales all others. Here the rows of all processes have been added up
    already, each with the gradient of its own process's loss; DDP takes the mean over the processes."""
    return gradient / processes


def begin(trainer) -> None:
    """Keep the experts' parameters out of DDP, which would average them over different experts, and clip with the norm
    over all processes. Raises ConfigError if DDP has nothing to train, or for fp16."""
    model = trainer.model
    if not (own := owned(model)):
        return
    if all(name in own for name, one in model.named_parameters() if one.requires_grad):
        raise ConfigError(
            "lora_target_modules: with expert_parallel, DDP needs an adapter beside those of the routed experts. Add "
            "attention."
        )
    if trainer.args.fp16:
        raise ConfigError("fp16: with expert_parallel, gradients are not scaled. Write bf16: true.")
    # The exchanges have a queue of messages of their own: DDP sends gradients while those of a backward pass are under
    # way, and the two need not come in the same order on all processes.
    group = distributed.new_group(timeout=timedelta(seconds=trainer.args.ddp_timeout))
    for module in qlora_proof.experts(model).values():
        module.group = group
    model._ddp_params_and_buffers_to_ignore = list(own)
    if trained := set(_trained(model).values()):
        trainer.accelerator.clip_grad_norm_ = partial(_clip, trained)


def _clip(own: set[nn.Parameter], parameters: Iterable[nn.Parameter], max_norm: float, **_) -> torch.Tensor:
    """accelerate's `clip_grad_norm_`. The squares of the experts' gradients are added up over the processes, those of
    all other gradients, which are the same on each, are counted once: every process scales by the same number."""
    trained = [one for one in parameters if one.grad is not None]
    here = nn.utils.get_total_norm([one.grad for one in trained if one in own]).square()
    distributed.all_reduce(here)
    norm = (here + nn.utils.get_total_norm([one.grad for one in trained if one not in own]).square()).sqrt()
    nn.utils.clip_grads_with_norm_(trained, max_norm, norm)
    return norm


# Checkpoints


@torch.no_grad()
def gather(model: nn.Module) -> dict[str, torch.Tensor]:
    """The policy's adapter on the experts of all processes, by its names in a file: in the main process, {} in the
    others. Every process has to call it."""
    found = {}
    for path, module in qlora_proof.experts(model).items():
        for name, pair, stack in module.adapters("default") if module.processes > 1 else ():
            parts = [torch.empty_like(stack) for _ in range(module.processes)] if distributed.get_rank() == 0 else None
            distributed.gather(stack, parts)
            for number, one in enumerate(torch.cat(parts).cpu() if parts else ()):
                found[f"{path}.{number}.{name}.{pair}.weight"] = one
    return found


def save(trainer, checkpoint: Path) -> None:
    """Add the experts of all processes to the checkpoint's adapter, which has those of the main process, and write what
    the optimizer of each process knows of its own."""
    if not (own := _trained(trainer.model)):
        return
    if others := gather(trainer.model):
        file = checkpoint / ADAPTER_SAFE_WEIGHTS_NAME
        save_file(load_file(file) | others, file, metadata={"format": "pt"})
    if not trainer.args.save_only_model:
        checkpoint.mkdir(parents=True, exist_ok=True)
        torch.save({name: trainer.optimizer.state[one] for name, one in own.items()}, _file(checkpoint))


def restore(trainer, checkpoint: Path) -> None:
    """Read back the optimizer's part of `save`. The adapter has been loaded, and the main process's optimizer."""
    own = _trained(trainer.model)
    if not own or trainer.args.save_only_model:
        return
    for name, kept in torch.load(_file(checkpoint), map_location="cpu", weights_only=True).items():
        state = trainer.optimizer.state[own[name]]
        for key, value in kept.items():
            state[key] = value.to(state[key].device) if isinstance(value, torch.Tensor) else value


def _file(checkpoint: Path) -> Path:
    return checkpoint / f"experts_optimizer_{distributed.get_rank()}.pt"
