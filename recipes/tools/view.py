"""The display of a running pipeline: a live table on a terminal, or else one plain line for each event."""

import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

ROWS = 10  # rows of a log over which a reward is averaged, because the reward of one step is noisy
ROW_BYTES = 4_096  # maximum size of a row in log.jsonl
PLAIN_EVERY = 30.0  # seconds between two progress lines of a step without a terminal


@dataclass(frozen=True)
class Progress:
    """The progress of a training step from its log.jsonl; fields that it lacks are None. `reward`: mean over the last
    ten rows; `first`: mean over the first ten, once there are more."""

    step: int = 0
    total: int | None = None
    reward: float | None = None
    first: float | None = None
    accuracy: float | None = None
    loss: float | None = None

    def left(self, seconds: float) -> float | None:
        """The remaining seconds at the current pace."""
        return seconds * (self.total - self.step) / self.step if self.total and self.step else None

    def __str__(self) -> str:
        parts = [f"step {self.step}/{self.total or '?'}"] if self.step else []
        for name in ("reward", "accuracy", "loss"):
            value = getattr(self, name)
            if value is not None:
                at_first = f" (at first {self.first:.3f})" if name == "reward" and self.first is not None else ""
                parts.append(f"{name} {value:.3f}{at_first}")
        return ", ".join(parts)


def read_progress(output_dir: Path, settings: dict[str, Any]) -> Progress:
    """The progress of the run in output_dir. An incomplete last row is not read."""
    first, last = _rows(output_dir / "log.jsonl")
    if not last:
        return Progress(total=settings.get("max_steps"))
    row = last[-1]
    accuracy = next(
        (row[key] for key in ("rewards/accuracy_reward/mean", "mean_token_accuracy", "accuracy") if key in row), None
    )
    rewards = [[one["reward"] for one in some if one.get("reward") is not None] for some in (first, last)]
    at_first, reward = (statistics.mean(some) if some else None for some in rewards)
    at_first = at_first if last[0]["step"] > first[0]["step"] else None
    return Progress(row["step"], row["max_steps"], reward, at_first, accuracy, row.get("loss"))


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


class PlainView:
    """Prints one line for each event, and sometimes a line for a running step."""

    def __init__(self, steps: list, done: set[str]):
        self.count = len(steps)
        self.finished_count = sum(step.name in done for step in steps)
        self.told: dict[str, float] = {}
        if self.finished_count:
            print(f"{self.finished_count} of {self.count} steps are done already", flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def say(self, text: str) -> None:
        print(text, flush=True)

    def started(self, step: Any) -> None:
        print(f"{step.name}: started", flush=True)

    def finished(self, step: Any, seconds: float) -> None:
        self.finished_count += 1
        said = str(read_progress(step.output_dir, step.settings))
        said = f"; {said}" if said else ""
        print(f"{step.name}: done in {seconds:.0f} s ({self.finished_count} of {self.count}){said}", flush=True)

    def update(self, running: list[tuple[Any, float]]) -> None:
        for step, seconds in running:
            if seconds - self.told.get(step.name, 0.0) >= PLAIN_EVERY:
                self.told[step.name] = seconds
                progress = read_progress(step.output_dir, step.settings)
                left = progress.left(seconds)
                parts = [str(progress), f"{clock(left)} left" if left is not None else ""]
                print(f"{step.name}: {', '.join(filter(None, [*parts, f'{seconds:.0f} s']))}", flush=True)


class LiveView:
    """A table with a line for each step: state, progress bar, first and current reward, accuracy, time, time left."""

    def __init__(self, steps: list, done: set[str]):
        self.steps = steps
        self.state = {step.name: "done" if step.name in done else "" for step in steps}
        self.seconds: dict[str, float] = {}
        self.live = Live(console=Console(file=sys.stdout), refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        self.live.__enter__()
        self.update([])
        return self

    def __exit__(self, *error: Any) -> None:
        self.live.__exit__(*error)
        for step in self.steps:  # the live table is gone; print the steps that this call finished
            if step.name in self.seconds and self.state[step.name] == "done":
                print(f"{step.name}: {clock(self.seconds[step.name])}")

    def say(self, text: str) -> None:
        self.live.console.print(text, markup=False, highlight=False)

    def started(self, step: Any) -> None:
        self.state[step.name] = "running"

    def finished(self, step: Any, seconds: float) -> None:
        self.state[step.name] = "done"
        self.seconds[step.name] = seconds

    def update(self, running: list[tuple[Any, float]]) -> None:
        self.seconds |= {step.name: seconds for step, seconds in running}
        self.live.update(self._table())

    def _table(self) -> Table:
        heads = ("step", "", "", "at first", "reward", "accuracy", "time", "left")
        table = Table(*heads, box=None, pad_edge=False)
        waiting = [step for step in self.steps if not self.state[step.name]]
        for step in self.steps:
            state, seconds = self.state[step.name], self.seconds.get(step.name)
            if not state:
                continue
            progress = read_progress(step.output_dir, step.settings) if state == "running" else Progress()
            bar = ProgressBar(progress.total, progress.step, width=24) if progress.total else ""
            shown = (progress.first, progress.reward, progress.accuracy)
            figures = [f"{value:.2f}" if value is not None else "" for value in shown]
            left = progress.left(seconds) if seconds else None
            style = "dim" if state == "done" else ""
            table.add_row(step.name, state, bar, *figures, clock(seconds), clock(left), style=style)
        if waiting:
            shown = ", ".join(step.name for step in waiting[:3])
            table.add_row(f"{len(waiting)} to come: {shown}{', ...' if len(waiting) > 3 else ''}", style="dim")
        return table
