"""Checks of the rows of a stage."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import rewards
from data_prep.prompts import R1_ZERO_PREFIX
from data_prep.rows import Row
from data_prep.sampling import positions
from recipes.checks.finding import CHECKED, MAX_UNPARSEABLE, Finding, logger, spread
from recipes.checks.reward_functions import is_ours
from rewards import gym
from rewards.accuracy import gold_of
from rewards.completion import ANSWER, THINK, prompt_text

import numpy as np
import trl
from transformers import PreTrainedTokenizerBase

MAX_TOO_LONG = 0.1  # share of rows that a limit leaves out; s1 (arXiv 2501.19393) lost accuracy when many were cut
NO_ANSWER = ("proof", "notfound", "not found", "none", "null", "nan", "n/a", "unknown", "?", "-")  # NuminaMath's too
GOLDS = 1000  # rows whose gold answers are checked


def of_lengths(lengths: Sequence[int], limit: int | None, key: str) -> Iterator[Finding]:
    """Logs a histogram of the rows' tokens, and reports too many rows over the limit."""
    lengths, edges = np.asarray(lengths), 2 ** np.arange(5, 40)
    counts = np.bincount(np.searchsorted(edges, lengths), minlength=len(edges))
    shown = ", ".join(f"up to {high}: {count}" for high, count in zip(edges, counts, strict=False) if count)
    over = 0.0 if limit is None or not len(lengths) else float((lengths > limit).mean())
    if lengths.any() and os.environ.get("RANK", "0") == "0":  # without a limit there are no counts
        logger.info("tokens a row: %s; %.1f%% over %s: %s", shown, 100 * over, key, limit)
    if over > MAX_TOO_LONG:
        write = f"Write {key}: {lengths.max()}" if key.isidentifier() else "Write a smaller max_completion_length"
        yield Finding(
            f"{over:.0%} of the rows are longer than {key}: {limit} (the longest has {lengths.max()} tokens). They are "
            f"left out, and the longest are usually the hardest. {write}, or take other rows.",
            stops=False,
        )


def _many(rows: list[Row], faults: Callable[[Row], str | None], advice: str, stops: bool = False) -> Iterator[Finding]:
    """A finding if more than MAX_UNPARSEABLE of the rows have the fault that `faults` names."""
    found = [(row, fault) for row in rows if (fault := faults(row))]
    if len(found) > MAX_UNPARSEABLE * len(rows):
        row, fault = found[0]
        example = f"row {row.get('id', row)!s:.60}: {fault}"
        yield Finding(f"{len(found)} of {len(rows)} rows have a fault. For example {example}. {advice}", stops)


def of_rollouts(rows: list[Row], config: Any) -> Iterator[Finding]:
    """Checks that the rows suffice for one rollout."""
    need = config.generation_batch_size // config.num_generations
    if len(rows) < need:
        yield Finding(
            f"There are {len(rows)} rows, and a rollout takes {need} (generation_batch_size / num_generations). TRL "
            "would train no step and end without an error. Write a smaller generation_batch_size."
        )


