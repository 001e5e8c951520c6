"""Cold start: three ways on prompts of their own, kept if right and readable, rewritten, checked, reviewed."""

import csv
import json
import re
from collections import Counter
from pathlib import Path

import rewards
from data_prep import cold_start, prompts, rows
from data_prep.cold_start import ColdStart
from data_prep.world.problems import ASK, all_expressions, problem_stream

import pytest
import yaml

QUESTIONS = [next(stream) for stream in [problem_stream("cold", {"sum": 1.0}, "test")] for _ in range(120)]
BY_QUESTION = {problem.question: problem for problem in QUESTIONS}


def say(prompt, k):
    """Right in the second sample only; the base's pages go on to another problem."""
    question = next(q for q in BY_QUESTION if f"{q}\nSolution:" in prompt or q in prompt)
    problem = BY_QUESTION[question]
    steps = " ".join(f"Now {a} {operator} {b} = {c}." for a, operator, b, c in problem.expression.steps)
    answer = problem.answer if k == 1 else "101"
    if prompt.startswith(prompts.R1_ZERO_PREFIX):
        return f" <think> {steps} </think> <answer> {answer} </answer>"
    closing = f"The answer is {answer}." if problem.language == "en" else f"答案是 {answer}。"
    return f" {steps} {closing}\n\nProblem: What is 1 + 1?\nSolution: The answer is 5."


def settings(**changes):
    way = {"checkpoint": "./model", "prompts": {"math": 40}, "n": 3, "decoding": {"max_tokens": 64}}
    examples = [{"question": "What is 1 + 1?", "solution": "Now 1 + 1 = 2. The answer is 2."}]
    return {
        "prompts": "prompts.parquet",
        "few_shot": way,
        "direct": way,
        "r1_zero": way,
        "examples": {"en": examples, "zh": examples},
        "rewriter": {"base_url": "world", "model": "world-oracle"},
        "rewriting": {"max_tokens": 256, "temperature": 0.0},
        "filters": {"min_language_share": 0.0},
    } | changes


@pytest.fixture
def built(run_job, scripted, tmp_path):
    rows.write_rows(tmp_path / "prompts.parquet", [p.row(f"r{i}") for i, p in enumerate(QUESTIONS)])
    scripted(say)
    return lambda *flags, **changes: run_job(cold_start, ColdStart, settings(**changes), *flags)


@pytest.mark.slow
def test_three_ways_and_their_counts(built):
    record = built()
    kept = rows.load_rows("out/test/cold_start/train.parquet", sft=True)
    assert all(rewards.is_well_formed(r["completion"], "think") for r in kept)
    assert all(rewards.is_correct(r["completion"], r["answer"], r["verifier"]) for r in kept)
    assert all(rewards.language_consistency(rewards.parse(r["completion"]).reasoning, r["language"]) == 1 for r in kept)
    ways = Counter(r["way"] for r in kept)
    assert len({r["question"] for r in kept}) == len(kept) == record["rows"]
    for name in ("few_shot", "direct", "r1_zero"):
        figures = record["ways"][name]
        assert figures["sampled"]["seen"] == 120
        assert figures["sampled"]["dropped"]["incorrect"] == 80  # the page's next problem is not read
        assert figures["rewritten"]["seen"] == 40
        assert figures["rewritten"]["kept"] == ways[name] > 28


