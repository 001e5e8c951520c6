"""QLoRA on tiny mixtures of experts: what is held how, what is learned, what is refused, and what is left."""

import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace

import rewards
from data_prep import runs
from data_prep.rows import write_parquet
from data_prep.runs import ConfigError
from data_prep.sampling import Decoding, LocalModel
from recipes import moe_qlora, qlora_proof, training
from recipes.checks import gradients
from recipes.commandline import parse
from recipes.tools.merge import merge

import bitsandbytes as bnb
import moe
import pytest
import torch
from conftest import CORPUS, CPU, GRPO, SFT, log_of, record_of
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from test_settings import CLASSES, REPOSITORY, VARIANTS
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Qwen2Config,
)

QLORA = {"load_in_4bit": True, "lora_r": 4, "lora_alpha": 8}
IDS = torch.arange(3, 67).view(2, 32)


def base(family: str) -> str:
    """A random checkpoint of the family with the tests' tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained("outputs/t/base")
    folder = moe.write(Path("outputs/t") / family, family, vocab=len(tokenizer))
    tokenizer.save_pretrained(folder)
    runs.finish(folder)
    return str(folder)


def qlora(folder: Path, targets: list[str] | None = None, **more) -> PeftModel:
    model, _ = moe_qlora.load(AutoModelForCausalLM, str(folder), SimpleNamespace(), torch.float32)
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
    rows = qlora_proof.table(qlora(moe.write(tmp_path / "base", family)))
    assert {dtype for kind, dtype in rows if kind in ("routed experts", "shared experts", "dense layers")} == {"nf4"}
    assert {dtype for kind, dtype in rows if kind in ("router", "embeddings", "head", "norms")} == {"float32"}
    assert rows["routed experts", "nf4"]["numbers"] == 3 * 8 * 64 * (128 if family in ("mixtral", "olmoe") else 64) * (
        1 if "deepseek" in family else 2
    )
    trained = {kind for (kind, _), row in rows.items() if row["trained"]}
    assert trained == {"LoRA, " + kind for kind, dtype in rows if dtype == "nf4"}


@pytest.mark.parametrize("family", moe.FAMILIES)
def test_stacked_and_published_checkpoints_are_the_same_model(family, tmp_path):
    apart, stacked = (moe.write(tmp_path / str(form), family, stacked=form) for form in (False, True))
    assert set(load_file(apart / "model.safetensors")) != set(load_file(stacked / "model.safetensors"))
    assert logits(qlora(apart)).equal(logits(qlora(stacked)))


def test_a_checkpoint_in_fp8_is_what_its_conversion_is(tmp_path):
    parent = moe.write(tmp_path / "base", "deepseek_v3", dtype="bfloat16", intermediate_size=112)
    moe.to_fp8(parent)
    merge(parent, None, tmp_path / "converted", dtype="float32")
    assert logits(qlora(parent)).equal(logits(qlora(tmp_path / "converted")))


@pytest.mark.slow
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


def dequantised(layer: bnb.nn.Linear4bit) -> torch.Tensor:
    """By hand: bitsandbytes' own is wrong on CPUs with AVX512 where rows end within a block of numbers."""
    state = layer.weight.quant_state
    scales = state.state2.code[state.absmax.long()].view(-1)
    scales = scales * state.state2.absmax.repeat_interleave(state.state2.blocksize)[: len(scales)] + state.offset
    both = layer.weight.data.flatten().long()
    numbers = state.code[torch.stack([both >> 4, both & 15], dim=1).flatten()][: state.shape.numel()]
    return (numbers * scales.repeat_interleave(state.blocksize)[: len(numbers)]).view(state.shape)


def test_rows_that_end_within_a_block_of_numbers_are_dequantised_right(tmp_path):
    config = Qwen2Config(vocab_size=128, hidden_size=96, intermediate_size=160, num_hidden_layers=2)
    config.num_attention_heads = config.num_key_value_heads = 4
    parent, model = tmp_path / "base", AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(parent)
    adapted = qlora(parent)
    train_a_little(adapted)
    pairs = {}
    for name, module in adapted.get_base_model().named_modules():
        if hasattr(module, "lora_A"):
            a, b = (getattr(module, f"lora_{one}")["default"].weight for one in "AB")
            weight = dequantised(module.base_layer) + 2 * b.detach() @ a.detach()
            model.get_parameter(f"{name}.weight").data.copy_(weight)
            pairs[name] = a, b
    assert len(pairs) == 14
    assert torch.allclose(logits(adapted), logits(model), atol=1e-4)
    for one in (adapted, model):
        one(IDS, labels=IDS).loss.backward()
    for name, (a, b) in pairs.items():
        full = model.get_parameter(f"{name}.weight").grad
        assert torch.allclose(a.grad, 2 * b.T @ full, atol=1e-5), name
        assert torch.allclose(b.grad, 2 * full @ a.T, atol=1e-5), name


