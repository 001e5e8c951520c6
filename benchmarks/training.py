"""How fast we train beside TRL's own trainers, and what our callbacks and checks cost.

    python -m benchmarks.training [--repeats 5] [--spread 0.8] [--parts sft grpo compiled]

SFT: tokens of rows (without padding) per CPU second, on rows of log-normal length; `--spread` is the standard deviation
of the logarithm. There are three methods: TRL's defaults, which pad batches of 8; our recipe, which trains one row at a
time; and our recipe with `packing: true`. GRPO: CPU seconds of a step by part, each without the parts within it, for
our trainer with all its callbacks and for TRL's with the same settings, data and random numbers. The cost of each of
our callbacks is printed as a share of a step, and that of each of our checks in seconds. The part `compiled` is SFT of
140 million parameters with two threads and `bf16: true`, for which the CPU needs AVX512-BF16: TRL's defaults, our
recipe with 8 rows in a micro batch, and the same with `compile_layers: true`. All trainers take turns in one process.
The figures are medians over the turns; a ratio is the median of each turn's ratio.
"""

import argparse
import contextlib
import functools
import logging
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import SimpleNamespace

from benchmarks.plan import CPU, write_base
from data_prep import prompts
from recipes import checks, data, grpo, loading, patches, training
from recipes.config import LoraArguments, PolicyArguments, RLArguments
from recipes.trl_configs import GRPOConfig, SFTConfig

import torch
import transformers
import trl
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

LONGEST = 512  # tokens per row
MEDIAN = 100  # words of reasoning per row, each one token
WORDS = [first + last for first in "bdfgklmnprst" for last in ("al", "en", "ir", "ot", "um")]
SETTINGS = CPU | {"gradient_checkpointing": False, "report_to": "none", "logging_steps": 1}
SFT = {"max_length": LONGEST, "batch_size": 8, "per_device_train_batch_size": 1, "max_steps": 6}
GROUPED = {"batch_size": 16, "per_device_train_batch_size": 8, "max_length": LONGEST, "max_steps": 4}
GROUPED |= {"bf16": True, "train_sampling_strategy": "group_by_length"}  # as the scale smol
PACKED = SFT | {"packing": True, "batch_size": 2}  # about the tokens of 8 rows
ROLLOUT = {
    "prompts_per_step": 4,
    "num_generations": 8,
    "generation_batch_size": 32,
    "per_device_train_batch_size": 8,
    "max_completion_length": 48,
    "max_steps": 3,
    "ref_model_sync_steps": 2,
}
REWARDS = ["accuracy_reward", "format_reward"]
PARTS = {
    "_generate": "sampling",
    "_calculate_rewards": "rewards",
    "_generate_and_score_completions": "scoring",
    "training_step": "training",
}


class Clock(TrainerCallback):
    """CPU seconds by name from the first step of a training to its end, each without the timed parts within it."""

    def __init__(self):
        self.seconds, self.total, self.within = Counter(), 0.0, []

    def on_train_begin(self, args, state, control, **kwargs):
        self.seconds.clear()
        self.began = time.process_time()

    def on_train_end(self, args, state, control, **kwargs):
        self.total = time.process_time() - self.began

    def time(self, owner: object, method: str, name: str) -> None:
        """Time a method of this object from now on."""
        inner = getattr(owner, method)

        def timed(*args, **kwargs):
            with self.named(name):
                return inner(*args, **kwargs)

        setattr(owner, method, timed)

    @contextlib.contextmanager
    def named(self, name: str) -> Iterator[None]:
        began = time.process_time()
        self.within.append(0.0)
        try:
            yield
        finally:
            spent = time.process_time() - began
            self.seconds[name] += spent - self.within.pop()
            if self.within:
                self.within[-1] += spent


@dataclass
class Side:
    """A trainer with a clock, and the times of its turns."""

    trainer: trl.SFTTrainer | trl.GRPOTrainer
    args: LoraArguments | None = None
    own: list[TrainerCallback] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)
    turns: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self):
        for callback in self.own:
            for event in vars(type(callback)):
                if event.startswith("on_") and event != "on_train_begin":  # a sample, reported with the checks
                    self.clock.time(callback, event, type(callback).__name__)
        for method, name in PARTS.items():
            if hasattr(self.trainer, method):
                self.clock.time(self.trainer, method, name)
        self.trainer.remove_callback(PrinterCallback)
        self.trainer.add_callback(self.clock)

    def turn(self) -> None:
        before = getattr(self.trainer, "_total_train_tokens", 0)
        self.trainer.train()
        steps = self.trainer.state.global_step
        self.turns.append(
            {name: seconds / steps for name, seconds in self.clock.seconds.items()}
            | {"step": self.clock.total / steps, "rest": (self.clock.total - sum(self.clock.seconds.values())) / steps}
            | {"tokens": (getattr(self.trainer, "_total_train_tokens", 0) - before) / self.clock.total}
        )

    def median(self, name: str) -> float:
        return median(turn.get(name, 0.0) for turn in self.turns)


