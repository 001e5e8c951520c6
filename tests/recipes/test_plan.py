"""The plan of a scale against what is published, what was worked out by hand, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

from data_prep.runs import commands
from recipes.tools import needs, plan

import pytest
import yaml

GB = 1e9
KNOWN = yaml.safe_load(plan.MODELS.read_text(encoding="utf-8"))


def shape(name: str) -> needs.Shape:
    return needs.shape(json.dumps(KNOWN[name]["config"]))


@pytest.mark.parametrize("name", KNOWN)
def test_an_architecture_has_as_many_parameters_as_its_page_says(name):
    assert shape(name).parameters / 1e9 == pytest.approx(KNOWN[name]["billions"], rel=0.01)
    assert KNOWN[name]["page"].startswith("https://")


def test_the_active_parameters_of_mixtures_are_the_published_ones():
    assert shape("Qwen/Qwen3-30B-A3B-Base").active / 1e9 == pytest.approx(3.3, rel=0.02)
    assert shape("./models/DeepSeek-V3-Base-bf16").active / 1e9 == pytest.approx(37, rel=0.02)


def stage(**more) -> needs.Stage:
    base = needs.Stage(
        "s", "m", shape("Qwen/Qwen2.5-7B"), 1, "no", cpu=False, bf16=True, dtype=4, sequences=1, length=1024
    )
    return replace(base, **more)


def test_the_table_of_the_page_on_qlora_is_the_plans():
    """docs/moe_qlora.md: 16.7 GB of base and 27.0 GB of adapter at rank 32; 0.4 GB on attention alone."""
    moe = stage(shape=shape("Qwen/Qwen3-30B-A3B-Base"), nf4=True, rank=32, dtype=2)
    found = needs.memory(moe, 80 * GB)
    assert (found.weights - 4 * moe.trained) / GB == pytest.approx(16.7, abs=0.1)
    assert 16 * moe.trained / GB == pytest.approx(27.0, abs=0.1)
    assert 16 * replace(moe, targets=("attention",)).trained / GB == pytest.approx(0.4, abs=0.05)


def test_what_experts_take_is_shared_by_the_gpus():
    """By hand, DeepSeek-V3: 58 layers of 256 experts of 3 x 7168 x 2048 numbers, and 27,648 of an adapter a rank."""
    whole = stage(shape=shape("deepseek-ai/DeepSeek-V3-Base"), nf4=True, rank=8, dtype=2, processes=8, spread="ddp")
    shared = replace(whole, sharing=8, batch=32)
    experts = 58 * 256 * 3 * 7168 * 2048
    assert whole.frozen - shared.frozen == pytest.approx(needs.NF4 * experts * 7 / 8)
    assert whole.trained == shared.trained and shared.trained_on_experts == 58 * 256 * 8 * 27648
    one, eighth = (needs.memory(found, 80 * GB) for found in (whole, shared))
    assert one.optimiser - eighth.optimiser == pytest.approx(8 * shared.trained_on_experts * 7 / 8)
    assert eighth.gathered == 4 * (shared.trained - shared.trained_on_experts)
    row, tokens = 2 * 7168, 32 * 1024 * needs.FILL / 8
    assert shared.exchanged == pytest.approx(6 * 58 * 8 * 7 / 8 * row * tokens)  # there and back, three times
    assert whole.exchanged == 0 and needs.exchange_seconds(shared, 80 * GB) == pytest.approx(shared.exchanged / 450e9)
    two = replace(whole, shape=shape("Qwen/Qwen3-30B-A3B-Base"), processes=2, length=4096)
    assert plan.change(two, 24 * GB) == "expert_parallel: 2"


def test_what_is_spread_shrinks_with_the_processes_and_the_rest_does_not():
    alone, numbers = needs.memory(stage(), 80 * GB), shape("Qwen/Qwen2.5-7B").parameters
    assert (alone.weights, alone.gradients, alone.optimiser) == (4 * numbers, 4 * numbers, 8 * numbers)
    two = needs.memory(stage(processes=8, spread="zero2"), 80 * GB)
    assert two.weights == alone.weights / 2 and two.optimiser == pytest.approx(12 / 8 * alone.weights / 4)
    for spread in ("zero3", "fsdp2"):
        eight, sixteen = (needs.memory(stage(processes=n, spread=spread), 80 * GB) for n in (8, 16))
        assert eight.kept - needs.CONTEXT == pytest.approx(2 * (sixteen.kept - needs.CONTEXT))


def test_the_first_change_that_fits_is_named():
    assert plan.change(stage(), 80 * GB) == "use_peft: true, dtype: bfloat16"
    assert plan.change(stage(processes=8, spread="ddp"), 80 * GB).endswith("accelerate_configs/fsdp2.yaml")
    wide = stage(shape=shape("Qwen/Qwen2.5-1.5B"), sequences=16, length=32768)
    assert plan.change(wide, 80 * GB).startswith("per_device_train_batch_size: ")


def test_what_a_machines_memory_holds_while_models_are_loaded():
    """By hand: 7.6 B parameters in 4 bytes are 30.5 GB; eight processes with policy and reference hold 488."""
    one = 4 * shape("Qwen/Qwen2.5-7B").parameters
    zero2 = stage(processes=8, together=8, spread="zero2", rl=True, reference=True)
    assert needs.host(zero2) / GB == pytest.approx(8 * 3 + 487.4, abs=0.1)
    assert needs.host(zero2) == 8 * 2 * one + 8 * needs.IMPORTED
    assert needs.host(replace(zero2, spread="ddp")) == 8 * one + 8 * needs.IMPORTED  # GPUs have the policy by then
    assert needs.host(replace(zero2, dtype=2)) == 8 * one + 8 * needs.IMPORTED
    assert needs.host(replace(zero2, rank=32)) == 8 * one + 8 * needs.IMPORTED  # its reference is an adapter
    fsdp2 = replace(zero2, spread="fsdp2")
    assert needs.host(fsdp2) == needs.host(replace(fsdp2, processes=64)) == 2 * one + 8 * needs.IMPORTED
    assert needs.host(replace(fsdp2, dtype=2)) == 8 * one + 8 * needs.IMPORTED  # accelerate's float32, in each
    assert needs.host(replace(fsdp2, dtype=2, rank=32)) == one / 2 + 8 * needs.IMPORTED
    assert needs.host(replace(fsdp2, rewards=40 * GB, reward=30 * GB)) == 8 * (30 * GB + needs.IMPORTED)
    assert needs.host(stage(rl=True, reference=True)) == one + needs.IMPORTED
    zero3 = replace(zero2, spread="zero3", reference=False)
    assert needs.host(zero3) == needs.SHARD + 8 * needs.IMPORTED
    moe = replace(zero3, shape=shape("Qwen/Qwen3-30B-A3B-Base"))
    assert needs.host(moe) / GB == pytest.approx(8 * (2 * 48 * 128 * 3 * 768 * 2048 / 1e9 + 3), rel=1e-6)
    nf4 = replace(moe, spread="no", processes=1, together=1, nf4=True, rank=32, dtype=2)
    assert needs.host(nf4) / GB == pytest.approx(16.7 + 3, abs=0.1)
    on_cpu = stage(processes=2, together=2, spread="ddp", cpu=True, bf16=False)
    assert needs.host(on_cpu) == 2 * needs.memory(on_cpu, 0).peak


def test_the_first_change_that_loads_is_named():
    zero2 = stage(processes=8, together=8, spread="zero2", rl=True, reference=True)
    assert plan.host_change(zero2, 400 * GB).startswith("dtype: bfloat16")
    assert plan.host_change(zero2, 200 * GB) == plan.host_change(replace(zero2, dtype=2), 200 * GB)
    assert plan.host_change(zero2, 200 * GB) == "accelerate_config: accelerate_configs/fsdp2.yaml, dtype: float32"
    assert plan.host_change(zero2, 64 * GB) == "machines of 538 GB, or fewer processes on each"
    big = replace(zero2, shape=shape("./models/DeepSeek-V3-Base-bf16"), spread="fsdp2")
    assert plan.host_change(big, 1800 * GB) == "use_peft: true, dtype: bfloat16"


def test_a_plan_is_printed_for_a_scale_and_an_unknown_model_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(plan.runs.ROOT)
    assert commands.run(plan.main, ["--scale", "moe-qlora"]) == 0
    printed = capsys.readouterr().out
    assert "Everything fits." in printed and " r1_zero " in printed
    assert commands.run(plan.main, ["--scale", "moe-qlora", "--gpu-memory", "24"]) == 0
    assert "r1_zero (Qwen/Qwen3-30B-A3B-Base, one process): write GPUs of 80 GB" in capsys.readouterr().out
    assert commands.run(plan.main, ["--scale", "node-8x80gb", "--host-memory", "64"]) == 0
    said = capsys.readouterr().out
    assert "r1_zero (Qwen/Qwen2.5-7B, 8 x zero2): loading takes 268 GB of each machine's memory, of 64; write" in said
    assert commands.run(plan.main, ["--scale", "node-8x80gb"]) == 0
    assert "Everything fits." in capsys.readouterr().out
    assert commands.run(plan.main, ["--scale", "smol"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    (student,) = (row for row in rows if row[0] == "student_rl")
    assert student[plan.HEADS.index("steps")] == "8"  # 30,000 tokens of 64 completions of up to 128, of max_steps: 32
    text = Path("recipes/configs/gpu-24gb/r1_zero.yaml").read_text(encoding="utf-8").replace("2.5-1.5B\n", "2.5-3B\n")
    (tmp_path / "r1_zero.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        commands.run(plan.main, ["--scale", str(tmp_path)])
    assert ended.value.code == 2
    assert "Qwen/Qwen2.5-3B: " in capsys.readouterr().err
