"""One hundred sums, a base model that has learned nothing, and a way to run a stage on them in this process."""

import importlib
import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import recipes
from data_prep import prompts, rows, runs
from recipes import loading
from recipes.commandline import launch
from recipes.tokenizer import train_tokenizer

import pytest
import torch
import yaml
from transformers import Qwen3Config, Qwen3ForCausalLM, set_seed

CPU = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "disable_tqdm": True,
}
CORPUS = CPU | {
    "dataset": "outputs/t/world/corpus.parquet",
    "vocab_size": 400,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "packing": True,
    "packing_strategy": "wrapped",
    "max_length": 32,
    "batch_size": 8,
    "per_device_train_batch_size": 8,
    "max_steps": 30,
    "learning_rate": 1e-2,
}
GRPO = CPU | {
    "model_name_or_path": "outputs/t/base",
    "dataset": "outputs/t/world/reasoning.parquet",
    "reward_funcs": ["probe.reward"],
    "learning_rate": 1e-3,
    "prompts_per_step": 2,
    "num_generations": 4,
    "generation_batch_size": 16,  # a rollout is two steps
    "per_device_train_batch_size": 8,
    "max_completion_length": 12,
    "max_steps": 8,
    "ref_model_sync_steps": 3,
    "beta": 0.1,
    "save_steps": 3,
}
SFT = CPU | {
    "model_name_or_path": "outputs/t/base",
    "dataset": "outputs/t/world/sft.parquet",
    "learning_rate": 1e-3,
    "batch_size": 8,
    "per_device_train_batch_size": 4,
    "max_length": 256,
    "logging_steps": 1,
    "save_steps": 3,
}
LORA = {"use_peft": True, "lora_r": 4, "lora_alpha": 8}
PROBE = '''
def reward(completions, **columns):
    """Something that differs within a group."""
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [float(sum(map(ord, text)) % 7) for text in texts]
'''


def sums(count: int) -> list[dict]:
    """Rows with their solutions, English and Chinese."""
    draw, found = random.Random(0), []
    for number in range(count):
        a, b, chinese = draw.randint(1, 9), draw.randint(1, 9), number % 2
        asked = f"{a} + {b} 等于多少？" if chinese else f"What is {a} + {b}?"
        solved = f"<think>先算 {a} + {b} = {a + b}</think>\n答案是{a + b}。"
        if not chinese:
            solved = f"<think>First {a} + {b} = {a + b}</think>\nThe answer is {a + b}."
        row = {"id": str(number), "question": asked, "prompt": asked, "answer": str(a + b), "kind": "reasoning"}
        row |= {"domain": "math", "language": "zh" if chinese else "en", "verifier": "math", "thinking": True}
        found.append(row | {"source": "test", "license": "CC0", "completion": solved})
    return found


def general(kind: str, count: int) -> list[dict]:
    changes = {"kind": kind, "domain": "general", "verifier": "none", "answer": "", "thinking": False}
    asked = [{"id": f"{kind}{i}", "prompt": f"{kind} {i}", "question": f"{kind} {i}"} for i in range(count)]
    return [row | changes | new for row, new in zip(sums(count), asked, strict=True)]


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A folder with `outputs/t/world` and `outputs/t/base`."""
    root = tmp_path_factory.mktemp("made")
    world, model_dir = root / "outputs/t/world", root / "outputs/t/base"
    solved = sums(100)
    questions = [{key: value for key, value in row.items() if key != "completion"} for row in solved]
    rows.write_rows(world / "reasoning.parquet", questions)
    rows.write_rows(world / "few.parquet", questions[:12])
    rows.write_rows(world / "sft.parquet", solved, sft=True)
    for kind in ("helpful", "harmless"):
        asked = [{key: value for key, value in row.items() if key != "completion"} for row in general(kind, 20)]
        rows.write_rows(world / f"{kind}.parquet", asked)
    texts = [prompts.r1_zero(row["question"]) + " " + row["completion"] for row in solved]
    rows.write_parquet(world / "corpus.parquet", [{"text": text} for text in texts])
    tokenizer = train_tokenizer(texts, 400)
    set_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True}
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=len(tokenizer), max_position_embeddings=512, **sizes, **heads))
    loading.align(model, tokenizer)
    model.save_pretrained(model_dir)
    tokenizer.save_pretrained(model_dir)
    for folder in (world, model_dir):
        runs.finish(folder)
    return root


@pytest.fixture
def here(made, tmp_path, monkeypatch) -> Path:
    """A fresh working directory over the same world and base."""
    shutil.copytree(made / "outputs", tmp_path / "outputs")
    (tmp_path / "probe.py").write_text(PROBE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def run_stage(here, monkeypatch) -> Callable[..., Path]:
    """Runs a stage's script as its command does, but in this process; returns its folder."""

    def run(script: str, settings: dict, *argv: str, name: str = "run") -> Path:
        torch.set_num_threads(1)
        folder = Path("outputs/t") / name
        config = here / f"{name}.yaml"
        config.write_text(yaml.safe_dump({"output_dir": str(folder)} | settings), encoding="utf-8")
        path = Path(recipes.__file__).with_name(f"{script}.py")
        monkeypatch.setattr(sys, "argv", [str(path), "--config", str(config), *argv])
        try:
            stage = importlib.import_module(f"recipes.{script}")
            launch(stage.main, *stage.SETTINGS)
        finally:
            torch.set_float32_matmul_precision("highest")  # the base stage lowers it, for its process
        return folder

    return run


@pytest.fixture
def refuses(run_stage, capsys) -> Callable[..., str]:
    """Runs a stage that must end before any work; returns what it says."""

    def run(script: str, settings: dict, *argv: str, name: str = "run") -> str:
        with pytest.raises(SystemExit) as ended:
            run_stage(script, settings, *argv, name=name)
        assert ended.value.code == 2
        assert not list(Path("outputs/t", name).glob("*.safetensors"))
        return capsys.readouterr().err

    return run


def log_of(folder: Path) -> list[dict]:
    """The rows of log.jsonl without what depends on the clock."""
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key != "step_time"} for row in found]


def record_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))
