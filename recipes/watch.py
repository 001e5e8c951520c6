"""Watches a run while it trains: it takes a small sample before the first step and then logs each red flag once.

A run without a correct answer in `stop_when_all_wrong` successive rollouts is ended, because it has nothing to learn
from. A run whose groups are all correct has nothing left to learn, but continues.
"""

import math
from collections import Counter

from data_prep.runs import ConfigError
from recipes import checks

from transformers import TrainerCallback

ENOUGH = 128  # wrong answers in a row that are a red flag; fewer may be chance
FIRST = 3  # successive steps until a red flag is logged
EASIER = "easier questions, or a base that gets some of them right; python -m recipes.tools.doctor checks rewards"
# chosen: far beyond the values of a run that learns. (metric, whether it is a red flag, its meaning and what to do)
FLAGS = (
    ("completions/clipped_ratio", lambda x: x > 0.9, "Completions are cut off before they answer. Write a longer "
     "max_completion_length, or start from a policy that ends its answers; completions/*.parquet has them."),
    ("entropy", lambda x: x < 1e-3, "The policy always says the same, and explores nothing. Write a lower "
     "learning_rate or a higher temperature."),
    ("kl", lambda x: abs(x) > 5, "The policy has left its reference, where text falls apart. Write a lower "
     "learning_rate or a higher beta."),
    ("grad_norm", lambda x: not math.isfinite(x), "The weights are lost with it. Write a lower learning_rate, and go "
     "on from an earlier checkpoint."),
    ("sampling/importance_sampling_ratio/min", lambda x: x == 0, "vLLM and the policy differ so much on a completion "
     "that TRL leaves it out of the gradient. Write shorter completions, or vllm_importance_sampling_mode: "
     "token_truncate."),
)  # fmt: skip


class Watch(TrainerCallback):
    """The callback of one trainer. It is added last, so it sees the effects of the others."""

    def __init__(self, trainer, args):
        self.trainer, self.limit = trainer, getattr(args, "stop_when_all_wrong", 0)
        self.names = getattr(trainer, "reward_func_names", [])
        self.wrong, self.times, self.said = 0, Counter(), set()

    def on_train_begin(self, args, state, control, **kwargs):
        if self.names and state.global_step == 0:  # a resumed run was sampled when it began
            checks.tell("first step", trainer=self.trainer)

    def on_step_end(self, args, state, control, **kwargs):
        loss = getattr(self.trainer, "last_loss", None)
        if state.global_step <= FIRST and loss is not None:
            chance = math.log(self.trainer.model.config.vocab_size)
            if not math.isfinite(loss) or (not self.names and loss > chance + 1):
                text = (
                    f"the loss is {float(loss):.2f}, and guessing each token at random gives {chance:.2f}. Either the "
                    "tokens mean something else to this model, or it has never read anything like these rows. Unless "
                    "the loss soon falls, take the tokenizer of this very model."
                )
                self._say("loss", text)
        scored = getattr(self.trainer, "last_rewards", None)
        if scored is None:
            return
        self.trainer.last_rewards = None  # a rollout that several steps share counts once
        size = self.trainer.num_generations
        rules = [i for i, name in enumerate(self.names) if "accuracy" in name or name == "code_reward"]
        total = (scored * self.trainer.reward_weights.to(scored.device)).nansum(1).view(-1, size)
        dead = (total.std(1) < 1e-6).all().item()
        answered = scored[:, rules]
        answered = answered[~answered.isnan()] if rules else total
        right = answered.numel() == 0 or answered.max().item() > 0
        self.wrong = 0 if right or not (rules or dead) else self.wrong + 1
        same = dead and total.max() == total.min() and not (rules and right)
        advice = (
            "Nothing is learnt. Take questions of which some answers are right and some wrong: pass rate 0.2 to 0.8."
        )
        self._flag("dead", same, "all completions get the same reward", advice)
        text = f"not one answer is right in {self.wrong} rollouts of {answered.numel()}"
        many = self.wrong >= FIRST and self.wrong * answered.numel() >= ENOUGH
        self._flag("wrong", many, text, f"No group teaches what is right. Take {EASIER}.", 1)
        if self.limit and self.wrong >= self.limit:
            raise ConfigError(
                f"stop_when_all_wrong: not one answer was right in {self.wrong} rollouts, up to step "
                f"{state.global_step}. Nothing can be learnt from that. Take {EASIER}; or write "
                "stop_when_all_wrong: 0, which never ends a run."
            )

    def on_log(self, args, state, control, logs=None, **kwargs):
        for name, bad, advice in FLAGS:
            value = (logs or {}).get(name)
            if value is not None:
                enough = 1 if not math.isfinite(value) or (name == "kl" and abs(value) > 100) else FIRST
                self._flag(name, bad(value), f"{name} is {value:.4g}", advice, enough)

    def _flag(self, what: str, is_bad, text: str, advice: str, enough: int = FIRST) -> None:
        """Log a flag once, after it was raised for `enough` steps in a row."""
        self.times[what] = self.times[what] + 1 if is_bad else 0
        if self.times[what] >= enough:
            self._say(what, text + (f", {enough} times in a row" if enough > 1 else "") + f". {advice}")

    def _say(self, what: str, text: str) -> None:
        if what not in self.said:
            checks.warn(f"red flag at step {self.trainer.state.global_step}: {text}")
        self.said.add(what)
