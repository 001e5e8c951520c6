"""What is wrong with a scale before it trains: `python -m recipes.tools.doctor --scale S [--stage X]`, without weights.

`recipes.checks` lists the checks. Each stage runs them at its start, unless its YAML says `doctor: false`.
"""

import contextlib
import io
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from data_prep import runs
from data_prep.runs import ConfigError, commands, publishing
from recipes import checks, config, data, grpo, loading, training
from recipes.checks import Finding
from recipes.tools import check, needs, plan, servers, steps
from rewards.gym import GymMissing

import psutil
import torch
import yaml
from huggingface_hub.errors import StrictDataclassError


def of_step(step: steps.Step) -> Iterator[Finding | str]:
    """All findings for one YAML, without weights. A str names what could not be checked yet. Raises ConfigError if the
    YAML's stage, its job or the pipeline refuses it."""
    servers.needed(step.settings, str(step.config))
    check.require(step.target, *step.files)
    if not step.trains:
        return
    start = Path(step.command[step.command.index("--config_file") + 1])
    no_gpu = not step.settings.get("use_cpu") and not torch.cuda.is_available()
    with config.planned(runs.load_config(start).get("num_processes", 1)):
        args, trainer = check.check(step.target, *step.files, elsewhere=no_gpu)
    if no_gpu:
        yield checks.NO_GPU
    name = getattr(args, "model_name_or_path", None)
    shape, subject = checks.shape_of(name, offline=True), {"args": args, "config": trainer}
    yield from checks.look("start", environment=checks.launched(start), shape=shape, **subject)
    try:
        publishing.read(step.settings, str(step.config)).check("model", args.models)
    except SystemExit:
        yield Finding("The result cannot be pushed (see above). Correct that now, or write push_to_hub: false.")
    if shape is None:
        yield f"{name or 'its model'} is not here yet: its tokenizer, rows and rewards are checked once it is"
        return
    tokenizer = loading.load_tokenizer(name, getattr(args, "completion_style", "think") == "think", args.use_peft)
    yield from checks.look("tokenizer", tokenizer=tokenizer, **subject)
    if not hasattr(args, "dataset"):
        return
    run = training.Run(args, trainer)
    try:
        if not hasattr(args, "reward_funcs"):
            data.load_sft_rows(run, tokenizer)
            return
        rows, funcs = list(grpo.load_prompts(run, tokenizer)), grpo.load_rewards(args)
    except ConfigError as error:
        missing = isinstance(error.__cause__, FileNotFoundError)
        yield f"{error.__cause__}" if missing else Finding(str(error))
        return
    yield from checks.look("RL rows", rows=rows, reward_funcs=funcs, tokenizer=tokenizer, **subject)


def of_plan(todo: list[steps.Step]) -> Iterator[tuple[str, Finding]]:
    """The stages, by name, that do not fit the GPU of this machine, or its memory if they run on the CPU."""
    gpu = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    for stage in plan.stages(todo):
        room = psutil.virtual_memory().total if stage.cpu else gpu
        if room and not needs.fits(stage, room):
            peak, there = needs.memory(stage, room).peak / needs.GB, room / needs.GB
            text = f"It takes {peak:.1f} GB, and there are {there:.1f} GB, so that it would be killed."
            yield stage.name, Finding(f"{text} Write {plan.change(stage, room)}.")


def main(argv: list[str]) -> int:
    """The exit status is 0 if nothing is found, else 1."""
    parser = commands.parser("recipes.tools.doctor", __doc__)
    parser.add_argument("--scale", default="cpu", help="a name in recipes/configs, or a path to a folder of YAMLs")
    parser.add_argument("--stage", help="only this one")
    parser.add_argument("--accelerate-config", type=Path, metavar="FILE", help="in place of the YAMLs' own")
    parser.add_argument("--override", type=Path, metavar="FILE", help=commands.OVERRIDE)
    given = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    found, said = 0, set()
    todo = steps.load_steps(steps.scale_folder(given.scale), None, given.accelerate_config, given.override)
    steps.require_names(todo, [given.stage] if given.stage else [])
    too_big = {}
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            for name, finding in of_plan(todo):
                too_big[name] = finding
    except (ConfigError, runs.MissingRunError, StrictDataclassError, SystemExit) as error:
        print(f"without a plan: {error}")  # a fault of a YAML is reported below
    for step in todo:
        if step.evaluates or given.stage not in (None, step.name):
            continue
        print(f"{step.name}: {step.config}")
        notes = [Finding(fault) for fault in steps.missing_inputs(step, todo, todo)]
        try:
            notes += list(of_step(step))
            notes += [too_big[step.name]] if step.name in too_big else []
        except (ConfigError, GymMissing, runs.MissingRunError, yaml.YAMLError) as error:
            notes.append(Finding(str(error)))
        for note in notes:
            if str(note) not in said:  # versions and hardware are reported once
                found += isinstance(note, Finding)
                print(f"  {'finding' if isinstance(note, Finding) else 'not yet'}: {note}")
            said.add(str(note))
    print(f"{found} finding{'s' if found > 1 else ''}" if found else "nothing found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(commands.run(main))