@pytest.mark.parametrize(
    "family", [*moe.FAMILIES, *(pytest.param(other, marks=pytest.mark.slow) for other in moe.OTHERS)]
)
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
            changes[name] = (dequantised(module.base_layer) + 2 * b.detach() @ a.detach(), a, b)
        elif isinstance(module, bnb.nn.Linear4bit) and not name.endswith("base_layer"):
            wanted[f"{name}.weight"].data.copy_(dequantised(module))
    leaves = moe_qlora.expert_names(reference)
    with torch.no_grad():
        for name, (weight, _, _) in changes.items():
            if one := qlora_proof.ROUTED.match(name):
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
        if one := qlora_proof.ROUTED.match(name):
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


def test_what_chooses_tokens_gets_no_adapter_unless_it_is_named(tmp_path):
    """DeepSeek-V3.2's indexer: its choice has no gradient, as the checks of a run would find after three steps."""
    parent = moe.write(tmp_path / "base", "deepseek_v32")
    for targets, any_ in ((None, False), (["attention"], False), (["wq_b"], True)):
        adapted = [name for name, _ in qlora(parent, targets).named_parameters() if ".lora_A" in name]
        assert adapted and any("indexer" in name for name in adapted) is any_


# The recipes


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
def test_sft_and_grpo_learn_in_every_pair_and_leave_plain_checkpoints(family, run_stage, caplog):
    caplog.set_level(logging.INFO)
    parent = base(family)
    sft = run_stage("cold_start_sft", SFT | QLORA | {"model_name_or_path": parent, "max_steps": 2}, name="sft")
    rl = run_stage("r1_zero", GRPO | QLORA | {"model_name_or_path": str(sft), "max_steps": 2}, name="rl")
    assert "trainable tensors have had no gradient" not in caplog.text  # an expert without tokens is no fault
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
        changed = {name for name in held if not held[name].equal(was[name].to(torch.bfloat16))}
        assert changed <= touched and len(changed) > len(touched) / 2  # no router among them
        assert (logits(merged) - logits(adapted)).abs().mean() < 0.05  # rounded to bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
@pytest.mark.parametrize("word", ["attention", "experts"])
def test_an_adapter_of_either_part_alone_learns(family, word, run_stage):
    settings = SFT | QLORA | {"model_name_or_path": base(family), "lora_target_modules": [word], "max_steps": 4}
    folder = run_stage("cold_start_sft", settings)
    names = load_file(folder / "adapter/adapter_model.safetensors")
    assert names and all((".self_attn." in name) is (word == "attention") for name in names)
    assert record_of(folder)["experts_never_routed_to"] < record_of(folder)["experts"]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["r1_zero", "distill"])
def test_a_crash_changes_nothing(script, run_stage, monkeypatch):
    settings = (
        (GRPO if script == "r1_zero" else SFT) | QLORA | {"model_name_or_path": base("qwen3_moe"), "save_steps": 2}
    )
    settings |= {"max_steps": 4, "eval_on_start": False}
    straight = run_stage(script, settings, name="straight")
    real = training.Resumable.count

    def count(self, mask):
        if self.state.global_step == 3:
            raise RuntimeError("crash")
        real(self, mask)

    monkeypatch.setattr(training.Resumable, "count", count)
    with pytest.raises(RuntimeError, match="crash"):
        run_stage(script, settings, name="resumed")
    monkeypatch.setattr(training.Resumable, "count", real)
    counted = []
    go_on = qlora_proof.go_on_counting
    monkeypatch.setattr(qlora_proof, "go_on_counting", lambda *args: counted.append(args[1]) or go_on(*args))
    resumed = run_stage(script, settings, name="resumed")
    assert log_of(resumed) == log_of(straight)
    assert sum(map(sum, counted[0])) > 0  # tokens sent to experts before the crash
    key = "experts_never_routed_to"
    assert record_of(resumed)[key] == record_of(straight)[key]
    one, other = (load_file(folder / "adapter/adapter_model.safetensors") for folder in (straight, resumed))
    assert all(one[name].equal(other[name]) for name in one)


