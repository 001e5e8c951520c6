"""Checks of rewards on known completions, and the guard that names a failing reward."""

import asyncio
import functools
import inspect
import os
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import rewards
from data_prep import runs
from data_prep.rows import Row
from data_prep.runs import Stopped
from recipes.checks.finding import Finding, spread
from recipes.checks.template import decoded, opening
from rewards.accuracy import gold_of
from rewards.completion import ANSWER, THINK

import torch
from transformers import PreTrainedTokenizerBase, TrainerState
from trl.trainer.utils import is_async_callable

SOLVED = 24  # rows whose gold answers are tried as answers


def solved(row: Row, style: str) -> str:
    """A correct completion of the row in the stage's form."""
    gold = row.get("answer") or row.get("solution") or ""
    if row.get("verifier") == "code":
        answer = f"```python\nprint({gold!r})\n```"
    elif row.get("verifier") == "gym":
        answer = gold
    elif style == "r1_zero" or row.get("verifier") == "choice":
        answer = gold_of(gold)
    else:
        answer = f"\\boxed{{{gold_of(gold).strip('$')}}}"
    if row.get("thinking") is False:
        return answer
    tagged = f"{ANSWER[0]} {answer} {ANSWER[1]}" if style == "r1_zero" else answer
    return f"{THINK[0]}Let me work this out step by step.{THINK[1]}\n{tagged}"


class RewardError(Stopped):
    """A reward fails or does not return numbers. The message names it and the line of its code."""