def ratio(one: Side, other: Side, name: str) -> float:
    return median(a[name] / b[name] for a, b in zip(one.turns, other.turns, strict=True))


def records(spread: float, count: int = 400) -> list[dict]:
    """Sums with solutions of uneven length, as rows of `data_prep.rows`."""
    draw, found = random.Random(0), []
    for number in range(count):
        a, b = draw.randint(1, 99), draw.randint(1, 99)
        words = min(LONGEST - 40, max(8, int(draw.lognormvariate(0, spread) * MEDIAN)))
        reasoning = " ".join(draw.choice(WORDS) for _ in range(words))
        row = {"kind": "reasoning", "domain": "math", "language": "en", "verifier": "math", "thinking": True}
        row |= {"id": str(number), "question": f"What is {a} + {b}?", "prompt": f"What is {a} + {b}?"}
        found.append(row | {"answer": str(a + b), "completion": f"<think>{reasoning}</think>\nThe answer is {a + b}."})
    return found


def ours(trainer, args) -> Side:
    """Our trainer, with everything that a stage adds to it."""
    own = [one for one in trainer.callback_handler.callbacks if type(one).__module__.startswith("recipes.")]
    for callback in training.callbacks(trainer, args):
        trainer.add_callback(callback)
        own.append(callback)
    return Side(trainer, args, own)


def sft(folder: Path, rows: list[dict], recipes: dict[str, dict]) -> dict[str, Side]:
    """TRL's defaults, and our recipe with each of these settings and the checks of its stage."""
    conversations = Dataset.from_list(
        [
            {"prompt": data.as_messages("user", row["prompt"])}
            | {"completion": data.as_messages("assistant", row["completion"])}
            for row in rows
        ]
    )

    def make(kind: type, config, **arguments) -> tuple[trl.SFTTrainer, PolicyArguments]:
        args = PolicyArguments(model_name_or_path=str(folder / "base"), **arguments)
        policy, tokenizer = loading.load_policy(SimpleNamespace(args=args, config=config))
        return kind(policy, args=config, train_dataset=conversations, processing_class=tokenizer), args

    steps, bf16 = (next(iter(recipes.values())).get(key, False) for key in ("max_steps", "bf16"))
    theirs = trl.SFTConfig(output_dir=str(folder / "trl"), **SETTINGS | {"max_steps": steps, "bf16": bf16})
    found = {"TRL's defaults": Side(make(trl.SFTTrainer, theirs)[0])}
    for name, settings in recipes.items():
        config = SFTConfig(output_dir=str(folder / name), **SETTINGS | settings)
        Path(config.output_dir).mkdir()
        compiled = {"compile_layers": True, "attn_implementation": "eager"} if "compiled" in name else {}
        found[name] = ours(*make(training.SFTTrainer, config, **compiled))
        if compiled:
            patches.compile_layers(found[name].trainer.model)
    return found


def rl(folder: Path, rows: list[dict]) -> dict[str, Side]:
    """Our GRPO and TRL's, with the same settings."""
    args = RLArguments(
        model_name_or_path=str(folder / "base"),
        reward_funcs=REWARDS,
        completion_style="r1_zero",
        stop_when_all_wrong=0,  # a random model has no correct answers
    )
    asked = Dataset.from_list([row | {"prompt": prompts.r1_zero(row["question"])} for row in rows])
    asked = asked.remove_columns("completion")
    found = {}
    for name in ("TRL's", "ours"):
        config = GRPOConfig(output_dir=str(folder / f"grpo {name}"), **SETTINGS | ROLLOUT)
        Path(config.output_dir).mkdir()
        run = SimpleNamespace(args=args, config=config)
        policy, tokenizer = loading.load_policy(run)
        if name == "ours":
            found[name] = ours(grpo.make_trainer(run, policy, tokenizer, asked), args)
        else:
            funcs = grpo.load_rewards(args)
            trainer = trl.GRPOTrainer(
                policy, reward_funcs=funcs, args=config, train_dataset=asked, processing_class=tokenizer
            )
            found[name] = Side(trainer)
    return found


