"""Verifies a QLoRA run: how the weights are held before training, and what has learned after the first steps."""

import logging
import re
from collections import Counter
from collections.abc import Iterable
from functools import partial

from data_prep.runs import ConfigError

import torch
from accelerate.utils import reduce
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import TrainerCallback

logger = logging.getLogger(__name__)
ROUTED = re.compile(r"(.*\bexperts)\.(\d+)\.")
NOT_SHARDED = (
    "FSDP and ZeRO-3 gather a layer's weights when that layer is called, but experts are multiplied as one 4-bit "
    "stack, without a call of theirs; dense models in 4-bit shards have not been run either"
)
COUNTS = re.compile(r"^(moe_)?(num|n)_(local_|routed_)?experts$")


def expert_counts(config) -> list[str]:
    """The config keys that show that a model is a mixture of experts; [] for a dense model."""
    found = []
    for key, value in (config if isinstance(config, dict) else config.to_dict()).items():
        if isinstance(value, dict):  # DBRX has them in its ffn_config
            found += [f"{key}.{one}" for one in expert_counts(value)]
        elif COUNTS.search(str(key)) and isinstance(value, int) and value > 1:
            found.append(key)
    return found


def routers(model: nn.Module) -> list[str]:
    """Names of the modules that choose among experts or weight the shared one."""
    found = []
    for path, module in model.named_modules():
        if path.rpartition(".")[2] == "experts" and isinstance(module, nn.ModuleList):
            block = path.rpartition(".")[0]
            for name, _ in model.get_submodule(block).named_children():
                if re.search(r"gate|router", name) and name not in ("gate_proj", "gate_up_proj"):
                    found.append(f"{block}.{name}")
    return found


def kind_of(name: str, chosen_by: list[str]) -> str:
    """The row of the table that a parameter belongs to."""
    if ".lora_" in name:
        return "LoRA, " + kind_of(re.sub(r"\.lora_.*|^base_model\.model\.", "", name), chosen_by)
    if any(name.startswith(f"{path}.") for path in chosen_by):
        return "router"
    kinds = {
        "routed experts": ROUTED.pattern,
        "shared experts": "shared_expert|shared_mlp",
        "norms": "norm",
        "attention": "attn|attention",
        "embeddings": "embed|wte",
        "head": "lm_head|score",
    }
    return next((kind for kind, pattern in kinds.items() if re.search(pattern, name + ".")), "dense layers")


def size_of(parameter: nn.Parameter) -> tuple[int, str, int]:
    """(numbers, dtype, bytes). A 4-bit parameter includes its scales and code tables."""
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return parameter.numel(), str(parameter.dtype).removeprefix("torch."), parameter.nbytes
    tensors = [parameter.data, *(one for one in state.as_dict().values() if isinstance(one, torch.Tensor))]
    return state.shape.numel(), state.quant_type, sum(one.nbytes for one in tensors)


def table(model: nn.Module) -> dict[tuple[str, str], Counter]:
    """The numbers, bytes and trainable numbers by kind and dtype."""
    chosen_by, rows = routers(getattr(model, "get_base_model", lambda: model)()), {}
    for name, parameter in model.named_parameters():
        name = name.removeprefix("base_model.model.").replace(".base_layer", "")
        numbers, dtype, size = size_of(parameter)
        row = rows.setdefault((kind_of(name, chosen_by), dtype), Counter())
        row.update(tensors=1, numbers=numbers, bytes=size, trained=numbers * parameter.requires_grad)
    return rows


def check(model: nn.Module) -> None:
    """Log the table. Raises ConfigError if it is not QLoRA: an expert in 16 bits, a trainable router, no adapter."""
    rows = table(model)
    lines = [f"{'':32}{'dtype':>10}{'tensors':>9}{'numbers':>16}{'bytes':>16}{'trained':>14}"]
    for (kind, dtype), row in sorted(rows.items()):
        lines.append(f"{kind:32}{dtype:>10}" + "{tensors:9,}{numbers:16,}{bytes:16,}{trained:14,}".format(**row))
    logger.info("\n".join(lines))
    for (kind, dtype), row in rows.items():
        if kind in ("routed experts", "shared experts") and dtype != "nf4":
            raise ConfigError(f"load_in_4bit: {row['tensors']} tensors of {kind} are {dtype}, not NF4.")
        if "router" in kind and row["trained"]:
            raise ConfigError("load_in_4bit: a router is trainable; it must stay frozen.")
    if not any(row["trained"] for (kind, _), row in rows.items() if kind.startswith("LoRA")):
        raise ConfigError("load_in_4bit: nothing is trainable; the adapter found no layer.")
    many = expert_counts(model.config)
    if many and ("routed experts", "nf4") not in rows:
        raise ConfigError(f"load_in_4bit: by {', '.join(many)} this is a mixture of experts, but none were found.")


def unreached(names: Iterable[str], reached: Iterable[str]) -> list[str]:
    """The names that are not among `reached`. A layer's routed experts count as one: some may have no tokens yet."""
    units = {_unit(name) for name in reached}
    return [name for name in names if _unit(name) not in units]


