"""Distillation against RL on the same small base, by completion tokens with a gradient (v1, section 4.1).

    python -m benchmarks.distillation [--scale cpu] [--seeds 2] [--rates 0.5 1 2] [--token-budget N] [--dry-run]

It needs the student's base, the prompts and the distillation set of `make r1`. Each learning rate (a factor of the
YAML's) is trained with each seed. Distillation is trained with 1/4, 1/2 and all of the YAML's token budget, in separate
runs, since the schedule has to end with the budget. RL is trained once, to four times the budget: its rate is constant,
so that a checkpoint equals the result of a run that ends there. All models answer the held-out problems of `evaluate`
with 2 samples each instead of 4. Rates are compared on these same problems, and RL may catch up with any of its rates.

The seed decides the order of the data, the new adapter and RL's samples; base and distillation set are always the same.
Every run is the stage's own command (`--dry-run` prints them, each log begins with it) and is not run again once done.
Runs, about 200 MB per rate and seed, are in outputs/<scale>_bench; figures and plot are in outputs/<scale>/bench.
"""

import argparse
import itertools
import json
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_prep import runs
from recipes.tools import children, pipeline
from recipes.tools.metrics import mean_and_stderr
from recipes.tools.steps import Step, load_steps, require_names, shown
from recipes.tools.view import View

import yaml

ACCELERATE = Path(shown(runs.ROOT / "accelerate_configs" / "cpu.yaml"))
AT = {"distillation": (0.25, 0.5, 1), "rl": (0.5, 1, 2, 3, 4)}  # where each is measured, in token budgets
STAGE = {"distillation": "distill", "rl": "student_rl"}  # names of YAMLs
CHECKPOINT = {"distillation": "student_distilled", "rl": "student_rl"}  # names in evaluate.yaml, for the style
SAMPLES = 2  # per problem


@dataclass(frozen=True)
class Training:
    """One run, and the token budgets at which it is measured."""

    method: str
    rate: str
    seed: int
    measured_at: tuple[float, ...]
    step: Step


@dataclass(frozen=True)
class Point:
    """A model to be measured. `tokens`: completion tokens with a gradient, nearly `budgets` times the budget."""

    method: str
    rate: str
    seed: int
    budgets: float
    tokens: int
    path: Path

    @property
    def name(self) -> str:
        return f"{self.method}_lr{self.rate}_seed{self.seed}_{self.budgets:g}x"


def variant(step: Step, name: str, folder: Path, **settings: Any) -> Step:
    """The stage's own command with this benchmark's settings, as a separate run in `folder`."""
    words = {"output_dir": str(folder / name)} | {key: str(value) for key, value in settings.items()}
    more = [word for key, value in words.items() for word in (f"--{key}", value)]
    read = {key: yaml.safe_load(value) for key, value in words.items()}  # as the stage reads its command line
    return replace(step, name=name, command=(*step.command, *more), settings=step.settings | read)


