"""How far `recipes/tools/needs.py` is from what a process takes, on a CPU.

    python -m benchmarks.plan [--settings sft_full sft_lora grpo_full]

For each setting, a random Qwen3 of 100 million parameters is trained for two steps by the stage's own script, in a
separate process, on rows of the maximum length. The benchmark prints the peak of anonymous memory beyond that of the
process after its imports, the plan's figure for the same YAML, and the plan's error.
"""

import argparse
import bisect
import contextlib
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.moe_qlora import Peak
from data_prep import prompts, rows, runs
from recipes import data, loading
from recipes.tokenizer import train_tokenizer
from recipes.tools import needs, plan
from recipes.tools.steps import load_steps

import torch
import yaml
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

LENGTH = 512  # tokens per row
WORDS = [f"w{number:04d}" for number in range(4000)]
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
    """Write a random Qwen3 and a tokenizer made from the texts to `folder`, and return the tokenizer."""
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
    loading.align(model, tokenizer)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return tokenizer


def fill(stage: str, tokenizer: PreTrainedTokenizerBase, wanted: int) -> list[rows.Row]:
    """Rows for a stage, each as near to `wanted` tokens as whole words allow. Only SFT rows have more than a prompt."""
    row = {"kind": "reasoning", "domain": "math", "language": "en", "verifier": "math", "thinking": True, "answer": "1"}
    row |= {"source": "benchmark", "license": "CC0"}
    found = []
    for number in range(16):
        words = [f" {word}" for word in (WORDS * 4)[number:]]

        def length(count: int, words=words) -> int:
            return data.count_tokens(as_counted(stage, "".join(words[:count])), tokenizer)

        text = "".join(words[: bisect.bisect_right(range(len(words) + 1), wanted - 2, key=length) - 1])
        question = text if stage != "cold_start_sft" else f"q{number}"
        said = {"completion": f"<think>{text}</think>"} if stage == "cold_start_sft" else {}
        found.append(row | {"id": str(number), "question": question, "prompt": question} | said)
    return found


def as_counted(stage: str, text: str) -> str | list[dict]:
    """The text in the form in which the stage's trainer counts its tokens."""
    if stage == "cold_start_sft":
        return data.as_messages("user", "q00") + data.as_messages("assistant", f"<think>{text}</think>")
    return prompts.r1_zero(text)


def set_up(folder: Path, stage: str, base: Path, wanted: int, settings: dict) -> Path:
    """Write a stage's YAML and the files that it names to `folder`, for an existing base, and return the YAML."""
    found = fill(stage, AutoTokenizer.from_pretrained(base), wanted)
    rows.write_rows(folder / "outputs/b/world/rows.parquet", found, sft=stage == "cold_start_sft")
    path = folder / "configs" / f"{stage}.yaml"
    path.parent.mkdir()
    given = {"output_dir": f"outputs/b/{stage}", "dataset": "outputs/b/world/rows.parquet"}
    path.write_text(yaml.safe_dump(settings | given | {"model_name_or_path": str(base)}), encoding="utf-8")
    for run in (base, folder / "outputs/b/world"):
        (run / "run.json").write_text(json.dumps({"id": "0"}), encoding="utf-8")
    for linked in ("recipes", "accelerate_configs"):
        (folder / linked).symlink_to(runs.ROOT / linked)
    return path


def planned(path: Path, gpu: float) -> tuple[needs.Stage, needs.Memory]:
    """The plan's view of a stage, and its planned memory on a GPU of `gpu` bytes, both from the YAML alone."""
    with contextlib.chdir(path.parents[1]):
        (stage,) = plan.stages(load_steps(path.parent))
    return stage, needs.memory(stage, gpu)


def apart(module: str, path: Path) -> Any:
    """The output of `python -m module --measure` for a stage, in a separate process."""
    script = str(runs.ROOT / "recipes" / f"{path.stem}.py")
    command = [sys.executable, "-m", module, "--measure", script, str(path)]
    search = os.pathsep.join([str(runs.ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": search, "MALLOC_ARENA_MAX": "1"}
    found = subprocess.run(command, cwd=path.parents[1], env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(found.stdout.splitlines()[-1])


def measure(script: str, path: str) -> int:
    """The bytes that the stage takes beyond those after its imports."""
    sys.argv = [script, "--config", path]
    importlib.import_module(f"recipes.{Path(script).stem}")
    torch.ones(8, 8) @ torch.ones(8, 8)  # the first product allocates buffers
    with Peak() as peak:
        runpy.run_path(script, run_name="__main__")
    return peak.bytes


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n\n")[0])
    parser.add_argument("--settings", nargs="+", default=["sft_full", "sft_lora", "grpo_full"], choices=SETTINGS)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    for name in arguments.settings:
        stage, settings = SETTINGS[name]
        with tempfile.TemporaryDirectory() as text:
            base = Path(text, "outputs/b/base")
            write_base(base, [" ".join(WORDS)], 4096, vocab_size=32768, hidden_size=640, layers=12)
            wanted = LENGTH if stage == "cold_start_sft" else GRPO["max_prompt_length"]
            path = set_up(Path(text), stage, base, wanted, settings)
            _, expected = planned(path, 0)
            measured = apart("benchmarks.plan", path)
            print(
                f"{name}: measured {measured / 1e9:.2f} GB, planned {expected.peak / 1e9:.2f} GB "
                f"({expected.peak / measured - 1:+.0%}): {expected}",
                flush=True,
            )


if __name__ == "__main__":
    main()
