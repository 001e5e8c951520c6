"""Every distinct stage and method of the scales of real models, two steps, on a tiny model of the same architecture.

What a YAML says of learning, rewards, adapters and quantisation is taken as it stands. Only the keys of `HARDWARE` and
`inputs` differ: what a machine without a GPU cannot do, what would take long, and where models and rows come from.
"""

import json
from dataclasses import fields
from pathlib import Path

from data_prep import runs
from data_prep.rows import write_parquet
from recipes import data, loading, trl_configs

import moe
import pytest
import torch
from conftest import CPU, LORA, SFT, log_of, sums
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


def stand_in(family: str, name: str = "", **shape) -> str:
    """A random checkpoint of the family, whose tokenizer has the family's own markup and ends a text, not an answer.
    One of another `shape` has a `name` of its own."""
    folder = Path("outputs/t") / (name or family)
    text = {
        p: Path("outputs/t/base", p).read_text(encoding="utf-8") for p in ("tokenizer.json", "tokenizer_config.json")
    }
    config = json.loads(text["tokenizer_config.json"])
    for ours, theirs in zip(("<|user|>", "<|assistant|>", loading.END, loading.PAD), WORDS[family], strict=True):
        text = {name: one.replace(ours, theirs) for name, one in text.items()}
    config = json.loads(text["tokenizer_config.json"]) | {"eos_token": WORDS[family][3]}
    size = len(AutoTokenizer.from_pretrained("outputs/t/base"))
    if family in moe.FAMILIES:
        moe.write(folder, family, vocab=size, **shape)
    else:
        set_seed(0)
        AutoModelForCausalLM.from_config(
            AutoConfig.for_model(family, vocab_size=size, **DENSE | shape)
        ).save_pretrained(folder)
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
            # The end of the markup, or under an adapter that of the base's texts, and of what is left the padding.
            end, pad = WORDS[family][:1:-1] if (part / "adapter").is_dir() else WORDS[family][2:]
            assert (tokenizer.eos_token, tokenizer.pad_token) == (end, pad)
            said = data.as_messages("assistant", "<think>a</think> b")
            assert "<think>a</think> b" + end in tokenizer.apply_chat_template(said, tokenize=False)


END_TEXT, END_TURN = WORDS["qwen2"][3], WORDS["qwen2"][2]


def reserve(folder: Path, count: int = 16) -> str:
    """Make the token of the markup that ends an answer one that no training has seen, as `count` others."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    unused = [tokenizer.convert_tokens_to_ids(END_TURN), *range(100, 100 + count)]
    with torch.no_grad():
        weight = model.get_input_embeddings().weight  # the head is tied to it
        weight[unused] = weight[unused[0]].clone()
    model.save_pretrained(folder)
    return str(folder)


def chance_of_the_end(folder: Path, rows: list[dict]) -> float:
    """The mean probability of the end token where an answer ends."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    found = []
    for row in rows:
        turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["completion"]}]
        text = tokenizer.apply_chat_template(turns, tokenize=False).rstrip()
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        assert ids[0, -1] == tokenizer.eos_token_id
        with torch.no_grad():
            found.append(model(ids).logits[0, -2].softmax(-1)[tokenizer.eos_token_id].item())
    return sum(found) / len(found)


def test_an_adapter_ends_answers_with_a_token_that_its_base_knows(run_stage, refuses, monkeypatch):
    full = SFT | {"model_name_or_path": stand_in("qwen2"), "learning_rate": 1e-2, "max_steps": 60}
    real = loading.load_tokenizer
    with monkeypatch.context() as patch:  # texts that end, as those of pre-training do
        patch.setattr(loading, "load_tokenizer", lambda name, *_, **__: real(name, frozen=True))
        base = reserve(run_stage("cold_start_sft", full, name="base_of_texts"))
    patched = AutoTokenizer.from_pretrained(base)
    patched.chat_template = None  # a base has none
    patched.save_pretrained(base)
    (Path(base) / "chat_template.jinja").unlink(missing_ok=True)
    settings = SFT | LORA | {"model_name_or_path": base, "learning_rate": 1e-3, "max_steps": 40}
    known = run_stage("cold_start_sft", settings, name="known")
    assert AutoTokenizer.from_pretrained(known).eos_token == END_TEXT
    assert chance_of_the_end(known, sums(20)) > 0.5
    # A stage that trains all weights goes on with the end that the model has learnt.
    later = real(str(known))
    assert (later.eos_token, later.chat_template) == (END_TEXT, AutoTokenizer.from_pretrained(known).chat_template)
    assert later.pad_token != END_TEXT
    # What it is instead of: the end of the markup, whose chance all tokens with its embedding share.
    with monkeypatch.context() as patch:
        patch.setattr(loading, "load_tokenizer", lambda name, *_, **__: real(name))
        assert f"The end token {END_TURN!r} has the same embedding as 16 other tokens" in refuses(
            "cold_start_sft", settings
        )
        markup = run_stage("cold_start_sft", settings | {"doctor": False}, name="markup")
    assert AutoTokenizer.from_pretrained(markup).eos_token == END_TURN
    assert chance_of_the_end(markup, sums(20)) < 1 / 16
