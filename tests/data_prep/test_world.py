"""The toy world: nothing held out is trained on, in either split, and the walkthrough's question never is."""

import itertools
import re

from data_prep import rows
from data_prep.world import __main__ as job
from data_prep.world import corpus, general, problems

import pytest

WALKTHROUGH = "What is 2 + 3 * 4?"


def held_out_questions(split):
    stream = problems.problem_stream("held-out", problems.KINDS, split, held_out=True)
    return list(itertools.islice(stream, 300))


@pytest.mark.parametrize("split", problems.SPLITS)
def test_no_page_and_no_training_problem_shows_what_is_held_out(split):
    held_out = {p.expression.canonical for p in held_out_questions(split)}
    stream = problems.problem_stream(0, problems.KINDS, split)
    assert not held_out & {p.expression.canonical for p in itertools.islice(stream, 2000)}
    texts = {e.text for e in problems.all_expressions()[1] if e.held_out(split)}
    asked = {r.question for kind in ("helpful", "harmless") for r in general.requests(kind, split, held_out=True)}
    for page in itertools.islice(corpus.pages(0, split), 3000):
        assert not texts & set(re.findall(r"(?<![\d(] )(?<!\()\(?\d+ [-+*] \(?\d [-+*] \d\)?", page))
        assert not any(f"<|user|>{question}<|assistant|>" in page for question in asked)


def test_the_splits_differ_and_both_hold_out_the_walkthroughs_question():
    first, second = ({p.question for p in held_out_questions(split)} for split in problems.SPLITS)
    assert WALKTHROUGH in first & second
    assert len(first & second) < len(first) / 2


def test_a_third_of_the_held_out_sums_each_for_precedence_brackets_and_neither():
    sums = [p.expression for p in held_out_questions("test") if p.kind == "sum"]
    brackets = sum("(" in e.text for e in sums) / len(sums)
    precedence = sum("(" not in e.text and problems.left_to_right(e) != e.value for e in sums) / len(sums)
    assert 0.23 < brackets < 0.45 and 0.23 < precedence < 0.45


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="`split` is 'train'; write one of test, validation"):
        job.World("outputs/x/world", split="train")


def test_the_job_writes_the_split_it_is_told(run_job):
    run_job(job, job.World, {"output_dir": "out/test/world", "split": "validation", "limit": 50})
    written = rows.load_rows("out/test/world/eval_reasoning.parquet")
    assert [row["question"] for row in written] == [p.question for p in held_out_questions("validation")[:50]]
