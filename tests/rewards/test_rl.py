"""The rewards in one RL run: a policy of 30,000 parameters that answers at random learns to answer rightly."""

import json
import runpy
import sys

import pytest

QUESTIONS = {"What is A?": "3", "What is B?": "7"}
WORDS = ["<pad>", "<eos>", "<think>", "</think>", "<answer>", "</answer>", "so", "因", *QUESTIONS, *"0123456789"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A small Qwen3 that has seen completions in good and bad format, with answers at random."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    folder = str(tmp_path_factory.mktemp("policy"))
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    pattern = "|".join(word.replace("?", r"\?") for word in sorted(WORDS, key=len, reverse=True))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
    head_dim=16,
                         num_key_value_heads=2, intermediate_size=64, pad_token_id=0, eos_token_id=1)  # fmt: skip
    model = Qwen3ForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)

    def pick(*words):
        return words[torch.randint(len(words), (1,), generator=generator).item()]

    for _ in range(150):
        texts = [
            f"{pick(*QUESTIONS)}<think>{pick('so', '因')}{pick('</think><answer>', '</think><answer>', '<answer>')}"
            f"{pick(*'0123456789')}</answer><eos>"
            for _ in range(32)
        ]
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        labels = batch["input_ids"].masked_fill(batch["input_ids"] == 0, -100)
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_the_reward_of_a_run_rises(policy, tmp_path):
    from rewards import accuracy_reward, code_reward, format_reward, language_consistency_reward

    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    rows = [
        {
            "prompt": question,
            "question": question,
            "answer": answer,
            "language": "en",
            "kind": "reasoning",
            "verifier": "math",
        }
        for question, answer in QUESTIONS.items()
    ] * 8
    arguments = GRPOConfig(
        output_dir=str(tmp_path), max_steps=80, per_device_train_batch_size=32, num_generations=16, learning_rate=2e-3,
        max_completion_length=8, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
        logging_steps=1,
        save_strategy="no", beta=0.0, reward_weights=[1.0] * 4, seed=0, disable_tqdm=True,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=policy,
        args=arguments,
        processing_class=AutoTokenizer.from_pretrained(policy),
        train_dataset=Dataset.from_list(rows),
        reward_funcs=[accuracy_reward, format_reward, language_consistency_reward, code_reward],
    )
    trainer.train()
    logs = [log for log in trainer.state.log_history if "reward" in log]
    first, last = logs[:5], logs[-10:]
    for name, rise in (("accuracy", 0.3), ("format", 0.1), ("language_consistency", 0.1)):
        before, after = (sum(log[f"rewards/{name}_reward/mean"] for log in part) / 5 for part in (first, last))
        assert after > before + rise, (name, before, after)
    assert logs[0]["accuracy/gold_unusable"] == 0.0 and "language/no_words" in logs[0]


@pytest.mark.slow
def test_trl_s_command_line_takes_them_by_dotted_path(policy, tmp_path, monkeypatch, capsys):
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"prompt": question, "answer": answer, "language": "en"} for question, answer in QUESTIONS.items()] * 2
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = {
        "model_name_or_path": policy, "dataset_name": str(data), "output_dir": str(tmp_path / "out"), "max_steps": 1,
        "per_device_train_batch_size": 4, "num_generations": 4, "max_completion_length": 8, "use_cpu": True,
        "bf16": False, "gradient_checkpointing": False, "report_to": "none", "logging_steps": 1, "save_strategy": "no",
        "dtype": "float32",
    }  # fmt: skip
    command = ["grpo", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]
    command += ["--reward_funcs", "rewards.accuracy_reward", "rewards.format_reward"]
    command += ["rewards.language_consistency_reward", "rewards.length_reward"]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_module("trl.scripts.grpo", run_name="__main__", alter_sys=True)
    said = capsys.readouterr()
    for name in ("accuracy", "format", "language_consistency", "length"):
        assert f"rewards/{name}_reward/mean" in said.out + said.err
