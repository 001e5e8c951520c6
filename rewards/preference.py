"""Helpfulness and harmlessness from the pipeline's reward models (DeepSeek-R1, Methods, "Reward for general data").

A reward model is a sequence classification checkpoint with one label. It is loaded on `device` in this process when
the first row of its kind arrives.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewards.completion import parse, texts_of
from rewards.settings import Positive, check


@dataclass
class _RewardModel:
    """Returns sigmoid(score) of a reward model for rows of one kind, and None for all others.

    Args:
        model: Folder or Hub id of the reward model.
        max_length: Maximum number of tokens. Longer conversations are truncated at the start, to keep the response.
        batch_size: Number of responses scored at once.
        device: Device of the model. None selects the GPU of this process if there is one.
    """

    model: str = ""
    max_length: Positive = 8192
    batch_size: Positive = 16
    device: str | None = None
    _loaded: Any = field(default=None, init=False, repr=False, compare=False)
    kind = ""
    __post_init__ = check

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None}

    def response(self, text: str) -> str:
        """The part of a completion that the model scores."""
        raise NotImplementedError

    def __call__(self, completions: list, prompts: list, kind: list | None = None, **columns: Any) -> list:
        rows = [row for row in range(len(completions)) if kind is None or kind[row] == self.kind]
        rewards: list[float | None] = [None] * len(completions)
        whole = texts_of(completions, prompts)
        texts = [self.response(whole[row]) for row in rows]
        # An empty response gets 0, whatever the model scores for it.
        scores = iter(
            self.score([prompts[row] for row, text in zip(rows, texts, strict=True) if text], filter(None, texts))
        )
        for row, text in zip(rows, texts, strict=True):
            rewards[row] = next(scores) if text else 0.0
        return rewards

    def score(self, prompts: list, responses: Any) -> list[float]:
        """sigmoid of the model's score of each response to its prompt (a string or messages)."""
        import torch

        responses = list(responses)
        if not responses:
            return []
        network, tokenizer = self._load()
        conversations = [
            self._render(tokenizer, prompt, response) for prompt, response in zip(prompts, responses, strict=True)
        ]
        scores: list[float] = []
        for start in range(0, len(conversations), self.batch_size):
            batch = tokenizer(
                conversations[start : start + self.batch_size],
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=self.max_length,
                add_special_tokens=False,
            ).to(network.device)
            with torch.inference_mode():
                scores += network(**batch).logits[:, 0].float().sigmoid().tolist()
        return scores

    @staticmethod
    def _render(tokenizer: Any, prompt: Any, response: str) -> str:
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        return tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": response}], tokenize=False)

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            if not self.model:
                name = self.__name__
                raise ValueError(f"{name} has no reward model; write reward_kwargs: {{{name}: {{model: <folder>}}}}")
            import torch
            from transformers import AutoModelForSequenceClassification, AutoTokenizer

            if not Path(self.model).exists() and self.model.count("/") != 1:
                raise FileNotFoundError(f"{self.kind} reward: {self.model!r} does not exist; train it first")
            tokenizer = AutoTokenizer.from_pretrained(self.model, truncation_side="left")
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token
            network = AutoModelForSequenceClassification.from_pretrained(self.model)
            if network.config.num_labels != 1:
                raise ValueError(f"{self.kind} reward: {self.model} has {network.config.num_labels} labels, not one")
            network.config.pad_token_id = tokenizer.pad_token_id
            device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
            self._loaded = network.eval().requires_grad_(False).to(device), tokenizer
        return self._loaded


@dataclass
class HelpfulnessReward(_RewardModel):
    """Returns sigmoid of the helpfulness model's score. Only the summary is scored, "to minimise interference with the
    reasoning".

    A completion without a summary (its reasoning was cut off) gets 0. Rows whose kind is not `helpful` get None.
    """

    kind = "helpful"
    __name__ = "helpfulness_reward"

    def response(self, text: str) -> str:
        return parse(text).summary


@dataclass
class HarmlessnessReward(_RewardModel):
    """Returns sigmoid of the harmlessness model's score of the whole response, reasoning and summary.

    Rows whose kind is not `harmless` get None.
    """

    kind = "harmless"
    __name__ = "harmlessness_reward"

    def response(self, text: str) -> str:
        return text.strip()


helpfulness_reward = HelpfulnessReward()
harmlessness_reward = HarmlessnessReward()
