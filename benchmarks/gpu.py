"""Stages of the scales for GPUs on one GPU, with random weights of the real shape: memory beside the plan, and time.

    python -m benchmarks.gpu [--settings experts sft_1.5b ...] [--folder DIR]

A stage runs by its own script and its scale's YAML, except for the number of steps, the length of a rollout and vLLM,
which is not used. A random policy answers with the maximum length, so a rollout costs as much as it can. Nothing is
saved. `experts` compares two ways to compute one layer of Qwen3-30B-A3B in NF4: all experts multiplied together, and a
loop over them. DIR holds the weights (61 GB for Qwen3-30B-A3B).
"""

import argparse
import functools
import importlib
import json
import runpy
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from benchmarks import moe_qlora as moe
from benchmarks.plan import WORDS, apart, planned, set_up
from data_prep import runs
from recipes import moe_qlora, training
from recipes.tokenizer import train_tokenizer
from recipes.tools import plan

import torch
import yaml
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, TrainerCallback

CONFIGS = runs.ROOT / "recipes/configs"
QUICK = {"logging_steps": 1, "doctor": False, "disable_tqdm": True, "save_strategy": "no"}
SFT = QUICK | {"max_steps": 3, "batch_size": 4, "per_device_train_batch_size": 1}
GRPO = QUICK | {
    "max_steps": 2,
    "prompts_per_step": 4,
    "generation_batch_size": 64,
    "max_completion_length": 512,
    "generation": "transformers",
    "reward_funcs": ["format_reward"],
}
EXPERTS = {"lora_r": 8, "lora_alpha": 16}
SETTINGS = {  # scale, stage, whether with the override for 80 GB, changes to the YAML
    "sft_1.5b": ("gpu-24gb", "cold_start_sft", False, SFT),
    "grpo_1.5b": ("gpu-24gb", "r1_zero", False, GRPO),
    "sft_7b": ("gpu-24gb", "cold_start_sft", True, SFT),
    "grpo_7b": ("gpu-24gb", "r1_zero", True, GRPO),
    "moe_sft_attention": ("moe-qlora", "cold_start_sft", False, SFT | {"lora_target_modules": ["attention"]}),
    "moe_sft_r8": ("moe-qlora", "cold_start_sft", False, SFT | EXPERTS),
    "moe_sft_r32": ("moe-qlora", "cold_start_sft", False, SFT),
    "moe_grpo_r8": ("moe-qlora", "r1_zero", False, GRPO | EXPERTS | {"max_completion_length": 128}),
}


def shape(name: str, **other: int) -> PreTrainedConfig:
    """The published config of a model, from the table in `recipes/tools/plan.py`."""
    values = yaml.safe_load(plan.MODELS.read_text(encoding="utf-8"))[name]["config"] | other
    return AutoConfig.for_model(values.pop("model_type"), **values)


def prepare(folder: Path, name: str) -> Path:
    """Write random weights, rows of the maximum length and the setting's YAML to `folder`, and return the YAML."""
    scale, stage, override, given = SETTINGS[name]
    settings = runs.load_config(CONFIGS / scale / f"{stage}.yaml")
    if override:
        settings |= runs.load_config(CONFIGS / scale / "overrides/80gb.yaml")[stage]
    settings = {key: value for key, value in (settings | given).items() if not key.startswith("vllm")}
    base = folder / settings["model_name_or_path"].replace("/", "_")
    if not base.exists():
        for old in folder.glob("*_*"):  # the disk has space for one only
            shutil.rmtree(old)
        write(base, shape(settings["model_name_or_path"]))
        train_tokenizer([" ".join(WORDS)], 4096).save_pretrained(base)
    wanted = settings["max_length"] if stage == "cold_start_sft" else settings["max_prompt_length"]
    return set_up(folder / f"{name}.stage", stage, base, wanted, settings)


def write(folder: Path, config: PreTrainedConfig) -> None:
    """Write a random checkpoint in bfloat16."""
    if config.model_type == "qwen3_moe":
        moe.write(folder, config)
        return
    with torch.device("cuda"):
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


class Clock(TrainerCallback):
    """Records the seconds of each step, and the bytes once the model is loaded."""

    def __init__(self):
        self.times, self.loaded = [], 0

    def on_train_begin(self, *args, **kwargs):
        self.loaded = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self.times.append(time.perf_counter())

    def on_step_end(self, *args, **kwargs):
        torch.cuda.synchronize()
        self.times.append(time.perf_counter())