GOOD, BAD = "<think>no</think>\nThe answer is 4 + 4.", "<think>no</think>\nThe answer is."


def preferences() -> dict:
    """The settings of reward models on rows that are written here."""
    folder = Path("outputs/t/preferences")
    asked = [{"prompt": f"helpful {number % 7}"} for number in range(20)]
    write_parquet(folder / "helpfulness.parquet", [row | {"chosen": GOOD, "rejected": BAD} for row in asked])
    labelled = [{"response": (BAD, GOOD)[number % 2], "label": number % 2} for number in range(20)]
    write_parquet(folder / "harmlessness.parquet", [a | b for a, b in zip(asked, labelled, strict=True)])
    runs.finish(folder)
    settings = {f"{kind}_dataset": str(folder / f"{kind}.parquet") for kind in ("helpfulness", "harmlessness")}
    return CPU | QLORA | settings | {"learning_rate": 1e-2, "held_out": 0.1, "max_length": 128, "dtype": "float32"}


@pytest.mark.slow
def test_reward_models_become_plain_scorers(run_stage):
    settings = {"model_name_or_path": base("qwen3_moe"), "batch_size": 6, "per_device_train_batch_size": 6}
    scorers = run_stage("reward_models", preferences() | settings | {"num_train_epochs": 4}, name="reward_models")
    assert record_of(scorers)["helpfulness_accuracy"] == 1.0
    for kind in ("helpfulness", "harmlessness"):
        plain = AutoModelForSequenceClassification.from_pretrained(scorers / kind)
        assert plain.config.num_labels == 1 and not [name for name, _ in plain.named_parameters() if "lm_head" in name]
        head = load_file(scorers / kind / "adapter/adapter_model.safetensors")["base_model.model.score.weight"]
        assert plain.score.weight.equal(head)
    score = rewards.HelpfulnessReward(str(scorers / "helpfulness"))
    better, worse = score([GOOD, BAD], prompts=[[{"role": "user", "content": "helpful 1"}]] * 2, kind=["helpful"] * 2)
    assert better > worse


def test_a_dense_model_is_one_without_experts(run_stage):
    folder = run_stage("distill", SFT | QLORA | {"max_steps": 1})
    assert record_of(folder)["experts"] == 0
    assert len(load_file(folder / "adapter/adapter_model.safetensors")) == 2 * 2 * 7
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("targets", "kinds"),
    [
        (["attention"], {"attention"}),
        (["experts"], {"routed experts", "shared experts", "dense layers"}),
        (["o_proj", "down_proj"], {"attention", "routed experts", "shared experts", "dense layers"}),
    ],
)
def test_one_key_says_what_is_adapted(targets, kinds, tmp_path):
    parent = moe.write(tmp_path / "base", "deepseek_v3")
    model = qlora(parent, targets)
    assert {kind for (kind, _), row in qlora_proof.table(model).items() if row["trained"]} == {
        f"LoRA, {kind}" for kind in kinds
    }
    train_a_little(model)
    moe_qlora.save_adapter(model, tmp_path / "adapter", str(parent))
    merge(parent, tmp_path / "adapter", tmp_path / "merged", dtype="float32")
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(parent), tmp_path / "adapter")
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")), logits(adapted), atol=1e-4)


@pytest.mark.parametrize("targets", [["q_proj", "up_proj"], ["gate_proj", "up_proj"], ["down_proj"], None])
@pytest.mark.parametrize("family", ["qwen3_moe", "granitemoeshared"])
def test_an_adapter_of_some_of_an_expert_s_layers_is_saved_whole(family, targets, tmp_path):
    """In families published apart and stacked: nothing trained is lost, for PEFT and for the merge."""
    parent = moe.write(tmp_path / "base", family)
    model = qlora(parent, targets)
    train_a_little(model)
    moe_qlora.save_adapter(model, tmp_path / "adapter", str(parent))
    merge(parent, tmp_path / "adapter", tmp_path / "merged", dtype="float32")
    plain = AutoModelForCausalLM.from_pretrained(parent)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    for layer, experts in enumerate(module for module in model.modules() if isinstance(module, moe_qlora.Experts)):
        before, after = (one.model.layers[layer] for one in (plain, merged))
        stacks = {name: one for name, one in before.named_parameters() if one.ndim == 3}
        after = dict(after.named_parameters())
        for name, one in stacks.items():
            change = after[name] - one
            for number, expert in enumerate(experts):
                halves = expert.names[2:] if "down" in name or "output" in name else expert.names[:2]
                wanted = [delta(getattr(expert, half)) for half in halves]
                assert torch.allclose(change[number], torch.cat(wanted), atol=1e-5)
    adapted = logits(PeftModel.from_pretrained(plain, tmp_path / "adapter"))
    assert torch.allclose(logits(merged), adapted, atol=1e-4)


