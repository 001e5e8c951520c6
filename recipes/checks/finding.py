"""The findings of checks, and how a stage reports them."""

import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data_prep.runs import ConfigError

logger = logging.getLogger("recipes.checks")
CHECKED = 64  # completions, sequences or pairs that are checked
MAX_UNPARSEABLE = 0.01  # share of gold answers; other faults of rows are reported above the same share


@dataclass(frozen=True)
class Finding:
    """A finding that `stops` would certainly waste the run. Any other may be intended."""

    message: str
    stops: bool = True

    def __str__(self) -> str:
        return self.message


def tell(found: Iterator[Finding]) -> None:
    """Log the findings that are only warnings. Raises ConfigError with all others."""
    findings = list(found)
    for finding in findings:
        if not finding.stops and os.environ.get("RANK", "0") == "0":
            logger.warning("doctor: %s", finding)
    if stops := [str(finding) for finding in findings if finding.stops]:
        raise ConfigError("\n".join([*stops, "(The key doctor: false leaves this check out.)"]))


def spread(rows: Any, count: int) -> list:
    """Up to `count` of the rows, evenly spaced."""
    step = max(1, math.ceil(len(rows) / count))
    return [rows[index] for index in range(0, len(rows), step)]
