"""Removal of training rows that contain evaluation questions or solutions (paper v2, D.1: any matching 10-gram).

The words and their n-grams are those of `data_prep.words`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from data_prep.rows import Row, json_lines, read_parquet
from data_prep.runs import advice, is_here
from data_prep.words import MULTIPLIERS, PIECE, SEPARATOR, Words, ngrams, normal, split, split_normal
from rewards.settings import FILLED, Positive

import numpy as np

WHOLE = 5  # words: a shorter question matches only a whole prompt. chosen: "What is 2 + 3?" has five


@dataclass(frozen=True)
class EvaluationSet:
    """A Parquet or JSONL file, or the ``split`` of a Hub data set or of its ``subset``. The first of ``columns`` is the
    question. All columns are matched by n-grams; a question of fewer than n words is matched as a whole."""

    path: str
    columns: Annotated[list[str], FILLED] = field(default_factory=lambda: ["question", "answer"])
    id: str = "id"
    split: str = "test"
    subset: str = ""


@dataclass(frozen=True)
class Decontamination:
    """``sets`` by name. ``stop_list`` is a file of boilerplate lines such as "put your final answer within \\boxed{}".
    Their n-grams, and questions equal to one of them, are not counted as contamination."""

    sets: dict[str, EvaluationSet] = field(default_factory=dict)
    n: Positive = 10
    stop_list: str = ""

    def __post_init__(self) -> None:
        if not WHOLE <= self.n <= len(MULTIPLIERS):
            raise ValueError(f"`n` is {self.n}; write {WHOLE} to {len(MULTIPLIERS)} words, 10 for the paper's")


@dataclass(frozen=True)
class Match:
    """A passage that a text shares with an item of a set; ``text`` is the number of the text."""

    set: str
    item: str
    ngram: str
    text: int


def load(settings: Decontamination) -> Index:
    """Read the evaluation sets. Raises FileNotFoundError or ValueError with the name of the set and what is missing."""
    index = Index(settings.n)
    for name, one in settings.sets.items():
        number = -1
        for number, record in enumerate(records(one)):
            missing = [column for column in one.columns if column not in record]
            if missing:
                raise ValueError(f"{one.path}, row {number}: no column '{missing[0]}'; it has {', '.join(record)}")
            texts = [record[column] for column in one.columns]
            if not isinstance(texts[0], str):
                wrong = f"column '{one.columns[0]}' is {type(texts[0]).__name__}, must be text"
                raise ValueError(f"{one.path}, row {number}: {wrong}; name another in `columns`, or mend the row")
            for at, text in enumerate(texts):
                if isinstance(text, str):
                    index.add(name, str(record.get(one.id, number)), text, question=at == 0)
        if number < 0:
            raise ValueError(f"{one.path}: holds nothing; name another path, or leave the set '{name}' out")
    if settings.stop_list:
        index.stop(Path(settings.stop_list).read_text(encoding="utf-8").splitlines())
    return index


def records(one: EvaluationSet) -> Iterator[dict[str, Any]]:
    """The records of a set. Raises FileNotFoundError if the set cannot be loaded."""
    if one.path.endswith(".parquet"):
        yield from read_parquet(one.path)
    elif is_here(one.path):
        if not Path(one.path).is_file():
            raise FileNotFoundError(f"{one.path}: no such file{advice(one.path)}")
        if not one.path.endswith((".jsonl", ".jsonl.gz")):
            raise ValueError(f"{one.path}: neither Parquet nor JSONL; write a .parquet, .jsonl or .jsonl.gz file")
        for number, record in json_lines(one.path):
            if isinstance(record, str):
                raise ValueError(f"{one.path}, row {number}: {record}")
            yield record
    else:
        from data_prep import hub

        from datasets import load_dataset  # slow to import, and only needed for the Hub

        yield from hub.find(one.path, lambda: load_dataset(one.path, one.subset or None, split=one.split), "dataset")


class Index:
    """The n-grams of evaluation items, and the questions that are shorter than n. Add all items first; then ``find``
    searches texts for them. Calling the index with a row makes it a check of data_prep.shards."""

    def __init__(self, n: int = 10):
        self.n = n
        self.items: list[tuple[str, str]] = []
        self._added: dict[int, dict[int, int]] = {}  # length in words -> hash -> item; length 0: whole prompts
        self._sorted: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None

    def __len__(self) -> int:
        return len(self.items)

    def add(self, set: str, item: str, text: str, question: bool = True) -> None:
        if not self.items or self.items[-1] != (set, item):
            self.items.append((set, item))
        words = split(text).hashes
        if len(words) >= self.n:
            length, found = self.n, ngrams(words, self.n)
        elif question and len(words):
            length, found = (len(words) if len(words) >= WHOLE else 0), ngrams(words, len(words))
        else:
            return
        own = self._added.setdefault(length, {})
        for gram in found.tolist():
            own.setdefault(gram, len(self.items) - 1)
        self._sorted = None

    def stop(self, lines: Iterable[str]) -> None:
        for line in lines:
            words = split(line).hashes
            for length, own in self._added.items():
                for gram in ngrams(words, length or len(words)).tolist() if len(words) >= length else ():
                    own.pop(gram, None)
        self._sorted = None

    def find(self, *texts: str) -> Match | None:
        """The first n-gram of the texts that also occurs in an item, or None. The first text is the prompt."""
        if self._sorted is None:
            self._sorted = {length: _table(own) for length, own in self._added.items() if own}
        plain = [normal(text) for text in texts]
        joined = SEPARATOR.join(plain)
        if len(joined) > PIECE:
            return self._find_in_pieces(plain)
        words = split_normal(joined)
        hit = self._hit(words, len(plain[0]))
        if hit is None:
            return None
        at, length, item = hit
        start, end = int(words.starts[at]), int(words.ends[at + length - 1])
        return Match(*self.items[item], words.text[start:end], joined.count(SEPARATOR, 0, start))

    def _find_in_pieces(self, plain: list[str]) -> Match | None:
        for number, text in enumerate(plain):
            for start in range(0, max(len(text), 1), PIECE // 2):
                piece = text[start : start + PIECE - 1]
                found = self.find(piece) if number == 0 else self.find("", piece)
                if found:
                    return Match(found.set, found.item, found.ngram, number)
        return None

    def _hit(self, words: Words, prompt_end: int) -> tuple[int, int, int] | None:
        """Return (number of the first word, number of words, item) of a match."""
        hashes, sums = words.hashes, None
        for length in range(1, min(self.n, len(hashes)) + 1):
            last = hashes[length - 1 :] * MULTIPLIERS[length - 1]
            sums = last if sums is None else sums[: len(last)] + last
            if length in self._sorted:
                found = _lookup(self._sorted[length], sums)
                if found:
                    return found[0], length, found[1]
        if 0 in self._sorted:
            count = int(np.searchsorted(words.starts, prompt_end))
            if 0 < count < WHOLE:
                found = _lookup(self._sorted[0], ngrams(hashes[:count], count))
                if found:
                    return 0, count, found[1]
        return None

    def __call__(self, row: Row) -> tuple[str, str] | None:
        match = self.find(row["prompt"], row["question"], row.get("completion") or "", row["answer"])
        if match is None:
            return None
        where = ("prompt", "question", "completion", "answer")[match.text]
        return "contaminated", f"{match.set}, item {match.item}, in the {where}: {match.ngram!r}"


def _table(grams: dict[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (sorted hashes, their items, a bit table that rules out most other hashes with one look-up)."""
    hashes = np.array(sorted(grams), np.uint64)
    bits = min(24, max(16, len(hashes).bit_length() + 5))
    table = np.zeros(1 << bits, bool)
    table[hashes >> np.uint64(64 - bits)] = True
    return hashes, np.array([grams[gram] for gram in hashes.tolist()]), table


def _lookup(table: tuple[np.ndarray, np.ndarray, np.ndarray], grams: np.ndarray) -> tuple[int, int] | None:
    """Return (place, item) of the first n-gram that is in the table, or None."""
    hashes, items, seen = table
    shift = np.uint64(64 - (len(seen).bit_length() - 1))
    maybe = np.flatnonzero(seen[grams >> shift])
    if len(maybe):
        at = np.minimum(np.searchsorted(hashes, grams[maybe]), len(hashes) - 1)
        hits = np.flatnonzero(hashes[at] == grams[maybe])
        if len(hits):
            return int(maybe[hits[0]]), int(items[at[hits[0]]])
    return None
