"""How many programs a second the code reward judges, beside plain `exec` in processes, which shuts nothing in.

    python -m benchmarks.code [--programs 200] [--humaneval HumanEval.jsonl]

The file is that of https://github.com/openai/human-eval; without it, programs are generated. The benchmark prints both
speeds, the peak memory of this process and, for HumanEval, how many canonical solutions got reward 1.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rewards import CodeReward

WORKERS = 2


def made(count: int) -> tuple[list[str], list[dict], list[str]]:
    """Return (programs, tests, the same tests as a script that exits with an error if one fails)."""
    programs = [f"def f(x):\n    return sum(range(x)) + {n}" for n in range(count)]
    tests = [{"test_list": [f"assert f({x}) == {sum(range(x)) + n}" for x in range(5)]} for n in range(count)]
    return programs, tests, ["\n".join(one["test_list"]) for one in tests]


def humaneval(path: Path) -> tuple[list[str], list[dict], list[str]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    programs = [row["prompt"] + row["canonical_solution"] for row in rows]
    tests = [{"test": row["test"], "entry_point": row["entry_point"]} for row in rows]
    return programs, tests, [f"{row['test']}\ncheck({row['entry_point']})" for row in rows]


def plainly(program: str, script: str) -> bool:
    return (
        subprocess.run([sys.executable, "-c", f"{program}\n{script}"], capture_output=True, timeout=30).returncode == 0
    )


def main() -> None:
    arguments = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    arguments.add_argument("--programs", type=int, default=200)
    arguments.add_argument("--humaneval", type=Path, metavar="FILE")
    options = arguments.parse_args()
    programs, tests, scripts = humaneval(options.humaneval) if options.humaneval else made(options.programs)
    start = time.perf_counter()
    found = CodeReward(workers=WORKERS, step_seconds=3600)(completions=programs, tests=tests)
    ours = time.perf_counter() - start
    start = time.perf_counter()
    with ThreadPoolExecutor(WORKERS) as executor:
        passed = list(executor.map(plainly, programs, scripts))
    theirs = time.perf_counter() - start
    print(f"code_reward: {len(programs) / ours:.1f} programs a second, {found.count(1.0)} of {len(found)} paid")
    print(f"plain exec:  {len(programs) / theirs:.1f} programs a second, {sum(passed)} of {len(passed)} passed")
    print(f"ratio: {theirs / ours:.2f}; peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MB")


if __name__ == "__main__":
    main()
