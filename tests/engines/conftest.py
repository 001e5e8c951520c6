"""Stages in one process and in two, through `accelerate launch` and our accelerate configs, one launch a config.

The other tests' stand-in models, rows and settings serve here too: what a YAML says of the method is taken as it is.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path

from data_prep import runs

import cells
import psutil
import pytest
import yaml

RECIPES = Path(__file__).parents[1] / "recipes"
REPOSITORY = Path(__file__).parents[2]
HERE = Path(__file__).parent
sys.path.append(str(RECIPES))
_spec = importlib.util.spec_from_file_location("recipes_conftest", RECIPES / "conftest.py")
recipes_conftest = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(recipes_conftest)
CPU, GRPO, SFT, LORA, PROBE = (getattr(recipes_conftest, name) for name in ("CPU", "GRPO", "SFT", "LORA", "PROBE"))
log_of, record_of, made, sums = (getattr(recipes_conftest, name) for name in ("log_of", "record_of", "made", "sums"))

# All that a test may say otherwise than one of accelerate_configs: how many processes on how many machines, and what
# GPUs are for.
MAY_DIFFER = {"num_processes", "num_machines", "mixed_precision", "cpu", "main_process_port"}
STEPS = {"max_steps": 4, "logging_steps": 1, "save_strategy": "steps", "save_steps": 2}
# Sizes for two processes; a rate that moves weights in four steps; rewards that a random model gets some of.
SIZES = {"batch_size": 8, "per_device_train_batch_size": 4, "learning_rate": 1e-3}
# A rollout a step, since TRL shuffles a rollout on each process; with live sampling two steps, as HARDWARE has it.
ON_POLICY, LIVE = {"generation_batch_size": 8}, {"generation_batch_size": 16}
PROBED = {"reward_funcs": ["probe.reward"], "reward_kwargs": {}, "reward_weights": None, "ref_model_sync_steps": 2}
MODELS = {"HelpfulnessReward": {"model": "scorer"}, "HarmlessnessReward": {"model": "scorer"}}
# Of vLLM on a CPU: a GB for what it has read, no binding of threads to cores, and nothing asked of a network.
VLLM = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_CI_ENV": "1"}
SECONDS = 540  # of one launch; two busy cores take half


def launch(config: str, script: list[str], **overrides) -> list[str]:
    """The command of `accelerate launch` for a config of accelerate_configs. Raises ValueError for another override."""
    if refused := overrides.keys() - MAY_DIFFER:
        raise ValueError(f"{', '.join(sorted(refused))}: what is tested is accelerate_configs/{config}.yaml as it is")
    words = [sys.executable, "-m", "accelerate.commands.launch"]
    words += ["--config_file", str(REPOSITORY / f"accelerate_configs/{config}.yaml")]
    for key, value in overrides.items():
        words += [f"--{key}"] if value is True else [f"--{key}", str(value)]
    return words + script


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to a launcher and its processes, each of which has a session of its own."""
    launcher = psutil.Process(process.pid)
    for one in [launcher, *launcher.children(recursive=True)]:
        one.kill()
    process.wait()


def settings_of(case: cells.Case) -> dict:
    """A stage's settings: the YAML's method, with sizes, steps and inputs of this machine. Called in the world."""
    from recipes import trl_configs

    from test_settings import CLASSES
    from test_stand_ins import HARDWARE, inputs

    scale, name = case.recipe.split("/")
    stage = "distill" if name.startswith("distill") else name
    given = runs.load_config(REPOSITORY / f"recipes/configs/{scale}/{name}.yaml")
    arguments, trainer = CLASSES[stage]
    known = {field.name for kind in (arguments, getattr(trl_configs, trainer.__name__)) for field in fields(kind)}
    made = HARDWARE | STEPS | SIZES | ON_POLICY | (PROBED if case.samples else {})
    if case.column == "moe_lora":
        made |= cells.ATTENTION
    found = given | inputs(stage, case.family) | {key: value for key, value in made.items() if key in known}
    if stage == "reward_models":  # 18 rows: what is left of an epoch is shared out otherwise, with rows twice
        found |= {"batch_size": 4, "per_device_train_batch_size": 2}
    if stage == "all_scenarios_rl":
        found |= {"reward_funcs": ["probe.reward", *MODELS], "reward_kwargs": MODELS}
    return found | {"dtype": "float32"}