def callbacks(name: str, side: Side) -> str:
    step = side.median("step")
    shares = {type(one).__name__.strip("_"): side.median(type(one).__name__) / step for one in side.own}
    parts = ", ".join(f"{one} {share:.2%}" for one, share in sorted(shares.items(), key=lambda pair: -pair[1]))
    return f"callbacks, {name}: {sum(shares.values()):.2%} of a step of {step:.2f} s ({parts}); aim under 2%"


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def start(name: str, side: Side, rows: list[dict]) -> str:
    """The time of the checks before the first step."""
    trainer, args, tokenizer = side.trainer, side.args, side.trainer.processing_class
    subject = {"args": args, "config": trainer.args, "environment": {}, "trainer": trainer, "tokenizer": tokenizer}
    subject |= {"shape": checks.shape_of(args.model_name_or_path, offline=True), "rows": rows}
    moments = ["start", "tokenizer", "SFT rows", "trainer"]
    if name == "GRPO":
        subject |= {"rows": list(trainer.train_dataset), "reward_funcs": trainer.reward_funcs}
        moments = ["start", "tokenizer", "RL rows", "trainer", "first step"]
    found = {one: seconds(functools.partial(list, checks.look(one, **subject))) for one in moments}
    parts = ", ".join(f"{what} {spent:.2f}" for what, spent in found.items())
    return f"checks before the first step, {name}: {sum(found.values()):.2f} CPU s ({parts})"


def alternate(sides: dict[str, Side], repeats: int) -> None:
    """Run one warm-up turn of each side, then the measured turns, each time in another order."""
    names = list(sides)
    for number in range(repeats + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            sides[name].turn()
            if number == 0:
                sides[name].turns.clear()


def compare(sides: dict[str, Side], repeats: int) -> None:
    """Print the tokens that each of these trainers of SFT makes in a second, beside the first one's."""
    alternate(sides, repeats)
    theirs = sides["TRL's defaults"]
    for name, side in sides.items():
        print(f"  {name}: {side.median('tokens'):,.0f} tokens per CPU second", end="")
        print(f", {ratio(side, theirs, 'tokens'):.2f} of TRL's" if side is not theirs else "", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--spread", type=float, default=0.8, help="deviation of the logarithm of a row's length")
    parser.add_argument("--parts", nargs="+", default=["sft", "grpo"], choices=["sft", "grpo", "compiled"])
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    rows = records(arguments.spread)
    texts = [prompts.r1_zero(row["question"]) + " " + row["completion"] for row in rows]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        tokenizer = write_base(folder / "base", texts, 2048, vocab_size=2048, hidden_size=256, layers=2)
        if "sft" in arguments.parts:
            lengths = sorted(len(tokenizer(row["completion"])["input_ids"]) for row in rows)
            at = ", ".join(str(lengths[int(share * (len(rows) - 1))]) for share in (0.05, 0.5, 0.95, 1))
            print(f"SFT: {len(rows)} completions of {at} tokens (5%, 50%, 95%, all)")
            sides = sft(folder, rows, {"ours": SFT, "ours, packed": PACKED})
            compare(sides, arguments.repeats)
            print("  aim, packed: 2 times TRL's defaults")
            print(callbacks("SFT", sides["ours, packed"]))
            print(start("SFT", sides["ours, packed"], rows), flush=True)
        if "grpo" in arguments.parts:
            sides = rl(folder, rows)
            alternate(sides, arguments.repeats)
            print("GRPO: CPU seconds of a step, ours and TRL's, and the ratio (aim: no part over 1.05)")
            own, theirs = sides["ours"], sides["TRL's"]
            for part in (*PARTS.values(), "step"):
                print(f"  {part}: {own.median(part):.3f}, {theirs.median(part):.3f}, {ratio(own, theirs, part):.3f}")
            print(callbacks("GRPO", sides["ours"]))
            print(start("GRPO", sides["ours"], rows), flush=True)
        if "compiled" in arguments.parts:
            torch.set_num_threads(2)
            folder = folder / "large"
            write_base(folder / "base", texts, 2048, vocab_size=49152, hidden_size=512, layers=30)
            print("SFT of 140 million parameters, two threads")
            compare(sft(folder, rows, {"ours": GROUPED, "ours, compiled": GROUPED}), arguments.repeats)


if __name__ == "__main__":
    main()
