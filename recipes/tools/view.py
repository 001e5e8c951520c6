"""What a person sees of a running pipeline: a line for each event and, on a terminal, a table of the running steps."""

import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column

ROWS = 10  # rows of a log over which a reward is averaged, because the reward of one step is noisy
ROW_BYTES = 4_096  # maximum size of a row in log.jsonl
PLAIN_EVERY = 30.0  # seconds between two lines of a running step without a terminal
COMING = 3  # names of steps to come that the table shows


@dataclass(frozen=True)
class StepProgress:
    """The progress of a training step from its log.jsonl; fields that it lacks are None. `reward`: mean over the last
    ten rows; `first`: mean over the first ten, once there are more."""

    step: int = 0
    total: int | None = None
    reward: float | None = None
    first: float | None = None
    accuracy: float | None = None
    loss: float | None = None

    def __str__(self) -> str:
        parts = [f"step {self.step}/{self.total or '?'}"] if self.step else []
        for name in ("reward", "accuracy", "loss"):
            value = getattr(self, name)
            if value is not None:
                at_first = f" (at first {self.first:.3f})" if name == "reward" and self.first is not None else ""
                parts.append(f"{name} {value:.3f}{at_first}")
        return ", ".join(parts)

    def after(self, seconds: float) -> str:
        """The same with the time left, if the step goes on at the pace of its first `seconds`."""
        left = seconds * (self.total - self.step) / self.step if self.total and self.step else None
        return ", ".join(filter(None, [str(self), f"{clock(left)} left" if left is not None else ""]))


def read_progress(output_dir: Path, settings: dict[str, Any]) -> StepProgress:
    """The progress of the run in output_dir. An incomplete last row is not read."""
    first, last = _rows(output_dir / "log.jsonl")
    if not last:
        return StepProgress(total=settings.get("max_steps"))
    row = last[-1]
    accuracy = next(
        (row[key] for key in ("rewards/accuracy_reward/mean", "mean_token_accuracy", "accuracy") if key in row), None
    )
    rewards = [[one["reward"] for one in some if one.get("reward") is not None] for some in (first, last)]
    at_first, reward = (statistics.mean(some) if some else None for some in rewards)
    at_first = at_first if last[0]["step"] > first[0]["step"] else None
    return StepProgress(row["step"], row["max_steps"], reward, at_first, accuracy, row.get("loss"))


def _rows(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The first rows and the last ones."""
    size = ROWS * ROW_BYTES
    try:
        with path.open("rb") as file:
            head = file.read(size)
            file.seek(max(0, path.stat().st_size - size))
            tail = file.read()
    except FileNotFoundError:
        return [], []
    parts = [part.decode("utf-8", "replace").split("\n")[:-1] for part in (head, tail)]
    first, last = ([line for line in lines if line.startswith("{")] for lines in parts)
    return [json.loads(line) for line in first[:ROWS]], [json.loads(line) for line in last[-ROWS:]]


def clock(seconds: float | None) -> str:
    return "" if seconds is None else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class View:
    """Prints a line for each event. On a terminal, a table below these lines shows the running steps and those to come;
    elsewhere a running step has a line every `PLAIN_EVERY` seconds. `done`: names of the steps that are done."""

    def __init__(self, steps: list, done: set[str]):
        self.waiting = [step.name for step in steps if step.name not in done]
        self.count, self.finished_count = len(steps), len(steps) - len(self.waiting)
        self.live = sys.stdout.isatty()
        self.told: dict[str, float] = {}  # seconds of a running step at its last line
        wrapped = TextColumn("{task.fields[said]}", table_column=Column(no_wrap=False))
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=16), wrapped, TimeElapsedColumn())
        self.table = Progress(*columns, console=Console(), refresh_per_second=2, transient=True, disable=not self.live)
        self.rows = {}
        self.total = self.table.add_task("", total=self.count, completed=self.finished_count, said="")
        if self.finished_count:
            print(f"{self.finished_count} of {self.count} steps are done already", flush=True)

    def __enter__(self) -> Self:
        self.table.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.table.stop()

    def say(self, text: str) -> None:
        print(text, flush=True)

    def started(self, step: Any) -> None:
        self.waiting.remove(step.name)
        self.rows[step.name] = self.table.add_task(step.name, total=None, said="")
        self.say(f"{step.name}: started")

    def finished(self, step: Any, seconds: float) -> None:
        self.finished_count += 1
        self.table.remove_task(self.rows.pop(step.name))
        said = str(read_progress(step.output_dir, step.settings))
        said = f"; {said}" if said else ""
        self.say(f"{step.name}: done in {seconds:.0f} s ({self.finished_count} of {self.count}){said}")

    def update(self, running: list[tuple[Any, float]]) -> None:
        """Show the running steps, each with its seconds so far."""
        names = ", ".join([*self.waiting[:COMING], *(["..."] if len(self.waiting) > COMING else [])])
        coming = f"{len(self.waiting)} to come: {names}" if self.waiting else ""
        done = f"{self.finished_count} of {self.count} done"
        self.table.update(self.total, description=done, completed=self.finished_count, said=coming)
        for step, seconds in running:
            if self.live or seconds - self.told.get(step.name, 0.0) >= PLAIN_EVERY:
                self.told[step.name] = seconds
                progress = read_progress(step.output_dir, step.settings)
                said = progress.after(seconds)
                self.table.update(self.rows[step.name], total=progress.total, completed=progress.step, said=said)
                if not self.live:
                    self.say(f"{step.name}: {', '.join(filter(None, [said, f'{seconds:.0f} s']))}")
