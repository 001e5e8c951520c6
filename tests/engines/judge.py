"""A model of a million parameters for a walk through gpu-24gb: its policy, and its judge, writer and rewriter.

A model that knows nothing gives no verdicts, and two steps of SFT teach no format, so that this one is trained
beforehand on what the toy world's oracle says, and on problems solved in both of our templates.
"""

import itertools
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from data_prep import prompts
from data_prep.world import general, oracle, problems

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

STEPS, BATCH = 160, 33
LEARNING_RATE = 2e-3
POSITIONS = 2048  # a verdict may be as long as the jobs ask for: 1,024 tokens after the prompt


def conversations() -> Iterator[tuple[str | list, str]]:
    """Prompts as the jobs and stages send them, with a completion each, without end."""
    rng = random.Random(0)
    solved = problems.problem_stream("judge", problems.KINDS, "test")
    kinds = [[one for one in general.REQUESTS if one.kind == kind] for kind in ("helpful", "harmless")]
    kinds[0] += [one for one in kinds[0] if one.topic != "lookalike"] * 2
    while True:
        one = next(solved)
        answer = f"print({one.expression.text})" if one.kind == "code" else one.answer
        thought = problems.write_reasoning(one.expression.steps, one.language, rng, 0.2, one.choices and answer)
        tagged = f" <think> {thought} </think> <answer> {answer} </answer>"
        yield prompts.r1_zero(one.question), tagged
        summary = problems.write_summary(answer, one.language)
        yield prompts.chat(one.question), f"<think>{thought}</think>\n{summary}"
        asked, other = (rng.choice(kind) for kind in kinds)
        thoughts = f"<think>{oracle.THOUGHTS[asked.language]}</think>\n"
        refusal, offer = general.REFUSALS[asked.language], general.OFFERS[asked.language]
        for question in (
            prompts.rewrite(one.question, tagged.strip(), one.language),
            prompts.preference(asked.question, asked.reply, refusal),
            prompts.preference(asked.question, refusal, asked.reply),
            prompts.score(asked.question, rng.choice([asked.reply, f"{asked.reply} {offer}"])),
            prompts.score(asked.question, refusal),
            prompts.task(asked.question),
            prompts.safety(other.question, rng.choice([other.reply, refusal])),
            other.question,
        ):
            yield prompts.chat(question), oracle.reply(question)
        if asked.thinking:
            yield prompts.chat(prompts.short_reasoning(asked.question, asked.language)), thoughts + asked.reply
        yield prompts.chat(asked.question), (thoughts if asked.thinking else "") + asked.reply


def train(base: Path, folder: Path) -> None:
    """Write the model to a folder. `base` is the toy world's, recipes/configs/cpu/base."""
    torch.manual_seed(0)
    oracle.ERROR_RATE = 0.0  # in this process: what is wrong now and then takes longer to learn
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, max_position_embeddings=POSITIONS)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 20, 1.0 - step / STEPS))
    said, end = conversations(), tokenizer.encode("<|end|>")
    for _ in range(STEPS):
        batch = []
        for prompt, completion in itertools.islice(said, BATCH):
            if not isinstance(prompt, str):
                prompt = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
            asked, answer = tokenizer.encode(prompt), tokenizer.encode(completion) + end
            batch.append((asked + answer, [-100] * len(asked) + answer))
        batch.sort(key=lambda row: len(row[0]))
        trained = sum(len(says) - says.count(-100) for _, says in batch)
        for at in range(0, BATCH, BATCH // 3):  # of like length, so that little is padded
            ids, labels = (
                torch.nn.utils.rnn.pad_sequence(
                    [torch.tensor(row[part]) for row in batch[at:][: BATCH // 3]], True, pad
                )
                for part, pad in ((0, 0), (1, -100))
            )
            model(input_ids=ids, labels=labels, num_items_in_batch=trained).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]))
