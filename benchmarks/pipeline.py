"""Where the time of a whole run goes.

    python -m benchmarks.pipeline [--scale cpu]

The benchmark runs the unfinished steps of the scale, as `make r1` does. For each step, it prints the start, the
duration, and whether a faster step would have ended the run sooner (`*`: on the longest path). For RL steps, it also
prints the number of optimiser steps and their median seconds. Last, it prints when R1-Zero was seen to learn, which is
when its mean reward over ten steps was 0.3 above that of its first ten.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from data_prep import runs
from recipes.tools.steps import Step, load_steps, scale_folder
from recipes.tools.view import ROWS

GAIN = 0.3


def longest(steps: list[Step], ends: dict[Path, float]) -> set[Path]:
    """The longest path: the chain of steps that the last step had to wait for."""
    needs = {step.output_dir: step.needs for step in steps}
    path = [max(ends, key=ends.get)]
    while before := [need for need in needs[path[-1]] if need in ends]:
        path.append(max(before, key=ends.get))
    return set(path)


def log_of(step: Step) -> list[dict]:
    path = step.output_dir / "log.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def learnt(rewards: list[float]) -> int | None:
    """The step at which the mean of ten rewards is `GAIN` above that of the first ten."""
    first = statistics.mean(rewards[:ROWS])
    seen = (n for n in range(ROWS, len(rewards) + 1) if statistics.mean(rewards[n - ROWS : n]) >= first + GAIN)
    return next(seen, None)


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scale", default="cpu", help="a name in recipes/configs, or a path to a folder of YAMLs")
    scale = parser.parse_args().scale
    subprocess.run([sys.executable, "-m", "recipes.tools.pipeline", "--scale", scale], check=True)
    steps = load_steps(scale_folder(scale))
    seconds = {step.output_dir: runs.read(step.output_dir)["seconds"] for step in steps}
    ends = {folder: (folder / "run.json").stat().st_mtime for folder in seconds}
    began = min(ends[folder] - seconds[folder] for folder in ends)
    path = longest(steps, ends)
    print(f"\n{'step':34}{'begins':>8}{'seconds':>9}   optimiser steps, median seconds of one")
    for step in sorted(steps, key=lambda step: ends[step.output_dir] - seconds[step.output_dir]):
        folder, times = step.output_dir, [row["step_time"] for row in log_of(step) if row.get("step_time")]
        told = f"{len(times)} x {statistics.median(times):.2f} s" if times else ""
        mark = "*" if folder in path else " "
        print(f"{mark} {step.name:32}{ends[folder] - seconds[folder] - began:8.0f}{seconds[folder]:9.0f}   {told}")
    whole, critical = max(ends.values()) - began, sum(seconds[folder] for folder in path)
    print(f"\n{whole:.0f} s from the first step to the last; {critical:.0f} s of them on the longest path (*);")
    print(f"{sum(seconds.values()):.0f} s in all steps together")
    for step in steps:
        if step.name == "r1_zero" and (number := learnt([row["reward"] for row in log_of(step)])):
            taken = sum(row["step_time"] for row in log_of(step)[:number])
            rest = sum(row["step_time"] for row in log_of(step)[number:])
            at = ends[step.output_dir] - began - rest
            print(f"R1-Zero was seen to learn at step {number}: {taken:.0f} s into training, {at:.0f} s into the run")


if __name__ == "__main__":
    main()