def trainings(stages: dict[str, Step], folder: Path, factors: list[float], seeds: int, budget: int) -> list[Training]:
    """All runs, RL first since it takes longest. Raises runs.ConfigError if RL's rate is not constant."""
    rl = stages["rl"]
    if rl.settings.get("lr_scheduler_type", "constant") != "constant":
        raise runs.ConfigError(f"{rl.config}: lr_scheduler_type: RL measured on its way wants a constant rate")
    steps = int(rl.settings["max_steps"])
    far = {"max_steps": round(max(AT["rl"]) * steps), "save_steps": max(1, steps // 10), "save_total_limit": 100}
    found = []
    for method, more, runs_of in (("rl", far, [AT["rl"]]), ("distillation", {}, [(at,) for at in AT["distillation"]])):
        for seed, factor, at in itertools.product(range(seeds), factors, runs_of):
            rate = f"{float(stages[method].settings['learning_rate']) * factor:g}"
            given = {"learning_rate": rate, "seed": seed, "token_budget": round(budget * max(at))} | more
            step = variant(stages[method], f"{method}_lr{rate}_seed{seed}_{max(at):g}x", folder, **given)
            found.append(Training(method, rate, seed, at, step))
    return found


def points(training: Training, budget: int) -> list[Point]:
    """The models to measure of a finished run: for each number of budgets, the nearest that was saved.
    Raises runs.ConfigError if `max_steps` ended RL before its budget was spent."""
    run = training.step.output_dir
    saved = [(runs.read(run)["completion_tokens_trained"], run)]
    if training.method == "rl":  # distillation saves adapters
        for marker in run.glob("checkpoint-*/complete.json"):
            saved.append((json.loads(marker.read_text(encoding="utf-8"))["completion_tokens_trained"], marker.parent))
        if saved[0][0] < max(training.measured_at) * budget:
            raise runs.ConfigError(
                f"{training.step.config}: max_steps: {run} ended after {saved[0][0]:,} of "
                f"{max(training.measured_at) * budget:,} tokens; write more steps, or give a smaller --token-budget"
            )
    nearest = {at: min(saved, key=lambda one: abs(one[0] - at * budget)) for at in training.measured_at}
    return [Point(training.method, training.rate, training.seed, at, *one) for at, one in nearest.items()]


def catches_up(curve: list[tuple[float, float]], goal: float) -> float | None:
    """Tokens at which a curve of (tokens, pass@1) first reaches the goal, by linear interpolation, or None if it does
    not."""
    before = None
    for tokens, value in curve:
        if value >= goal:
            if before is None:
                return tokens
            return before[0] + (tokens - before[0]) * (goal - before[1]) / (value - before[1])
        before = (tokens, value)
    return None


def summarise(measured: dict[Point, float], base: float) -> dict[str, Any]:
    """Return the curves by method and learning rate (mean and standard error over seeds), the best rate of each method
    at one budget, and the tokens at which RL, at each rate, reaches the best distillation of one budget."""
    found: dict[str, Any] = {"student_base": base}
    for method in AT:
        curves: dict[str, list[dict[str, Any]]] = {}
        for rate in sorted({point.rate for point in measured if point.method == method}, key=float):
            for times in AT[method]:
                same = {p: v for p, v in measured.items() if (p.method, p.rate, p.budgets) == (method, rate, times)}
                mean, stderr = mean_and_stderr([[value] for value in same.values()])
                tokens = sum(point.tokens for point in same) / len(same)
                row = {"budgets": times, "tokens": round(tokens), "pass@1": mean, "pass@1_stderr": stderr}
                curves.setdefault(rate, []).append(row | {"by_seed": list(same.values())})
        found[method] = curves
    at_one = {
        method: {rate: row for rate, curve in found[method].items() for row in curve if row["budgets"] == 1}
        for method in AT
    }
    found["best"] = {method: max(rows, key=lambda rate: rows[rate]["pass@1"]) for method, rows in at_one.items()}
    goal = at_one["distillation"][found["best"]["distillation"]]["pass@1"]
    found["rl_catches_up_at_tokens"] = {
        rate: catches_up([(0, base), *((row["tokens"], row["pass@1"]) for row in curve)], goal)
        for rate, curve in found["rl"].items()
    }
    return found


def shown_row(row: dict[str, Any]) -> str:
    stderr = row["pass@1_stderr"]
    return f"{row['budgets']:g}x {row['pass@1']:.3f}" + (f" ± {stderr:.3f}" if stderr is not None else "")


def report(found: dict[str, Any]) -> None:
    print(
        f"pass@1 on {found['n_problems']} held-out problems, {found['k']} samples each, mean ± standard error over "
        f"{found['seeds']} seeds; 1x is {found['token_budget']:,} completion tokens with a gradient"
    )
    print(f"student_base {found['student_base']:.3f}")
    for method in AT:
        for rate, curve in found[method].items():
            best = ", its best rate at 1x" if rate == found["best"][method] else ""
            print(f"{method}, learning rate {rate}{best}: " + ", ".join(map(shown_row, curve)))
    for rate, tokens in found["rl_catches_up_at_tokens"].items():
        far = f"within {max(AT['rl'])}x" if tokens is None else f"at {tokens:,.0f} tokens"
        far += "" if tokens is None else f" ({tokens / found['token_budget']:.2f}x)"
        print(f"RL at {rate} {'does not catch' if tokens is None else 'catches'} up with distillation at 1x {far}")


def draw(found: dict[str, Any], path: Path) -> None:
    """Draw the curves into `path` with the suffixes .png and .svg."""
    from matplotlib.figure import Figure  # half a second that only drawing needs

    figure = Figure(figsize=(8, 5), layout="constrained")
    panel = figure.subplots()
    for method, label, colour in (("distillation", "distillation", "#e08a2c"), ("rl", "RL", "#0b3c6f")):
        for (rate, curve), style in zip(found[method].items(), itertools.cycle((":", "-", "--")), strict=False):
            x, y = ([row[key] for row in curve] for key in ("tokens", "pass@1"))
            spread = [row["pass@1_stderr"] or 0 for row in curve]
            panel.errorbar(x, y, spread, label=f"{label}, {rate}", color=colour, linestyle=style, marker="o", capsize=3)
    panel.axhline(found["student_base"], color="grey", linewidth=1, label="student_base")
    panel.set(xlabel="completion tokens with a gradient", ylabel="pass@1", xlim=(0, None))
    panel.set_title("Distilling and RL on the same small base, by learning rate")
    panel.xaxis.set_major_formatter("{x:,.0f}")
    panel.grid(alpha=0.3)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False)
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_suffix(suffix), dpi=150)


