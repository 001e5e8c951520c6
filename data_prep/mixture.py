"""The SFT mixture: rejection-sampled reasoning and general data in the proportions of the paper's Table 5.

At 804,745 rows the quotas are the table's own; at any other size they are in proportion. Where a domain has fewer rows
than its quota, the shortfall is reported and nothing is put in its place.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

from data_prep import jobs, rows

log = logging.getLogger(__name__)
TABLE_5 = {"math": 395_285, "code": 211_129, "stem": 10_124, "logic": 10_395, "general": 177_812}  # paper v2


@dataclass(frozen=True)
class Mixture:
    """``sources`` are files of SFT rows; ``total`` the size of the mixture if no domain falls short."""

    output_dir: str
    sources: list[str]
    total: int
    seed: int = 0
    limit: int = 0

    def __post_init__(self) -> None:
        if self.total < 1:
            raise ValueError(f"`total` is {self.total}; write the number of rows, 804745 for the paper's")


def load(config: Mixture) -> dict[str, list[rows.Row]]:
    found = [row for source in config.sources for row in rows.load_rows(source, sft=True)]
    rows.validate(found, " + ".join(config.sources), sft=True)  # an id may not come from two sources
    return {"candidates": found}


def quotas(total: int) -> dict[str, int]:
    """Rows a domain: Table 5 scaled to ``total``, rounded by largest remainder, so that they sum to it exactly."""
    size = sum(TABLE_5.values())
    shares = {domain: divmod(count * total, size) for domain, count in TABLE_5.items()}
    result = {domain: whole for domain, (whole, _) in shares.items()}
    for domain in sorted(shares, key=lambda domain: -shares[domain][1])[: total - sum(result.values())]:
        result[domain] += 1
    return result


def build(config: Mixture, output_dir: Path, candidates: list[rows.Row]) -> dict[str, object]:
    wanted = quotas(config.limit or config.total)
    by_domain = {domain: [row for row in candidates if row["domain"] == domain] for domain in wanted}
    chosen = {
        domain: jobs.choose(found, wanted[domain], f"{config.seed}-{domain}") if wanted[domain] else []
        for domain, found in by_domain.items()
    }
    counts = {
        domain: {
            "quota": wanted[domain],
            "available": len(by_domain[domain]),
            "rows": len(chosen[domain]),
            "shortfall": wanted[domain] - len(chosen[domain]),
        }
        for domain in wanted
    }
    for domain, count in counts.items():
        if count["shortfall"]:
            log.warning("%s: %d rows short of the quota of %d", domain, count["shortfall"], count["quota"])
    mixed = jobs.choose([row for found in chosen.values() for row in found], 0, config.seed)
    rows.write_rows(output_dir / "train.parquet", mixed, sft=True)
    return {"rows": len(mixed), "domains": counts}


if __name__ == "__main__":
    sys.exit(jobs.run(Mixture, load, build))
