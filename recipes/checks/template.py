"""Checks of what a tokenizer and its chat template do to prompts and completions."""

from collections.abc import Iterator
from typing import Any

from data_prep.runs import ConfigError
from recipes.checks.finding import Finding
from rewards.completion import ANSWER, THINK

from transformers import PreTrainedTokenizerBase


def faithful(tokenizer: PreTrainedTokenizerBase, messages: list[dict], name: Any = "") -> str:
    """The text of a conversation in the chat template. Raises ConfigError if the template changes its last message."""
    text, said = tokenizer.apply_chat_template(messages, tokenize=False), messages[-1]["content"]
    if said not in text:  # DeepSeek's and Qwen's templates drop reasoning
        raise ConfigError(
            f"{name or tokenizer.name_or_path}: its chat template changes completions, so that they would not be "
            f"trained as they are: {said[:60]!r} became {text[-60:]!r}. Give the tokenizer a template that leaves them "
            "alone, as recipes/chat_template.jinja."
        )
    return text


def _turns(*contents: str) -> list[dict]:
    return [{"role": role, "content": one} for role, one in zip(("user", "assistant"), contents, strict=False)]


def opening(tokenizer: PreTrainedTokenizerBase, prompt: Any) -> str:
    """The text that a policy continues: a plain prompt as it is, or a conversation in the chat template."""
    if isinstance(prompt, str):
        return prompt
    return tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)


def decoded(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A completion as rewards see it: encoded, then decoded without special tokens."""
    return tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"], skip_special_tokens=True)


def of_tokens(tokenizer: PreTrainedTokenizerBase, args: Any) -> Iterator[Finding]:
    """Findings if sequences cannot end or be padded, or if tags do not survive decoding."""
    end, pad = tokenizer.eos_token, tokenizer.pad_token
    if None in (end, pad) or tokenizer.pad_token_id == tokenizer.eos_token_id:
        yield Finding(
            f"{tokenizer.name_or_path}: the pad token is {pad!r} and the end token is {end!r}. Padding has no loss. If "
            "both are the same token, the end has no loss either, and the model never learns to stop. Write two "
            "different tokens into tokenizer_config.json: pad_token and eos_token.",
            stops=not hasattr(args, "reward_funcs"),  # GRPO masks after the first end token
        )
    lost = [tag for tag in (*THINK, *ANSWER) if tag not in decoded(tokenizer, f"2 {tag} 3")]
    if lost:
        yield Finding(
            f"The tags {', '.join(lost)} do not survive decoding. Rewards read completions without special tokens, so "
            "that no format would be right. Add the tags to the tokenizer as plain tokens, with special=False."
        )


def of_template(tokenizer: PreTrainedTokenizerBase, args: Any) -> Iterator[Finding]:
    """Findings if there is no chat template, if it does not end an answer in the end token, or if the text that is
    trained differs from the text that is sampled."""
    end = tokenizer.eos_token
    if getattr(args, "completion_style", "think") != "think" or not hasattr(args, "use_peft"):
        return
    if not tokenizer.chat_template:
        yield Finding(
            f"{tokenizer.name_or_path} has no chat template, so that conversations cannot be rendered. Give it "
            "recipes/chat_template.jinja, or another one that keeps reasoning."
        )
        return
    asked, said = "What is 2 + 3?", "The answer is 5."
    after = faithful(tokenizer, _turns(asked, said)).rpartition(said)[2]
    if end and not after.strip().startswith(end):
        yield Finding(
            f"The chat template ends an answer with {after!r}, but the end token is {end!r}. Generation would wait "
            "for a token that is not trained, and every completion would run to its limit. Write the template's own "
            "end token into tokenizer_config.json: eos_token."
        )
    if not hasattr(args, "reward_funcs"):
        whole = f"{THINK[0]}2 + 3 = 5{THINK[1]}\n{said}"
        text, start = faithful(tokenizer, _turns(asked, whole)), opening(tokenizer, _turns(asked))
        if not text.startswith(start + THINK[0]):
            yield Finding(
                f"The prompt ends in {start[-30:]!r}, but a whole conversation does not go on from there: {THINK[0]} "
                "is in the prompt, or it is twice in the text. So what is trained is not what is sampled. Use a chat "
                "template that puts nothing before the completion."
            )
