"""Sends the policy's weights to vLLM under their published names, as in a checkpoint.

TRL 1.16 sends parameters under the names that transformers uses in memory. vLLM does not know these names if
transformers stacks experts. TRL also merges an adapter into the frozen weights at each step and unmerges it, which
rounds bf16 weights each time. Here each tensor is gathered, its adapter is added to a copy in float32, and the
published names are restored, one group of tensors at a time. vLLM loads them like a checkpoint and recomputes what it
derives from weights (packed kernels, the absorbed matrices of latent attention).
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
    """TRL's vLLM engine with weights from `published_weights`."""

    def _iter_named_params(self) -> Iterator[tuple[str, torch.Tensor]]:
        return published_weights(self.model)

    def sync_weights(self) -> None:
        """Every process has to call it, because gathering a tensor involves all of them."""
        if self.mode != "colocate":
            super().sync_weights()
            return
        if self.enable_sleep_mode:
            vllm_generation.empty_cache()  # frees memory of training, so the engine can wake up
            self.llm.wake_up(tags=["weights"])
            self._llm_weights_sleeping = False
        self.llm.llm_engine.model_executor.driver_worker.reload_weights(weights_iterator=self._iter_named_params())
        self.llm.reset_prefix_cache()


def adopt(trainer) -> None:
    """Turn the engine that TRL started for a GRPO trainer into an `Engine`, with our weights, end tokens and seed."""
    trainer.vllm_generation.__class__ = Engine
    # vLLM would stop at the end token of the checkpoint on disk, which in a base ends a text, not an answer.
    given = dict(trainer.args.generation_kwargs or {})
    ends = [*trainer.eos_token_ids, *given.pop("stop_token_ids", [])]
    trainer.vllm_generation.generation_kwargs = {"ignore_eos": True, "stop_token_ids": ends} | given
    if trainer.vllm_mode == "colocate":  # vLLM has seeded this process's generators with its rank
        set_seed(trainer.args.seed, device_specific=True)


def refuse_unmerged(model: nn.Module) -> None:
    """Raises ConfigError for an adapter of stacked experts, which cannot be sent to vLLM."""
    if is_peft_model(model):
        for name, module in model.named_modules():
            if isinstance(module, LoraLayer) and not isinstance(module, Linear):
                raise ConfigError(
                    f"generation: vLLM cannot be sent the adapter of {name}. Write lora_target_modules: names of "
                    "linear layers, or generation: transformers."
                )


@torch.no_grad()
def published_weights(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """(published name, full tensor) on every process, with the adapter added.

    The frozen weights do not change. At most one group that transformers converts together, such as a layer's stacked
    experts, is held in addition to the model.
    """
    added = {}
    if is_peft_model(model):
        named = model.get_base_model().named_modules()
        added = {f"{name}.weight": module for name, module in named if isinstance(module, Linear)}
        model = model.get_base_model()
    for tensors in sharded.published(model, lambda name, one: _merged(one, added.get(name))):
        yield from tensors.items()


def _merged(tensor: torch.Tensor, layer: Linear | None) -> torch.Tensor:
    """The full tensor plus the delta of its layer's adapter `default`, summed in float32 and cast to its dtype."""
    own = sharded.whole(tensor)
    if layer is None:
        return own
    a, b = (sharded.whole(pair["default"].weight).float() for pair in (layer.lora_A, layer.lora_B))
    return (own.float() + (b @ a).to(own.device) * layer.scaling["default"]).to(own.dtype)