def measure(script: str, path: str) -> dict:
    """Measure the stage in this process. In bytes: `loading`, the peak until training begins; `loaded`, the memory held
    at that time; `allocated`, the peak in training; `taken`, all GPU memory that the process takes."""
    sys.argv = [script, "--config", path]
    began, clock, real = time.perf_counter(), Clock(), training.callbacks
    loading = []

    def callbacks(*args, **kwargs):
        loading.append(torch.cuda.max_memory_allocated())
        return [*real(*args, **kwargs), clock]

    training.callbacks = callbacks
    training.save = lambda *args: None
    training.Run.finish = lambda run: None
    importlib.import_module(f"recipes.{Path(script).stem}")
    runpy.run_path(script, run_name="__main__")
    free, total = torch.cuda.mem_get_info()
    other = total - free - torch.cuda.memory_reserved()
    log = Path(runs.load_config(path)["output_dir"], "log.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "seconds_to_first_step": clock.times[0] - began,
        "step_seconds": [b - a for a, b in zip(clock.times, clock.times[1:], strict=False)],
        "loading": loading[0],
        "loaded": clock.loaded,
        "allocated": torch.cuda.max_memory_allocated(),
        "taken": torch.cuda.max_memory_reserved() + other,
        "log": json.loads(log[-1]),
    }


def compare(folder: Path, name: str) -> dict:
    """The measurement of one setting and its plan."""
    path = prepare(folder, name)
    stage, expected = planned(path, torch.cuda.get_device_properties(0).total_memory)
    return apart("benchmarks.gpu", path) | {"planned": expected.peak, "plan": str(expected), "tokens": stage.length}


# One layer of experts


def loop(experts, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The same sum, computed one expert after the other by each expert's own layers."""
    order = chosen.flatten().argsort(stable=True)
    tokens = order // chosen.shape[1]
    counts = torch.bincount(chosen.flatten(), minlength=len(experts)).tolist()
    parts, done = hidden[tokens].split(counts), []
    for expert, part in zip(experts, parts, strict=True):
        if len(part):
            gate, up, down = (getattr(expert, name) for name in expert.names)
            done.append(down(expert.apply_gate(torch.cat((gate(part), up(part)), dim=-1))))
    done = (torch.cat(done) * weights.flatten()[order, None]).to(hidden.dtype)
    return torch.zeros_like(hidden).index_add(0, tokens, done)


def one_layer(folder: Path) -> list[dict]:
    """The seconds of a layer by method, adapter, number of tokens and whether there is a backward pass."""
    config = shape("Qwen/Qwen3-30B-A3B-Base", num_hidden_layers=1)
    moe.write(folder / "layer", config)
    found = []
    for rank in (0, 8):
        model, _ = moe_qlora.load(AutoModelForCausalLM, str(folder / "layer"), SimpleNamespace(), torch.bfloat16)
        if rank:
            lora = LoraConfig(r=rank, lora_alpha=16, task_type="CAUSAL_LM")
            model = moe_qlora.adapt(model, lora, ["experts"]).get_base_model()
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data = torch.randn_like(parameter, dtype=torch.float32) * 0.02
        experts = model.model.layers[0].mlp.experts
        ways = {"together": experts, "loop": functools.partial(loop, experts)}
        for tokens, backward in ((16, False), (128, False), (4096, False), (4096, True)):
            torch.manual_seed(0)
            hidden = torch.randn(tokens, config.hidden_size, device="cuda", dtype=torch.bfloat16)
            hidden.requires_grad_(backward)
            scores = torch.randn(tokens, config.num_experts, device="cuda").softmax(-1)
            weights, chosen = scores.topk(config.num_experts_per_tok)
            outputs = {}
            for way, call in ways.items():
                times = []
                for _ in range(5):
                    torch.cuda.synchronize()
                    began = time.perf_counter()
                    with torch.set_grad_enabled(backward), torch.autocast("cuda", torch.bfloat16):
                        outputs[way] = call(hidden, chosen, weights)
                    if backward:
                        outputs[way].float().square().sum().backward()
                    torch.cuda.synchronize()
                    times.append(time.perf_counter() - began)
                row = {"rank": rank, "tokens": tokens, "backward": backward, "way": way}
                found.append(row | {"seconds": statistics.median(times[1:])})
            away = (outputs["together"] - outputs["loop"]).float().norm() / outputs["loop"].float().norm()
            found[-2]["relative_difference"] = away.item()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n\n")[0])
    parser.add_argument("--settings", nargs="+", default=["experts", *SETTINGS], choices=["experts", *SETTINGS])
    parser.add_argument("--folder", type=Path, help="for the weights, instead of a temporary one")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    if not torch.cuda.is_available():
        print("no GPU here: nothing is measured")
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as text:
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
        for name in arguments.settings:
            if name == "experts":
                for row in one_layer(Path(text)):
                    print(json.dumps(row), flush=True)
                continue
            try:
                row = compare(Path(text), name)
            except subprocess.CalledProcessError as error:  # continue with the other settings
                print(f"{name}: failed, exit status {error.returncode}", flush=True)
                continue
            print(f"{name}: {json.dumps(row)}", flush=True)


if __name__ == "__main__":
    main()