def line_of(error: BaseException) -> str:
    """The innermost line of the user's own code in an error's traceback: "file:line: the line", or ""."""
    lines = traceback.extract_tb(error.__traceback__)
    ours = tuple(str(runs.ROOT / floor) + os.sep for floor in ("rewards", "data_prep", "recipes"))
    others = (*ours, *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")), "<")
    own = [one for one in lines if not one.filename.startswith(others)]
    own = own or [one for one in lines if one.filename != __file__]
    return f"{own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else ""


def guarded(name: str, reward: Callable) -> Callable:
    """The reward `name` as TRL calls it. Raises RewardError if it fails or does not return a finite number or None for
    each completion."""
    code = getattr(reward, "__code__", None) or getattr(type(reward).__call__, "__code__", None)
    place = f"{code.co_filename}:{code.co_firstlineno}" if code else "its call"

    def failed(error: Exception) -> RewardError:
        return RewardError(f"{name} fails at {line_of(error) or place}: {type(error).__name__}: {error}")

    def numbers(found: Any, count: int) -> list:
        where = f"{name} ({place})"
        wanted = "It has to return one finite number for each completion, or None where the row does not concern it"
        try:
            found = list(found)
            values = torch.tensor([0.0 if one is None else one for one in found], dtype=torch.float32)
        except (TypeError, ValueError, OverflowError):
            values = None
        if values is None or values.dim() != 1:
            raise RewardError(f"{where} returns {found!r:.60}, which is no list of numbers. {wanted}")
        if len(found) != count:
            raise RewardError(f"{where} returns {len(found)} values for {count} completions. {wanted}")
        if not values.isfinite().all():
            bad = found[(~values.isfinite()).nonzero()[0, 0]]
            raise RewardError(f"{where} returns {bad!r} for a completion, which is not a finite number. {wanted}")
        return found

    if is_async_callable(reward):

        async def call(completions: list, **columns: Any) -> list:
            try:
                found = await reward(completions=completions, **columns)
            except Exception as error:
                raise failed(error) from error
            return numbers(found, len(completions))
    else:

        def call(completions: list, **columns: Any) -> list:
            try:
                found = reward(completions=completions, **columns)
                found = list(found) if isinstance(found, Iterator) else found  # a generator fails when it is read
            except Exception as error:
                raise failed(error) from error
            return numbers(found, len(completions))

    functools.update_wrapper(call, reward)
    call.__name__ = getattr(reward, "__name__", name.rpartition(".")[2])
    call.guards = reward
    return call


def _scores(reward: Callable, rows: list[Row], texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list:
    plain = isinstance(rows[0]["prompt"], str)
    columns = {key: [row[key] for row in rows] for key in rows[0] if key not in ("prompt", "completion")}
    found = reward(
        prompts=[row["prompt"] for row in rows],
        completions=texts if plain else [[{"role": "assistant", "content": text}] for text in texts],
        completion_ids=[tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts],
        trainer_state=TrainerState(),
        log_extra=lambda *_: None,
        log_metric=lambda *_: None,
        **columns,
    )
    found = asyncio.run(found) if asyncio.iscoroutine(found) else found
    return [None if one is None else float(one) for one in found]


def is_ours(reward: Callable) -> bool:
    kind = reward if inspect.isfunction(reward) else type(reward)
    return kind.__module__.partition(".")[0] == "rewards"


def _known(rows: list[Row], tokenizer: PreTrainedTokenizerBase, style: str) -> tuple[list[Row], dict, bool]:
    """(some rows with a gold answer; correct, wrong and empty completions of them, by kind; whether their prompt opens
    the reasoning)."""
    usable = [row for row in rows if row.get("kind", "reasoning") == "reasoning"]
    usable = [row for row in usable if (row.get("answer") or row.get("solution")) and row.get("verifier") != "judge"]
    usable = [row for row in usable if row.get("verifier") != "code" or "\n[" not in f"\n{row['answer']}"]
    programs = [row for row in usable if row.get("verifier") == "code"]
    few = spread([row for row in usable if row.get("verifier") != "code"], SOLVED) + programs[:1]
    if not few:
        return [], {}, False
    opened = opening(tokenizer, few[0]["prompt"]).rstrip().endswith(THINK[0])
    right = [solved(row, style) for row in few]
    right = [decoded(tokenizer, text.removeprefix(THINK[0]) if opened else text) for text in right]
    wrong = []
    for row, text in zip(few, right, strict=True):
        golds = (one["answer"] for one in few if one.get("answer") not in (row.get("answer"), None))
        gold = gold_of(row.get("answer") or row["solution"]).strip("$")
        wrong.append(text.replace(gold, f"not {next(golds, '-123454321')}"))
    return few, {"right": right, "wrong": wrong, "empty": [""] * len(few)}, opened


def of_rewards(
    reward_funcs: list[Callable], rows: list[Row], tokenizer: PreTrainedTokenizerBase, args: Any, config: Any
) -> Iterator[Finding]:
    """Checks rewards on correct, wrong and empty completions, as the tokenizer decodes them. If no row has a gold
    answer, custom rewards are checked on empty completions."""
    few, kinds, opened = _known(rows, tokenizer, args.completion_style)
    any_row, total = spread(rows, SOLVED), dict.fromkeys(kinds, 0.0)
    weights = config.reward_weights or [1.0] * len(reward_funcs)
    answered = False  # a reward has given a number, or could not be asked
    for name, given, weight in zip(args.reward_funcs, reward_funcs, weights, strict=True):
        reward = getattr(given, "guards", given)
        if getattr(reward, "kind", None) in ("helpful", "harmless"):
            answered = True
            continue  # a model, which is not loaded for this check
        ask, ours = functools.partial(_scores, guarded(name, reward), tokenizer=tokenizer), is_ours(reward)
        try:
            found = {kind: ask(few, texts) for kind, texts in kinds.items()}
            others = [] if ours else ask(any_row, [""] * len(any_row))
        except RewardError as error:
            yield Finding(
                f"On known completions {error}. The first rollout would end the run. Write a reward that works with "
                f"the columns of the rows: {', '.join(any_row[0])}."
            )
            answered = True
            continue
        has_number = any(one is not None for scores in (*found.values(), others) for one in scores)
        answered |= has_number
        if not ours and not has_number:
            yield Finding(f"{name} returns None for every completion, so that it rewards nothing. Return numbers.")
        if not few:
            continue
        means = {kind: sum(filter(None, scores)) / len(few) for kind, scores in found.items()}
        total = {kind: total[kind] + weight * means[kind] for kind in total}
        shown = ", ".join(f"{kind} {mean:.2f}" for kind, mean in means.items())
        rule = isinstance(reward, rewards.AccuracyReward | rewards.CodeReward | rewards.GymReward)
        form = isinstance(reward, rewards.FormatReward)
        asked = [one for one in found["right"] if one is not None] if rule else found["right"]
        if (rule or form) and asked and (asked.count(1.0) < 0.9 * len(asked) or any(found["empty"])):
            hint = f" The prompt ends in {THINK[0]}, so write prefilled: true for rewards with a key `prefilled`."
            yield Finding(
                f"{name} on known completions gives {shown}, such as {asked[0]} for {kinds['right'][0]!r}. A correct "
                "completion has to get 1 and an empty one 0, or the policy cannot learn from this reward. Write "
                f"completion_style and reward_kwargs that fit the prompt.{hint if opened else ''}"
            )
        elif rule and any(found["wrong"]):
            partial = getattr(reward, "credit", None) == "library"  # GymReward's
            remedy = "credit: all, unless you want that" if partial else "gold answers that differ from each other"
            yield Finding(
                f"{name} rewards wrong answers: on known completions it gives {shown}. Write {remedy}.", not partial
            )
    if few and not answered:
        yield Finding(
            f"{', '.join(args.reward_funcs)}: no reward here concerns any of the rows, so that nothing is rewarded. "
            "Add a reward for the `verifier` of the rows."
        )
    if any(total.values()) and not total["right"] > max(total["wrong"], total["empty"]):
        shown = ", ".join(f"{kind} {value:.2f}" for kind, value in total.items())
        needed = "GymReward" if few[0].get("verifier") == "gym" else "accuracy_reward"
        yield Finding(
            f"The rewards together do not tell right from wrong: {shown}. The model would learn something else. Add "
            f"{needed}, unless you want that.",
            stops=False,
        )
