"""Processes that share the experts of each layer train what one process trains that holds them all."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import recipes
from data_prep.runs import ConfigError
from recipes import moe_qlora

import moe
import pytest
import torch
import yaml
from conftest import GRPO, SFT, log_of, record_of
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_moe_qlora import QLORA, base, logits, preferences
from transformers import AutoModelForCausalLM

ROOT = Path(recipes.__file__).parents[1]
STEPS = SFT | QLORA | {"max_steps": 3, "save_steps": 1, "dtype": "float32"}
# Runs the jobs of tests/engines/stage.py, and ends the second process in the third step of the run `dies`.
SCRIPT = f"""
import os, runpy, signal, sys
from recipes import training

def count(self, mask):
    if "{{dies}}" in self.args.output_dir and self.state.global_step == 2 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, mask)

real, training.Resumable.count = training.Resumable.count, count
sys.argv = ["stage.py", "jobs.json"]
runpy.run_path("{ROOT}/tests/engines/stage.py", run_name="__main__")
"""


def together(jobs: list[dict], processes: int = 2, dies: str = "-") -> subprocess.CompletedProcess:
    """What `processes` say that run the jobs one after the other."""
    Path("jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    Path("jobs.py").write_text(SCRIPT.format(dies=dies), encoding="utf-8")
    words = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", f"--num_processes={processes}"]
    words += [f"--main_process_port={20000 + os.getpid() % 20000}", "jobs.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{os.getcwd()}"}
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240)


def job(script: str, settings: dict, name: str, **more) -> dict:
    Path(f"{name}.yaml").write_text(yaml.safe_dump({"output_dir": f"outputs/t/{name}"} | settings), encoding="utf-8")
    return {"argv": [str(ROOT / f"recipes/{script}.py"), "--config", f"{name}.yaml"]} | more


def unlike(family: str) -> str:
    """DeepSeek-V3 in FP8, all of whose tokens go to the first two experts, which the first process holds."""
    folder = Path(base(family))
    file = folder / "model.safetensors"
    held = {key: one.bfloat16() for key, one in load_file(file).items()}
    for key in held:
        if key.endswith("e_score_correction_bias"):
            held[key] = torch.tensor([100.0, 100.0] + 6 * [0.0])
    save_file(held, file, metadata={"format": "pt"})
    moe.to_fp8(folder)
    return str(folder)


def assert_alike(one: Path, other: Path) -> None:
    """Equal losses, norms of all gradients, counts and adapters, up to the order of sums."""
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in log_of(other)] == pytest.approx([row[key] for row in log_of(one)], abs=1e-5)
    here, there = (load_file(folder / "adapter/adapter_model.safetensors") for folder in (one, other))
    assert here.keys() == there.keys()
    assert all(here[name].allclose(there[name], atol=1e-5) for name in here)


@pytest.mark.slow
def test_two_processes_with_half_the_experts_each_are_one_with_all(run_stage, refuses, caplog):
    """SFT with gradient checkpointing, which repeats the exchange; distillation with uneven routing, from FP8; both
    reward models. A process that is killed ends the other, and the run is resumed as if it had not been."""
    both = {"expert_parallel": 2}
    sft = STEPS | {"model_name_or_path": base("qwen3_moe"), "gradient_checkpointing": True}
    distill = STEPS | {"model_name_or_path": unlike("deepseek_v3")}
    scorers = {"model_name_or_path": base("qwen2_moe"), "batch_size": 4, "max_steps": 3, "logging_steps": 1}
    scorers |= preferences() | {"per_device_train_batch_size": 2}
    runs = {"cold_start_sft": sft, "distill": distill, "reward_models": scorers}
    one = {script: run_stage(script, settings, name=f"one_{script}") for script, settings in runs.items()}
    first = [job(script, settings | both, f"two_{script}") for script, settings in runs.items()]
    done = together([*first, job("cold_start_sft", sft | both, "dies")], dies="dies")
    assert done.returncode != 0 and not Path("outputs/t/dies/run.json").exists(), done.stderr[-3000:]
    shutil.copytree("outputs/t/dies", "outputs/t/alone")
    assert "`expert_parallel` was 2" in refuses("cold_start_sft", sft, name="alone")
    done = together([job("cold_start_sft", sft | both, "dies")])
    assert done.returncode == 0, done.stderr[-6000:]
    assert "resuming from outputs/t/dies/checkpoint-2" in done.stderr and "missing" not in done.stderr

    for script in ("cold_start_sft", "distill"):
        assert_alike(one[script], Path(f"outputs/t/two_{script}"))
        for key in ("experts", "experts_never_routed_to", "completion_tokens_trained"):
            assert record_of(one[script])[key] == record_of(Path(f"outputs/t/two_{script}"))[key]
    assert record_of(one["distill"])["experts_never_routed_to"] == 6
    for part in ("helpfulness", "harmlessness"):
        assert_alike(one["reward_models"] / part, Path("outputs/t/two_reward_models") / part)
        figure = f"{part}_accuracy"
        assert record_of(one["reward_models"])[figure] == record_of(Path("outputs/t/two_reward_models"))[figure]

    two, resumed = Path("outputs/t/two_cold_start_sft"), Path("outputs/t/dies")
    assert log_of(resumed) == log_of(two)
    here, there = (load_file(folder / "adapter/adapter_model.safetensors") for folder in (two, resumed))
    assert here.keys() == there.keys() and all(here[name].equal(there[name]) for name in here)
    plain = AutoModelForCausalLM.from_pretrained(sft["model_name_or_path"])
    adapted = logits(PeftModel.from_pretrained(plain, two / "adapter"))
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(two)), adapted, atol=1e-4)


@pytest.mark.slow
def test_four_processes_share_a_stacked_checkpoint(run_stage):
    settings = STEPS | {"model_name_or_path": base("mixtral"), "per_device_train_batch_size": 2}
    AutoModelForCausalLM.from_pretrained(settings["model_name_or_path"]).save_pretrained(
        settings["model_name_or_path"], save_original_format=False
    )
    cases = {"all": settings, "attention": settings | {"lora_target_modules": ["attention"]}}
    one = {name: run_stage("cold_start_sft", case, name=f"one_{name}") for name, case in cases.items()}
    jobs = [job("cold_start_sft", case | {"expert_parallel": 4}, f"four_{name}") for name, case in cases.items()]
    done = together(jobs, processes=4)
    assert done.returncode == 0, done.stderr[-6000:]
    for name, folder in one.items():
        assert_alike(folder, Path(f"outputs/t/four_{name}"))


@pytest.mark.parametrize(
    ("script", "settings", "said"),
    [
        ("cold_start_sft", SFT | {"expert_parallel": 2}, "write load_in_4bit: true"),
        (
            "cold_start_sft",
            SFT | QLORA | {"expert_parallel": 2},
            "2 processes are to share the experts, but there",
        ),
        ("r1_zero", GRPO | QLORA | {"expert_parallel": 2}, "GRPO cannot share experts yet"),
    ],
)
def test_settings_that_cannot_be_are_refused(script, settings, said, refuses):
    assert said in refuses(script, settings)


def test_experts_that_cannot_be_shared_evenly_are_refused(tmp_path, monkeypatch):
    parent = moe.write(tmp_path / "base", "qwen3_moe", num_experts=7)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 processes cannot share the 7 experts of a layer evenly"):
        moe_qlora.load(AutoModelForCausalLM, str(parent), SimpleNamespace(), torch.float32, processes=2)
