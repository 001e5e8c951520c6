"""How far `recipes/tools/plan.py` is from what a process takes, on a CPU.

    python -m benchmarks.plan [--settings sft_full sft_lora grpo_full]

For each setting a random Qwen3 of 100 million parameters is trained for two steps by the stage's own script, in a
process of its own, on rows that are as long as they may be. Printed: the peak of anonymous memory beyond what the
process had with everything imported, the plan's figure for the same YAML, and how far that is off.
"""

import argparse
import contextlib
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.pop(0)  # the folder of this file, where others are called as our packages are
sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.moe_qlora import Peak
from data_prep import rows
from recipes import training
from recipes.tokenizer import train_tokenizer
from recipes.tools import plan
from recipes.tools.steps import load_steps

import torch
import yaml
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

LENGTH = 512  # tokens of a row
CPU = {"use_cpu": True, "bf16": False, "dataloader_pin_memory": False, "disable_tqdm": True, "save_strategy": "no"}
SFT = CPU | {
    "max_length": LENGTH,
    "batch_size": 2,
    "per_device_train_batch_size": 2,
    "max_steps": 2,
    "logging_steps": 1,
}
GRPO = CPU | {
    "prompts_per_step": 1,
    "num_generations": 4,
    "generation_batch_size": 4,
    "per_device_train_batch_size": 4,
    "max_prompt_length": 128,
    "max_completion_length": 256,
    "max_steps": 2,
    "reward_funcs": ["format_reward"],
}
LORA = {"use_peft": True, "lora_r": 32}
SETTINGS = {
    "sft_full": ("cold_start_sft", SFT | {"gradient_checkpointing": True}),
    "sft_lora": ("cold_start_sft", SFT | LORA | {"gradient_checkpointing": False}),
    "grpo_full": ("r1_zero", GRPO | {"gradient_checkpointing": True}),
    "grpo_lora": ("r1_zero", GRPO | LORA | {"gradient_checkpointing": True}),
}


def write_base(
    folder: Path, texts: list[str], tokens: int, vocab_size: int, hidden_size: int, layers: int
) -> PreTrainedTokenizerBase:
    """A random Qwen3 and a tokenizer made from the texts, in `folder` -> the tokenizer."""
    tokenizer = train_tokenizer(texts, tokens)
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=4 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 64,
        num_key_value_heads=hidden_size // 128,
        head_dim=64,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config)
    training.align(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def prepare(folder: Path, name: str) -> Path:
    """A model, rows and the setting's YAML in `folder` -> the YAML."""
    stage, settings = SETTINGS[name]
    words = " ".join(f"w{number:04d}" for number in range(4000))
    tokenizer = write_base(folder / "outputs/b/base", [words], 4096, vocab_size=32768, hidden_size=640, layers=12)
    row = {"kind": "reasoning", "domain": "math", "language": "en", "verifier": "math", "thinking": True, "answer": "1"}
    row |= {"source": "benchmark", "license": "CC0"}
    piece, wanted = words.split(), LENGTH if stage == "cold_start_sft" else GRPO["max_prompt_length"]
    found = []
    for number in range(16):
        text = ""
        for word in piece[number:]:  # as long as fits
            longer = f"{text} {word}"
            asked = plan_prompt(stage, longer)
            if training.count_tokens(asked, tokenizer) > wanted - 2:
                break
            text = longer
        question = text if stage != "cold_start_sft" else f"q{number}"
        said = {"completion": f"<think>{text}</think>"} if stage == "cold_start_sft" else {}
        found.append(row | {"id": str(number), "question": question, "prompt": question} | said)
    rows.write_rows(folder / "outputs/b/world/rows.parquet", found, sft=stage == "cold_start_sft")
    path = folder / "configs" / f"{stage}.yaml"
    path.parent.mkdir()
    given = {"output_dir": f"outputs/b/{stage}", "model_name_or_path": "outputs/b/base"}
    path.write_text(yaml.safe_dump(given | {"dataset": "outputs/b/world/rows.parquet"} | settings), encoding="utf-8")
    for run in ("base", "world"):
        (folder / f"outputs/b/{run}/run.json").write_text(json.dumps({"fingerprint": "0"}), encoding="utf-8")
    return path


def plan_prompt(stage: str, text: str) -> str | list[dict]:
    """The text as the stage's trainer will count it."""
    if stage == "cold_start_sft":
        return training.as_messages("user", "q00") + training.as_messages("assistant", f"<think>{text}</think>")
    from data_prep import prompts

    return prompts.r1_zero(text)


def measure(script: str, path: str) -> int:
    """Bytes that the stage takes beyond what is imported."""
    sys.argv = [script, "--config", path]
    importlib.import_module(f"recipes.{Path(script).stem}")
    torch.ones(8, 8) @ torch.ones(8, 8)  # what a first product allocates
    with Peak() as peak:
        runpy.run_path(script, run_name="__main__")
    return peak.bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--settings", nargs="+", default=["sft_full", "sft_lora", "grpo_full"], choices=SETTINGS)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    root = plan.runs.ROOT
    for name in arguments.settings:
        with tempfile.TemporaryDirectory() as text:
            folder = Path(text)
            path = prepare(folder, name)
            (folder / "recipes").symlink_to(root / "recipes")
            (folder / "accelerate_configs").symlink_to(root / "accelerate_configs")
            with contextlib.chdir(folder):
                (stage,) = plan.stages(load_steps(path.parent))
            expected = plan.memory(stage, 0)
            script = str(root / "recipes" / f"{path.stem}.py")
            command = [sys.executable, "-m", "benchmarks.plan", "--measure", script, str(path)]
            environment = {**os.environ, "PYTHONPATH": str(root), "MALLOC_ARENA_MAX": "1"}
            found = subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            measured = int(found.stdout.splitlines()[-1])
            print(
                f"{name}: measured {measured / 1e9:.2f} GB, planned {expected.peak / 1e9:.2f} GB "
                f"({expected.peak / measured - 1:+.0%}): {expected}",
                flush=True,
            )


if __name__ == "__main__":
    main()