def work(steps: list[Step], folder: Path) -> None:
    """Run the steps that are not done. Raises PipelineError if one fails, and MissingRunError for a missing input."""
    done = {step.name for step in steps if step.look().kind == "done"}
    todo = [step for step in steps if step.name not in done]
    children.hold_libraries()
    session = pipeline.Session(folder, afresh=False)
    with pipeline.locked(folder) as lock, View(steps, done) as view:
        pipeline.work(todo, pipeline.CPU_JOBS, view, session, True, lock)


def run(options: argparse.Namespace) -> None:
    scale = Path(options.scale if "/" in options.scale else shown(runs.ROOT / "recipes/configs" / options.scale))
    steps = load_steps(scale, None, ACCELERATE)
    require_names(steps, STAGE.values())
    stages = {method: next(step for step in steps if step.name == name) for method, name in STAGE.items()}
    budget = options.token_budget or stages["distillation"].settings.get("token_budget")
    if not budget:
        raise runs.ConfigError(f"{stages['distillation'].config}: has no token_budget; say --token-budget")
    outputs = stages["rl"].output_dir.parent
    folder = outputs.with_name(f"{outputs.name}_bench")
    trained = trainings(stages, folder, options.rates, options.seeds, budget)
    if options.dry_run:
        print("\n".join(shlex.join(training.step.command) for training in trained))
        return
    work([training.step for training in trained], folder)
    measured = [point for training in trained for point in points(training, budget)]
    settings = runs.load_config(scale / "evaluate.yaml")
    styles = {name: {"style": one["style"]} for name, one in settings["checkpoints"].items()}
    asked = {point.name: {"path": str(point.path)} | styles[CHECKPOINT[point.method]] for point in measured}
    asked["student_base"] = {"path": stages["rl"].settings["model_name_or_path"]} | styles["student_base"]
    settings |= {"output_dir": str(folder / "evaluate"), "k": SAMPLES, "checkpoints": asked}
    (folder / "evaluate.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    work(load_steps(folder, None, ACCELERATE), folder)
    results = {
        name: json.loads((folder / f"evaluate_{name}" / "results.json").read_text(encoding="utf-8")) for name in asked
    }
    base = results["student_base"]
    found = {"token_budget": budget, "seeds": options.seeds, "n_problems": base["n_problems"], "k": base["k"]}
    found |= summarise({point: results[point.name]["pass@1"] for point in measured}, base["pass@1"])
    report(found)
    target = outputs / "bench" / "distillation.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    draw(found, target)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    parser.add_argument("--scale", default="cpu", help="a name in recipes/configs, or a path to a folder of YAMLs")
    parser.add_argument("--seeds", type=int, default=2, help="how many: 0, 1, ...")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.5, 1, 2], help="times the YAMLs' learning rates")
    parser.add_argument("--token-budget", type=int, help="in place of the one in distill.yaml")
    parser.add_argument("--dry-run", action="store_true", help="print the training commands, and stop")
    try:
        run(parser.parse_args())
    except (pipeline.PipelineError, runs.ConfigError, runs.MissingRunError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