def _unit(name: str) -> str:
    experts = ROUTED.match(name)
    return experts[1] if experts else name


def _ask(answers: dict[str | tuple, torch.Tensor]) -> dict[str | tuple, bool]:
    """The answers of a GPU, read all at once, because reading tens of thousands one by one takes seconds."""
    return dict(zip(answers, torch.stack(list(answers.values())).tolist(), strict=True)) if answers else {}


def routed(model: nn.Module) -> list[list[int]]:
    """The number of tokens that each 4-bit expert of each layer got in training, over all processes."""
    found = _experts(model).values()
    return [reduce(one.routed.to(next(one.parameters()).device), "sum").tolist() for one in found]


def go_on_counting(model: nn.Module, counts: list[list[int]]) -> None:
    """Continue counting from an earlier result of `routed`."""
    for module, row in zip(_experts(model).values(), counts, strict=True):
        module.routed = torch.tensor(row)


def _experts(model: nn.Module) -> dict[str, nn.Module]:
    """The routed experts of each layer, by their path."""
    return {path: module for path, module in model.named_modules() if hasattr(module, "routed")}


class GradientCheck(TrainerCallback):
    """Stops training if a LoRA pair learns nothing. It checks the first steps that have any gradient. If a gradient
    reaches the output of an adapted layer, B must have one too, and so must A once B is no longer zero.

    Experts that got no token are counted, also at the end.
    """

    steps = 3

    def __init__(self, figures: dict):
        self.figures, self.reached, self.done, self.hooks = figures, set(), 0, []
        self.seen, self.rows, self.moved = {}, {}, {}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.layers = {
            name: module for name, module in model.named_modules() if isinstance(module, LoraLayer) and module.lora_A
        }
        experts = _experts(model)
        for path, module in experts.items():
            module.watch = partial(self._watch_experts, path)
        self.experts = list(experts.values())
        for name, module in self.layers.items():
            if not ROUTED.match(name):  # routed experts are computed together, so hooks would not run
                self.hooks.append(module.register_forward_hook(partial(self._watch, name)))
            for pair in ("lora_A", "lora_B"):
                self.hooks.append(
                    getattr(module, pair)["default"].weight.register_hook(partial(self._note, name, pair))
                )

    def _watch(self, name, module, args, output):
        if output.requires_grad:
            output.register_hook(partial(self._note, name, "output"))

    def _watch_experts(self, path, leaf, output, ends):
        if f"{path}.0.{leaf}" in self.layers:  # experts without an adapter have a gradient too
            output.register_hook(partial(self._note_experts, path, leaf, ends))

    def _note_experts(self, path, leaf, ends, gradient):
        own = torch.searchsorted(ends, torch.arange(len(gradient), device=ends.device), right=True)
        reached = torch.zeros_like(ends).index_add(0, own, gradient.any(dim=1).to(ends.dtype)).bool()
        self.rows[path, leaf] = self.rows.get((path, leaf), False) | reached

    def _note(self, name, what, gradient):
        self.seen[name, what] = self.seen.get((name, what), False) | gradient.any()

    def on_step_begin(self, args, state, control, **kwargs):
        """Find the nonzero B here, because DeepSpeed steps its optimizer before `on_pre_optimizer_step`."""
        if self.hooks:
            self.moved = _ask({name: layer.lora_B["default"].weight.any() for name, layer in self.layers.items()})

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not self.hooks:
            return
        seen = {key for key, any_ in _ask(self.seen).items() if any_}
        now = {name for name, what in seen if what == "output"}
        for (path, leaf), row in self.rows.items():
            now |= {f"{path}.{number}.{leaf}" for number, any_ in enumerate(row.tolist()) if any_}
        if not seen | now:
            return
        for name in sorted(now):
            needs = ["lora_B"] + ["lora_A"] * self.moved[name]
            if missing := [what for what in needs if (name, what) not in seen]:
                raise ConfigError(f"load_in_4bit: {name} is used, but its {' and '.join(missing)} get no gradient.")
        self.reached |= now
        self.seen, self.rows, self.done = {}, {}, self.done + 1
        if self.done == self.steps:
            self._conclude()

    def _conclude(self):
        for hook in self.hooks:
            hook.remove()
        for module in self.experts:
            module.watch = None
        self.hooks = []
        if missing := unreached(self.layers, self.reached):
            raise ConfigError(
                f"load_in_4bit: after {self.done} steps no gradient has reached {_unit(missing[0])}. If none ever can, "
                "name other layers in lora_target_modules."
            )
        logger.info("%d of %d LoRA pairs have had a gradient", len(self.reached), len(self.layers))

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if self.hooks and self.done:
            self._conclude()
        counts = [tokens for layer in routed(model) for tokens in layer]
        self.figures |= {"experts": len(counts), "experts_never_routed_to": counts.count(0)}
        logger.info("%(experts_never_routed_to)d of %(experts)d experts never got a token", self.figures)
