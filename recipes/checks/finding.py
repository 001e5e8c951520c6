"""The class of the doctor's findings, and the functions that its checks share."""

import contextlib
import logging
import math
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy
import torch

logger = logging.getLogger("recipes.checks")
CHECKED = 64  # number of completions, sequences or pairs that are checked
MAX_UNPARSEABLE = 0.01  # share of gold answers; the same share is the limit for other faults of rows


@dataclass(frozen=True)
class Finding:
    """`message` has whole sentences: what is wrong, why it matters and what to write. A finding with `stops` would
    certainly waste the run. Any other may be intended."""

    message: str
    stops: bool = True

    def __str__(self) -> str:
        return self.message


def warn(text: str) -> None:
    """Log a warning, in the first process only."""
    if os.environ.get("RANK", "0") == "0":
        logger.warning("%s", text)


@contextlib.contextmanager
def same_random_numbers() -> Iterator[None]:
    """Restore the random generators of Python, NumPy and torch at the end of the block, so that the block uses up no
    random numbers. For torch, these are the generators of the CPU and of the GPU that this process uses."""
    states = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
        yield
    random.setstate(states[0])
    numpy.random.set_state(states[1])


def spread(rows: Any, count: int) -> list:
    """Up to `count` of the rows, evenly spaced."""
    step = max(1, math.ceil(len(rows) / count))
    return [rows[index] for index in range(0, len(rows), step)]
