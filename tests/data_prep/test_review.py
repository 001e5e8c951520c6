"""The review page in a real browser, from what the cold-start job writes to what it takes in again."""

import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from data_prep import cold_start, review, rows, runs
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
    return lambda *flags, **changes: run_job(cold_start, cold_start.ColdStart, values | changes, *flags)


@contextlib.contextmanager
def served(*flags):
    """The address of the page, in a process that is killed at the end and reaches nothing beyond loopback."""
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


def records(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def at_row(page, number):
    page.wait_for(f"document.querySelector('#title')?.innerText.startsWith('Row {number} of')", 120)


@pytest.mark.slow
def test_a_review_from_the_job_through_the_page_and_back_into_the_job(built):
    built()
    before = rows.load_rows("out/test/cold_start/train.parquet", sft=True)
    offered = records(FILE)
    offered[0]["reasoning"] += r" So $2 \cdot 3 = 6$ and \[\sum_{i=1}^{3} i = \frac{3 \cdot 4}{2}\]"
    offered[1]["reasoning"] = HOSTILE
    Path(FILE).write_text("".join(json.dumps(record) + "\n" for record in offered))
    with browser.chromium() as chrome:
        with served() as url:
            page = chrome.open(url)
            at_row(page, 1)
            page.wait_for("document.querySelectorAll('#reasoning .katex').length == 2")
            page.resize(1280, 400)
            page.wait_for("document.querySelector('#accept').getBoundingClientRect().bottom <= innerHeight")
            page.resize(1280, 900)
            assert "Passes all 9 filters" in page.text("#findings")
            page.press("a")
            at_row(page, 2)
            shown = page.text("#reasoning")
            for line in (HOSTILE.split("\n")[0], HOSTILE.split("\n")[1], HOSTILE.split("\n")[3]):
                assert line in shown
            page.press("r")
            page.wait_for("document.activeElement.matches('#reason *')")
            page.press("Enter")
            page.wait_for("document.querySelector('#said')?.innerText.includes('Write the reason')")
            page.type("it tries to run")
            page.click("#confirm")
            at_row(page, 3)

            page.press("e")
            page.wait_for("document.activeElement.matches('#edit-reasoning *')")
            page.type(" One sees it at once.")
            page.wait_for("!document.querySelector('#accept')")  # it would drop what was written
            page.press("Shift+Enter")
            at_row(page, 4)
            page.press("n")
            at_row(page, 5)
            page.click("#back")
            at_row(page, 4)
            page.evaluate("document.getElementById('accept').click(); document.getElementById('accept').click()")
            at_row(page, 5)
            page.reload()
            at_row(page, 5)  # two clicks on what was seen are one decision, and none on what was not
            assert "4 of 6 decided" in page.text("#finished")
            assert [record["decision"] for record in records(LOG)] == ["accept", "reject", "accept", "accept"]
        with LOG.open("a") as file:
            file.write('{"id": "cut o')  # as a kill in the middle of writing would leave it
        with served("--reviewer", "bob") as url:
            page.go(url)
            at_row(page, 5)
            page.click("#which label:nth-of-type(2)")
            at_row(page, 1)
            assert "accept by ann" in page.text("#findings")
            page.press("n")
            at_row(page, 2)
            page.press("n")
            at_row(page, 3)
            assert "The text was edited" in page.text("#findings")
            page.press("r")
            page.wait_for("document.activeElement.matches('#reason *')")
            page.type("too short")
            page.press("Enter")
            page.wait_for(
                "document.querySelector('#finished').innerText.includes('1 checked by a second reviewer, 1 disa')"
            )
            assert page.dialogs == [] and page.evaluate("document.title") == "Cold-start review"
            assert [one for one in page.requests if not one.startswith(("http://127.0.0.1:", "data:"))] == []
    decided = records(LOG)
    assert [(one["id"], one["reviewer"], one["decision"], one["reason"]) for one in decided] == [
        (offered[0]["id"], "ann", "accept", ""),
        (offered[1]["id"], "ann", "reject", "it tries to run"),
        (offered[2]["id"], "ann", "accept", ""),
        (offered[3]["id"], "ann", "accept", ""),
        (offered[2]["id"], "bob", "reject", "too short"),
    ]
    assert decided[2]["reasoning"] == offered[2]["reasoning"] + " One sees it at once."
    review = built("--redo", review=str(LOG))["review"]
    assert (review["accepted"], review["rejected"], review["undecided"], review["edited"]) == (2, 2, 2, 1)
    after = rows.load_rows("out/test/cold_start/train.parquet", sft=True)
    assert [row["id"] for row in after] == [before[0]["id"], *(row["id"] for row in before[3:])]
    assert r"\sum_{i=1}" in after[0]["completion"]


def test_a_decision_that_would_not_stand_is_refused_and_the_last_one_counts(built):
    built()
    page = review.Review(Path(FILE), LOG)
    first, second, *_ = page.records
    for told, wrong in {
        "Write your name": ("", "accept"),
        "Write the reason": ("ann", "reject"),
        "it does not answer": ("ann", "accept", "", {"summary": "The answer is 999."}),
        "holds a tag": ("ann", "accept", "", {"reasoning": "a</think>b"}),
    }.items():
        with pytest.raises(ValueError, match=told):
            page.decide(first, *wrong[:3], **(wrong[3] if len(wrong) > 3 else {}))
    assert LOG.read_text() == ""
    with pytest.raises(runs.ConfigError, match="open in another review page"):
        review.Review(Path(FILE), LOG)
    page.decide(first, "ann", "accept")
    page.decide(first, "ann", "reject", "on second thoughts")
    assert page.progress() == {"rows": 6, "decided": 1, "twice": 0, "disagreed": 0}
    assert (first in page.waiting("ann", "second check"), first in page.waiting("bob", "second check")) == (False, True)
    page.file.close()
    assert built("--redo", review=str(LOG))["review"]["rejected"] == 1
    page = review.Review(Path(FILE), LOG)
    page.decide(second, "ann", "reject", "unclear")
    assert built("--redo", review=str(LOG))["review"]["rejected"] == 2  # the same name, another content


def test_a_file_that_is_no_cold_starts_is_named(tmp_path):
    (tmp_path / "review.jsonl").write_text("")
    with pytest.raises(runs.MissingRunError, match="has not been run"):
        review.Review(tmp_path / "review.jsonl", tmp_path / "decisions.jsonl")
    (tmp_path / "review.jsonl").unlink()
    runs.finish(tmp_path, config={"learning_rate": 1.0})  # another stage's folder
    with pytest.raises(ValueError, match="review.jsonl: no such file"):
        review.Review(tmp_path / "review.jsonl", tmp_path / "decisions.jsonl")


@pytest.mark.parametrize(
    ("text", "formulas"),
    [
        ("It costs $5 and then $6.", []),
        (r"So $x^2$, \(y\), \[z\] and $$w$$.", ["x^2", "y", "z", "w"]),
        (r"Escaped \$x$ and an open $$y", []),
        ("a\n    b * c\n# d <e> &amp; \u202ef", []),
    ],
)
def test_only_formulas_are_more_than_text(text, formulas):
    shown = review.literal(text)
    assert re.findall("[\ue000\ue002](.*?)[\ue001\ue003]", shown) == formulas
    assert re.search(r"(?<!\\)[<>*#_`]|\u202e", shown) is None