class World:
    """A folder with the stand-ins, and what ran there; a config's cases run at the first question for one of them."""

    def __init__(self, folder: Path):
        self.folder, self.failed, self.one = folder, {}, {}
        self.run = cache(self._run)

    def yaml(self, name: str, settings: dict) -> list[str]:
        stage = next(one for one in ("reward_models", "all_scenarios_rl", "reasoning_rl", "r1_zero", "distill",
                                 "cold_start_sft") if one in name)  # fmt: skip
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings | {"output_dir": f"outputs/t/{name}"}), encoding="utf-8")
        return [str(REPOSITORY / f"recipes/{stage}.py"), "--config", str(path)]

    def settings(self, case: cells.Case) -> dict:
        os.chdir(self.folder)
        return settings_of(case)

    def start(self, config: str, jobs: list[dict], log: str = "", **overrides) -> subprocess.Popen:
        log = log or config
        (self.folder / f"{log}.json").write_text(json.dumps(jobs), encoding="utf-8")
        script = [str(HERE / "stage.py"), str(self.folder / f"{log}.json")]
        output = (self.folder / f"{log}.txt").open("a")
        words = launch(config, script, mixed_precision="no", **overrides)
        return subprocess.Popen(words, cwd=self.folder, env=self.environment, stdout=output, stderr=output)

    @property
    def environment(self) -> dict[str, str]:
        # DeepSpeed builds its gloo helper once, with g++ and the ninja beside Python.
        paths = {
            "PYTHONPATH": [REPOSITORY, HERE, self.folder],
            "PATH": [Path(sys.executable).parent, os.environ["PATH"]],
        }
        joined = {name: os.pathsep.join(map(str, folders)) for name, folders in paths.items()}
        usual = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}
        return os.environ | usual | VLLM | joined

    def _run(self, config: str) -> str:
        """Run all cases of a config; returns what was said."""
        if config != "single_gpu":
            self.run("single_gpu")  # which records the completions that others replay
        cases = [case for case in cells.CASES if config in (case.config, "single_gpu")]
        jobs = {}
        for case in cases:
            settings = self.settings(case)
            key = (case.column, case.recipe, case.family)
            if config == "single_gpu":  # one process: the same for every config
                case = case._replace(config="one")
                if case.samples:  # KL is a mean over micro batches: one of this process is one of each of two
                    settings["per_device_train_batch_size"] *= 2
            elif config == "ddp":
                settings |= {"use_cpu": True}
            else:
                settings |= {"use_cpu": False, "ddp_backend": "gloo"}
            replayed = {}
            if case.samples:
                replayed = {"completions": "-".join(key).replace("/", "-") + ".json", "replay": config != "single_gpu"}
            argv = self.yaml(case.name, settings)
            jobs[case.name] = {"argv": argv} | replayed
            if case.config != "one":
                jobs[f"{case.name} again"] = jobs[case.name] | {"keep": f"outputs/t/{case.name}-straight"}
                if case.samples:  # as each process samples by itself
                    jobs[f"{case.name} live"] = {"argv": self.yaml(f"{case.name}-live", settings | LIVE)}
        more = {} if config == "single_gpu" else {"num_machines": 1, "num_processes": 2}
        port = 20000 + os.getpid() % 20000
        process = self.start(config, list(jobs.values()), main_process_port=port, **more)
        try:
            code = process.wait(SECONDS)
        finally:
            if process.poll() is None:
                kill(process)
        said = (self.folder / f"{config}.txt").read_text(encoding="utf-8", errors="replace")
        return said if code == 0 else f"exit code {code}\n{said[-6000:]}"

    def folder_of(self, case: cells.Case, kind: str = "") -> Path:
        """The folder of a case's run, which is made now if need be: `one`, `straight` (before the kill), `live`."""
        config = "single_gpu" if kind == "one" else case.config
        said = self.run(config)
        name = case._replace(config="one").name if kind == "one" else f"{case.name}-{kind}" if kind else case.name
        folder = self.folder / "outputs/t" / name
        assert (folder / "run.json").is_file(), said
        return folder


@pytest.fixture(scope="session")
def world(made, tmp_path_factory) -> World:
    from recipes import loading

    from test_stand_ins import stand_in
    from transformers import AutoConfig, AutoModelForSequenceClassification, set_seed

    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(made / "outputs", folder / "outputs")
    (folder / "probe.py").write_text(PROBE, encoding="utf-8")
    plugin = folder / "vllm_for_cpu-0.dist-info"  # vLLM finds it on PYTHONPATH
    plugin.mkdir()
    (plugin / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-for-cpu\nVersion: 0\n", encoding="utf-8")
    entry = "[vllm.general_plugins]\nfor_cpu = vllm_for_cpu:register\n"
    (plugin / "entry_points.txt").write_text(entry, encoding="utf-8")
    os.chdir(folder)
    base = stand_in("qwen2")
    set_seed(0)
    shape = AutoConfig.from_pretrained(base, num_labels=1)
    AutoModelForSequenceClassification.from_config(shape).save_pretrained("scorer")
    loading.load_tokenizer(base).save_pretrained("scorer")
    return World(folder)