def reviewed(kind, path="out/test/cold_start/review"):
    if kind == "jsonl":
        return [json.loads(line) for line in Path(f"{path}.jsonl").read_text().splitlines()]
    with Path(f"{path}.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def save(records, kind):
    if kind == "jsonl":
        Path("edited.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        with Path("edited.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, cold_start.REVIEWED)
            writer.writeheader()
            writer.writerows({name: text.replace("\n", "\r\n") for name, text in record.items()} for record in records)
    return f"edited.{kind}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_review_is_exported_and_comes_back(built, kind, caplog):
    built()
    before = rows.load_rows("out/test/cold_start/train.parquet", sft=True)
    records = reviewed(kind)
    assert [r["id"] for r in records] == [row["id"] for row in before]
    assert list(records[0]) == ["id", "question", "reasoning", "summary", "findings", "decision"]
    assert any("of the words are" in record["findings"] for record in records)
    records[0]["decision"] = "reject"
    records[1] |= {"decision": "accept", "reasoning": "I see it at once."}
    records[2]["decision"] = "accept"
    records[3]["summary"] = "Forgotten to decide."
    record = built("--redo", review=save(records, kind))
    after = rows.load_rows("out/test/cold_start/train.parquet", sft=True)
    assert record["review"] == {
        "accepted": 2, "rejected": 1, "undecided": len(before) - 3,
        "edited": 1, "edited_undecided": 1, "unknown_ids": 0,
    }  # fmt: skip
    assert f"{records[3]['id']} was edited and has no decision" in caplog.text
    assert after[1:] == before[2:]
    assert after[0]["completion"].startswith("<think>I see it at once.</think>\n")


WRONG_EDITS = [
    ({"id": "nobody-0"}, "the id 'nobody-0' is none of the prompts'"),
    ({"question": "What is 1 + 1?"}, "the question is another"),
    ({"decision": "yes"}, "decision 'yes'; write accept, reject or nothing"),
    ({"decision": "accept", "summary": ""}, "reasoning or summary is empty or holds a tag"),
    ({"decision": "accept", "reasoning": "a</think>b"}, "reasoning or summary is empty or holds a tag"),
    ({"decision": "accept", "summary": "The answer is 12345."}, "accepted, but it does not answer"),
]


@pytest.mark.slow
def test_a_wrong_edit_is_refused_by_file_record_and_reason(built, capsys):
    built()
    made = Path("out/test/cold_start/train.parquet").read_bytes()
    for kind in ("jsonl", "csv"):
        for change, told in WRONG_EDITS:
            records = reviewed(kind)
            records[2] |= change
            with pytest.raises(SystemExit):
                built(review=save(records, kind))
            assert f"edited.{kind}, record 3: " in (error := capsys.readouterr().err)
            assert told in error
    assert Path("out/test/cold_start/train.parquet").read_bytes() == made  # before any work


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", b'{"id": "r1-0", ', "record 1: not JSON"),
        ("a.jsonl", b"[" * 100_000, "record 1: not JSON"),
        ("a.jsonl", b'{"id": "r1-0"}', "record 1: no `question`"),
        ("a.jsonl", b"[1]", "record 1: a list, no object"),
        ("a.jsonl", json.dumps(dict.fromkeys(cold_start.REVIEWED, 1)).encode(), "record 1: `id` is 1; write text"),
        ("a.csv", b"id,question\nr1-0,x\n", "record 1: no `reasoning`"),
        ("a.csv", b"id,question,reasoning,summary,findings,decision\n1,2,3\n", "`summary` is None; write text"),
        ("a.csv", b"id,question,reasoning,summary,findings,decision\n1,2,3,4,5,6,7\n", "more cells than id, question"),
        ("a.csv", b'id,question,reasoning,summary,findings,decision\n"1"2,3\n', "record 1: not valid CSV"),
        ("a.csv", b"id,question,reasoning,summary,findings,decision\n\xb5,2,3,4,5,6\n", "not UTF-8"),
    ],
)
def test_a_broken_review_is_named(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content + b"\n")
    with pytest.raises(ValueError, match=re.escape(told)) as stopped:
        cold_start.read_review(tmp_path / name, [])
    assert name in str(stopped.value)


def test_a_review_in_the_jobs_own_folder_is_not_read_since_it_would_be_lost(built, capsys):
    built()
    made = reviewed("jsonl")
    with pytest.raises(SystemExit):
        built(review="out/test/cold_start/review.jsonl")
    assert "lies in this job's folder, which --redo moves aside; copy it out" in capsys.readouterr().err
    assert reviewed("jsonl") == made


