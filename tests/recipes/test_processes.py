"""Data parallel training on two processes, from the command line, is that of one."""

import os
import subprocess
import sys
from pathlib import Path

import recipes

import pytest
import yaml
from conftest import SFT, log_of, record_of
from safetensors.torch import load_file

SCRIPT = Path(recipes.__file__).with_name("cold_start_sft.py")


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(run_stage, here, caplog):
    """What `accelerate launch --cpu --num_processes 2` only seems to do: it starts one process, without a word."""
    caplog.set_level("INFO")
    settings = SFT | {"max_steps": 6}
    one, two = run_stage("cold_start_sft", settings, name="one"), Path("outputs/t/two")
    said = "8 sequences a step = 4 in a micro batch x {} processes x {} acc"
    assert said.format(1, 2) in caplog.text
    (here / "two.yaml").write_text(yaml.safe_dump(settings | {"output_dir": str(two)}), encoding="utf-8")
    launch = [str(Path(sys.executable).with_name("accelerate")), "launch", "--multi_gpu", "--num_processes", "2"]
    done = subprocess.run(
        [*launch, str(SCRIPT), "--config", "two.yaml"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert said.format(2, 1) in done.stderr
    assert [row["loss"] for row in log_of(two)] == pytest.approx([row["loss"] for row in log_of(one)], abs=1e-5)
    assert record_of(two)["completion_tokens_trained"] == record_of(one)["completion_tokens_trained"]
    whole, other = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert all(whole[name].allclose(other[name], atol=1e-4) for name in whole)
