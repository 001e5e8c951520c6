"""The only parser of completions: it finds the reasoning, the summary and the answer.

Rewards, data preparation and evaluation all read completions with `parse`, so they always agree on what an answer is.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

THINK = ("<think>", "</think>")
ANSWER = ("<answer>", "</answer>")
INVISIBLE = "\u00ad\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufe00-\ufe0f\ufeff"
# Text that a reader of the rendered page does not see or sees struck out: comments, text without colour or size, and
# the content of tags, images and link targets.
_STYLE = (
    r"\bhidden\b|(?:display|visibility)\s*:\s*(?:none|hidden)|color\s*[:=]\s*[\"']?\s*(?:white|transparent|#f{3,6})"
)
_STYLE += r"|(?:font-size|opacity)\s*:\s*0"
_BRACED = r"\{(?:[^{}]|\{[^{}]{0,400}\}){0,400}\}"
HIDDEN = re.compile(
    r"<!--.*?(?:-->|\Z)|\\begin\{comment\}.*?(?:\\end\{comment\}|\Z)|\\iffalse\b.*?(?:\\fi\b|\Z)"
    rf"|<(\w{{1,20}})\b[^<>]{{0,200}}(?:{_STYLE})[^<>]{{0,200}}>.*?(?:</\1\s*>|\Z)"
    r"|</?[A-Za-z][\w-]{0,20}(?:\s+[\w-]{1,40}\s*=\s*(?:\"[^\"<>]{0,400}\"|'[^'<>]{0,400}'|[^\s<>\"']{1,400}))+\s*/?>"
    rf"|~~[^~\n]{{1,400}}~~|(?m:^[ \t]*%.*$)|\\[hv]?phantom\s*{_BRACED}"
    rf"|\\textcolor\s*\{{(?:white|transparent)\}}\s*{_BRACED}|\{{\s*\\color\s*\{{white\}}(?:[^{{}}]|\{{[^{{}}]{{0,400}}\}}){{0,400}}\}}"
    r"|!\[[^\]\n]{0,400}\]\([^)\n]{0,400}\)|(?<=\])\([^)\n]{0,400}\)",
    re.S | re.I,
)


@cache
def tag_pattern(*tags: str) -> re.Pattern:
    """A pattern that matches the tags in any case, also with white space or invisible characters inside them."""
    between = rf"[\s{INVISIBLE}]*"
    return re.compile("|".join(between.join(map(re.escape, tag)) for tag in tags), re.I)


ANSWER_TAGS = tag_pattern(*ANSWER)
_UNSEEN = re.compile(f"[{INVISIBLE}]")


def without_invisible(text: str) -> str:
    """The text without invisible characters."""
    return _UNSEEN.sub("", text)


@dataclass(frozen=True)
class Completion:
    """The parts of a completion, without surrounding white space."""

    reasoning: str | None
    """The text between the think tags, also if it was cut off; None if there is no think tag."""
    summary: str
    """What the user is shown: the text after the last `</think>`, or all of it, without answer tags."""
    answer: str | None
    """The text that contains the answer: the body of `<answer>`, or else the summary. None if there is no answer: the
    reasoning was cut off, nothing follows it, or two different answers are given."""
    complete: bool
    """False if a reasoning or an `<answer>` was opened but never closed."""
    shown: str
    """The visible text outside the reasoning, with line ends in place of answer tags."""


def parse(text: str, think: tuple[str, str] = THINK, prefilled: bool = False) -> Completion:
    """Split a completion into reasoning, summary and answer.

    The answer never comes from the reasoning. Two different answers outside the reasoning, in two `<answer>` bodies or
    on both sides of an extra `</think>`, count as none. Tags match in any case, so `<THINK>` does not turn reasoning
    into an answer.

    Args:
        text: The completion, without its prompt.
        think: The opening and closing tags of the reasoning. They may be equal, as in the paper's pattern
            `|special_token| reasoning |special_token| summary`.
        prefilled: The prompt already ends in the opening tag.
    """
    pieces, reasonings, complete = _split(think[0] + text if prefilled else text, *think)
    tail = pieces[-1].strip()
    bodies = _answer_bodies(tail)
    others = {body for piece in pieces[:-1] for body in _answer_bodies(piece)}
    answered_before = any(piece.strip() not in ("", tail) for piece in pieces[1:-1]) or others - set(bodies)
    answer = None
    if complete and not answered_before and len(set(bodies)) <= 1:
        answer = bodies[0] if bodies else tail
    tags = ["/" in tag.group() for tag in ANSWER_TAGS.finditer(tail)]
    return Completion(
        reasoning="\n".join(filter(None, reasonings)) if reasonings else None,
        summary=_without_tags(tail),
        answer=_without_tags(seen(answer)) or None if answer else None,
        complete=complete and tags.count(False) <= tags.count(True),
        shown=seen(ANSWER_TAGS.sub("\n", "\n".join(pieces))).strip(),
    )


def _split(text: str, opening: str, closing: str) -> tuple[list[str], list[str], bool]:
    """Cut a text at its think tags -> (pieces outside the reasoning, reasonings, whether the last reasoning is closed).

    The first piece precedes any reasoning, and the last piece follows the last reasoning. A closing tag without an
    opening tag ends a reasoning that the prompt opened.
    """
    if opening == closing:
        parts = text.split(opening)
        return parts[::2], [part.strip() for part in parts[1::2]], len(parts) % 2 == 1
    outside: list[str] = []
    reasonings: list[str] = []
    start, inside = 0, False
    closes = tag_pattern(closing)
    for tag in tag_pattern(opening, closing).finditer(text):
        part = text[start : tag.start()]
        if not closes.fullmatch(tag.group()):
            if not inside:
                outside.append(part)
                inside, start = True, tag.end()
            continue
        if inside or not (outside or reasonings):
            reasonings.append(part.strip())
            outside = outside or [""]
        else:
            outside.append(part)  # after a stray closing tag: the user was shown this
        inside, start = False, tag.end()
    if inside:
        return outside, [*reasonings, text[start:].strip()], False
    return [*outside, text[start:]], reasonings, True


def seen(text: str) -> str:
    """The text without its `HIDDEN` parts. A text without these characters has none."""
    return HIDDEN.sub(" ", text) if any(mark in text for mark in "<\\%~]") else text


def _without_tags(text: str) -> str:
    return ANSWER_TAGS.sub(" ", text).strip()


def _answer_bodies(piece: str) -> list[str]:
    bodies, start = [], None
    for tag in ANSWER_TAGS.finditer(piece):
        if "/" not in tag.group():
            start = tag.end() if start is None else start
        elif start is not None:
            bodies.append(piece[start : tag.start()].strip())
            start = None
    return bodies


def text_of(completion: Any) -> str:
    """The assistant's text in one completion of TRL.

    A completion is a string for plain prompts and a list of messages for conversations. The last assistant message
    counts (tool turns come before it). Its content is a string, None, or a list of blocks
    `{"type": "text", "text": ...}`. Reasoning that TRL has moved to `reasoning_content` is put back in its tags.
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
    """The last user message of a prompt, or the prompt itself if it is a string."""
    if isinstance(prompt, str):
        return prompt
    for message in reversed(prompt or []):
        if message.get("role") == "user":
            return text_of(message)
    return ""


def opened(prompt: Any) -> bool:
    """Whether a prompt ends in the opening tag of the reasoning, as with some chat templates."""
    return prompt_text(prompt).rstrip().endswith(THINK[0])


def texts_of(completions: Sequence, prompts: Sequence | None = None, prefilled: bool = False) -> list[str]:
    """The texts of a batch. A text starts with the opening think tag if its prompt ends in it or `prefilled` is set, so
    all rewards read the same completion."""
    before = prompts or [""] * len(completions)
    return [
        THINK[0] * (prefilled or opened(prompt)) + text_of(completion)
        for completion, prompt in zip(completions, before, strict=True)
    ]
