"""What can be wrong with a stage before it trains: settings, tokenizer, rows, rewards, weights.

`recipes.training` asks where each is loaded; `python -m recipes.tools.doctor` asks for all stages of a scale at once. A
`Finding` says what is wrong, why it matters and what to write; one that would waste the run for certain stops it.
"""

import asyncio
import functools
import importlib.metadata
import inspect
import json
import logging
import math
import os
import re
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rewards
from data_prep import runs
from data_prep.prompts import R1_ZERO_PREFIX
from data_prep.rows import Row
from data_prep.runs import ConfigError, Stopped
from data_prep.sampling import positions
from recipes import qlora_proof, sharded
from recipes.muon import product_dtype
from rewards import gym
from rewards.accuracy import gold_of
from rewards.completion import ANSWER, THINK, prompt_text

import numpy as np
import torch
import trl
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainerState
from trl.trainer.utils import is_async_callable

logger = logging.getLogger(__name__)
MAX_UNPARSEABLE = 0.01  # share of golds, the figure; other faults of rows are told from the same share on
MAX_TOO_LONG = 0.1  # share of rows left out by a limit; s1 (arXiv 2501.19393) lost accuracy where many were cut
ALIKE, FEW_ALIKE = 0.01, 4  # chosen: embeddings closer than that share of their norm are one; so many may be by chance
NO_ANSWER = ("proof", "notfound", "not found", "none", "null", "nan", "n/a", "unknown", "?", "-")  # NuminaMath's too
GOLDS, SOLVED, CHECKED = 1000, 24, 64  # rows looked at: of golds, of golds as their own answers, of completions
STEPS_ERRORS = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class Finding:
    """One that `stops` wastes the run for certain; another may be meant so."""

    wrong: str
    why: str
    write: str
    stops: bool = True

    def __str__(self) -> str:
        return f"{self.wrong}. It matters because {self.why}. Write {self.write}."


NO_GPU = Finding("no GPU is visible", "it would all run on the CPU", "use_cpu: true, or train on a GPU", stops=False)


def tell(found: Iterator[Finding]) -> None:
    """Log what is only a warning. Raises ConfigError with all the others."""
    findings = list(found)
    for finding in findings:
        if not finding.stops and os.environ.get("RANK", "0") == "0":
            logger.warning("doctor: %s", finding)
    if stops := [str(finding) for finding in findings if finding.stops]:
        raise ConfigError("\n".join([*stops, "(The key doctor: false leaves this check out.)"]))


def spread(rows: Any, count: int) -> list:
    """Up to `count` of the rows, evenly spaced."""
    step = max(1, math.ceil(len(rows) / count))
    return [rows[index] for index in range(0, len(rows), step)]


# What the settings say


def versions() -> Iterator[Finding]:
    """The pins of requirements.txt against what is installed."""
    lock, other = runs.ROOT / "requirements.txt", []
    for line in lock.read_text(encoding="utf-8").splitlines() if lock.is_file() else []:
        name, pinned, version = line.split("#")[0].strip().partition("==")
        try:
            here = importlib.metadata.version(name) if pinned else version
        except importlib.metadata.PackageNotFoundError:
            here = "missing"
        if here.partition("+")[0] != version:
            other.append(f"{name} {here} for {version}")
    if other:
        text = f"versions are not those of requirements.txt: {', '.join(other)}"
        yield Finding(text, "nothing here was run with these", "pip install -r requirements.txt", stops=False)


def launched(path: Path) -> dict[str, str]:
    """What `accelerate launch` puts into the environment for a config of its own, as far as anybody here reads it."""
    config = runs.load_config(path)
    deepspeed = config.get("deepspeed_config") or {}
    return {
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(deepspeed.get("zero_stage", 0)),
        "ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES": deepspeed.get("deepspeed_moe_layer_cls_names") or "",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": deepspeed.get("deepspeed_config_file") or "",
        "ACCELERATE_USE_FSDP": str(config.get("distributed_type") == "FSDP"),
        "FSDP_VERSION": str((config.get("fsdp_config") or {}).get("fsdp_version", 1)),
    }


