"""Two processes that share the experts of each layer train what one process trains that holds them all."""

import json
import os
import subprocess
import sys
from pathlib import Path

import recipes
from data_prep import runs

import pytest
import torch
import yaml
from conftest import SFT, log_of, record_of
from safetensors.torch import load_file
from test_moe_qlora import QLORA, base

ROOT = Path(recipes.__file__).parents[1]
ALL = {"max_steps": 3, "save_steps": 2, "dtype": "float32", "batch_size": 8, "per_device_train_batch_size": 4}
FAMILIES = ("qwen3_moe", "deepseek_v3")


def together(jobs: list[dict], processes: int = 2, seconds: float = 200) -> str:
    """What `processes` say that run the jobs of tests/engines/stage.py one after the other."""
    Path("jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    port = 20000 + os.getpid() % 20000
    words = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", f"--num_processes={processes}"]
    words += [f"--main_process_port={port}", str(ROOT / "tests/engines/stage.py"), "jobs.json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{os.getcwd()}"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stderr


def job(script: str, settings: dict, name: str, **more) -> dict:
    Path(f"{name}.yaml").write_text(yaml.safe_dump({"output_dir": f"outputs/t/{name}"} | settings), encoding="utf-8")
    return {"argv": [str(ROOT / f"recipes/{script}.py"), "--config", f"{name}.yaml"]} | more


@pytest.mark.slow
def test_two_processes_with_half_the_experts_each_are_one_with_all(run_stage):
    jobs, alone = [], {}
    for family in FAMILIES:
        settings = SFT | QLORA | ALL | {"model_name_or_path": base(family)}
        alone[family] = run_stage("cold_start_sft", settings, name=f"one_{family}")
        two = job("cold_start_sft", settings | {"expert_parallel": 2}, f"two_{family}")
        jobs += [two, two | {"keep": f"outputs/t/straight_{family}"}]
    together(jobs)
    for family in FAMILIES:
        one, two, straight = alone[family], Path(f"outputs/t/two_{family}"), Path(f"outputs/t/straight_{family}")
        for key in ("loss", "grad_norm"):
            here, there = ([row[key] for row in log_of(folder)] for folder in (one, two))
            print(key, here, there)
            assert there == pytest.approx(here, abs=1e-5, rel=1e-4)
        for folder in (one, straight, two):
            print(record_of(folder)["experts"], record_of(folder)["experts_never_routed_to"])
        a, b, c = (load_file(folder / "adapter/adapter_model.safetensors") for folder in (one, two, straight))
        assert a.keys() == b.keys()
        apart = torch.cat([(a[name] - b[name]).abs().flatten() for name in a])
        print("apart", apart.max(), (apart > 1e-5).sum(), len(apart))
        assert all(b[name].equal(c[name]) for name in b)
        assert log_of(two) == log_of(straight)
