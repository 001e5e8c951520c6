"""Writes what the walk through the scale smol starts from: `python smol_model.py`, in the folder of the walk.

SmolLM2's shape in small, under its own id, and a few problems in the columns of GSM8K and MATH-500. A random model
solves nothing, so that all that follows would have no rows: this one is trained beforehand to answer in the forms that
the stages ask for, mostly with another question's answer.
"""

import json
import random
from pathlib import Path

from data_prep import gym, prompts, runs
from recipes.loading import CHAT_TEMPLATE, MARKUP
from rewards.completion import ANSWER, THINK

import reasoning_gym
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USER, ASSISTANT, *_ = MARKUP["<|im_end|>"]
STEPS, BATCH = 150, 16


def written(rng: random.Random, question: str, answer: str, examples: list[dict]) -> list[tuple[str, str]]:
    """(prompt, completion) in each form."""
    solution = f"So it is {answer}. The answer is {answer}."
    chat = f"{THINK[0]}So it is {answer}.{THINK[1]}\nThe answer is {answer}.<|im_end|>"
    tags = f" {THINK[0]} So it is {answer}. {THINK[1]} {ANSWER[0]} {answer} {ANSWER[1]}<|im_end|>"
    return [
        (prompts.few_shot(examples, question), f" {solution}\n\nProblem:"),
        (f"{USER}{question}{ASSISTANT}", chat),
        (prompts.r1_zero(question), tags),
    ]


def main() -> None:
    rng, here = random.Random(0), Path(__file__)
    torch.manual_seed(0)
    settings = runs.load_config(here.with_name("smol.yaml"))
    examples = settings["cold_start"]["examples"]["en"]
    asked: list[tuple[str, str]] = []
    for task in settings["gym"]["tasks"]:
        found = reasoning_gym.create_dataset(task["name"], seed=gym.APART * 9, size=400, **task["settings"])
        answers = [one["answer"] for one in found]
        asked += [(one["question"], rng.choice([one["answer"], *rng.sample(answers, 2)])) for one in found]
    word = [(f"Tom has {a} pens and gets {b} more. How many has he?", a, b) for a in range(2, 9) for b in range(2, 9)]
    rng.shuffle(word)
    asked += [(question, str(a + b)) for question, a, b in word[:20]] * 5
    records = [{"question": q, "answer": f"{a} + {b} = <<{a}+{b}={a + b}>>{a + b}\n#### {a + b}"} for q, a, b in word]
    maths = [{"problem": "Find $1 + 1$.", "solution": "It is $2$.", "answer": "2", "unique_id": "a/1"}]
    for name, lines in {"gsm8k_train": records[:24], "gsm8k_test": records[24:30], "math_500": maths}.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    texts = [pair for question, answer in asked for pair in written(rng, question, answer, examples)]
    rng.shuffle(texts)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(["".join(pair) for pair in texts], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=SPECIAL[2], pad_token=SPECIAL[0])
    template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    for ours, theirs in (("<|user|>", USER), ("<|assistant|>", ASSISTANT), ("<|end|>", SPECIAL[2])):
        template = template.replace(f"'{ours}'", f"'{theirs}'")
    tokenizer.chat_template = template
    sizes = {"hidden_size": 72, "intermediate_size": 192, "num_hidden_layers": 2, "vocab_size": len(tokenizer)}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, **ends, tie_word_embeddings=True))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for step in range(STEPS):
        batch = [texts[(step * BATCH + at) % len(texts)] for at in range(BATCH)]
        ids = [tokenizer(prompt)["input_ids"][-160:] for prompt, _ in batch]
        said = [tokenizer(completion)["input_ids"] for _, completion in batch]
        rows = [torch.tensor(a + b) for a, b in zip(ids, said, strict=True)]
        labels = [torch.tensor([-100] * len(a) + b) for a, b in zip(ids, said, strict=True)]
        padded, targets = pad_sequence(rows, True, 0), pad_sequence(labels, True, -100)
        model(padded, labels=targets).loss.backward()  # padding is on the right, where nothing looks at it
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(NAME)
    tokenizer.save_pretrained(NAME)


if __name__ == "__main__":
    main()