def delta(layer) -> torch.Tensor:
    return (
        layer.get_delta_weight("default")
        if hasattr(layer, "lora_A")
        else torch.zeros(layer.out_features, layer.in_features)
    )


def test_a_layer_named_by_its_number_is_the_only_one(tmp_path):
    """But of routed experts, which are multiplied together, all of the layer."""
    parent = moe.write(tmp_path / "base", "qwen3_moe", num_hidden_layers=3)
    model = qlora(parent, ["layers.1.self_attn.q_proj", "layers.2.mlp.experts.3.up_proj"])
    found = {name.partition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    experts = {f"base_model.model.model.layers.2.mlp.experts.{number}.up_proj" for number in range(8)}
    assert found == experts | {"base_model.model.model.layers.1.self_attn.q_proj"}
    layers = [f"a.{one}.{other}.q" for one in range(2) for other in range(2)]
    assert all(re.fullmatch(moe_qlora._expression(set(layers), layers), name) for name in layers)


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("model.layers.1.mlp.gate.weight", "1 tensors are missing"),
        ("model.layers.1.mlp.experts.3.up_proj.weight", "the checkpoint has no model.layers.1.mlp"),
        ("model.layers.0.self_attn.k_proj.weight", "the checkpoint has no model.layers.0.self_attn.k_proj.weight"),
    ],
)
def test_a_checkpoint_that_lacks_a_tensor_is_refused(lost, said, refuses):
    file = Path(base("qwen3_moe")) / "model.safetensors"
    held = load_file(file)
    del held[lost]
    save_file(held, file, metadata={"format": "pt"})
    settings = SFT | QLORA | {"model_name_or_path": str(file.parent), "doctor": False}
    assert said in refuses("cold_start_sft", settings)


@pytest.mark.parametrize("kind", [QLORA, {"use_peft": True}])
def test_a_parent_that_the_merge_could_not_read_is_refused_before_training(kind, refuses):
    file = Path(base("qwen3_moe")) / "model.safetensors"
    torch.save(load_file(file), file.with_name("pytorch_model.bin"))
    file.unlink()
    said = refuses("cold_start_sft", SFT | kind | {"model_name_or_path": str(file.parent)})
    assert "no model.safetensors and no model.safetensors.index.json" in said


@pytest.mark.slow
@pytest.mark.parametrize("more", [QLORA, {}])
def test_a_base_can_be_a_mixture_of_experts(more, run_stage):
    folder = run_stage(
        "base", CORPUS | {"num_experts": 4, "moe_intermediate_size": 32, "max_steps": 2, "logging_steps": 1}
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert (model.config.model_type, model.config.num_experts, model.config.num_experts_per_tok) == ("qwen3_moe", 4, 2)
    assert log_of(folder)[0]["aux_loss"] > 0  # its router learns
    assert not model.config.output_router_logits  # whoever samples from it would fail
    config = json.loads((folder / "config.json").read_text()) | {"output_router_logits": True}
    (folder / "config.json").write_text(json.dumps(config))  # as TRL leaves it
    assert LocalModel(str(folder)).sample(["one", "and two"], 1, Decoding(max_tokens=2), 0)
    run_stage("r1_zero", GRPO | more | {"model_name_or_path": str(folder), "max_steps": 1}, name="rl")


@pytest.mark.parametrize("stage", [*CLASSES, *VARIANTS])
def test_every_stage_of_the_scale_is_in_four_bits(stage, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    path = f"recipes/configs/cpu-moe/{stage}.yaml"
    arguments, trainer = parse(*CLASSES[VARIANTS.get(stage, stage)], argv=["--config", path])
    assert trainer.output_dir == f"outputs/cpu-moe/{stage}"
    if "base" not in stage:
        assert arguments.load_in_4bit and arguments.use_peft


# What is not as it should be


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"generation": "vllm_colocate"}, "generation: with load_in_4bit"),
        ({"router_aux_loss_coef": 0.001}, "router_aux_loss_coef: with load_in_4bit the router is frozen"),
        ({"lora_target_modules": ["q_proj", "z_proj"]}, "'z_proj' finds nothing. Write attention, experts, or some of"),
        ({"lora_target_modules": ["gate"]}, "'gate' is a router, which stays frozen"),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong, said, refuses):
    assert said in refuses("r1_zero", GRPO | QLORA | {"model_name_or_path": base("qwen3_moe")} | wrong)


