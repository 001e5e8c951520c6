"""Words of a text as arrays of 64-bit hashes, for n-grams over rows of any language.

A word is a run of letters, a number, an operator, or one character of a script that is written without spaces. Case,
spacing, punctuation, the width of characters and LaTeX's spacing are ignored. All words of a text are hashed at once
with numpy: a word's hash is made from the difference of two prefix sums of a polynomial, and an n-gram's hash is
a linear combination of its words' hashes.
"""

from __future__ import annotations

import functools
import unicodedata
from dataclasses import dataclass

import numpy as np

PIECE = 1 << 19  # characters hashed at once
SEPARATOR = "\x1e"  # between the texts of a row; no item of an evaluation set contains it, so no match spans two texts
GAP, LETTER, DIGIT, OPERATOR, CHARACTER, INVISIBLE, COMMAND = range(7)
OPERATORS = set("+-*/=<>^")
SAME = {"\u2212": "-", "\u00d7": "*", "\u00b7": "*", "\u22c5": "*", "\u2219": "*", "\u00f7": "/", "\u2215": "/"}
UNSPACED = (  # Thai to Tibetan, Myanmar, Khmer, kana and ideographs
    (0x0E00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3040, 0x30FF),
    (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF),
)  # fmt: skip
# LaTeX commands for space, size or type are not words; some signs have several names.
COMMANDS = {
    "left": "", "right": "", "big": "", "Big": "", "bigl": "", "bigr": "", "quad": "", "qquad": "", "displaystyle": "",
    "limits": "", "text": "", "mbox": "", "mathrm": "", "mathbf": "", "textbf": "", "dfrac": "frac", "tfrac": "frac",
    "leq": "le", "geq": "ge", "times": "*", "cdot": "*", "div": "/",
}  # fmt: skip


@dataclass(frozen=True)
class Words:
    """A 64-bit hash of each word, its kind, and its start and end in ``text``; each array has shape (words,)."""

    hashes: np.ndarray
    kinds: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    text: str


def split(text: str) -> Words:
    """The words of a text."""
    return split_normal(normal(text))


def normal(text: str) -> str:
    """The text with accents joined to their letters. The table of code points cannot do this."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def split_normal(text: str) -> Words:
    """The words of a text that `normal` has returned."""
    if text.isascii():
        encoded = text.encode()
        values = np.frombuffer(encoded.translate(_ascii_tables()[0]), np.uint8)
        kinds = np.frombuffer(encoded.translate(_ascii_tables()[1]), np.uint8)
    else:
        codes = np.frombuffer(text.encode("utf-32-le", errors="replace"), np.uint32)
        values, kinds = (table[codes] for table in _tables())
        if (kinds == INVISIBLE).any():
            return split_normal("".join(map(text.__getitem__, np.flatnonzero(kinds != INVISIBLE))))
    if not len(kinds):
        return Words(*np.zeros((4, 0), np.uint64), text)
    edge = kinds[1:] != kinds[:-1]
    edge |= kinds[1:] >= OPERATOR
    starts = np.concatenate(([0], np.flatnonzero(edge) + 1))
    ends = np.append(starts[1:], len(kinds))
    full = np.flatnonzero(kinds[starts])  # gaps have kind 0; integers index faster than booleans
    starts, ends = starts[full], ends[full]
    hashes, kind = _hashes(values, starts, ends), kinds[starts]
    keep = np.ones(len(hashes), bool)
    if "\\" in text:
        commands = np.flatnonzero((values[starts - 1] == ord("\\")) & (starts > 0) & (kind == LETTER))
        kind[commands] = COMMAND
        names, counts_as, sign = _commands()
        at = np.minimum(np.searchsorted(names, hashes[commands]), len(names) - 1)
        known = names[at] == hashes[commands]
        commands, at = commands[known], at[known]
        hashes[commands], keep[commands] = counts_as[at], counts_as[at] != 0
        kind[commands[sign[at]]] = OPERATOR
    operators = np.flatnonzero(kind == OPERATOR)
    if len(operators):
        keep[operators] = _real(operators, hashes, (kind == LETTER) & (ends - starts > 1))
    real = np.flatnonzero(keep)
    return Words(hashes[real], kind[real], starts[real], ends[real], text)


def _hashes(values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """A 64-bit hash of each word, never 0."""
    powers, inverses = _powers()
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * powers[: len(values)], out=sums[1:])
    hashes = (sums[ends] - sums[starts]) * inverses[starts]
    hashes ^= hashes >> np.uint64(29)
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    hashes ^= hashes >> np.uint64(32)
    return hashes


@functools.cache
def _commands() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For `COMMANDS`: sorted hashes of the names; hashes of what they count as (0: nothing); which are operators."""
    known = {}
    for name, other in COMMANDS.items():
        counts_as = (
            int(split_normal(f"0{other}0").hashes[1]) if other in OPERATORS else int(split_normal(other).hashes.sum())
        )
        known[int(split_normal(name).hashes[0])] = counts_as, other in OPERATORS
    names = sorted(known)
    return (
        np.array(names, np.uint64),
        np.array([known[name][0] for name in names], np.uint64),
        np.array([known[name][1] for name in names]),
    )


