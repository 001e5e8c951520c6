"""The one parser of completions: what is reasoning, what is said to the user, what is the answer.

Rewards, data preparation and evaluation all read a completion through `parse`, so that a text can never be right for
one of them and wrong for another.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

THINK = ("<think>", "</think>")
ANSWER = ("<answer>", "</answer>")
STATED = re.compile(r"\\(?:boxed|fbox)\b|<answer>")
COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.S)


@dataclass(frozen=True)
class Completion:
    """A completion in its parts; the parts carry no surrounding white space."""

    reasoning: str | None
    """What stands between the think tags; None where there is no think tag at all. Kept when it was cut off."""
    summary: str
    """What the user is shown: everything after the last `</think>`, answer tags removed; all of it without tags."""
    answer: str | None
    """Where the answer has to be looked for: the body of `<answer>`, else the summary. None where nothing may count
    as an answer: the reasoning was cut off, nothing follows it, or two different answers are given."""
    complete: bool
    """False where a reasoning or an `<answer>` was opened and never closed."""


def parse(text: str, think: tuple[str, str] = THINK, prefilled: bool = False) -> Completion:
    """Split a completion into reasoning, summary and answer.

    The answer never comes from inside the reasoning, nor from a reasoning that was cut off. A completion that gives
    two different answers outside of its reasoning, in two `<answer>` bodies or before a second `</think>`, gives none.

    Args:
        text: the completion, without its prompt.
        think: the opening and the closing tag of the reasoning. Both may be the same text, as in the paper's pattern
            `|special_token| reasoning |special_token| summary`.
        prefilled: the prompt already ends in the opening tag.
    """
    pieces, reasonings, complete = _split(think[0] + text if prefilled else text, *think)
    tail = pieces[-1]
    answer: str | None = None
    if complete and len({body for piece in pieces for body in _answer_bodies(piece)}) <= 1:
        bodies = _answer_bodies(tail)
        stated_before = any(STATED.search(piece) and piece.strip() != tail.strip() for piece in pieces[:-1])
        answer = None if stated_before else bodies[0] if bodies else tail
    return Completion(
        reasoning="\n".join(filter(None, reasonings)) if reasonings else None,
        summary=_without_tags(tail),
        answer=_without_tags(COMMENT.sub(" ", answer)) or None if answer else None,
        complete=complete and tail.count(ANSWER[0]) <= tail.count(ANSWER[1]),
    )


def _split(text: str, opening: str, closing: str) -> tuple[list[str], list[str], bool]:
    """Cut a text at its think tags -> (pieces outside of any reasoning, reasonings, is the last reasoning closed).

    The last piece outside is what follows the last reasoning. A closing tag with no opening one before it ends a
    reasoning that the prompt opened.
    """
    if opening == closing:
        parts = text.split(opening)
        return parts[::2], [part.strip() for part in parts[1::2]], len(parts) % 2 == 1
    outside: list[str] = []
    reasonings: list[str] = []
    start, inside = 0, False
    for tag in re.finditer(f"{re.escape(opening)}|{re.escape(closing)}", text):
        if tag.group() == opening:
            if not inside:
                outside.append(text[start : tag.start()])
                inside, start = True, tag.end()
            continue
        if inside or not reasonings:
            reasonings.append(text[start : tag.start()].strip())
        else:
            outside.append(text[start : tag.start()])  # after a stray closing tag: the user was shown this
        inside, start = False, tag.end()
    if inside:
        return outside, [*reasonings, text[start:].strip()], False
    return [*outside, text[start:]], reasonings, True


def _without_tags(text: str) -> str:
    return text.replace(ANSWER[0], "").replace(ANSWER[1], "").strip()


def _answer_bodies(piece: str) -> list[str]:
    bodies, at = [], 0
    while (start := piece.find(ANSWER[0], at)) >= 0 and (end := piece.find(ANSWER[1], start)) >= 0:
        bodies.append(piece[start + len(ANSWER[0]) : end].strip())
        at = end + len(ANSWER[1])
    return bodies


def text_of(completion: Any) -> str:
    """The assistant's text in what TRL passes as one completion.

    A string for plain prompts; for conversations a list of messages, of which the last assistant message counts (tool
    turns come before it). Its content is a string, None, or a list of blocks `{"type": "text", "text": ...}`. Where
    TRL has split the reasoning off into `reasoning_content`, it is put back in its tags.
    """
    if completion is None:
        return ""
    if isinstance(completion, str):
        return completion
    if isinstance(completion, dict):
        content = completion.get("content")
        if isinstance(content, list):
            content = "".join(block.get("text") or "" if isinstance(block, dict) else str(block) for block in content)
        reasoning = completion.get("reasoning_content")
        return f"{THINK[0]}{reasoning}{THINK[1]}{content or ''}" if reasoning else content or ""
    if isinstance(completion, Sequence):
        for message in reversed(completion):
            if isinstance(message, dict) and message.get("role", "assistant") == "assistant":
                return text_of(message)
        return ""
    raise TypeError(f"a completion must be a string or a list of messages, not {type(completion).__name__}")


def prompt_text(prompt: Any) -> str:
    """The user's last message of a prompt, or the prompt itself where it is a string."""
    if isinstance(prompt, str):
        return prompt
    for message in reversed(prompt or []):
        if message.get("role") == "user":
            return text_of(message)
    return ""
