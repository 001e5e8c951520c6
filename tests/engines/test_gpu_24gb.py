"""The scale gpu-24gb by its one command, two steps a stage, on a CPU: vLLM samples, `vllm serve` judges and writes."""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from data_prep import rows, runs

import pytest
from conftest import REPOSITORY, World, kill, log_of
from test_serving import left

SCALE, OVERRIDE = REPOSITORY / "recipes/configs/gpu-24gb", Path(__file__).with_name("gpu_24gb.yaml")
# All that the override may change.
HARDWARE = {"accelerate_config", "use_cpu", "bf16", "dtype", "serve", "vllm"}
HARDWARE |= {"vllm_enable_sleep_mode", "vllm_gpu_memory_utilization"}
IDS = {"model_name_or_path", "checkpoint", "model", "base_url", "sources", "decontamination"}
SIZES = {
    *("total", "count", "n", "batch_size", "per_device_train_batch_size", "prompts", "prompts_per_step", "max_steps"),
    *("generation_batch_size", "max_tokens", "max_length", "max_prompt_length", "max_completion_length", "save_steps"),
    *("ref_model_sync_steps", "vllm_max_model_length", "length_tolerance"),
}
SAMPLED = ("r1_zero", "reasoning_rl", "reasoning_rl_no_language", "all_scenarios_rl", "student_rl")
STAGES = (*SAMPLED, "cold_start_sft", "sft_stage_2", "distill")


def changed(given: dict, other: dict) -> Iterator[str]:
    """The keys whose values the override changes, however deep."""
    for key, value in other.items():
        if isinstance(value, dict) and key not in HARDWARE | IDS | SIZES:
            yield from changed(given.get(key, {}), value)
        elif given.get(key) != value:
            yield key


def test_nothing_but_hardware_ids_and_sizes_differs():
    for name, other in runs.load_config(OVERRIDE).items():
        given = runs.load_config(SCALE / f"{name}.yaml")
        assert set(changed(given, other)) <= HARDWARE | IDS | SIZES, name
        nested = {key for key, value in other.items() if isinstance(value, dict)} & given.keys()
        assert all(given[key].keys() <= other[key].keys() for key in nested - SIZES - IDS), name  # nothing is left out


def test_the_judge_is_there_for_the_steps_that_ask_it(tmp_path):
    """As `--dry-run` prints it, of the YAMLs as they are."""
    words = ["-m", "recipes.tools.pipeline", "--scale", "gpu-24gb", "--dry-run"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    run = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "check": True}
    found = subprocess.run([sys.executable, *words], **run)
    running, asking, started = False, asking_steps(), 0
    for line in found.stdout.splitlines():
        if line.startswith("vllm serve "):
            running, started = True, started + 1
        elif line.startswith("kill "):
            running = False
        elif "--config " in line:
            name = Path(shlex.split(line)[shlex.split(line).index("--config") + 1]).stem
            assert running == (name in asking), line
    assert started == 4 and not running


def asking_steps() -> set[str]:
    found = {path.stem for path in SCALE.glob("*.yaml") if "serve:" in path.read_text(encoding="utf-8")}
    assert found == {"cold_start", "rejection_sampling", "general", "preferences", "distillation"}
    return found


@pytest.fixture(scope="module")
def walked(world: World, tmp_path_factory) -> Path:
    """The folder in which the pipeline has run, with what it said in said.txt."""
    folder = tmp_path_factory.mktemp("walk")
    start = folder / "bin" / "accelerate"  # this venv has the package of another, and not its commands
    start.parent.mkdir()
    start.write_text(f'#!/bin/sh\nexec {sys.executable} -m accelerate.commands.accelerate_cli "$@"\n', encoding="utf-8")
    start.chmod(0o755)
    environment = world.environment | {"PATH": f"{start.parent}:{world.environment['PATH']}"}
    (folder / "world.yaml").write_text("{output_dir: outputs/toy/world, pages: 10, problems: 800}", encoding="utf-8")
    base = REPOSITORY / "recipes/configs/cpu/base"
    for words in (
        ["-m", "data_prep.world", "--config", "world.yaml"],
        [str(Path(__file__).with_name("judge.py")), str(base), "models/judge"],
    ):
        subprocess.run([sys.executable, *words], cwd=folder, env=environment | {"OMP_NUM_THREADS": "2"}, check=True)
    shutil.copytree(folder / "outputs/toy/world", folder / "sources")
    shutil.copytree(folder / "models/judge", folder / "models/policy")
    words = ["-m", "recipes.tools.pipeline", "--scale", "gpu-24gb", "--override", str(OVERRIDE), "--jobs", "1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    process = subprocess.Popen([sys.executable, *words], cwd=folder, env=environment, **pipes)
    try:
        said, _ = process.communicate(timeout=1200)
    finally:
        if process.poll() is None:
            kill(process)
    assert process.returncode == 0, said
    (folder / "said.txt").write_text(said, encoding="utf-8")
    return folder


def test_the_walk_needs_no_hand_on_a_server(walked):
    """The judge is there for the steps that name it, and gone before the next one."""
    said = (walked / "said.txt").read_text(encoding="utf-8")
    steps, asking = [path.stem for path in SCALE.glob("*.yaml")], asking_steps()
    running, started = False, []
    for line in said.splitlines():
        if "answers at" in line:
            running = True
        elif line.endswith(": stopped"):
            running = False
        elif line.endswith(": started"):
            started.append(line.removesuffix(": started"))
            assert running == (started[-1] in asking), line
    assert sorted(started) == sorted(steps)
    assert said.count("answers at") == said.count(": stopped") == 4  # general asks the one of rejection_sampling
    assert not running and not left()


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_of_the_walk_took_its_two_steps(stage, walked):
    folder = walked / "outputs/gpu-24gb" / stage
    assert runs.read(folder)["steps"] == 2
    if stage in SAMPLED:
        log = log_of(folder)
        assert min(row["grad_norm"] for row in log) > 0
        # With the weights of each step: 2e-5 is float32's rounding in a trained model, bfloat16's would be 0.1.
        assert max(row["sampling/sampling_logp_difference/max"] for row in log) < 1e-4


def test_every_job_of_the_walk_made_rows(walked):
    """Some of them written by the writer, and judged."""
    folder = walked / "outputs/gpu-24gb"
    for name in ("cold_start", "rejection_sampling", "general", "mixture", "distillation"):
        assert rows.load_rows(folder / name / "train.parquet", sft=True), name
    written = {row["generator"] for row in rows.load_rows(folder / "general/train.parquet", sft=True)}
    assert written == {"outputs/gpu-24gb/reasoning_rl", "models/judge"}
    labels = rows.read_parquet(folder / "preferences/harmlessness.parquet")
    assert {row["label"] for row in labels} == {0, 1}
    assert rows.read_parquet(folder / "preferences/helpfulness.parquet")
    for name in ("helpfulness", "harmlessness"):
        assert (folder / "reward_models" / name / "config.json").is_file()