def of_sharding(args: Any, shape: Any, environment: Mapping[str, str]) -> Iterator[Finding]:
    """How the weights are spread over processes; `shape` is the model's config, None where it is not known."""
    file = environment.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    zero = json.loads(Path(file).read_text(encoding="utf-8")).get("zero_optimization", {}) if file else {}
    zero3 = "3" in (environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE"), str(zero.get("stage")))
    fsdp = environment.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    leaves = environment.get("ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES") or zero.get("leaf_module")
    if sharded.is_fsdp_1(environment):
        yield Finding("FSDP 1", sharded.FSDP_1, "fsdp_version: 2, in the accelerate config")
    if getattr(args, "load_in_4bit", False) and (zero3 or fsdp):
        yield Finding("load_in_4bit with ZeRO-3 or FSDP", qlora_proof.NOT_SHARDED, "a config of DDP or ZeRO-2")
    elif shape is not None and zero3 and not leaves and qlora_proof.expert_counts(shape):
        text = f"ZeRO-3 with a mixture of experts ({shape.model_type}) and no leaf modules"
        why = "processes wait for ever for each other where their tokens chose other experts"
        yield Finding(text, why, "deepspeed_moe_layer_cls_names: <class of its MoE block>, in the accelerate config")
    any_zero = str(zero.get("stage", environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "0"))) != "0"
    if not (any_zero or fsdp) and args.dtype == "bfloat16" and not getattr(args, "use_peft", False):
        why = "most updates of the paper's rates are smaller than bfloat16 can add to a weight"
        yield Finding("dtype: bfloat16 with all weights trained", why, "dtype: float32, and bf16: true", stops=False)


def of_settings(args: Any, config: Any) -> Iterator[Finding]:
    """Values that parse and cannot teach anything."""
    if not config.use_cpu and not torch.cuda.is_available():
        yield NO_GPU
    if config.use_cpu and config.bf16 and product_dtype(torch.device("cpu")) != torch.bfloat16:
        why = "each takes tens of times as long"
        yield Finding("bf16 on a CPU without products in bfloat16", why, "bf16: false", stops=False)
    if not 0 < config.learning_rate < 1:
        yield Finding(f"learning_rate: {config.learning_rate}", "nothing is learnt, or all lost", "the paper's: no key")
    if config.max_steps <= 0 and config.num_train_epochs <= 0:
        yield Finding("max_steps and num_train_epochs are 0", "no step is trained", "a positive number")
    if getattr(config, "packing", False) and config.packing_strategy == "wrapped" and hasattr(args, "use_peft"):
        why = "it cuts conversations anywhere and lets one look into the next"
        yield Finding("packing_strategy: wrapped for conversations", why, "packing_strategy: bfd")
    if hasattr(args, "reward_funcs"):
        yield from _of_rl_settings(args, config)


def _of_rl_settings(args: Any, config: Any) -> Iterator[Finding]:
    weights, number = config.reward_weights, len(args.reward_funcs)
    if not number or (weights and (len(weights) != number or not any(weights) or not all(map(math.isfinite, weights)))):
        text = f"reward_weights: {weights} for reward_funcs: {args.reward_funcs}"
        yield Finding(text, "without one weight a reward, not all 0, nothing is rewarded", "as many, or none")
    if config.temperature < 0.1 or config.top_k == 1 or not 0.1 < config.top_p <= 1:
        text = f"temperature: {config.temperature}, top_k: {config.top_k}, top_p: {config.top_p}"
        yield Finding(text, "the completions of a group come out alike, with no advantage left", "temperature: 1.0")
    if config.use_transformers_continuous_batching and config.bf16:
        why = "TRL casts the weights to bfloat16 for good, where small updates are rounded away"
        yield Finding("use_transformers_continuous_batching with bf16", why, "false for either")
    for name, kwargs in (args.reward_kwargs or {}).items():
        folder = Path(str(kwargs.get("model", "")))
        if (folder / "config.json").is_file():
            kind = AutoConfig.from_pretrained(folder)
            if kind.num_labels != 1 or not any("SequenceClass" in one for one in kind.architectures or []):
                text = f"reward_kwargs: {name}: {folder} is no reward model ({kind.architectures})"
                yield Finding(text, "its head would be new, its scores random", "a folder of recipes/reward_models.py")


