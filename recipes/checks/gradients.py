"""The check of a run's first steps: whether all that is trainable gets a gradient."""

from collections.abc import Iterable
from functools import partial
from typing import Any

from data_prep.runs import ConfigError
from recipes import expert_parallel
from recipes.checks.finding import warn
from recipes.qlora_proof import ROUTED

from accelerate.utils import gather_object
from transformers import TrainerCallback


def unreached(names: Iterable[str], reached: Iterable[str]) -> list[str]:
    """The names that are not among `reached`. Of a layer's routed experts one suffices: some may have no tokens yet."""
    units = {_of_any_expert(name) for name in reached}
    return [name for name in names if _of_any_expert(name) not in units]


def _of_any_expert(name: str) -> str:
    return ROUTED.sub(r"\1.N.", name)


class GradientCheck(TrainerCallback):
    """Checks whether every trainable tensor gets a gradient in the first `steps` steps. LoRA's A gets one in the second
    or third, once B is no longer zero. A fault ends a `strict` run, and is a red flag in any other."""

    steps = 3

    def __init__(self, trainer: Any, strict: bool):
        self.trainer, self.strict, self.done = trainer, strict, 0
        self.hooks, self.seen, self.reached = [], {}, set()

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if self.trainer.is_deepspeed_enabled:  # it has used up the gradients before `on_pre_optimizer_step`
            trained = [(name, one) for name, one in model.named_parameters() if one.requires_grad]
            self.hooks = [one.register_hook(partial(self._note, name)) for name, one in trained]

    def _note(self, name, gradient):
        self.seen[name] = self.seen.get(name, False) | gradient.any()

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if self.done == self.steps:
            return
        trained = {name: one.grad for name, one in model.named_parameters() if one.requires_grad}
        if not all(one.isfinite().all() for one in trained.values() if one is not None):
            return  # fp16 leaves such a step out, and in others the flag of `grad_norm` names it
        if not self.hooks:
            self.seen = {name: gradient.any() for name, gradient in trained.items() if gradient is not None}
        now, self.seen = {name for name, any_ in self.seen.items() if any_}, {}
        if not now and hasattr(self.trainer, "reward_funcs"):
            return  # the completions of each group may have equal rewards
        self.reached |= now
        self.done += 1
        if self.done < self.steps:
            return
        for hook in self.hooks:
            hook.remove()
        if expert_parallel.owned(model):  # an expert of another process may have had the tokens
            self.reached = set(gather_object(sorted(self.reached)))
        if not (missing := unreached(trained, self.reached)):
            return
        if self.strict:
            raise ConfigError(
                f"load_in_4bit: after {self.done} steps no gradient has reached {missing[0]}, so that it learns "
                "nothing. If none ever can, name other layers in lora_target_modules."
            )
        warn(
            f"red flag at step {state.global_step}: {len(missing)} of {len(trained)} trainable tensors have had no "
            f"gradient in {self.done} steps ({', '.join(missing[:3])}). They stay as they are. If they are an "
            "adapter's, name layers in lora_target_modules that the forward pass uses."
        )
