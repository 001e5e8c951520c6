"""The review page in a real browser, from what the cold-start job writes to what it takes in again."""

import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from data_prep import cold_start, rows
from data_prep.world.problems import problem_stream

import browser
import pytest
import tiny_run

ROOT = Path(__file__).parents[2]
FILE = "out/test/cold_start/review.jsonl"
LOG = Path("reviews/test/cold_start.jsonl")
HOSTILE = r"""<script>document.title = "pwned"</script><img src="//evil.test/a.png" onerror="alert(1)">
![b](http://evil.test/c.png) [d](javascript:alert(2)) <!-- e --> ``` &lt;b&gt; **f** _g_ # h
$\href{javascript:alert(3)}{x}$ $<img src=x onerror=alert(4)>$ %%%LATEX_BLOCK_0%%% $5 and $6 ${alert(5)} {{alert(6)}}
</textarea></div><iframe src="javascript:alert(7)"></iframe><svg onload="alert(8)">"""


@pytest.fixture
def built(run_job, scripted):
    """Runs the cold-start job on six problems; it keeps one solution of each."""
    stream = problem_stream("review", {"sum": 1.0}, "test")
    problems = [one for one in itertools.islice(stream, 40) if one.language == "en"][:6]
    rows.write_rows("prompts.parquet", [problem.row(f"q{i}") for i, problem in enumerate(problems)])

    def say(prompt, k):
        problem = next(one for one in problems if one.question in prompt)
        steps = " ".join(f"Now {a} {operator} {b} = {c}." for a, operator, b, c in problem.expression.steps)
        return f" {steps} The answer is {problem.answer}."

    scripted(say)
    values = {
        "prompts": "prompts.parquet",
        "direct": {"checkpoint": "./model", "prompts": {"math": 6}, "n": 1, "decoding": {"max_tokens": 9}},
        "rewriter": {"base_url": "world", "model": "world-oracle"},
        "rewriting": {"max_tokens": 256},
    }
    return lambda **changes: run_job(cold_start, cold_start.ColdStart, values | changes)


@contextlib.contextmanager
def served(*flags):
    """The address of the page, in a process of its own that is killed at the end; no socket of it leaves this machine."""
    environment = os.environ | {"PYTHONPATH": f"site{os.pathsep}{ROOT}", "FORBIDDEN_LOG": "forbidden.log"}
    Path("site").mkdir(exist_ok=True)
    Path("site/sitecustomize.py").write_text(tiny_run.FORBID)
    command = [sys.executable, "-m", "data_prep.review", FILE, "--reviewer", "ann", *flags]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        lines = iter(process.stderr)
        yield next(found[0] for found in (re.findall(r"http://127\.0\.0\.1:\d+/", line) for line in lines) if found)
    finally:
        process.kill()  # kill -9: it has nothing to save
        process.communicate()
    assert not Path("forbidden.log").exists()


def test_demo(built):
    built()
    records = [json.loads(l) for l in Path(FILE).read_text().splitlines()]
    print(len(records), records[0])
    records[0]["reasoning"] = r"First $2 \cdot 3 = 6$. Then \[ \sum_{i=1}^{3} i = \frac{3 \cdot 4}{2} = 6 \] and \(x < y\)." + "\n\nNow " + "a long line of words " * 40
    records[1]["reasoning"] = HOSTILE
    Path(FILE).write_text("".join(json.dumps(r) + "\n" for r in records))
    out = Path("/tmp/rv")
    with served() as url, browser.chromium() as chrome:
        for name, width, dark in (("desktop", 1280, False), ("phone", 390, False), ("dark", 1280, True)):
            page = chrome.open(url, width=width, dark=dark)
            page.wait_for("document.querySelector('#title')?.innerText.includes('Row')", 60)
            import time; time.sleep(1.5)
            page.screenshot(out / f"{name}.png", whole=True)
            print(page.errors, [r for r in page.requests if url not in r])
        page.press("n"); page.wait_for("document.querySelector('#title').innerText.includes('Row 2')"); time.sleep(1)
        page.screenshot(out / "hostile.png", whole=True)
        print(page.text("#reasoning")); print(page.evaluate("document.querySelector('#reasoning').innerHTML"))
        page.press("e"); time.sleep(1.5); page.screenshot(out / "edit.png", whole=True)
        print(page.evaluate("document.activeElement.tagName"), page.dialogs)
        page.press("Escape"); time.sleep(1); page.press("r"); time.sleep(1); page.screenshot(out / "reject.png", whole=True)