# What the model has room for


def limit(run: Any, most: int | None, key: str) -> tuple[int | None, str]:
    """(tokens that a row may have, None for any; what says so): the smallest of `most`, which `key` sets, of the
    model's positions, and of what vLLM is told; of reinforcement learning, what these leave beside a completion."""
    shape = shape_of(getattr(run.args, "model_name_or_path", None))
    room, found = _room(run.args, shape), {key: most}
    if room and hasattr(run.args, "reward_funcs"):
        completion, engine = run.config.max_completion_length or 0, run.config.vllm_max_model_length
        found["max_position_embeddings - max_completion_length"] = room - completion
        if run.config.use_vllm and engine:
            found["vllm_max_model_length - max_completion_length"] = engine - completion
    elif room:
        found["max_position_embeddings"] = room
    return min(((value, name) for name, value in found.items() if value is not None), default=(None, key))


def _room(args: Any, shape: Any) -> int | None:
    """Tokens that a stage's model takes: its key `max_position_embeddings`, or what the checkpoint's config says."""
    return getattr(args, "max_position_embeddings", None) or (shape and positions(shape))


def of_room(args: Any, config: Any, shape: Any) -> Iterator[Finding]:
    """Prompts and completions of reinforcement learning against what the model takes."""
    room = _room(args, shape)
    if not room or not hasattr(args, "reward_funcs"):
        return
    prompt, completion = args.max_prompt_length or 1, config.max_completion_length or 0
    if prompt + completion > room:
        asked = f"max_prompt_length: {prompt} and " if args.max_prompt_length else ""
        text = f"{asked}max_completion_length: {completion} for a model of {room} positions"
        write = f"shorter ones, or max_position_embeddings: {prompt + completion} for a model that is to learn them"
        yield Finding(text, "it has never seen one beyond, and memory grows with the square of the length", write)
    if config.use_vllm and (config.vllm_max_model_length or 0) > room:
        text = f"vllm_max_model_length: {config.vllm_max_model_length} for a model of {room} positions"
        yield Finding(text, "vLLM would refuse it once the weights are loaded", f"vllm_max_model_length: {room}")


# What the tokenizer and its template do


def faithful(tokenizer: PreTrainedTokenizerBase, messages: list[dict], name: Any = "") -> str:
    """A conversation in the chat template. Raises ConfigError where its last message is not in there as it is."""
    text, said = tokenizer.apply_chat_template(messages, tokenize=False), messages[-1]["content"]
    if said not in text:  # DeepSeek's and Qwen's templates drop reasoning
        raise ConfigError(
            f"{name or tokenizer.name_or_path}: its chat template changes completions, so that they would not be "
            f"trained as they are: {said[:60]!r} became {text[-60:]!r}. Give it a template that leaves them alone."
        )
    return text


def _turns(*contents: str) -> list[dict]:
    return [{"role": role, "content": one} for role, one in zip(("user", "assistant"), contents, strict=False)]


def opening(tokenizer: PreTrainedTokenizerBase, prompt: Any) -> str:
    """The text that a policy goes on from."""
    if isinstance(prompt, str):
        return prompt
    return tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)


