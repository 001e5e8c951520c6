"""The real pipeline at the scale of tests/configs/tiny: once without a stop, all network but loopback forbidden; and
once killed again and again, which has to end with the same bytes and the same losses.
"""

import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tiny_run import SCALE, run, start

pytestmark = pytest.mark.slow

TIMES = ("step_time", "train_runtime")  # of a log row: what a clock says


def test_the_network_guard_sees_what_it_must(offline: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    folder, environment = offline[0], offline[1] | {"FORBIDDEN_LOG": str(tmp_path / "forbidden.log")}
    code = "import httpx; httpx.get('http://192.0.2.1/')"
    found = subprocess.run([sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True)
    assert found.returncode != 0
    assert "192.0.2.1" in (tmp_path / "forbidden.log").read_text()


def test_no_stage_talks_to_anybody(whole: Path) -> None:
    log = whole / "forbidden.log"
    assert not log.exists(), log.read_text()


def test_every_stage_leaves_its_record(whole: Path) -> None:
    for path in SCALE.glob("*.yaml"):
        if path.stem != "evaluate":
            record = json.loads((whole / "outputs" / "tiny" / path.stem / "run.json").read_text())
            wanted = {"id", "settings", "code", "config", "inputs", "seed", "versions", "seconds", "peak_rss_gb"}
            assert wanted <= record.keys()


def test_the_report_measures_every_checkpoint(whole: Path) -> None:
    results = json.loads((whole / "outputs" / "tiny" / "report" / "results.json").read_text())
    listed = yaml.safe_load((SCALE / "evaluate.yaml").read_text())["checkpoints"]
    assert [*results["checkpoints"], *results["ablations"]] == sorted(listed, key=results["ablations"].__contains__)
    for name, figures in results["checkpoints"].items():
        assert figures["pass@1"] is not None, name
        assert (figures["pass@16"] is not None) == (name in ("base", "r1_zero", "r1"))
    assert results["answers"].keys() == listed.keys()
    assert [row["step"] for row in results["reward_models_over_training"]["steps"]] == [3, 4]
    assert (whole / "outputs/tiny/report/reward_models.png").stat().st_size > 10_000
    page = (whole / "outputs/tiny/report/index.html").read_text()
    assert page.count('<ol class="group">') == len(listed)
    assert "Nothing of it is there yet" not in page
    assert 0 < results["peak_rss_gb"] < 4
    assert results["wall_seconds"] > 0


def test_the_doctor_finds_nothing_in_any_stage(whole: Path) -> None:
    for log in (whole / "outputs" / "tiny" / "logs").glob("*.log"):
        text = log.read_text()
        assert not [line for line in text.splitlines() if line.startswith(("doctor:", "red flag"))], log.name
        sample = {"r1_zero": 32, "all_scenarios_rl": 24}.get(log.stem)  # the last RL has six reasoning prompts here
        assert sample is None or f"sample of {sample} completions" in text


def test_a_second_run_does_nothing(whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (whole / "outputs").rglob("*") if "report" not in path.parts}
    assert "nothing to do" in run(whole)
    after = {path: path.stat().st_mtime_ns for path in (whole / "outputs").rglob("*") if "report" not in path.parts}
    assert {path for path in before if before[path] != after.get(path)} <= {whole / "outputs/tiny/.lock"}


def test_killed_again_and_again_it_ends_with_the_same_bytes_and_losses(whole: Path, tmp_path: Path) -> None:
    for name in ("world", "base"):
        shutil.copytree(whole / "outputs" / "tiny" / name, tmp_path / "outputs" / "tiny" / name)
    steps = ("--only", "r1_zero", "cold_start", "cold_start_sft")
    chance = random.Random(0)
    # One kill where a checkpoint is there to go on from, and some at any moment.
    kill_when(start(tmp_path, *steps), tmp_path / "outputs/tiny/r1_zero/checkpoint-2", chance.uniform(0, 0.5))
    kill_when(start(tmp_path, *steps), tmp_path / "outputs/tiny/cold_start/samples", chance.uniform(0, 1.0))
    kill_when(start(tmp_path, *steps), tmp_path / "outputs/tiny/cold_start_sft/checkpoint-20", chance.uniform(0, 0.5))
    run(tmp_path, *steps)
    for name in ("cold_start/train.parquet", "r1_zero/model.safetensors", "cold_start_sft/model.safetensors"):
        first, second = (folder / "outputs" / "tiny" / name for folder in (whole, tmp_path))
        assert first.read_bytes() == second.read_bytes(), name
    for name in ("r1_zero", "cold_start_sft"):
        assert log_of(tmp_path, name) == log_of(whole, name)


def test_a_command_typed_by_hand_makes_the_same_bytes(
    whole: Path, offline: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    """Nor does it talk to anybody."""
    for name in ("world", "base"):
        shutil.copytree(whole / "outputs" / "tiny" / name, tmp_path / "outputs" / "tiny" / name)
    command = run(tmp_path, "--only", "r1_zero", "--dry-run").strip()
    assert command.startswith("accelerate launch ")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = offline[1] | {"PATH": path, "FORBIDDEN_LOG": str(tmp_path / "forbidden.log")}
    found = subprocess.run(shlex.split(command), cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert not (tmp_path / "forbidden.log").exists()
    first, second = (folder / "outputs/tiny/r1_zero/model.safetensors" for folder in (whole, tmp_path))
    assert first.read_bytes() == second.read_bytes()
    assert log_of(tmp_path, "r1_zero") == log_of(whole, "r1_zero")


def test_a_mistyped_key_of_the_last_stage_fails_before_any_work(tmp_path: Path) -> None:
    scale = tmp_path / "tiny"
    shutil.copytree(SCALE, scale)
    with (scale / "all_scenarios_rl.yaml").open("a") as file:
        file.write("learning_rat: 1.0\n")
    command = [sys.executable, "-m", "recipes.tools.pipeline", "--scale", str(scale)]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 2
    assert "all_scenarios_rl.yaml: unknown key `learning_rat`" in found.stderr
    assert found.stderr.startswith("error: ") and found.stderr.count("\n") == 1
    assert not (tmp_path / "outputs" / "tiny" / "world").exists()


def kill_when(process: subprocess.Popen, path: Path, later: float) -> None:
    """Kill -9 the pipeline, `later` seconds after the path is there; that it ended before is fine, too."""
    end = time.monotonic() + 120
    while not path.exists() and process.poll() is None:
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.02)
    time.sleep(later)
    process.kill()
    process.communicate(timeout=20)


def log_of(folder: Path, name: str) -> list[dict]:
    lines = (folder / "outputs" / "tiny" / name / "log.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]
