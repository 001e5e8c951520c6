"""A finding, and what checks share."""

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
CHECKED = 64  # completions, sequences or pairs that are checked
MAX_UNPARSEABLE = 0.01  # share of gold answers; other faults of rows are reported above the same share


@dataclass(frozen=True)
class Finding:
    """Whole sentences: what is wrong, why it matters and what to write. A finding that `stops` would certainly waste
    the run. Any other may be intended."""

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
    """Restores the random generators of Python, NumPy and torch, on the CPU and on the GPU that this process uses, at
    the end of the block."""
    states = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
        yield
    random.setstate(states[0])
    numpy.random.set_state(states[1])


def spread(rows: Any, count: int) -> list:
    """Up to `count` of the rows, evenly spaced."""
    step = max(1, math.ceil(len(rows) / count))
    return [rows[index] for index in range(0, len(rows), step)]
