"""Repeated prompts and rows: exact ones by hash, near ones by MinHash."""

from __future__ import annotations

import hashlib
import unicodedata
from pathlib import Path

from data_prep.decontaminate import ngrams, split
from data_prep.rows import Row

import numpy as np
import rensa


def prompt_hash(row: Row) -> int:
    """64 bits of a prompt; case, spacing and the width of characters do not count."""
    return hash64(normal(row["prompt"]))


def row_hash(row: Row) -> int:
    """64 bits of a prompt as above with its completion as it stands."""
    return hash64(f"{normal(row['prompt'])}\0{row['completion'].strip()}")


def normal(text: str) -> str:
    return " ".join((text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold().split())


def occurrence(hashes: np.ndarray) -> np.ndarray:
    """How many equal ones stand before each, (n,) -> (n,) of int."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    first = np.ones(len(hashes), bool)
    first[1:] = ordered[1:] != ordered[:-1]
    at = np.arange(len(hashes))
    counts = np.empty(len(hashes), int)
    counts[order] = at - np.maximum.accumulate(np.where(first, at, 0))
    return counts


def hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="replace"), digest_size=8).digest(), "big")


# --- near duplicates --------------------------------------------------------------------------------------------------

SHINGLE = 5  # words
BANDS, BAND = 25, 5  # 25 bands of 5 minima: a pair of Jaccard similarity 0.8 shares one with a chance of 0.9999
CHUNK = 50_000  # pairs compared at once


def signatures(prompts: list[str]) -> np.ndarray:
    """MinHash of each prompt's runs of five words, (prompts, 125) of uint32. Words are data_prep.decontaminate's."""
    sets = []
    for prompt in prompts:
        words = split(prompt).hashes
        found = ngrams(words, min(SHINGLE, len(words)))
        sets.append(found if len(found) else np.array([hash64(prompt)], np.uint64))
    offsets = np.cumsum([0, *map(len, sets)])
    tokens = np.concatenate(sets) if sets else np.zeros(0, np.uint64)
    digests = rensa.RMinHash.digest_matrix_from_flat_token_hashes(tokens, offsets.tolist(), BANDS * BAND, 1)
    return np.array(digests.to_rows(), np.uint32).reshape(len(prompts), BANDS * BAND)


def near_repeats(files: list[Path], rows: np.ndarray, threshold: float) -> np.ndarray:
    """Which rows are near duplicates of an earlier one, (rows,) of bool. ``files`` hold the signatures of all rows, one
    after the other; ``rows`` are numbers among those, the earliest first. Rows that are linked by pairs of at least
    ``threshold`` similarity are one cluster, of which the first stays."""
    lengths = [len(np.load(file, mmap_mode="r")) for file in files]
    parents = np.arange(len(rows))

    def root(at: int) -> int:
        while parents[at] != at:
            parents[at] = at = parents[parents[at]]
        return at

    for band in range(BANDS):
        hashes = np.concatenate([_band_hashes(np.load(file), band) for file in files])[rows]
        order = np.argsort(hashes, kind="stable")
        new = np.append(True, hashes[order][1:] != hashes[order][:-1])
        firsts = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
        pairs = np.stack([firsts, order])[:, ~new]
        pairs = pairs[:, parents[pairs[0]] != parents[pairs[1]]]
        for start in range(0, pairs.shape[1], CHUNK):
            first, second = pairs[:, start : start + CHUNK]
            same = _gather(files, lengths, rows[first]) == _gather(files, lengths, rows[second])
            for one, other in pairs[:, start : start + CHUNK][:, same.mean(axis=1) >= threshold].T.tolist():
                low, high = sorted((root(one), root(other)))
                parents[high] = low
    return np.array([root(at) != at for at in range(len(rows))], bool)


def _band_hashes(found: np.ndarray, band: int) -> np.ndarray:
    part = found[:, band * BAND : (band + 1) * BAND].astype(np.uint64)
    return ngrams(part.reshape(-1), BAND)[::BAND]


def _gather(files: list[Path], lengths: list[int], rows: np.ndarray) -> np.ndarray:
    """The signatures of some rows."""
    found = np.empty((len(rows), BANDS * BAND), np.uint32)
    start = 0
    for file, length in zip(files, lengths, strict=True):
        own = np.flatnonzero((rows >= start) & (rows < start + length))
        if len(own):
            found[own] = np.load(file)[rows[own] - start]
        start += length
    return found
