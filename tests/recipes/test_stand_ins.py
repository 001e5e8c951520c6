"""Every distinct stage and method of the scales of real models, two steps, on a tiny model of the same architecture.

What a YAML says of learning, rewards, adapters and quantisation is taken as it stands. Only the keys of `HARDWARE` and
`inputs` differ: what a machine without a GPU cannot do, what would take long, and where models and rows come from.
"""

import json
from dataclasses import fields
from pathlib import Path

from data_prep import runs
from data_prep.rows import write_parquet
from recipes import training, trl_configs

import moe
import pytest
from conftest import CPU, log_of
from test_settings import CLASSES, REPOSITORY
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed

HARDWARE = CPU | {
    "dtype": "float32",  # bfloat16 is slow on a CPU
    "generation": "transformers",  # vLLM needs a GPU
    "max_steps": 2,
    "logging_steps": 1,
    "save_strategy": "no",
    "num_generations": 4,
    "prompts_per_step": 2,
    "generation_batch_size": 16,  # a rollout of two steps
    "batch_size": 4,
    "per_device_train_batch_size": 4,
    "max_prompt_length": 256,  # tokens, as what follows
    "max_completion_length": 8,
    "max_length": 256,
    "max_position_embeddings": 512,
}
# A model's own words for question, answer, end and padding, in place of those of the tests' tokenizer.
WORDS = {
    "qwen2": ("<|im_start|>", "<|im_sep|>", "<|im_end|>", "<|endoftext|>"),
    "qwen3_moe": ("<|im_start|>", "<|im_sep|>", "<|im_end|>", "<|endoftext|>"),
    "llama": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|finetune_right_pad_id|>"),
    "deepseek_v3": ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"),
}
DENSE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
DENSE |= {"num_key_value_heads": 1, "max_position_embeddings": 512, "tie_word_embeddings": True}
CASES = [
    ("gpu-24gb", "r1_zero", "qwen2"),  # LoRA
    ("gpu-24gb", "cold_start_sft", "qwen2"),
    ("gpu-24gb", "reward_models", "qwen2"),
    ("gpu-24gb", "all_scenarios_rl", "qwen2"),
    ("node-8x80gb", "reasoning_rl", "qwen2"),  # full weights
    ("node-8x80gb", "distill", "qwen2"),
    ("moe-qlora", "r1_zero", "qwen3_moe"),  # 4-bit experts
    ("moe-qlora", "sft_stage_2", "qwen3_moe"),
    ("deepseek-v3", "r1_zero", "deepseek_v3"),  # full weights, latent attention, rollouts of 16 steps
    ("deepseek-v3", "cold_start_sft", "deepseek_v3"),
    ("deepseek-v3", "reward_models", "deepseek_v3"),
    ("deepseek-v3", "distill_llama_8b", "llama"),
]


def stand_in(family: str) -> str:
    """A random checkpoint of the family, whose tokenizer has the family's own markup and ends a text, not an answer."""
    folder = Path("outputs/t") / family
    text = {
        p: Path("outputs/t/base", p).read_text(encoding="utf-8") for p in ("tokenizer.json", "tokenizer_config.json")
    }
    config = json.loads(text["tokenizer_config.json"])
    for ours, theirs in zip(("<|user|>", "<|assistant|>", training.END, training.PAD), WORDS[family], strict=True):
        text = {name: one.replace(ours, theirs) for name, one in text.items()}
    config = json.loads(text["tokenizer_config.json"]) | {"eos_token": WORDS[family][3]}
    size = len(AutoTokenizer.from_pretrained("outputs/t/base"))
    if family in moe.FAMILIES:
        moe.write(folder, family, vocab=size)
    else:
        set_seed(0)
        AutoModelForCausalLM.from_config(AutoConfig.for_model(family, vocab_size=size, **DENSE)).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(text["tokenizer.json"], encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    runs.finish(folder)
    return str(folder)


def inputs(stage: str, family: str) -> dict:
    """Where models and rows are, in place of Hub ids and of other runs."""
    pairs = [
        {"prompt": f"q{i}", "chosen": f"<think>a</think>\nyes {i}", "rejected": "<think>a</think>\nno"}
        for i in range(20)
    ]
    labels = [{"prompt": f"q{i}", "response": "<think>a</think>\nyes", "label": i % 2} for i in range(20)]
    write_parquet(Path("pairs.parquet"), pairs)
    write_parquet(Path("labels.parquet"), labels)
    if stage == "reward_models":
        rows = {"helpfulness_dataset": "pairs.parquet", "harmlessness_dataset": "labels.parquet"}
    else:
        sft = "sft" in stage or stage == "distill"
        rows = {"dataset": f"outputs/t/world/{'sft' if sft else 'reasoning'}.parquet"}
    if stage == "all_scenarios_rl":  # its reward models are another case
        rows["general_datasets"] = ["outputs/t/world/helpful.parquet", "outputs/t/world/harmless.parquet"]
        rows["reward_funcs"] = ["accuracy_reward", "format_reward", "language_consistency_reward"]
        rows["reward_kwargs"] = {}
    return rows | {"model_name_or_path": stand_in(family)}


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "name", "family"), CASES)
def test_two_steps_on_a_stand_in(scale, name, family, run_stage):
    stage = "distill" if name.startswith("distill") else name
    settings = runs.load_config(REPOSITORY / f"recipes/configs/{scale}/{name}.yaml")
    del settings["output_dir"]
    arguments, trainer = CLASSES[stage]
    known = {field.name for kind in (arguments, getattr(trl_configs, trainer.__name__)) for field in fields(kind)}
    hardware = {key: value for key, value in HARDWARE.items() if key in known}
    folder = run_stage(stage, settings | inputs(stage, family) | hardware)
    parts = [folder / "helpfulness", folder / "harmlessness"] if stage == "reward_models" else [folder]
    for part in parts:
        assert [row["step"] for row in log_of(part)] == [1, 2]
        assert (part / "adapter").is_dir() == bool(
            settings.get("use_peft", stage == "distill") or "load_in_4bit" in settings
        )
        tokenizer = AutoTokenizer.from_pretrained(part)
        if stage == "r1_zero":  # a base that is not taught to chat ends texts as it did
            assert tokenizer.eos_token == WORDS[family][3]
        else:
            assert (tokenizer.eos_token, tokenizer.pad_token) == WORDS[family][2:]
            said = training.as_messages("assistant", "<think>a</think> b")
            assert "<think>a</think> b" + WORDS[family][2] in tokenizer.apply_chat_template(said, tokenize=False)
