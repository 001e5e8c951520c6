"""Repeated prompts and rows: exact ones by hash, near ones by MinHash."""

from __future__ import annotations

import hashlib
import unicodedata

from data_prep.rows import Row

import numpy as np


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