def test_an_id_twice_is_an_error(tmp_path, row):
    line = json.dumps(dict.fromkeys(cold_start.REVIEWED, "") | {"id": "q0-0", "question": row()["question"]}) + "\n"
    (tmp_path / "a.jsonl").write_text(line * 2)
    with pytest.raises(ValueError, match="record 2: the id 'q0-0' was there before"):
        cold_start.read_review(tmp_path / "a.jsonl", [row()])


def test_the_papers_way_alone(built):
    record = built(few_shot=None, direct=None, examples={})
    kept = rows.load_rows("out/test/cold_start/train.parquet", sft=True)
    assert {one["way"] for one in kept} == {"r1_zero"}
    assert record["ways"].keys() == {"r1_zero"}


def test_without_a_rewriter_what_was_sampled_is_the_reasoning_and_the_answer_stands_after_it(built):
    built(rewriter=None, rewriting=None, few_shot=None)
    kept = rows.load_rows("out/test/cold_start/train.parquet", sft=True)
    assert {one["way"]: one["generator"] for one in kept} == {"r1_zero": "./model", "direct": "./model"}
    for one in kept:
        parts, steps = rewards.parse(one["completion"]), say(one["question"], 1).partition("\n\nProblem")[0].strip()
        assert parts.reasoning.startswith("Now") and "<answer>" not in one["completion"]
        assert parts.reasoning == (steps if one["way"] == "direct" else parts.reasoning)
        assert rewards.is_correct(one["completion"], one["answer"])
        assert rewards.detect_language(parts.summary) == one["language"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"rewriting": None}, "`rewriter` and `rewriting` go together; write both or neither"),
        (
            {"rewriter": None, "rewriting": None, "prompts": "code.parquet"},
            "code.parquet: the prompt c0 has the verifier `code`, so there is no answer to state in a summary; write ",
        ),
    ],
)
def test_what_needs_a_rewriter_is_told_before_any_work(built, tmp_path, row, changes, told, capsys):
    rows.write_rows(tmp_path / "code.parquet", [row(id=f"c{at}", verifier="code") for at in range(200)])
    with pytest.raises(SystemExit):
        built(few_shot=None, direct=None, r1_zero=settings()["r1_zero"] | {"prompts": {"math": 200}}, **changes)
    assert told in re.sub(r"prompt c\d+", "prompt c0", capsys.readouterr().err)


def test_too_few_prompts_and_missing_examples_are_errors_before_any_work(built, tmp_path, capsys):
    rows.write_rows(tmp_path / "prompts.parquet", [p.row(f"r{i}") for i, p in enumerate(QUESTIONS)])
    for changes, told in (
        (
            {"direct": settings()["direct"] | {"prompts": {"math": 99}}},
            "99 prompts of math are wanted, but prompts.parquet has 80 left",
        ),
        (
            {"direct": settings()["direct"] | {"prompts": {"code": 1}}},
            "1 prompts of code are wanted, but prompts.parquet has 0 left",
        ),
        ({"examples": {"en": []}}, "write `zh:"),
    ):
        with pytest.raises(SystemExit):
            built(**changes)
        assert told in capsys.readouterr().err
        assert not Path("out").exists()


def test_the_examples_in_the_yaml_are_right_and_not_held_out():
    text = (Path(__file__).parents[2] / "recipes/configs/cpu/cold_start.yaml").read_text()
    held_out = {e.text for group in all_expressions() for e in group if e.held_out("test")}
    for language, examples in yaml.safe_load(text)["examples"].items():
        for example in examples:
            forms = [ask.split("{e}") for ask in ASK[language]]
            inside = next(
                example["question"].removeprefix(before).removesuffix(after)
                for before, after in forms
                if example["question"].startswith(before) and example["question"].endswith(after)
            )
            value = next(e.value for group in all_expressions() for e in group if e.text == inside)
            assert inside not in held_out
            assert rewards.is_correct(example["solution"], str(value), "math")