def test_experts_of_another_form_are_refused(refuses):
    said = refuses("r1_zero", GRPO | QLORA | {"model_name_or_path": base("gpt_oss")})
    assert "GptOssExperts" in said and "gpt_oss would stay in 16 bits" in said


@pytest.mark.parametrize(
    ("method", "kind", "said"),
    [
        ("fp8", {"use_peft": True}, "python -m recipes.tools.merge --parent"),
        ("awq", QLORA, "quantised already (awq)"),
    ],
)
def test_a_parent_that_is_not_in_16_bits_is_refused(method, kind, said, refuses):
    config = Path(base("qwen3_moe")) / "config.json"
    held = {"quant_method": method, "weight_block_size": [128, 128]}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": held}), encoding="utf-8")
    assert said in refuses("r1_zero", GRPO | kind | {"model_name_or_path": str(config.parent)})


@pytest.mark.parametrize("way", ["fsdp", "zero3"])
def test_sharded_weights_are_refused(way, monkeypatch):
    config = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=3 if way == "zero3" else 2))
    if way == "fsdp":
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match=r"FSDP and ZeRO-3 gather.*Use DDP or ZeRO-2"):
        moe_qlora.load(AutoModelForCausalLM, "outputs/t/base", config, torch.float32)


def test_an_expert_in_16_bits_a_trainable_router_and_no_adapter_are_refused(tmp_path):
    model = qlora(moe.write(tmp_path / "base", "qwen3_moe"))
    qlora_proof.check(model)
    router = model.get_base_model().model.layers[0].mlp.gate
    router.weight.requires_grad = True
    with pytest.raises(ConfigError, match="a router is trainable"):
        qlora_proof.check(model)
    router.weight.requires_grad = False
    expert = model.get_base_model().model.layers[1].mlp.experts[3]
    kept, expert.up_proj.base_layer = expert.up_proj.base_layer, torch.nn.Linear(64, 32, bias=False).bfloat16()
    with pytest.raises(ConfigError, match="1 tensors of routed experts are bfloat16, not NF4"):
        qlora_proof.check(model)
    expert.up_proj.base_layer = kept
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing is trainable"):
        qlora_proof.check(model)


def test_a_config_within_the_config_tells_of_experts_too():
    dbrx = AutoConfig.for_model("dbrx", ffn_config={"moe_num_experts": 8, "moe_top_k": 2})
    assert qlora_proof.expert_counts(dbrx) == ["ffn_config.moe_num_experts"]
    assert qlora_proof.expert_counts(AutoConfig.for_model("qwen3")) == []


def test_a_mixture_whose_experts_were_not_found_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(moe_qlora, "unfuse", lambda *_: None)
    with pytest.raises(ConfigError, match=r"its num_\w*experts.* is a mixture of experts, but none of them is in NF4"):
        qlora_proof.check(qlora(moe.write(tmp_path / "base", "qwen3_moe"), ["attention"]))


@pytest.mark.parametrize(
    "broken",
    [lambda layer: layer.base_layer.forward, lambda layer: lambda x: type(layer).forward(layer, x).detach()],
    ids=["a pair beside the graph", "a graph that is cut"],
)
def test_what_learns_nothing_stops_the_run(broken, refuses, monkeypatch):
    def adapt(*args):
        model = real(*args)
        layer = model.get_base_model().model.layers[1].self_attn.q_proj
        layer.forward = broken(layer)
        return model

    real = moe_qlora.adapt
    monkeypatch.setattr(moe_qlora, "adapt", adapt)
    said = refuses("cold_start_sft", SFT | QLORA | {"model_name_or_path": base("qwen3_moe"), "max_steps": 5})
    assert "no gradient has reached base_model.model.model.layers.1.self_attn.q_proj.lora_A" in said


