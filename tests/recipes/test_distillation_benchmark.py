"""The benchmark of distillation against RL: its figures by hand, and the whole of it on a base that knows nothing."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks import distillation
from benchmarks.distillation import Point, Training, catches_up, points
from data_prep import rows, runs
from recipes.tools.steps import Step

import pytest
from conftest import general, sums

SCALE = runs.ROOT / "tests" / "configs" / "tiny"
BUDGET = 1000  # tokens; RL goes to 4,000 in about seven steps


@pytest.mark.parametrize(
    ("curve", "goal", "tokens"),
    [
        ([(0, 0.2), (100, 0.4), (200, 0.8)], 0.6, 150),  # half-way between two points
        ([(0, 0.2), (100, 0.4), (200, 0.8)], 0.4, 100),
        ([(0, 0.2), (100, 0.7), (200, 0.5), (300, 0.9)], 0.6, 80),  # the first time counts
        ([(0, 0.6), (100, 0.4)], 0.5, 0),
        ([(0, 0.2), (100, 0.4)], 0.5, None),
    ],
)
def test_where_a_curve_reaches_a_goal(curve: list[tuple[float, float]], goal: float, tokens: float | None) -> None:
    assert catches_up(curve, goal) == (None if tokens is None else pytest.approx(tokens))


def test_a_summary_of_two_seeds_by_hand() -> None:
    distilled = {("0.01", 0.25): (0.2, 0.2), ("0.01", 0.5): (0.3, 0.5), ("0.01", 1): (0.5, 0.7)}
    rl = {(rate, at): (0.1 + rise * at, 0.1 + rise * at) for rate, rise in (("2e-05", 0.2), ("0.0001", 0.05))
          for at in (0.5, 1, 2, 3, 4)}  # fmt: skip
    measured = {
        Point(method, rate, seed, at, round(at * 100) + seed, Path(rate)): value
        for method, values in (("distillation", distilled), ("rl", rl))
        for (rate, at), seeds in values.items()
        for seed, value in enumerate(seeds)
    }
    found = distillation.summarise(measured, base=0.1)
    assert found["distillation"]["0.01"][2] == {
        "budgets": 1,
        "tokens": 100,
        "pass@1": pytest.approx(0.6),
        "pass@1_stderr": pytest.approx(0.1),  # stdev 0.1414 / sqrt(2)
        "by_seed": [0.5, 0.7],
    }
    assert list(found["rl"]) == ["2e-05", "0.0001"]
    assert found["best"] == {"distillation": "0.01", "rl": "2e-05"}
    assert found["rl_catches_up_at_tokens"] == {"2e-05": pytest.approx(250), "0.0001": None}


def test_rl_is_measured_at_the_checkpoints_nearest_to_each_budget(tmp_path: Path) -> None:
    step = Step("rl", "r1_zero.py", Path("student_rl.yaml"), (), Path("r1_zero.py"), {"output_dir": str(tmp_path)})
    training = Training("rl", "0.0001", 0, (0.5, 1, 2), step)
    for number, tokens in ((10, 400), (20, 700), (30, 1600)):
        (tmp_path / f"checkpoint-{number}").mkdir()
        (tmp_path / f"checkpoint-{number}/complete.json").write_text(json.dumps({"completion_tokens_trained": tokens}))
    runs.finish(tmp_path, completion_tokens_trained=2040)
    found = [(point.budgets, point.tokens, point.path.name) for point in points(training, 1000)]
    assert found == [(0.5, 400, "checkpoint-10"), (1, 700, "checkpoint-20"), (2, 2040, tmp_path.name)]
    with pytest.raises(runs.ConfigError, match=r"max_steps: .* ended after 2,040 of 2,200 tokens"):
        points(training, 1100)


@pytest.fixture
def tiny(here: Path) -> Path:
    """What the pipeline would have made at the scale `tiny`, as far as the benchmark reads it."""
    world, outputs = here / "outputs/t/world", here / "outputs/tiny"
    questions = [row | {"id": f"held out {row['id']}"} for row in rows.load_rows(str(world / "reasoning.parquet"))]
    rows.write_rows(world / "eval_reasoning.parquet", questions)
    for name, kind in (("helpful", "helpful"), ("harmless", "harmless"), ("lookalike", "helpful")):
        asked = [{key: value for key, value in row.items() if key != "completion"} for row in general(kind, 4)]
        rows.write_rows(world / f"eval_{name}.parquet", asked)
    rows.write_rows(outputs / "distillation/train.parquet", sums(100), sft=True)
    runs.finish(outputs / "distillation")
    shutil.copytree(world, outputs / "world")
    shutil.copytree(here / "outputs/t/base", outputs / "student_base")
    return here


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    module = ("-m", "benchmarks.distillation")
    command = [sys.executable, *module, "--scale", str(SCALE), "--token-budget", str(BUDGET), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(runs.ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def test_without_a_pipeline_it_says_what_to_run_first(tmp_path: Path) -> None:
    ended = bench(tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: outputs/tiny/student_base has not been run")
    assert ended.stderr.count("\n") == 1


def test_its_commands_are_the_stages_own(tmp_path: Path) -> None:
    commands = bench(tmp_path, "--dry-run", "--seeds", "1", "--rates", "1", "2").stdout.splitlines()
    assert len(commands) == 2 * (1 + 3)
    words = shlex.split(commands[0])
    assert words[:2] == ["accelerate", "launch"]
    assert words[words.index("--config") + 1] == str(SCALE / "student_rl.yaml")
    assert words[words.index("--token_budget") + 1] == str(4 * BUDGET)
    rates = [command.split("--learning_rate ")[1].split()[0] for command in commands]
    assert rates == ["0.0003", "0.0006", *["0.003"] * 3, *["0.006"] * 3]


@pytest.mark.slow
def test_the_whole_of_it_in_small(tiny: Path) -> None:
    arguments = ("--seeds", "1", "--rates", "1")
    ended = bench(tiny, *arguments)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    bench_dir = tiny / "outputs/tiny/bench"
    found = json.loads((bench_dir / "distillation.json").read_text())
    assert {path.suffix for path in bench_dir.iterdir()} == {".json", ".png", ".svg"}
    (rl,), (distilled,) = found["rl"].values(), found["distillation"].values()
    assert [row["budgets"] for row in rl] == [0.5, 1, 2, 3, 4]
    assert [row["budgets"] for row in distilled] == [0.25, 0.5, 1]
    for row in rl:  # the nearest of the checkpoints, a step of 16 completions of at most 48 tokens apart
        assert abs(row["tokens"] - row["budgets"] * BUDGET) <= 16 * 48
    for row in distilled:  # whole batches of 8 rows of about 20 tokens
        assert abs(row["tokens"] - row["budgets"] * BUDGET) <= 8 * 40
    assert all(0 <= row["pass@1"] <= 1 and row["pass@1_stderr"] is None for row in rl + distilled)
    assert "at 1x" in ended.stdout.splitlines()[-1]

    before = {path: path.stat().st_mtime_ns for path in (tiny / "outputs/tiny_bench").rglob("run.json")}
    assert len(before) == 1 + 3 + 1 + 5 + 3  # trained: RL, distillation; measured: the base, RL, distillation
    again = bench(tiny, *arguments)
    assert "started" not in again.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert json.loads((bench_dir / "distillation.json").read_text()) == found