def _real(operators: np.ndarray, hashes: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Which operators are words. A hyphen or dash between two names is punctuation, and so is a repeated sign, as in
    `**bold**` and `---`."""
    last = len(hashes) - 1
    before, after = np.maximum(operators - 1, 0), np.minimum(operators + 1, last)
    between = (names[before] | (operators == 0)) & (names[after] | (operators == last))
    twice = (hashes[before] == hashes[operators]) & (before != operators)
    twice |= (hashes[after] == hashes[operators]) & (after != operators)
    return ~(between | twice)


MULTIPLIERS = np.random.default_rng(1).integers(1, 2**63, 256, dtype=np.uint64) | np.uint64(1)


def ngrams(words: np.ndarray, length: int) -> np.ndarray:
    """A 64-bit hash of every run of ``length`` words."""
    if not 0 < length <= len(words):
        return words[:0]
    count = len(words) - length + 1
    return sum(words[at : at + count] * MULTIPLIERS[at] for at in range(length))


@functools.cache
def _powers() -> tuple[np.ndarray, np.ndarray]:
    """Return (base ** k, base ** -k) modulo 2 ** 64 for each k below the length of a piece."""
    base = 0x9E3779B97F4A7C15
    inverse = pow(base, -1, 1 << 64)
    steps = np.ones((2, PIECE + 1), np.uint64)
    steps[0, 1:], steps[1, 1:] = base, inverse
    powers, inverses = np.cumprod(steps, axis=1)
    return powers, inverses


@functools.cache
def _ascii_tables() -> tuple[bytes, bytes]:
    values, kinds = _tables()
    return (values[:256] % 256).astype(np.uint8).tobytes(), kinds[:256].tobytes()


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Return (the value that each code point counts as, its kind)."""
    values = np.arange(0x110000, dtype=np.uint32)
    kinds = np.full(0x110000, CHARACTER, np.uint8)
    for code in range(0x20000):
        values[code], kinds[code] = _character(chr(code))
    return values, kinds


def _character(character: str) -> tuple[int, int]:
    if character == SEPARATOR:
        return ord(character), CHARACTER
    alike = unicodedata.normalize("NFKC", SAME.get(character, character)).lower()
    alike = alike if len(alike) == 1 else character
    code, category = ord(alike), unicodedata.category(alike)
    if category == "Nd":
        return ord("0") + unicodedata.decimal(alike), DIGIT
    if alike in OPERATORS or category == "Sm" and not alike.isascii():
        return code, OPERATOR
    if category == "Cf":
        return code, INVISIBLE
    if category[0] not in "LMN":
        return code, GAP
    if any(first <= code <= last for first, last in UNSPACED):
        return code, CHARACTER
    return code, DIGIT if category[0] == "N" else LETTER