def of_questions(rows: list[Row], reward_funcs: list[Callable]) -> Iterator[Finding]:
    """Checks the rows of reinforcement learning: gold answers, prompts, and the rewards for each row."""
    reasoning = [row for row in rows if row.get("kind", "reasoning") == "reasoning"]
    reward_funcs = [getattr(one, "guards", one) for one in reward_funcs]
    own = not all(map(is_ours, reward_funcs))
    judged = own or any(isinstance(one, rewards.JudgeReward) for one in reward_funcs)

    def no_grader(row: Row) -> str | None:
        rule = row.get("verifier", "math")
        if rule == "gym" and not own and not any(isinstance(one, rewards.GymReward) for one in reward_funcs):
            return "only GymReward grades a row with the verifier 'gym'. Add GymReward to `reward_funcs`"
        if judged or rule in ("math", "choice", "code", "gym"):
            return None
        return f"no reward here grades a row with the verifier {rule!r}. Add JudgeReward or your own to `reward_funcs`"

    def no_gold(row: Row) -> str | None:
        rule, gold = row.get("verifier", "math"), next((row[key] for key in ("answer", "solution") if row.get(key)), "")
        if rule == "math" and gold.strip().lower() in NO_ANSWER:
            return f"its gold answer {gold!r} stands for no answer"
        if rule == "math" and len(gold_of(gold).split()) > 30:
            return "its gold answer is a whole solution without a boxed answer"
        if rule == "code":
            return None if gold or row.get("tests") else "it has no tests, and no output in `answer`"
        checked = rule in ("math", "choice", "gym") and not no_grader(row)
        return rewards.gold_error(gold, rule, row.get("entry")) if checked else None

    def no_question(row: Row) -> str | None:
        asked = prompt_text(row["prompt"]).replace(R1_ZERO_PREFIX, "", 1)
        found = [tag for tag in (*THINK, *ANSWER, R1_ZERO_PREFIX, "<|") if tag in asked]
        return f"its prompt holds {found[0]!r}" if found else None

    def no_reward(row: Row) -> str | None:
        kind = row.get("kind", "reasoning")
        known = own or kind == "reasoning" or kind in [getattr(one, "kind", None) for one in reward_funcs]
        return None if known else f"no reward is for rows of kind {kind!r}"

    advice = "Otherwise leave such rows out, which teach nothing."
    yield from _many(spread(reasoning, GOLDS), no_grader, advice, stops=True)
    advice = "Such a row teaches nothing. Write gold answers that rewards.gold_error accepts, or leave these rows out."
    yield from _many(spread(reasoning, GOLDS), no_gold, advice, stops=True)
    advice = "The stage puts questions into its own template, so that this markup would be there twice. "
    yield from _many(spread(rows, GOLDS), no_question, advice + "Write bare questions into the column `prompt`.")
    advice = "All completions of such a row get the same reward. Add a reward for the kind, such as HelpfulnessReward."
    yield from _many(spread(rows, GOLDS), no_reward, advice)
    golds = {str(row.get("answer") or row.get("solution")) for row in reasoning}
    asked, ids = ({str(row.get(key)) for row in rows} for key in ("prompt", "id"))
    for what, found, few in (("gold answers", golds, 1), ("prompts", asked, len(ids) // 2)):
        if len(ids) >= 20 and len(found) <= few:
            yield Finding(
                f"The {len(ids)} rows have {len(found)} different {what}, so that there is little to learn. Look at "
                "that column of the file.",
                stops=False,
            )


def of_completions(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    """Checks the rows of supervised fine-tuning."""
    few = spread(rows, GOLDS)

    def cut_off(row: Row) -> str | None:
        parts = rewards.parse(row["completion"])
        whole = parts.complete and parts.summary and (parts.reasoning or not row["thinking"])
        return None if whole else "its reasoning is missing, not closed, or nothing follows it"

    def marked(row: Row) -> str | None:
        found = [token for token in tokenizer.all_special_tokens if token in row["completion"] + row["prompt"]]
        return f"it holds {found[0]!r}" if found else None

    def wrong(row: Row) -> str | None:
        right = rewards.is_correct(row["completion"], row["answer"], row["verifier"], entry=row.get("entry"))
        return "its answer is not its gold answer" if right is False else None

    advice = "The model would learn to stop too early, or not to reason. Take complete traces; sampling may have cut "
    advice += "these off at its limit of tokens."
    yield from _many(few, cut_off, advice)
    advice = "The template adds such tokens, and a second one ends a turn within an answer. Remove them from the rows."
    yield from _many(few, marked, advice)
    rules = ("math", "choice", "gym") if gym.installed() else ("math", "choice")
    ruled = spread([row for row in few if row["verifier"] in rules], CHECKED)
    if sum(wrong(row) is not None for row in ruled) > 0.2 * len(ruled):
        advice = "Wrong answers are learnt like right ones. Check that each completion belongs to its prompt."
        yield from _many(ruled, wrong, advice)
    if len(rows) >= 20 and len({row["completion"] for row in few}) <= 0.01 * len(few) + 1:
        message = "The completions are all the same, so that nothing else is learnt. Look at the column `completion`."
        yield Finding(message, stops=False)


def of_trained(trainer: Any, args: Any) -> Iterator[Finding]:
    """Checks the data set of a trainer that samples nothing: lengths, tokens with a loss, pairs and labels."""
    if hasattr(args, "reward_funcs"):
        return
    data, tokenizer = trainer.train_dataset, trainer.processing_class
    rows, columns = spread(data, CHECKED), data.column_names
    tokens = max(max(row.get("seq_lengths") or [len(row.get("input_ids", ()))]) for row in rows)  # for a packed row
    if tokens > (room := positions(trainer.model.config) or math.inf):
        yield Finding(
            f"Rows of up to {tokens} tokens are too long for a model of {room} positions, which has never seen a token "
            f"beyond them. Write max_length: {room}, or max_position_embeddings: {tokens} for a model that is to learn "
            "them."
        )
    if isinstance(trainer, trl.SFTTrainer):
        text = trainer.args.packing and trainer.args.packing_strategy == "wrapped"  # plain text, no conversations
        ended = [tokenizer.eos_token_id in row["labels"] for row in rows]
        if not (any(ended) if text else all(ended)):
            yield Finding(
                f"{ended.count(False)} of {len(ended)} sequences have no loss on the end token, so that the model "
                "would never stop. Use a chat template that ends in this token, and rows that are not cut off."
            )
        if not trainer.args.packing and all(row["labels"][0] != -100 for row in rows):
            message = "The prompts are trained too, so that the model learns to ask. Write completion_only_loss: true."
            yield Finding(message, stops=False)
    elif "labels" in columns and len({str(label) for label in data["labels"]}) == 1:
        yield Finding("In these rows all labels are the same, so that the scorer learns one number. Write both labels.")
    elif "chosen_ids" in columns:
        same = [tokenizer.decode(row["chosen_ids"]) for row in rows if row["chosen_ids"] == row["rejected_ids"]]
        if len(same) > MAX_UNPARSEABLE * len(rows):
            yield Finding(
                f"In {len(same)} of {len(rows)} pairs both summaries are the same, such as {same[0]!r:.60}. These have "
                "no gradient. Write pairs of two different summaries."
            )
