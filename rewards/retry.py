"""When a failed request to a judge, a sandbox, a server or the Hub is made again, and after how many seconds."""

import math
import random
from collections.abc import Mapping

PASSING = (408, 409, 425, 429)
LONGEST_S = 60.0  # that a reward waits because a server asks for it: all processes of a training step wait with it


def is_passing(status: int) -> bool:
    """Whether the same request may succeed later, as after a timeout, a rate limit or a fault of the server."""
    return status in PASSING or status >= 500


def asked_s(headers: Mapping[str, str]) -> float:
    """The seconds that a server asks to wait (Retry-After), or 0. A date is ignored."""
    after = headers.get("retry-after", "")
    return float(after) if after.isdigit() else 0.0


def wait_s(failed: int, first_s: float, asked: float = 0.0, longest_s: float = math.inf, spread: float = 0.2) -> float:
    """The seconds to wait after ``failed`` attempts (at least 1): ``first_s``, then twice the last wait, up to
    ``longest_s``, but no less than the server asked for. Up to a share ``spread`` is added at random, because many
    clients must not try again at once."""
    return max(asked, min(longest_s, first_s * 2 ** (failed - 1))) * (1 + random.uniform(0, spread))
