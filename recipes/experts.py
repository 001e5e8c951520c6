"""The routed experts of one layer as 4-bit linear layers that are computed together, with their adapters."""

from collections.abc import Iterator, Mapping
from functools import partial

from data_prep.runs import ConfigError
from recipes import expert_parallel

import bitsandbytes as bnb
import torch
from bitsandbytes.functional import QuantState, dequantize_4bit, dequantize_blockwise
from peft.tuners.lora import LoraLayer
from torch import nn

MOST = 2**31 - 1  # numbers that bitsandbytes can dequantise at once


class Expert(nn.Module):
    """One expert, whose layers have the names of the published checkpoint."""

    def __init__(self, names: tuple[str, str, str], hidden: int, inner: int, apply_gate, kind: type = nn.Linear):
        super().__init__()
        self.names, self.apply_gate = names, apply_gate
        for name, size in zip(names, ((hidden, inner), (hidden, inner), (inner, hidden)), strict=True):
            self.add_module(name, kind(*size, bias=False))


class Experts(nn.ModuleList):
    """The routed experts of one layer, computed together: one grouped matmul for each of an expert's three layers and
    each matrix of its adapter. `routed` counts the tokens that each expert got from this process in training.

    `experts`: those that this process holds, by their numbers in the whole layer. `count`: of the whole layer.
    """

    def __init__(self, experts: Mapping[int, Expert], count: int, processes: int = 1):
        super().__init__()
        for number, expert in experts.items():
            self.add_module(str(number), expert)
        self.num_experts, self.processes, self.group = count, processes, None  # the default group
        self.routed = torch.zeros(count, dtype=torch.long, device="cpu")
        self.stacks: dict[str, Stack] = {}
        self.pairs: dict[tuple[str, str, str], list[nn.Parameter]] = {}

    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Sum of the chosen experts' outputs. hidden: (tokens, size); chosen, weights: (tokens, experts per token)."""
        flat = chosen.flatten()
        order = flat.argsort(stable=True)
        tokens = order // chosen.shape[1]
        rows = flat.new_zeros(self.num_experts).index_add_(0, flat, torch.ones_like(flat))
        if self.training and torch.is_grad_enabled():
            self.routed = self.routed.to(rows.device) + rows
        x = hidden[tokens]
        if self.processes == 1:
            y = self.together(x, rows)
        else:  # rows travel in the dtype in which they are multiplied
            exchange = expert_parallel.Exchange(rows, self.processes, self.group)
            dtype = self.stack(self.first.names[0]).dtype
            y = self.together(exchange.there(x.to(dtype)).to(x.dtype), exchange.here)
            y = exchange.back(y.to(dtype)).to(x.dtype)
        done = (y * weights.flatten()[order, None]).to(hidden.dtype)
        return torch.zeros_like(hidden).index_add(0, tokens, done)

    @property
    def first(self) -> Expert:
        return next(iter(self))

    def together(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """The experts' outputs on rows in expert order. `rows`: how many each of the experts here has."""
        gate, up, down = self.first.names
        ends = rows.cumsum(0).to(torch.int32)
        inner = self.first.apply_gate(torch.cat([self.linear(name, x, ends) for name in (gate, up)], dim=-1))
        return self.linear(down, inner, ends)

    def linear(self, name: str, x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        """One layer of every expert, with its adapter, on rows in expert order: (rows, inputs) -> (rows, outputs).
        `ends`: (experts,), the end of each expert's rows. The adapter is multiplied in the base's dtype too, but its
        weights keep theirs."""
        stack, first, dtype = self.stack(name), getattr(self.first, name), x.dtype
        x = x.to(stack.dtype)
        y = Frozen.apply(x, ends, stack)
        if isinstance(first, LoraLayer) and not first.disable_adapters:
            for adapter in first.active_adapters:
                a, b = (self.adapter(name, pair, adapter).to(stack.dtype) for pair in ("lora_A", "lora_B"))
                short = -a.shape[1] % 8  # grouped matmul on GPUs needs multiples of 16 bytes
                a, b = nn.functional.pad(a, (0, 0, 0, short)), nn.functional.pad(b, (0, short))
                low = nn.functional.grouped_mm(x, a.transpose(1, 2), offs=ends)
                y = y + first.scaling[adapter] * nn.functional.grouped_mm(low, b.transpose(1, 2), offs=ends)
        return y.to(dtype)

    def adapter(self, name: str, pair: str, adapter: str) -> torch.Tensor:
        """One matrix of the adapters of all experts: (experts, outputs, inputs)."""
        first, key = getattr(getattr(self.first, name), pair)[adapter].weight, (name, pair, adapter)
        if key not in self.pairs or self.pairs[key][0] is not first:  # saves thousands of look-ups a token
            self.pairs[key] = [getattr(getattr(expert, name), pair)[adapter].weight for expert in self]
        made = torch.stack(self.pairs[key])
        if self.processes > 1 and made.requires_grad:
            made.register_hook(partial(expert_parallel.average, processes=self.processes))
        return made

    def adapters(self, adapter: str) -> Iterator[tuple[str, str, torch.Tensor]]:
        """(layer, matrix, the matrices of all experts here) for each matrix of an adapter."""
        for name in self.first.names:
            if isinstance(getattr(self.first, name), LoraLayer):
                yield from ((name, pair, self.adapter(name, pair, adapter)) for pair in ("lora_A", "lora_B"))

    def missing(self) -> Expert:
        """One more expert, without memory and weights."""
        names, gate = self.first.names, getattr(self.first, self.first.names[0])
        with torch.device("meta"):
            return Expert(names, gate.in_features, gate.out_features, self.first.apply_gate, bnb.nn.Linear4bit)

    def stack(self, name: str) -> "Stack":
        first = getattr(self.first, name)
        if name not in self.stacks or not self.stacks[name].holds(getattr(first, "base_layer", first)):
            layers = [getattr(expert, name) for expert in self]  # the layers are new or have moved to another device
            self.stacks[name] = Stack([getattr(layer, "base_layer", layer) for layer in layers])
        return self.stacks[name]


class Stack:
    """The NF4 weights of one layer of all experts in one tensor. The layers' own weights become views of it."""

    def __init__(self, layers: list[bnb.nn.Linear4bit]):
        states = [layer.weight.quant_state for layer in layers]
        one = states[0]
        self.shape, self.dtype, self.block = (len(layers), *one.shape), layers[0].compute_dtype, one.blocksize
        if one.shape.numel() % self.block:
            raise ConfigError(
                f"load_in_4bit: an expert's layer of shape {tuple(one.shape)} does not fill blocks of {self.block}."
            )
        self.packed = torch.stack([layer.weight.data for layer in layers])
        # The scales are quantised too, in blocks that restart at every expert.
        self.count, self.code, self.outer_block = one.absmax.numel(), one.state2.code, one.state2.blocksize
        padding = (0, -self.count % self.outer_block)
        self.scales = torch.stack([nn.functional.pad(state.absmax, padding) for state in states])
        self.outer = torch.stack([state.state2.absmax for state in states])
        self.offsets = torch.stack([state.offset for state in states])
        for layer, packed, scales, outer in zip(layers, self.packed, self.scales, self.outer, strict=True):
            layer.weight.data = packed
            layer.weight.quant_state.absmax, layer.weight.quant_state.state2.absmax = scales[: self.count], outer

    def holds(self, layer: bnb.nn.Linear4bit) -> bool:
        """Whether a layer's weights are still the first ones of this stack."""
        return layer.weight.data_ptr() == self.packed.data_ptr()

    def dequantize(self) -> torch.Tensor:
        """The weights, (experts, outputs, inputs), in the compute dtype."""
        state = QuantState(self.outer.flatten(), code=self.code, blocksize=self.outer_block, dtype=torch.float32)
        scales = dequantize_blockwise(self.scales.flatten(), state).view(len(self.scales), -1)[:, : self.count]
        scales = scales + self.offsets[:, None]
        at_once = max(1, MOST // (self.shape[1] * self.shape[2]))
        made = []
        for packed, scale in zip(self.packed.split(at_once), scales.split(at_once), strict=True):
            # Dequantise as one row, because bitsandbytes 0.50's CPU kernel uses wrong scales if a row ends in a block.
            numbers = (packed.numel() * 2,)
            state = QuantState(scale.flatten(), numbers, None, self.block, "nf4", self.dtype)
            made.append(dequantize_4bit(packed.flatten(), state).view(-1, *self.shape[1:]))
        return made[0] if len(made) == 1 else torch.cat(made)


class Frozen(torch.autograd.Function):
    """Multiplies rows in expert order by the experts' transposed NF4 weights. These are in 16 bits only during the
    matmul, and the backward pass dequantises them again."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, ends: torch.Tensor, stack: Stack) -> torch.Tensor:
        ctx.stack = stack
        ctx.save_for_backward(ends)
        return nn.functional.grouped_mm(x, stack.dequantize().transpose(1, 2), offs=ends)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (ends,) = ctx.saved_tensors
        return nn.functional.grouped_mm(gradient.contiguous(), ctx.stack.dequantize(), offs=ends), None, None


class Uneven(bnb.nn.Linear4bit):
    """A layer whose rows end inside a block of numbers that share a scale. On a CPU with AVX512, bitsandbytes 0.50's
    kernel uses scales of other blocks there, so the layer is dequantised as one row. The full weight is kept for the
    backward pass, because only small models have such layers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        state, dtype = self.weight.quant_state, self.compute_dtype
        scales = dequantize_blockwise(state.absmax, state.state2) + state.offset
        flat = QuantState(scales, (state.shape.numel(),), None, state.blocksize, state.quant_type, dtype)
        weight = dequantize_4bit(self.weight.data.flatten(), flat).view(state.shape)
        return nn.functional.linear(x.to(dtype), weight, None if self.bias is None else self.bias.to(dtype)).to(x.dtype)
