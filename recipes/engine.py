"""The weights that vLLM samples with: those of the policy, under the published names, as a checkpoint would hold them.

TRL 1.16 sends a model's parameters under the names that transformers uses in memory, which vLLM does not know where
transformers stacks experts. It also merges an adapter into the frozen weights at each step and takes it out again,
which rounds weights in bfloat16 a little each time. Here a tensor is gathered, its adapter is added in float32 to a
copy, and the published names are given back, one group of tensors at a time. vLLM then loads them as it loads a
checkpoint, so that what it derives from weights (packed kernels, the absorbed matrices of latent attention) is derived
anew.
"""

from collections.abc import Iterator

from data_prep.runs import ConfigError
from recipes import sharded

import torch
from accelerate.utils import is_peft_model, set_seed
from peft.tuners.lora import Linear, LoraLayer
from torch import nn
from trl.generation import vllm_generation


class Engine(vllm_generation.VLLMGeneration):
    """TRL's engine, which gets its weights from `published_weights`."""

    def _iter_named_params(self) -> Iterator[tuple[str, torch.Tensor]]:
        return published_weights(self.model)

    def sync_weights(self) -> None:
        """Every process has to call it: gathering a tensor takes all of them."""
        if self.mode != "colocate":
            super().sync_weights()
            return
        if self.enable_sleep_mode:
            vllm_generation.empty_cache()  # what training holds, so that the engine finds room to wake up in
            self.llm.wake_up(tags=["weights"])
            self._llm_weights_sleeping = False
        self.llm.llm_engine.model_executor.driver_worker.reload_weights(weights_iterator=self._iter_named_params())
        self.llm.reset_prefix_cache()


def adopt(trainer) -> None:
    """Make the engine of a GRPO trainer, which TRL has started, one of ours: its weights, its end tokens, its seed."""
    trainer.vllm_generation.__class__ = Engine
    # vLLM would stop where the checkpoint on the disk says, which for a base is the end of a text, not of an answer.
    given = dict(trainer.args.generation_kwargs or {})
    ends = [*trainer.eos_token_ids, *given.pop("stop_token_ids", [])]
    trainer.vllm_generation.generation_kwargs = {"ignore_eos": True, "stop_token_ids": ends} | given
    if trainer.vllm_mode == "colocate":  # vLLM has seeded this process's generators with its rank
        set_seed(trainer.args.seed, device_specific=True)


def refuse_unmerged(model: nn.Module) -> None:
    """Raises ConfigError for an adapter of stacked experts, which vLLM cannot be sent."""
    if is_peft_model(model):
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer) and not isinstance(module, Linear):
                raise ConfigError(
                    f"generation: vLLM cannot be sent the adapter of {name}. Write lora_target_modules: names of "
                    "linear layers, or generation: transformers."
                )


@torch.no_grad()
def published_weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """(published name, tensor), whole on every process, with what an adapter adds.

    The frozen weights stay as they are. At most one group that transformers converts together, such as a layer's
    stacked experts, is held beside the model.
    """
    added = {}
    if is_peft_model(model):
        named = model.get_base_model().named_modules()
        added = {f"{name}.weight": module for name, module in named if isinstance(module, Linear)}
        model = model.get_base_model()
    for tensors in sharded.published(model, lambda name, one: _merged(one, added.get(name))):
        yield from tensors.items()


def _merged(tensor: torch.Tensor, layer: Linear | None) -> torch.Tensor:
    """All of a tensor plus what the adapter `default` of its layer adds, summed in float32, in the tensor's dtype."""
    own = sharded.whole(tensor)
    if layer is None:
        return own
    a, b = (sharded.whole(pair["default"].weight).float() for pair in (layer.lora_A, layer.lora_B))
    return (own.float() + (b @ a).to(own.device) * layer.scaling["default"]).to(own.dtype)
