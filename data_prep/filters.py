"""Filters that a sampled completion must pass to become training data (paper v2, B.3.2 and B.3.3).

Each filter is a function of a candidate and the thresholds. It returns the reason to drop the candidate, or None to
keep it. A dropped candidate is counted once, under the first filter that it fails. The paper names mixed languages,
long paragraphs, code blocks and repetition, but states no thresholds; ours are defaults that a YAML may change.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import rewards
from data_prep.rows import Row
from data_prep.runs import commands
from data_prep.sampling import Sample
from data_prep.words import CHARACTER, LETTER, ngrams, split
from rewards.code import passes
from rewards.language import ENGLISH, NOT_LATIN, count_words
from rewards.settings import Positive, Share

import numpy as np

WORD = re.compile(r"[a-z0-9]+|[^\W\da-z_]", re.IGNORECASE)  # a Latin word, a number, or one character of another script
ASCII_WORDS = bytes(ord(chr(code).lower()) if chr(code).isalnum() and code < 128 else ord(" ") for code in range(256))
SANDBOX = rewards.LocalSandbox()
LONG = 2_000  # characters; for longer reasoning, the language is estimated before it is counted
WINDOW, FEW = 12, 2  # words; chosen: in English, almost half of the words are among the commonest ones
NOT_CHINESE = re.compile("[\u0e00-\u11ff\u3040-\u30ff\uac00-\ud7af]")  # other scripts without spaces, and Korean
FENCE = re.compile(r"^\s*(```|~~~)", re.MULTILINE)


@dataclass(frozen=True)
class Thresholds:
    """``style`` is a style of ``rewards.is_well_formed`` ("r1_zero", "think"), or "plain" for a base model's page,
    which has no tags. ``steps`` are the names of the filters to apply. Lengths are in characters."""

    style: Literal["think", "r1_zero", "plain"] = "think"
    steps: list[str] = field(default_factory=lambda: [check.__name__ for check in FILTERS])
    min_language_share: Share = 0.95  # chosen: one foreign word in twenty is a name or a quotation
    max_paragraph_chars: Positive = 1500  # chosen: about 250 English words
    repetition_ngram: Positive = 20  # words
    min_distinct_ngrams: Share = 0.8  # chosen: share of the text's n-grams that are distinct

    def __post_init__(self) -> None:
        known = [check.__name__ for check in FILTERS]
        for step in self.steps:
            if step not in known:
                raise ValueError(f"filter {step!r} is not known; write some of {', '.join(known)}")


@dataclass(frozen=True)
class Candidate:
    """A completion for a row. ``generator`` is the model that wrote it. ``finish`` and ``why`` are as in
    data_prep.sampling.Sample."""

    row: Row
    text: str
    finish: str = "stop"
    completion_tokens: int = 0
    generator: str = ""
    before: Candidate | None = None  # the candidate from which a rewriter made this one
    why: str = ""

    @classmethod
    def of(cls, row: Row, sample: Sample, generator: str) -> Candidate:
        return cls(row, sample.text.strip(), sample.finish, sample.completion_tokens, generator, why=sample.why)

    @functools.cached_property
    def reasoning(self) -> str | None:
        return rewards.parse(self.text).reasoning


def unanswered(candidate: Candidate, thresholds: Thresholds) -> str | None:
    """Drop refused and failed candidates, which have no text. It is always applied, whatever ``steps`` says."""
    return candidate.why or "no answer" if candidate.finish in ("refused", "failed") else None


def empty(candidate: Candidate, thresholds: Thresholds) -> str | None:
    return None if candidate.text else "no text"


def truncated(candidate: Candidate, thresholds: Thresholds) -> str | None:
    return "cut at max_tokens" if candidate.finish == "length" else None


def malformed(candidate: Candidate, thresholds: Thresholds) -> str | None:
    if thresholds.style == "plain":
        return None
    thinking = bool(candidate.row["thinking"])
    if rewards.is_well_formed(candidate.text, thresholds.style, thinking):
        return None
    return f"not in the form {thresholds.style!r}" + ("" if thinking else " without reasoning")


def is_right(row: Row, text: str) -> bool | None:
    """Whether a completion is correct by rule, or None if no rule can decide. A program is checked by the row's
    ``tests``, or by its ``answer`` if it has no tests. Raises ValueError for unreadable tests, and SandboxUnavailable.
    """
    if row["verifier"] != "code":
        return rewards.is_correct(text, row["answer"], row["verifier"], row.get("entry"))
    if not row.get("tests"):
        return rewards.is_correct(text, row["answer"], "code") if row["answer"] else None
    return passes(text, rewards.parse_tests(row["tests"]), SANDBOX) == 1.0


def incorrect(candidate: Candidate, thresholds: Thresholds) -> str | None:
    """Drop incorrect completions. Rows that no rule can grade (verifier judge or none) pass and are left to a judge."""
    row = candidate.row
    try:
        wrong = is_right(row, candidate.text) is False
    except ValueError as error:
        return f"tests: {error}"
    why = "not what its tests ask for" if row.get("tests") else f"not the answer {row['answer']!r}"
    return why if wrong else None


def mixed_language(candidate: Candidate, thresholds: Thresholds) -> str | None:
    """Drop candidates with mixed languages in the reasoning. If there is no reasoning, the whole text is checked. A
    general answer without reasoning passes, because it may quote other languages."""
    reasoning = candidate.reasoning
    if reasoning is None:
        if candidate.row["kind"] != "reasoning":
            return None
        reasoning = candidate.text
    language, least = candidate.row["language"], thresholds.min_language_share
    if len(reasoning) > LONG and _estimate(reasoning, language) > (1 + least) / 2:
        return None
    share = rewards.language_consistency(reasoning, language)
    if share >= least:
        return None
    return f"{share:.2f} of the words are {language}"


def _estimate(text: str, language: str) -> float:
    """Estimate ``rewards.language_consistency`` in a fifth of its time. For Chinese, this is the share of Chinese
    characters among characters and words. For English, ``count_words`` reads only windows of words that have fewer of
    the commonest words than any English text."""
    words = split(text)
    names = (words.kinds == LETTER) & (words.ends - words.starts > 1)
    count = np.count_nonzero(names)
    if language == "zh":
        characters = np.count_nonzero(words.kinds == CHARACTER)
        return 0.0 if NOT_CHINESE.search(text) else characters / max(characters + count, 1)
    foreign = 0 if text.isascii() else len(NOT_LATIN.findall(text))
    if count < WINDOW:
        return 0.0
    common = _common()
    known = common[np.minimum(np.searchsorted(common, words.hashes[names]), len(common) - 1)] == words.hashes[names]
    sums = np.concatenate(([0], np.cumsum(known)))
    first = np.append(np.arange(0, count - WINDOW, WINDOW // 2), count - WINDOW)
    doubtful = first[sums[first + WINDOW] - sums[first] < FEW]
    starts, ends = words.starts[names], words.ends[names]
    pieces = [words.text[starts[at] : ends[at + WINDOW - 1]] for at in doubtful.tolist()]
    target, total = count_words("\n".join(pieces), language)
    return 1 - (total - target + foreign) / count


@functools.cache
def _common() -> np.ndarray:
    """Hashes of the commonest English words, sorted. They are not computed at import because that takes 0.1 seconds."""
    return np.sort(np.concatenate([split(word).hashes for word in sorted(ENGLISH)]))


def long_paragraph(candidate: Candidate, thresholds: Thresholds) -> str | None:
    longest = max(map(len, re.split(r"\n\s*\n", candidate.text)))
    return f"a paragraph of {longest} characters" if longest > thresholds.max_paragraph_chars else None


def code_block(candidate: Candidate, thresholds: Thresholds) -> str | None:
    """Drop reasoning with a fenced code block, except in the code domain."""
    fenced = candidate.row["domain"] != "code" and FENCE.search(candidate.reasoning or "")
    return "a code block in the reasoning" if fenced else None


def repetitive(candidate: Candidate, thresholds: Thresholds) -> str | None:
    words, n = _words(candidate.text), thresholds.repetition_ngram
    grams = ngrams(np.fromiter(map(hash, words), np.int64, len(words)).view(np.uint64), n)
    grams.sort()
    share = (1 + np.count_nonzero(grams[1:] != grams[:-1])) / len(grams) if len(grams) else 1.0
    return f"{share:.2f} of the {n}-grams are distinct" if share < thresholds.min_distinct_ngrams else None


def _words(text: str) -> list[str] | list[bytes]:
    """The matches of `WORD`. For ASCII text, this is five times as fast as the pattern."""
    return text.encode().translate(ASCII_WORDS).split() if text.isascii() else WORD.findall(text.lower())


FILTERS: tuple[Callable[[Candidate, Thresholds], str | None], ...] = (
    unanswered, empty, truncated, malformed, incorrect, mixed_language, long_paragraph, code_block, repetitive,
)  # fmt: skip


def first_failure(candidate: Candidate, thresholds: Thresholds) -> tuple[str, str] | None:
    """Return (name of the first filter that the candidate fails, why), or None if it passes all."""
    for check in FILTERS:
        why = check(candidate, thresholds) if check is unanswered or check.__name__ in thresholds.steps else None
        if why:
            return check.__name__, why
    return None


def row_failure(thresholds: Thresholds, row: Row) -> tuple[str, str] | None:
    """Apply ``first_failure`` to an SFT row. Its optional column ``finish`` says how its completion ended."""
    return first_failure(Candidate(row, row["completion"].strip(), row.get("finish") or "stop"), thresholds)


@dataclass
class Funnel:
    """Counts of the candidates that came in, that each step dropped (in the order of the steps), and that were kept."""

    steps: Iterable[str] = tuple(check.__name__ for check in FILTERS)
    seen: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    example: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.dropped = dict.fromkeys(self.steps, 0)

    def drop(self, step: str, row: Row, why: str) -> None:
        """Count one drop; the first one of a step is kept as an example. A candidate is dropped at most once."""
        self.dropped[step] += 1
        self.example.setdefault(step, f"{row['id']}: {why}")

    def passing(self, groups: list[list[Candidate]], thresholds: Thresholds) -> list[list[Candidate]]:
        """The candidates of each group that pass all filters. All candidates are counted. Filters may run programs, so
        they run in threads."""
        candidates = [candidate for group in groups for candidate in group]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = pool.map(lambda candidate: first_failure(candidate, thresholds), candidates)
            failures = iter(list(commands.progress(found, "checking", len(candidates), "sample")))
        self.seen += len(candidates)
        passed = []
        for group in groups:
            passed.append([])
            for candidate, failure in zip(group, failures, strict=False):
                if failure:
                    self.drop(failure[0], candidate.row, failure[1])
                else:
                    passed[-1].append(candidate)
        return passed

    def figures(self) -> dict[str, object]:
        kept = self.seen - sum(self.dropped.values())
        return {"seen": self.seen, "dropped": self.dropped, "kept": kept, "first_dropped": self.example}
