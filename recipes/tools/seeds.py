"""The whole pipeline at several seeds: how much each effect varies, and the bounds that an honest run keeps to.

    python -m recipes.tools.seeds --scale cpu --seeds 0 1 2 3 4 --thresholds bounds.json

Each seed runs in outputs/<scale>_seeds/<seed> like `python -m recipes.tools.pipeline --seed N`, and finished runs are
kept. The table goes to stdout and, with every figure, to outputs/<scale>_seeds/seeds.json. A bound is the mean minus
four standard deviations (plus four for an effect with an upper limit), whether or not the aim was reached. A deviation
counts as at least 0.005, because five rates of 1.000 do not guarantee a sixth. An effect above 0 in every run has to
stay above 0, however much it varied.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from data_prep import runs
from data_prep.runs import commands
from recipes.tools import report
from recipes.tools.steps import scale_folder

DEVIATIONS = 4
LEAST = 0.005


def spread(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each effect: its aim, its mean, standard deviation (n - 1) and lowest figure over the runs, and how many runs
    showed it. The figures are None if a run could not measure the effect."""
    found = []
    for effects in zip(*(result["effects"] for result in results), strict=True):
        figures = [effect["figure"] for effect in effects]
        measured = None not in figures
        found.append(
            {
                "name": effects[0]["name"],
                "aim": effects[0]["aim"],
                "mean": statistics.mean(figures) if measured else None,
                "sd": statistics.stdev(figures) if measured else None,
                "lowest": min(figures) if measured else None,
                "shown": sum(bool(effect["reproduced"]) for effect in effects),
                "runs": len(effects),
            }
        )
    return found


def bounds(effects: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The thresholds for `recipes.tools.report --assert-thresholds`."""
    found, limits = {}, report.upper_limits()
    for effect in effects:
        if effect["mean"] is not None:
            low = effect["name"] in limits
            bound = effect["mean"] + (DEVIATIONS if low else -DEVIATIONS) * max(effect["sd"], LEAST)
            if effect["lowest"] > 0:
                bound = max(bound, 0.0)
            found[effect["name"]] = {"at_most" if low else "at_least": round(bound, 4)}
    return found


def table(effects: list[dict[str, Any]]) -> str:
    """The effects as a Markdown table."""
    lines = ["| the paper's effect | aim | mean ± sd | shown in |", "|---|---|---|---|"]
    for effect in effects:
        figure = "not measured" if effect["mean"] is None else f"{effect['mean']:.3f} ± {effect['sd']:.3f}"
        lines.append(f"| {effect['name']} | {effect['aim']} | {figure} | {effect['shown']} of {effect['runs']} |")
    return "\n".join(lines)


def run(scale: Path, folder: Path, seed: int, override: Path | None = None) -> dict[str, Any]:
    """The results of one seed. Raises subprocess.CalledProcessError if the pipeline fails; its log says why."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "recipes.tools.pipeline", "--scale", str(scale.resolve()), "--seed", str(seed)]
    if override:
        command += ["--override", str(override.resolve())]
    with (folder / "pipeline.log").open("a", encoding="utf-8") as log:
        subprocess.run(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, check=True)
    path = folder / "outputs" / scale.name / "report" / "results.json"
    return json.loads(path.read_text(encoding="utf-8"))


def write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def main(argv: list[str]) -> int:
    parser = commands.parser("recipes.tools.seeds", __doc__)
    parser.add_argument("--scale", default="cpu", help="a folder of recipes/configs, or a path")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--override", type=Path, metavar="FILE", help=commands.OVERRIDE)
    parser.add_argument("--thresholds", type=Path, metavar="FILE", help="write the bounds here")
    arguments = parser.parse_args(argv)
    if len(set(arguments.seeds)) < 2:
        parser.error("--seeds: one run has no spread; write two or more different ones")
    scale = scale_folder(arguments.scale)
    root = Path("outputs") / f"{scale.name}_seeds"
    results = {}
    for seed in arguments.seeds:
        try:
            results[seed] = run(scale, root / str(seed), seed, arguments.override)
        except subprocess.CalledProcessError as error:
            raise runs.Stopped(f"seed {seed} failed; {root / str(seed) / 'pipeline.log'} says why") from error
    effects = spread(list(results.values()))
    write(root / "seeds.json", {"effects": effects, "seeds": results})
    if arguments.thresholds:
        write(arguments.thresholds, bounds(effects))
    print(table(effects))
    return 0


if __name__ == "__main__":
    sys.exit(commands.run(main))