def decoded(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A completion as rewards get to see it."""
    return tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"], skip_special_tokens=True)


def of_tokenizer(tokenizer: PreTrainedTokenizerBase, args: Any) -> Iterator[Finding]:
    """What is trained and sampled ends, is padded, and keeps its tags."""
    end, pad, samples = tokenizer.eos_token, tokenizer.pad_token, hasattr(args, "reward_funcs")
    if None in (end, pad) or tokenizer.pad_token_id == tokenizer.eos_token_id:
        text = f"{tokenizer.name_or_path}: the pad token is {pad!r} and the end token {end!r}"
        why = "padding has no loss, and the end none either where they are one: the model would never learn to stop"
        write = "two different tokens into tokenizer_config.json: pad_token, eos_token"
        yield Finding(text, why, write, stops=not samples)  # GRPO masks by the first end
    lost = [tag for tag in (*THINK, *ANSWER) if tag not in decoded(tokenizer, f"2 {tag} 3")]
    if lost:
        why = "rewards read completions without special tokens: no format would be right"
        yield Finding(f"{', '.join(lost)} do not survive decoding", why, "them as plain tokens: special=False")
    if getattr(args, "completion_style", "think") != "think" or not hasattr(args, "use_peft"):
        return
    if not tokenizer.chat_template:
        text = f"{tokenizer.name_or_path} has no chat template"
        yield Finding(
            text, "conversations cannot be rendered", "recipes/chat_template.jinja, or one that keeps reasoning"
        )
        return
    asked, said = "What is 2 + 3?", "The answer is 5."
    after = faithful(tokenizer, _turns(asked, said)).rpartition(said)[2]
    if end and not after.strip().startswith(end):
        text = f"the chat template ends an answer with {after!r}, but the end token is {end!r}"
        why = "generation waits for a token that is not trained, and every completion runs to its limit"
        yield Finding(text, why, "the template's own into tokenizer_config.json: eos_token")
    if not samples:
        whole = f"{THINK[0]}2 + 3 = 5{THINK[1]}\n{said}"
        text, start = faithful(tokenizer, _turns(asked, whole)), opening(tokenizer, _turns(asked))
        if not text.startswith(start + THINK[0]):
            text = f"the prompt ends in {start[-30:]!r}, which a conversation does not go on from"
            why = f"{THINK[0]} is in the prompt, or twice in the text: what is trained is not what is sampled"
            yield Finding(text, why, "a template that puts nothing before the completion")


# What the rows hold


def of_lengths(lengths: Sequence[int], limit: int | None, key: str) -> Iterator[Finding]:
    """Logs a histogram of the rows' tokens; finds too many over the limit."""
    lengths, edges = np.asarray(lengths), 2 ** np.arange(5, 40)
    counts = np.bincount(np.searchsorted(edges, lengths), minlength=len(edges))
    shown = ", ".join(f"up to {high}: {count}" for high, count in zip(edges, counts, strict=False) if count)
    over = 0.0 if limit is None or not len(lengths) else float((lengths > limit).mean())
    if lengths.any() and os.environ.get("RANK", "0") == "0":  # without a limit nobody counted
        logger.info("tokens a row: %s; %.1f%% over %s: %s", shown, 100 * over, key, limit)
    if over > MAX_TOO_LONG:
        text = f"{over:.0%} of the rows are longer than {key}: {limit} (the longest {lengths.max()})"
        yield Finding(
            text,
            "they are left out, and they are the hardest",
            f"{key}: {lengths.max()}" if key.isidentifier() else "a smaller max_completion_length, or other rows",
            stops=False,
        )


def _many(rows: list[Row], faults: Callable[[Row], str | None], why: str, write: str, stops=False) -> Iterator[Finding]:
    """A finding where more than MAX_UNPARSEABLE of the rows have the fault that `faults` names."""
    found = [(row, fault) for row in rows if (fault := faults(row))]
    if len(found) > MAX_UNPARSEABLE * len(rows):
        row, fault = found[0]
        where = f"{len(found)} of {len(rows)} rows looked at, such as {row.get('id', row)!s:.60}"
        yield Finding(f"{where}: {fault}", why, write, stops)


def of_questions(rows: list[Row], reward_funcs: list[Callable]) -> Iterator[Finding]:
    """The rows of reinforcement learning: golds, prompts, and who rewards what."""
    reasoning = [row for row in rows if row.get("kind", "reasoning") == "reasoning"]
    reward_funcs = [getattr(one, "guards", one) for one in reward_funcs]
    own = not all(map(_is_ours, reward_funcs))
    judged = own or any(isinstance(one, rewards.JudgeReward) for one in reward_funcs)

    def no_gold(row: Row) -> str | None:
        rule, gold = row.get("verifier", "math"), next((row[key] for key in ("answer", "solution") if row.get(key)), "")
        if rule == "math" and gold.strip().lower() in NO_ANSWER:
            return f"the gold {gold!r} stands for no answer"
        if rule == "math" and len(gold_of(gold).split()) > 30:
            return "its gold is a whole solution without a boxed answer"
        if rule == "gym" and not own and not any(isinstance(one, rewards.GymReward) for one in reward_funcs):
            return "only GymReward grades a row with the verifier 'gym'"
        if rule == "gym" and not gym.installed():
            return gym.MISSING
        if rule in ("math", "choice", "gym"):
            return rewards.gold_error(gold, rule, row.get("entry"))
        if rule == "code":
            return None if gold or row.get("tests") else "it has no tests, and no output in `answer`"
        return None if judged else f"no reward here grades a row with the verifier {rule!r}"

    def no_question(row: Row) -> str | None:
        asked = prompt_text(row["prompt"]).replace(R1_ZERO_PREFIX, "", 1)
        found = [tag for tag in (*THINK, *ANSWER, R1_ZERO_PREFIX, "<|") if tag in asked]
        return f"its prompt holds {found[0]!r}" if found else None

    def no_reward(row: Row) -> str | None:
        kind = row.get("kind", "reasoning")
        known = own or kind == "reasoning" or kind in [getattr(one, "kind", None) for one in reward_funcs]
        return None if known else f"no reward is for rows of kind {kind!r}"

    why, write = "such a row teaches nothing", "golds that rewards.gold_error takes, and leave the other rows out"
    yield from _many(spread(reasoning, GOLDS), no_gold, why, write, stops=True)
    why = "the stage puts questions into its own template, and markup in them is seen twice"
    yield from _many(spread(rows, GOLDS), no_question, why, "bare questions into the column `prompt`")
    yield from _many(spread(rows, GOLDS), no_reward, "its groups are all alike", "HelpfulnessReward and the like")
    golds = {str(row.get("answer") or row.get("solution")) for row in reasoning}
    asked, ids = ({str(row.get(key)) for row in rows} for key in ("prompt", "id"))
    for what, count in (("golds", golds), ("prompts", asked)):
        if len(ids) >= 20 and len(count) <= (1 if what == "golds" else len(ids) // 2):
            text = f"the {len(ids)} rows have {len(count)} different {what}"
            yield Finding(text, "there is little to learn but that", "the right column into that file", stops=False)


def of_completions(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    """The rows of supervised fine-tuning."""
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
        return "its answer is not its gold" if right is False else None

    why = "the template sets such tokens, and a second one ends or turns a conversation amid an answer"
    yield from _many(few, cut_off, "models learn to stop short, or not to reason", "whole traces: max_tokens was less")
    yield from _many(few, marked, why, "completions without special tokens")
    rules = ("math", "choice", "gym") if gym.installed() else ("math", "choice")
    ruled = spread([row for row in few if row["verifier"] in rules], CHECKED)
    if sum(wrong(row) is not None for row in ruled) > 0.2 * len(ruled):
        yield from _many(ruled, wrong, "wrong answers are learnt like right ones", "completions of these very prompts")
    if len(rows) >= 20 and len({row["completion"] for row in few}) <= 0.01 * len(few) + 1:
        yield Finding("the completions are all the same", "nothing else is learnt", "the right `completion`", False)


def of_trained(trainer: Any, tokenizer: PreTrainedTokenizerBase) -> Iterator[Finding]:
    """What a trainer has made of the rows: which tokens have a loss, which pairs and labels there are."""
    data = trainer.train_dataset
    rows, columns = spread(data, CHECKED), data.column_names
    if isinstance(trainer, trl.SFTTrainer):
        text = trainer.args.packing and trainer.args.packing_strategy == "wrapped"  # of a base, not conversations
        ended = [tokenizer.eos_token_id in row["labels"] for row in rows]
        if not (any(ended) if text else all(ended)):
            text = f"{ended.count(False)} of {len(ended)} sequences have no loss on the end token"
            yield Finding(text, "the model would never stop", "rows and a template that end in it, whole")
        if not trainer.args.packing and all(row["labels"][0] != -100 for row in rows):
            yield Finding("prompts are trained too", "the model learns to ask", "completion_only_loss: true", False)
    elif "labels" in columns and len({str(label) for label in data["labels"]}) == 1:
        yield Finding("all labels are the same", "the scorer learns one number", "safe and unsafe responses")
    elif "chosen_ids" in columns:
        same = [tokenizer.decode(row["chosen_ids"]) for row in rows if row["chosen_ids"] == row["rejected_ids"]]
        if len(same) > MAX_UNPARSEABLE * len(rows):
            text = f"{len(same)} of {len(rows)} pairs are of two alike, such as {same[0]!r:.60}"
            yield Finding(text, "they have no gradient", "pairs of two summaries")


# What the rewards say


def solved(row: Row, style: str) -> str:
    """A right completion of the row in the stage's form."""
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
    """A reward fails, or returns something else than numbers. The message names it, and the line of its code."""


def line_of(error: BaseException) -> str:
    """The innermost line of people's own code that an error passed: "file:line: the line"; "" where it passed none."""
    lines = traceback.extract_tb(error.__traceback__)
    ours = tuple(str(runs.ROOT / floor) + os.sep for floor in ("rewards", "data_prep", "recipes"))
    others = (*ours, *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")), "<")
    own = [one for one in lines if not one.filename.startswith(others)]
    own = own or [one for one in lines if one.filename != __file__]
    return f"{own[-1].filename}:{own[-1].lineno}: {own[-1].line}" if own else ""


def guarded(name: str, reward: Callable) -> Callable:
    """The reward `name` as TRL calls it. Raises RewardError where it fails, or does not return one finite number, or
    None, for each completion."""
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
                found = list(found) if isinstance(found, Iterator) else found  # a generator fails where it is read
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


def _is_ours(reward: Callable) -> bool:
    kind = reward if inspect.isfunction(reward) else type(reward)
    return kind.__module__.partition(".")[0] == "rewards"


def of_rewards(
    reward_funcs: list[Callable], rows: list[Row], tokenizer: PreTrainedTokenizerBase, args: Any, config: Any
) -> Iterator[Finding]:
    """Rewards on completions that are known to be right, wrong and empty, as they come back from the tokenizer; where
    no row has a gold to know that by, people's own rewards on empty ones."""
    usable = [row for row in rows if row.get("kind", "reasoning") == "reasoning"]
    usable = [row for row in usable if (row.get("answer") or row.get("solution")) and row.get("verifier") != "judge"]
    usable = [row for row in usable if row.get("verifier") != "code" or "\n[" not in f"\n{row['answer']}"]
    programs = [row for row in usable if row.get("verifier") == "code"]
    few = spread([row for row in usable if row.get("verifier") != "code"], SOLVED) + programs[:1]
    any_row, kinds, hint = spread(rows, SOLVED), {}, ""
    if few:
        if opening(tokenizer, few[0]["prompt"]).rstrip().endswith(THINK[0]):
            hint = f"; the prompt ends in {THINK[0]}, so for rewards with a key `prefilled` that key: true"
        right = [solved(row, args.completion_style) for row in few]
        right = [decoded(tokenizer, text.removeprefix(THINK[0]) if hint else text) for text in right]
        wrong = []
        for row, text in zip(few, right, strict=True):
            golds = (one["answer"] for one in few if one.get("answer") not in (row.get("answer"), None))
            gold = gold_of(row.get("answer") or row["solution"]).strip("$")
            wrong.append(text.replace(gold, f"not {next(golds, '-123454321')}"))
        kinds = {"right": right, "wrong": wrong, "empty": [""] * len(few)}
    weights = config.reward_weights or [1.0] * len(reward_funcs)
    total, numbers, unasked = dict.fromkeys(kinds, 0.0), False, False
    for name, given, weight in zip(args.reward_funcs, reward_funcs, weights, strict=True):
        reward = getattr(given, "guards", given)
        if getattr(reward, "kind", None) in ("helpful", "harmless"):
            unasked = True
            continue  # a model, which nobody here loads for this
        ask, ours = functools.partial(_scores, guarded(name, reward), tokenizer=tokenizer), _is_ours(reward)
        try:
            found = {kind: ask(few, texts) for kind, texts in kinds.items()}
            others = [] if ours else ask(any_row, [""] * len(any_row))
        except RewardError as error:
            text = str(error).replace(" fails at ", " fails on known completions at ", 1)
            write = f"a reward that works with the columns of the rows (here: {', '.join(any_row[0])})"
            yield Finding(text, "the first rollout ends the run", write)
            unasked = True
            continue
        given_any = any(one is not None for scores in (*found.values(), others) for one in scores)
        numbers |= given_any
        if not ours and not given_any:
            yield Finding(f"{name} returns None for every completion", "it rewards nothing", "one that returns numbers")
        if not few:
            continue
        means = {kind: sum(filter(None, scores)) / len(few) for kind, scores in found.items()}
        total = {kind: total[kind] + weight * means[kind] for kind in total}
        shown = ", ".join(f"{kind} {mean:.2f}" for kind, mean in means.items())
        rule = isinstance(reward, rewards.AccuracyReward | rewards.CodeReward | rewards.GymReward)
        asked = [s for s in found["right"] if s is not None] if rule else found["right"]
        form = isinstance(reward, rewards.FormatReward)
        if (rule or form) and asked and (asked.count(1.0) < 0.9 * len(asked) or any(found["empty"])):
            text = f"{name} on known completions gives {shown}, such as {asked[0]} for {right[0]!r}"
            why = "who answers rightly gets nothing: the reward stays 0 whatever is learnt"
            yield Finding(text, why, f"completion_style and reward_kwargs that fit the prompt{hint}")
        elif rule and any(found["wrong"]):
            yield Finding(f"{name}: {shown}", "wrong answers are rewarded", "golds that tell answers apart")
    if few and not (numbers or unasked):
        text = f"{', '.join(args.reward_funcs)}: no reward here concerns any of the rows"
        yield Finding(text, "nothing is rewarded", "a reward for their `verifier`")
    if any(total.values()) and not total["right"] > max(total["wrong"], total["empty"]):
        shown = ", ".join(f"{kind} {value:.2f}" for kind, value in total.items())
        text = f"the rewards together do not tell right from wrong: {shown}"
        yield Finding(text, "something else is learnt", "accuracy_reward too, unless that is meant", stops=False)


# What the model is


def of_loading(
    info: Mapping, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, frozen: bool
) -> Iterator[Finding]:
    """What `from_pretrained` says it has not found, and whether the tokenizer fits. Are embeddings `frozen`?"""
    heads = r"^(score|classifier|lm_head)\."  # a scorer's is new, and it has no other
    missing = sorted(key for key in info["missing_keys"] if not (hasattr(model, "score") and re.match(heads, key)))
    strange = sorted(key for key in info["unexpected_keys"] if not (hasattr(model, "score") and re.match(heads, key)))
    broken = missing + sorted(map(str, info["mismatched_keys"]))
    if broken or strange:
        names = ", ".join([*broken, *strange][:3])
        text = f"{model.name_or_path}: {len(broken)} tensors are missing, {len(strange)} are nobody's: {names}"
        yield Finding(text, "missing weights are random ones", "another checkpoint, or copy it again", bool(broken))
    if len(tokenizer) > (rows := sharded.shape(model.get_input_embeddings().weight)[0]):
        text = f"{len(tokenizer)} tokens, but {rows} embeddings"
        yield Finding(text, "the first token beyond them ends the run", "the tokenizer of this very checkpoint")
    yield from _of_end(model, tokenizer, frozen)


def _of_end(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, frozen: bool) -> Iterator[Finding]:
    """Is the end token's embedding one that was ever trained?"""
    weight, end = model.get_input_embeddings().weight, tokenizer.eos_token_id
    if end is None or not weight.is_floating_point() or sharded.shape(weight) != weight.shape or end >= len(weight):
        return  # in parts, or in 4 bits
    with torch.no_grad():
        apart = torch.cdist(weight[end : end + 1].float(), weight.float())[0]
        like = (apart < ALIKE * weight[end].float().norm()).nonzero()[:, 0].tolist()
    if len(like) > FEW_ALIKE:
        some = ", ".join(map(repr, tokenizer.convert_ids_to_tokens([one for one in like if one != end][:3])))
        text = f"the end token {tokenizer.eos_token!r} has the embedding of {len(like) - 1} others ({some})"
        why = "no training has set it apart, and with frozen embeddings none will: answers would not end"
        write = "an end token that the base knows into tokenizer_config.json, or train all weights"
        yield Finding(text, why, write, stops=frozen)


def of_model(trainer: Any, args: Any) -> Iterator[Finding]:
    """The weights to be trained."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    parameters = dict(model.named_parameters())
    if not any(one.requires_grad for one in parameters.values()):
        yield Finding("nothing is trainable", "no step changes anything", "use_peft: false, or other targets")
    judged = {name: one for name, one in parameters.items() if "lora_B" not in name}  # which starts from 0
    if broken := sharded.broken(judged, trainer.accelerator.device):
        text = f"{len(broken)} tensors are all zero or not finite: {', '.join(broken[:3])}"
        yield Finding(text, "no text comes out of them, and NaN spreads", "another checkpoint: this one is broken")
    shape, data = model.config, spread(trainer.train_dataset, CHECKED)
    tokens = max(max(row.get("seq_lengths") or [len(row.get("input_ids", ()))]) for row in data)  # of a packed row
    if tokens > (room := positions(shape) or math.inf):
        text = f"up to {tokens} tokens for a model of {room} positions"
        write = f"max_length: {room}, or max_position_embeddings: {tokens} for a model that is to learn them"
        yield Finding(text, "it has never seen one beyond", write)
    adapted = [name for name, one in parameters.items() if "lora_" in name and one.requires_grad]
    if adapted and qlora_proof.expert_counts(shape):
        if any(re.search(r"\b(gate|router)\.lora_", name) for name in adapted):
            yield Finding(
                "a router has an adapter", "its choice moves with it", "lora_target_modules without it", False
            )
        wanted = set(args.lora_target_modules or ["gate_proj"]) & {"gate_proj", "up_proj", "down_proj", "experts"}
        if wanted and not any("expert" in name for name in adapted):
            text = f"no expert has an adapter, though {', '.join(sorted(wanted))} is a target"
            why, write = (
                "most of the model stays as it is, without a word",
                "load_in_4bit: true, or attention layers only",
            )
            yield Finding(text, why, write)


# At a stage's start


def of_start(args: Any, config: Any, environment: Mapping[str, str], offline: bool = False) -> Iterator[Finding]:
    """Before anything is loaded."""
    yield from versions()
    yield from of_settings(args, config)
    shape = shape_of(getattr(args, "model_name_or_path", None), offline)
    yield from of_sharding(args, shape, environment)
    yield from of_room(args, config, shape)


def of_trainer(trainer: Any, args: Any) -> Iterator[Finding]:
    """When all is loaded."""
    tokenizer = trainer.processing_class
    yield from of_model(trainer, args)
    if hasattr(args, "reward_funcs"):
        rows, need = list(trainer.train_dataset), trainer.args.generation_batch_size // trainer.args.num_generations
        if len(rows) < need:
            text = f"{len(rows)} rows, and a rollout takes {need} (generation_batch_size / num_generations)"
            yield Finding(text, "TRL would train no step and say it is done", "a smaller generation_batch_size")
        yield from of_questions(rows, trainer.reward_funcs)
        yield from of_rewards(trainer.reward_funcs, rows, tokenizer, args, trainer.args)
    else:
        yield from of_trained(trainer, tokenizer)


def shape_of(name: str | None, offline: bool = False) -> Any:
    """The config of a checkpoint; None where it is not at hand."""
    try:
        return AutoConfig.from_pretrained(name, local_files_only=offline) if name else None
    except (OSError, ValueError):
        return None
