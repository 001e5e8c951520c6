"""Rows of reasoning-gym's procedural tasks, `python -m data_prep.gym --config <yaml>`: questions in any number and
difficulty, each with a scorer (verifier "gym", `rewards.GymReward`).

It writes train.parquet, validation.parquet and test.parquet. Each split has its own seeds. A question is redrawn if it
was drawn before (in any split), if its own answer does not score 1 or, for train.parquet, if it shares an n-gram with
an evaluation set. run.json counts the redrawn questions by task.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.metadata
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from data_prep import decontaminate, dedup, jobs, rows, runs
from data_prep.rows import Row
from data_prep.runs import commands
from rewards import gym
from rewards.settings import FILLED, Count
from rewards.workers import pool

log = logging.getLogger(__name__)
SPLITS = ("test", "validation", "train")  # the order of drawing: more training rows do not change the tests
SECONDS = 60.0  # for the first question of a task
APART = 10_000_000  # seeds per split; question i of a data set with seed s is made from s + i
DOMAINS = dict.fromkeys(("algebra", "arithmetic", "geometry", "probability"), "math") | {"code": "code"}  # else logic
SOLUTIONS = {"graph_color": "possible_answer", "rubiks_cube": "example_correct_answer"}  # where `answer` is empty
UNREAD = ("source_dataset", "source_index", "difficulty")  # metadata that no scorer reads


@dataclass(frozen=True)
class Task:
    """A task by its ``name`` in the library, and how many rows of it each split gets.

    ``level``: the level of the task's curriculum; 0 is the easiest. ``settings``: the task's own settings, which take
    precedence over the level's.
    """

    name: str
    train: Count = 0
    validation: Count = 0
    test: Count = 0
    level: Count | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Gym(jobs.Job):
    tasks: Annotated[list[Task], FILLED]
    decontamination: decontaminate.Decontamination = field(default_factory=decontaminate.Decontamination)

    def __post_init__(self) -> None:
        if self.seed >= 100:
            raise ValueError(f"`seed` is {self.seed}; write a number below 100, which keeps the seeds of splits apart")
        for task in self.tasks:
            if not task.train + task.validation + task.test:
                raise ValueError(f"`tasks`: {task.name} has no rows; write `train: 100`, `validation` or `test`")

    def require(self) -> None:
        gym.require()
        for task in self.tasks:
            settings(task)


def load(config: Gym) -> dict[str, Any]:
    gym.require()
    tasks = [dataclasses.replace(task, settings=settings(task), level=None) for task in config.tasks]
    return {"tasks": tasks, "evaluation_items": decontaminate.load(config.decontamination)}


def settings(task: Task) -> dict[str, Any]:
    """The settings of a task, including those of its level. Raises ValueError with the task, the key and the remedy."""
    from reasoning_gym.factory import CURRICULA, DATASETS, create_curriculum

    where = f"`tasks`: {task.name}"
    if task.name in gym.REFUSED:
        raise ValueError(f"{where} is refused: {gym.REFUSED[task.name]}; leave it out")
    if task.name not in DATASETS:
        raise ValueError(
            f"{where} is no task of reasoning-gym; {_near(task.name, DATASETS.keys() - gym.REFUSED.keys())}"
        )
    kind = DATASETS[task.name][1]
    known = {one.name: one.type for one in dataclasses.fields(kind) if one.name not in ("seed", "size")}
    plain = kind()
    for key, value in task.settings.items():
        if key not in known:
            raise ValueError(f"{where}: unknown setting `{key}`; {_near(str(key), known)}")
        hint, choices = get_origin(known[key]) or known[key], get_args(known[key])
        types = {bool: bool, int: int, float: (int, float), str: str, list: list}.get(hint, object)
        is_switch = isinstance(value, bool) and hint in (int, float)
        if not isinstance(value, types) or is_switch or hint is Literal and value not in choices:
            raise ValueError(f"{where}: `{key}` is {value!r}; write a value like {getattr(plain, key)!r}")
    found = {}
    if task.level is not None:
        if task.name not in CURRICULA:
            raise ValueError(f"{where} has no levels; write `settings` of {', '.join(known)}")
        curriculum = create_curriculum(task.name)
        most = max(len(one.levels) for one in curriculum.attributes.values()) - 1
        if task.level > most:
            raise ValueError(f"{where}: `level` is {task.level}; write 0 to {most}")
        curriculum.set_global_level(task.level)
        made = curriculum.generate_configuration()
        found = {key: getattr(made, key) for key in known if getattr(made, key) != getattr(plain, key)}
    found |= task.settings
    try:
        in_time, fault = pool("data_prep.gym:draw", SECONDS).map([(task.name, found)])[0]
    except TypeError as error:  # a date of YAML, which is no JSON
        in_time, fault = True, error
    if not in_time or fault:
        fault = fault or f"it makes no question in {SECONDS:.0f} seconds and 3 GB of memory; write smaller numbers"
        raise ValueError(f"{where}: the task refuses the settings {found}: {fault}")
    return found


def draw(asked: tuple[str, dict[str, Any]]) -> str | None:
    """Make the first question of (task, settings) and return what the library says against it, or None."""
    try:
        _dataset(*asked, 0, 1)[0]
    except Exception as error:  # noqa: BLE001 (the library raises AssertionError and many others)
        return repr(error)
    return None


def _near(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean `{near[0]}`?" if near else f"write one of {', '.join(sorted(known))}"


def _dataset(name: str, settings: dict[str, Any], seed: int, size: int) -> Any:
    import reasoning_gym  # takes seconds

    return reasoning_gym.create_dataset(name, seed=seed, size=size, **settings)


def plan(config: Gym, tasks: list[Task], evaluation_items: decontaminate.Index) -> list[str]:
    lines = []
    for task in tasks:
        wanted = {split: getattr(task, split) for split in reversed(SPLITS) if getattr(task, split)}
        counts = (f"{min(count, config.limit or count):,} rows for {split}" for split, count in wanted.items())
        lines.append(f"{task.name}: {', '.join(counts)}")
    if evaluation_items:
        lines.append(f"{len(evaluation_items):,} evaluation items that no training row may share an n-gram with")
    return lines


def build(config: Gym, output_dir: Path, tasks: list[Task], evaluation_items: decontaminate.Index) -> dict[str, object]:
    seen: set[int] = set()
    counts = [Counter() for _ in tasks]
    total = {}
    for at, split in enumerate(SPLITS):
        first = (config.seed * len(SPLITS) + at) * APART
        items = evaluation_items if split == "train" else None
        found: list[Row] = []
        for number, task in enumerate(commands.progress(tasks, split, unit="task")):
            wanted = getattr(task, split)
            wanted = min(wanted, config.limit or wanted)
            made = drawn(task, f"{number}-{split}", wanted, first, seen, items, counts[number])
            if len(made) < wanted:
                log.warning(
                    "%s: %d of %d rows are missing in the split %s", task.name, wanted - len(made), wanted, split
                )
            counts[number][split] += len(made)
            found += made
        if found:
            rows.write_rows(output_dir / f"{split}.parquet", found)
        total[split] = len(found)
    if not sum(total.values()):
        raise rows.NoRowsError(f"{output_dir}: no rows; write `train: 100` or the like to the tasks")
    by_task = [
        {"name": task.name, "settings": task.settings} | found for task, found in zip(tasks, counts, strict=True)
    ]
    return {"rows": sum(total.values()), "rows_by_split": total, "tasks": by_task}


def drawn(
    task: Task, label: str, wanted: int, first: int, seen: set[int], items: decontaminate.Index | None, counts: Counter
) -> list[Row]:
    """Draw at most ``wanted`` rows of a task, from the seed ``first`` on, that are not ``seen`` and contain no item.
    Drawing stops after four draws per row and a hundred more. Refusals are counted by kind."""
    made: list[Row] = []
    candidates = _candidates(task, label, first, 4 * wanted + 100, seen, items, counts)
    while chosen := [row for _, row in zip(range(wanted - len(made)), candidates, strict=False)]:
        own = gym.score([(row["answer"], row["answer"], row["entry"]) for row in chosen])
        made += [row for row, score in zip(chosen, own, strict=True) if score == 1.0]
        counts["own_answer"] += sum(score != 1.0 for score in own)
    return made


def _candidates(
    task: Task, label: str, first: int, tries: int, seen: set[int], items: decontaminate.Index | None, counts: Counter
) -> Iterator[Row]:
    dataset = _dataset(task.name, task.settings, first, tries)
    for number in range(tries):
        try:
            row = _row(task, dataset, number, label)
        except Exception as error:  # raised by a generator that fails with its settings
            raise runs.ConfigError(
                f"`tasks`: {task.name}: the library makes no question {first + number} with the settings"
                f" {task.settings}: {error!r}; change them"
            ) from error
        key = dedup.prompt_hash(row)
        if key in seen:
            counts["repeated"] += 1
        elif items and items(row):
            counts["contaminated"] += 1
        else:
            seen.add(key)
            yield row


def _row(task: Task, dataset: Any, number: int, label: str) -> Row:
    entry = dataset[number]
    answer, metadata = entry["answer"], entry["metadata"]
    if task.name in SOLUTIONS:
        answer = metadata[SOLUTIONS[task.name]]
    read = {key: value for key, value in metadata.items() if key not in UNREAD}
    return {
        "id": f"{task.name}-{label}-{number}",
        "question": entry["question"],
        "prompt": entry["question"],
        "answer": answer if isinstance(answer, str) else json.dumps(answer),
        "kind": "reasoning",
        "domain": DOMAINS.get(dataset.category, "logic"),
        "language": "en",
        "verifier": "gym",
        "thinking": True,
        "source": "reasoning-gym",
        "license": "apache-2.0",
        "task": task.name,
        "entry": json.dumps({"task": task.name, "settings": task.settings, "metadata": read}, ensure_ascii=False),
        "revision": importlib.metadata.version("reasoning-gym"),
    }


if __name__ == "__main__":
    sys.exit(jobs.main(__spec__.name))