def test_evaluation_in_between_changes_no_gradient(tmp_path):
    """Sizes at which bitsandbytes repacks the weights on CPUs with AVX512-BF16, as libraries' own `eval` does."""
    model = qlora(moe.write(tmp_path / "base", "qwen3_moe", hidden_size=128, moe_intermediate_size=64, head_dim=32))
    train_a_little(model)

    def gradients() -> dict[str, torch.Tensor]:
        model.train()
        model.zero_grad()
        model(IDS, labels=IDS).loss.backward()
        return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}

    before = gradients()
    model.eval()
    logits(model)
    after = gradients()
    assert before.keys() == after.keys() and all(before[name].equal(after[name]) for name in before)


def test_an_adapter_comes_back_exactly(tmp_path):
    parent = moe.write(tmp_path / "base", "deepseek_v3", dtype="bfloat16")
    model = qlora(parent)
    train_a_little(model)
    model.save_pretrained(tmp_path / "checkpoint")
    again = qlora(parent)
    again.load_adapter(tmp_path / "checkpoint", "default")
    assert logits(again).equal(logits(model))


def test_a_layers_routed_experts_count_as_one_where_gradients_are_looked_for():
    names = [f"layers.{n}.mlp.experts.{one}.up_proj.lora_A" for n in range(2) for one in range(2)]
    names += ["layers.0.mlp.shared_experts.up_proj.lora_A", "layers.0.mlp.experts.gate_up_proj"]
    assert gradients.unreached(names, [names[1]]) == names[2:]
    assert gradients.unreached(names, names) == []


def test_an_expert_s_pair_that_learns_nothing_stops_the_run(refuses, monkeypatch):
    real = moe_qlora.Experts.adapter
    cut = lambda self, name, pair, adapter: real(self, name, pair, adapter).detach()  # noqa: E731
    monkeypatch.setattr(moe_qlora.Experts, "adapter", cut)
    said = refuses("cold_start_sft", SFT | QLORA | {"model_name_or_path": base("qwen3_moe"), "max_steps": 5})
    assert re.search(r"no gradient has reached \S+\.experts\.0\.\w+_proj\.lora_A", said)


def test_all_experts_together_are_a_loop_over_them(tmp_path):
    """Values and gradients, with an adapter that is not zero, and some experts without tokens."""
    model = qlora(moe.write(tmp_path / "base", "qwen3_moe"))
    train_a_little(model)
    experts = model.get_base_model().model.layers[0].mlp.experts
    hidden = torch.randn(6, 64, requires_grad=True)
    chosen = torch.tensor([[0, 3], [3, 5], [0, 5], [3, 0], [5, 3], [3, 7]])
    weights = torch.rand(6, 2)

    def loop():
        sums = []
        for token, (numbers, shares) in enumerate(zip(chosen.tolist(), weights, strict=True)):
            for number, share in zip(numbers, shares, strict=True):
                gate, up, down = (getattr(experts[number], name) for name in experts[number].names)
                x = hidden[token : token + 1]
                sums.append(share * down(experts[number].apply_gate(torch.cat([gate(x), up(x)], dim=-1))))
        return torch.cat(sums).view(6, 2, -1).sum(dim=1)

    found = []
    for call in (loop, lambda: experts(hidden, chosen, weights)):
        model.zero_grad()
        hidden.grad = None
        out = call()
        out.square().sum().backward()
        trained = [one.grad if one.grad is not None else torch.zeros_like(one) for one in experts.parameters()
                   if one.requires_grad]  # fmt: skip
        found.append([out.detach(), hidden.grad.clone(), *(one.clone() for one in trained)])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-4 * float(one.abs().max() + 1))


def test_under_deepspeed_hooks_watch_the_first_steps(caplog):
    model = torch.nn.ModuleDict({name: torch.nn.Linear(2, 1, bias=False) for name in ("used", "left")})
    check = gradients.GradientCheck(SimpleNamespace(is_deepspeed_enabled=True), strict=False)
    check.on_train_begin(None, None, None, model=model)
    for step in range(check.steps + 1):
        model["used"](torch.ones(1, 2)).sum().backward()
        model.zero_grad()  # as DeepSpeed, which has used up the gradients
        check.on_pre_optimizer_step(None, SimpleNamespace(global_step=step), None, model=model)
    assert not check.seen and "1 of 2 trainable tensors have had no gradient in 3 steps (left.weight)" in caplog.text
