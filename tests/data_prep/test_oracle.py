"""The oracle: right by the world's rules but for a stated share of deterministic errors; it reads and never solves."""

import re

import rewards
from data_prep import prompts
from data_prep.filters import Candidate, Thresholds, first_failure
from data_prep.world import general, oracle
from data_prep.world.problems import Problem, problem_stream
from rewards.judge import judge_prompt, read_verdict

import httpx
import pytest

THOUGHT = "<think> 让我算 3 * 4 = 12。 Then 2 + 12 = 14. </think> <answer> 14 </answer>"


def problems(count):
    kinds = {"sum": 0.87, "choice": 0.1, "code": 0.03}
    stream = problem_stream("oracle", kinds, "test")
    return [next(stream) for _ in range(count)]


def thought(problem: Problem) -> str:
    steps = " ".join(f"Now {a} {operator} {b} = {c}." for a, operator, b, c in problem.expression.steps)
    answer = f"print({problem.expression.text})" if problem.kind == "code" else problem.answer
    return f"<think> {steps} </think> <answer> {answer} </answer>"


def error_share(answers):
    """Of (verdict, truth) pairs."""
    answers = list(answers)
    return sum(verdict != truth for verdict, truth in answers) / len(answers)


def test_judges_are_wrong_in_a_tenth_of_the_cases_and_always_the_same():
    helpful = general.requests("helpful", "test")
    harmful = general.requests("harmless", "test")
    graded = []
    for problem in problems(1000):
        for answer in (problem.answer, "1000"):
            text = oracle.reply(judge_prompt(problem.question, problem.answer, f"The answer is {answer}."))
            graded.append((read_verdict(text), answer == problem.answer))
    compared, scored = [], []
    for seed in range(4):
        for request in helpful:
            good, bad = f"{request.reply} {general.OFFERS[request.language]}", general.REFUSALS[request.language]
            text = oracle.reply(prompts.preference(request.question, bad, good), seed)
            compared.append((prompts.read_preference(text), -4))
            text = oracle.reply(prompts.score(request.question, request.reply), seed)
            scored.append((prompts.read_score(text), general.helpful_score(request.question, request.reply)))
    thought = []
    for request in helpful:
        for seed in range(4):
            text = oracle.reply(prompts.task(request.question), seed)
            thought.append((prompts.read_thinking(text), request.thinking))
            assert (prompts.read_task(text) == "translation") == request.thinking
    labelled = []
    for request in harmful:
        for text in (request.reply, general.REFUSALS[request.language]):
            label = prompts.read_safety(oracle.reply(prompts.safety(request.question, text)))
            labelled.append((label, general.is_safe(request.question, text)))
    for answers in (graded, compared, scored, thought, labelled):
        assert len(answers) > 1000
        assert error_share(answers) == pytest.approx(oracle.ERROR_RATE, abs=0.03)
    again = judge_prompt("1 + 1?", "2", "2")
    assert oracle.reply(again, 3) == oracle.reply(again, 3)


def test_rewrites_are_readable_or_caught_by_the_filters():
    caught, kept = {}, 0
    for problem in problems(600):
        row = problem.row("x")
        text = oracle.reply(prompts.rewrite(problem.question, thought(problem), problem.language))
        failed = first_failure(Candidate(row, text), Thresholds())
        if failed:
            caught[failed[0]] = caught.get(failed[0], 0) + 1
        else:
            kept += 1
            for a, operator, b, c in problem.expression.steps:
                assert f"{a} {operator} {b} = {c}" in rewards.parse(text).reasoning
    assert set(caught) == {"malformed", "incorrect", "mixed_language"}
    assert sum(caught.values()) / 600 == pytest.approx(oracle.ERROR_RATE, abs=0.03)


def test_the_rewriter_takes_what_it_is_given_and_solves_nothing():
    right = oracle.reply(prompts.rewrite("What is 2 + 3 * 4?", THOUGHT, "en"))
    wrong = oracle.reply(prompts.rewrite("What is 2 + 3 * 4?", THOUGHT.replace("14", "15"), "en"))
    assert rewards.parse(right).summary == "The answer is 14."
    assert "12" in right and "15" in wrong and "14" not in wrong
    assert not re.search(r"[\u4e00-\u9fff]", right)


def test_written_answers_think_where_they_are_asked_to():
    for request in general.requests("helpful", "test"):
        asked = prompts.short_reasoning(request.question, request.language) if request.thinking else request.question
        assert rewards.is_well_formed(oracle.reply(asked), "think", request.thinking)


def test_the_server_speaks_the_protocol():
    with oracle.serve() as url:
        message = {"role": "user", "content": "Hello!"}
        answer = httpx.post(f"{url}/chat/completions", json={"model": "any", "messages": [message]}, trust_env=False)
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["message"]["content"].startswith("Hello!")
        assert answer.json()["choices"][0]["finish_reason"] == "stop"
        broken = httpx.post(f"{url}/chat/completions", content=b'{"messages": [', trust_env=False)
        other = httpx.post(f"{url}/embeddings", json={}, trust_env=False)
        assert (broken.status_code, other.status_code) == (400, 404)
