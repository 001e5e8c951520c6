"""QLoRA on tiny mixtures of experts: what is held how, what is learned, what is refused, and what is left."""

import logging
from pathlib import Path
from types import SimpleNamespace

from data_prep import runs
from recipes import moe_qlora
from recipes.tools.merge import merge

import bitsandbytes as bnb
import moe
import pytest
import torch
from conftest import GRPO, SFT, log_of, record_of
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

QLORA = {"load_in_4bit": True, "lora_r": 4, "lora_alpha": 8}
IDS = torch.arange(3, 67).view(2, 32)


def base(family: str) -> str:
    """A random checkpoint of the family with the tests' tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained("outputs/t/base")
    folder = moe.write(Path("outputs/t") / family, family, vocab=len(tokenizer))
    tokenizer.save_pretrained(folder)
    runs.finish(folder, folder.name)
    return str(folder)


def qlora(folder: Path, targets: list[str] | None = None, **more) -> PeftModel:
    model = moe_qlora.load(AutoModelForCausalLM, str(folder), SimpleNamespace(), torch.float32)
    return moe_qlora.adapt(model, LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **more), targets)


def train_a_little(model: PeftModel) -> None:
    """Matrices as if trained: none of them zero."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(IDS).logits


# Every family


@pytest.mark.parametrize("family", moe.FAMILIES)
def test_every_expert_is_in_four_bits_and_every_router_is_not(family, tmp_path):
    rows = moe_qlora.table(qlora(moe.write(tmp_path / "base", family)))
    assert {dtype for kind, dtype in rows if kind in ("routed experts", "shared experts", "dense layers")} == {"nf4"}
    assert {dtype for kind, dtype in rows if kind in ("router", "embeddings", "head", "norms")} == {"float32"}
    assert rows["routed experts", "nf4"]["numbers"] == 3 * 8 * 64 * (96 if family in ("mixtral", "olmoe") else 32) * (
        1 if "deepseek" in family else 2
    )
    trained = {kind for (kind, _), row in rows.items() if row["trained"]}
    assert trained == {"LoRA, " + kind for kind, dtype in rows if dtype == "nf4"}


@pytest.mark.parametrize("family", moe.FAMILIES)
def test_stacked_and_published_checkpoints_are_the_same_model(family, tmp_path):
    apart, stacked = (moe.write(tmp_path / str(form), family, stacked=form) for form in (False, True))
    assert set(load_file(apart / "model.safetensors")) != set(load_file(stacked / "model.safetensors"))
    assert logits(qlora(apart)).equal(logits(qlora(stacked)))


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("family", moe.FAMILIES)
def test_plain_peft_loads_the_adapter_on_the_16_bit_base_and_the_merge_agrees(family, stacked, tmp_path):
    parent = moe.write(tmp_path / "base", family, stacked=stacked)
    model = qlora(parent)
    train_a_little(model)
    moe_qlora.save_adapter(model, tmp_path / "adapter", str(parent))
    names = {key.partition(".lora_")[0] for key in load_file(tmp_path / "adapter/adapter_model.safetensors")}
    if not stacked:
        assert {f"{name.removeprefix('base_model.model.')}.weight" for name in names} <= set(
            load_file(parent / "model.safetensors")
        )
    plain = AutoModelForCausalLM.from_pretrained(parent)
    before = logits(plain)
    adapted = logits(PeftModel.from_pretrained(plain, tmp_path / "adapter"))
    merge(parent, tmp_path / "adapter", tmp_path / "merged", dtype="float32")
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), adapted, atol=1e-4)
    assert (adapted - before).abs().max() > 1


@pytest.mark.parametrize("family", moe.FAMILIES)
def test_gradients_are_those_of_the_dequantised_model(family, tmp_path):
    """The same numbers in full precision, in transformers' own stacked form, under the adapter's sums."""
    parent = moe.write(tmp_path / "base", family)
    model = qlora(parent)
    train_a_little(model)
    reference = AutoModelForCausalLM.from_pretrained(parent)
    wanted = dict(reference.named_parameters())
    changes = {}
    for name, module in model.get_base_model().named_modules():
        if hasattr(module, "lora_A"):
            a, b = (getattr(module, f"lora_{one}")["default"].weight for one in "AB")
            weight = bnb.functional.dequantize_4bit(module.base_layer.weight.data, module.base_layer.weight.quant_state)
            changes[name] = (weight + 2 * b.detach() @ a.detach(), a, b)
    leaves = moe_qlora.merge.expert_names(reference)
    with torch.no_grad():
        for name, (weight, _, _) in changes.items():
            if one := moe_qlora.ROUTED.match(name):
                place = leaves.index(name.rpartition(".")[2])
                stack = wanted[f"{one[1]}.{'down_proj' if place == 2 else 'gate_up_proj'}"][int(one[2])]
                (stack if place == 2 else stack.chunk(2)[place]).copy_(weight)
            else:
                wanted[f"{name}.weight"].copy_(weight)
    assert torch.allclose(logits(model), logits(reference), atol=1e-4)
    for one in (model, reference):
        one.train()
        one(IDS, labels=IDS).loss.backward()
    for name, (_, a, b) in changes.items():
        if one := moe_qlora.ROUTED.match(name):
            place = leaves.index(name.rpartition(".")[2])
            full = wanted[f"{one[1]}.{'down_proj' if place == 2 else 'gate_up_proj'}"].grad[int(one[2])]
            full = full if place == 2 else full.chunk(2)[place]
        else:
            full = wanted[f"{name}.weight"].grad
        if a.grad is None:
            assert not full.any(), name  # an expert without tokens
            continue
        assert torch.allclose(a.grad, 2 * b.T @ full, atol=1e-5), name
        assert torch.allclose(b.grad, 2 * full @ a.T, atol=1e-5), name


# The recipes


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
def test_sft_and_grpo_learn_in_every_pair_and_leave_plain_checkpoints(family, run_stage, caplog):
    caplog.set_level(logging.INFO)
    parent = base(family)
    sft = run_stage("cold_start_sft", SFT | QLORA | {"model_name_or_path": parent, "max_steps": 2}, name="sft")
    rl = run_stage("r1_zero", GRPO | QLORA | {"model_name_or_path": str(sft), "max_steps": 2}, name="rl")
    for folder, before in ((sft, parent), (rl, sft)):
        assert "routed experts" in caplog.text and "LoRA, routed experts" in caplog.text
        record = record_of(folder)
        assert record["experts"] == (16 if family == "qwen3_moe" else 8)
        assert record["experts_never_routed_to"] < record["experts"]
        assert not [key for key in log_of(folder)[0] if "aux" in key]
        merged, plain = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (folder, before))
        adapted = PeftModel.from_pretrained(plain, folder / "adapter")
        tensors = load_file(folder / "adapter/adapter_model.safetensors")
        assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
        held, was = (load_file(Path(path) / "model.safetensors") for path in (folder, before))
        assert held.keys() == was.keys()
        touched = {f"{key.removeprefix('base_model.model.').partition('.lora_')[0]}.weight" for key in tensors}
        for name in held:  # the router among them
            assert held[name].equal(was[name].to(torch.bfloat16)) == (name not in touched), name
        assert (logits(merged) - logits(adapted)).abs().mean() < 0.05  # rounded to bfloat16
