"""Repeated prompts and rows: exact ones by hash, near ones by MinHash."""

from __future__ import annotations

import hashlib
import itertools
import unicodedata
from pathlib import Path

from data_prep.rows import Row
from data_prep.words import ngrams, split

import numpy as np
import rensa


def prompt_hash(row: Row) -> int:
    """A 64-bit hash of a prompt; case, spacing and the width of characters are ignored."""
    return hash64(normal(row["prompt"]))


def row_hash(row: Row) -> int:
    """A 64-bit hash of a prompt, normalised as in ``prompt_hash``, and its unchanged completion."""
    return hash64(f"{normal(row['prompt'])}\0{row['completion'].strip()}")


def normal(text: str) -> str:
    return " ".join((text if text.isascii() else unicodedata.normalize("NFKC", text)).casefold().split())


def occurrence(hashes: np.ndarray) -> np.ndarray:
    """How many equal hashes come before each one, (n,) -> (n,) of int."""
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
BANDS, BAND = 25, 5  # 25 bands of 5 minima: a pair of Jaccard similarity 0.8 shares one with probability 0.9999
# For each band, a row is compared with at most this many of the kept rows that share it. chosen: thousands of rows
# share the bands of a template, but only few share the bands that tell its rows apart.
MOST = 16


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
    """For each row, the position of an earlier kept row that it nearly repeats, or -1 if the row itself is kept,
    (rows,) of int. ``files`` hold the signatures of all rows, concatenated; ``rows`` are indices into them, earliest
    first. A row is dropped only if its similarity to a kept row is at least ``threshold``; later rows are not compared
    with dropped ones."""
    lengths = [len(np.load(file, mmap_mode="r")) for file in files]
    buckets = np.full((len(rows), BANDS), -1, np.int32)  # -1: the row shares this band with no other
    for band in range(BANDS):
        hashes = np.concatenate([_band_hashes(np.load(file), band) for file in files])[rows]
        _, numbers, counts = np.unique(hashes, return_inverse=True, return_counts=True)
        buckets[:, band] = np.where(counts[numbers] > 1, numbers, -1)
    shared = np.flatnonzero((buckets >= 0).any(axis=1))
    nearest = np.full(len(rows), -1)
    found = _gather(files, lengths, rows[shared])
    stay: list[dict[int, list[int]]] = [{} for _ in range(BANDS)]
    for at, own in enumerate(row.tolist() for row in buckets[shared]):
        met = [stay[band].get(bucket) for band, bucket in enumerate(own) if bucket >= 0]
        others = np.array(sorted(set(itertools.chain.from_iterable(filter(None, met)))), int)
        alike = others[(found[others] == found[at]).mean(axis=1) >= threshold] if len(others) else others
        if len(alike):
            nearest[shared[at]] = shared[alike[0]]
            continue
        for band, bucket in enumerate(own):
            if bucket >= 0 and len(one := stay[band].setdefault(bucket, [])) < MOST:
                one.append(at)
    return nearest


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
