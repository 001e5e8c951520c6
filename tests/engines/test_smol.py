"""The scale smol by its one command, with a small model of the same family; needs reasoning-gym."""

import json
import os
import subprocess
import sys
from pathlib import Path

from data_prep import rows, runs

import pytest

REPOSITORY = Path(__file__).parents[2]
SCALE = REPOSITORY / "recipes/configs/smol"
RL, SFT = ("r1_zero", "reasoning_rl", "student_rl"), ("cold_start_sft", "sft_stage_2", "distill")


@pytest.fixture(scope="module")
def walked(tmp_path_factory) -> Path:
    """outputs/smol of a folder in which the pipeline has run."""
    folder = tmp_path_factory.mktemp("walk")
    start = folder / "bin" / "accelerate"  # the venv of these tests has the package of another, and not its commands
    start.parent.mkdir()
    start.write_text(f'#!/bin/sh\nexec {sys.executable} -m accelerate.commands.accelerate_cli "$@"\n', encoding="utf-8")
    start.chmod(0o755)
    path, modules = os.environ["PATH"], os.environ.get("PYTHONPATH", "")
    environment = os.environ | {"PATH": f"{start.parent}:{path}", "PYTHONPATH": f"{REPOSITORY}:{modules}"}
    run = {"cwd": folder, "env": environment, "check": True, "timeout": 600}
    subprocess.run([sys.executable, str(Path(__file__).with_name("smol_model.py"))], **run)
    override = str(Path(__file__).with_name("smol.yaml"))
    subprocess.run([sys.executable, "-m", "recipes.tools.pipeline", "--scale", "smol", "--override", override], **run)
    return folder / "outputs/smol"


def test_the_walk_makes_every_step_and_no_prompt_of_an_evaluation_is_trained_on(walked):
    assert all((walked / path.stem / "run.json").is_file() for path in SCALE.glob("*.yaml"))
    held_out = {row["question"] for row in rows.load_rows(walked / "gym_rl/test.parquet")}
    for name in ("cold_start", "cold_start_mixture", "rejection_sampling", "mixture"):
        found = rows.load_rows(walked / name / "train.parquet", sft=True)
        assert found and held_out.isdisjoint(row["question"] for row in found), name
    mixed = rows.load_rows(walked / "cold_start_mixture/train.parquet", sft=True)
    assert {row["generator"] for row in mixed} == {"people, for GSM8K", "HuggingFaceTB/SmolLM2-135M-Instruct"}
    rates = [row["pass_rate"] for row in rows.load_rows(walked / "rl_prompts/reasoning.parquet")]
    assert 0.05 <= min(rates) <= max(rates) <= 0.4


@pytest.mark.parametrize("stage", [*RL, *SFT])
def test_every_stage_of_the_walk_took_steps_with_a_gradient(stage, walked):
    record = runs.read(walked / stage)
    assert record["steps"] >= 1 and record["completion_tokens_trained"] > 0
    log = [json.loads(line) for line in (walked / stage / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(log) == (record["steps"] if stage in RL else 0)  # SFT logs each fifth step
    assert all(row["grad_norm"] > 0 and "rewards/gym_reward/mean" in row for row in log)


def test_every_checkpoint_of_the_walk_was_measured_on_each_of_its_sets(walked):
    for path in SCALE.glob("suites_*.yaml"):
        found = json.loads((walked / path.stem / "results.json").read_text(encoding="utf-8"))["suites"]
        assert list(found) == runs.load_config(path)["suites"]
        for one in found.values():
            assert one["k"] == 1 and one["pass@1_stderr"] is not None or one["n_problems"] == 1
            assert one["mean_completion_tokens"] > 0 and 0 <= one["truncated"] <= 1
    said = (walked / "suites_start/results.md").read_text(encoding="utf-8")
    assert "Mean length of an answer: " in said and "gym_unseen" in said
