"""The weights that vLLM is sent; tests/engines/test_vllm.py has what it makes of them."""

import weakref
from pathlib import Path

from data_prep.runs import ConfigError
from recipes import engine

import moe
import pytest
import torch
from conftest import LORA
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "qwen2_moe", "mixtral"])
def test_names_shapes_and_values_are_those_of_a_published_checkpoint(family, tmp_path):
    """Routers and their score bias too, which no optimizer trains: an engine that slept has lost them."""
    there = load_file(moe.write(tmp_path / family, family) / "model.safetensors")
    sent = dict(engine.published_weights(AutoModelForCausalLM.from_pretrained(tmp_path / family)))
    assert sent.keys() == there.keys()
    assert all(torch.equal(sent[name], there[name]) for name in there)


def adapted(tmp_path: Path, **more):
    name = moe.write(tmp_path / "base", "qwen3_moe", dtype="bfloat16")
    base = AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16)
    settings = {"r": LORA["lora_r"], "lora_alpha": LORA["lora_alpha"], "target_modules": ["q_proj", "o_proj"]}
    model = get_peft_model(base, LoraConfig(**settings | more))
    for parameter_name, parameter in model.named_parameters():
        if "lora_B" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.02)
    return name, model


def test_an_adapter_is_added_in_float32_and_no_bit_of_its_base_changes(tmp_path):
    name, model = adapted(tmp_path)
    there, before = load_file(name / "model.safetensors"), {k: v.clone() for k, v in model.state_dict().items()}
    for _ in range(200):
        sent = dict(engine.published_weights(model))
    assert sent.keys() == there.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    for key, value in sent.items():
        if "q_proj" in key or "o_proj" in key:
            pair = f"base_model.model.{key.removesuffix('.weight')}"
            a, b = (before[f"{pair}.lora_{which}.default.weight"].float() for which in "AB")
            delta = LORA["lora_alpha"] / LORA["lora_r"] * (b @ a)
            assert torch.equal(value, (there[key].float() + delta).to(torch.bfloat16)) and delta.any()
        else:
            assert torch.equal(value, there[key])


def test_at_most_a_layer_is_held_beside_the_model(tmp_path):
    name, model = adapted(tmp_path)
    own = {one.untyped_storage().data_ptr() for one in model.state_dict().values()}
    layer = sum(one.nbytes for key, one in load_file(name / "model.safetensors").items() if ".layers.0." in key)
    refs, most = [], 0
    for _, tensor in engine.published_weights(model):
        refs.append(weakref.ref(tensor))
        del tensor
        alive = [one for ref in refs if (one := ref()) is not None]
        most = max(most, sum(one.nbytes for one in alive if one.untyped_storage().data_ptr() not in own))
        del alive
    assert 0 < most <= layer


def test_an_adapter_of_stacked_experts_is_refused_before_the_engine_starts(tmp_path):
    _, model = adapted(tmp_path, target_parameters=["mlp.experts.gate_up_proj"])
    with pytest.raises(ConfigError, match="vLLM cannot be sent the adapter of .*experts"):
        engine.refuse_unmerged(model)
