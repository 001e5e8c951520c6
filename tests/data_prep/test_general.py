"""General data: helpful prompts only, reasoning only where the row says so, what the judge scores low left out."""

from collections import Counter

import rewards
from data_prep import general, prompts, rows
from data_prep.runs import ConfigError
from data_prep.world import general as world

import pytest

ORACLE = {"base_url": "world", "model": "world-oracle"}
VALUES = {"checkpoint": "./model", "prompts": "prompts.parquet", "writer": ORACLE, "judge": ORACLE}
VALUES |= {"decoding": {"max_tokens": 64}}


def read():
    return rows.load_rows("out/test/general/train.parquet", sft=True)


def test_only_good_answers_in_the_form_of_their_row(run_job, scripted, tmp_path):
    helpful = world.requests("helpful", "test")[:150]
    prompts = [r.row(f"h{i}") for i, r in enumerate(helpful)]
    prompts += [r.row(f"x{i}") for i, r in enumerate(world.requests("harmless", "test")[:5])]
    rows.write_rows(tmp_path / "prompts.parquet", prompts)
    replies = {r.question: r.reply for r in helpful}
    # The model thinks before everything, as after reasoning RL, and is of no use in its second sample.
    thought = {"en": "I think of a reply.", "zh": "我想一个回答。"}
    languages = {r.question: r.language for r in helpful}

    def say(prompt, k):
        question = prompt[0]["content"]
        return f"<think>{thought[languages[question]]}</think>\n{'No idea.' if k else replies[question]}"

    scripted(say)
    record = run_job(general, general.General, VALUES | {"n": 2, "written": 1})
    kept = read()
    assert {r["kind"] for r in kept} == {"helpful"}
    assert {r["thinking"] for r in kept} == {True, False}
    assert all(rewards.is_well_formed(r["completion"], "think", r["thinking"]) for r in kept)
    scores = [world.helpful_score(r["question"], rewards.parse(r["completion"]).summary) for r in kept]
    assert sum(score >= 2 for score in scores) / len(scores) > 0.85  # all but the judge's errors
    dropped = record["funnel"]["dropped"]
    assert dropped["low_score"] > 100 and dropped["malformed"] == 0
    assert sum(record["by_writer"].values()) == record["rows"] == len(kept)
    assert set(record["by_writer"]) == {"./model", "world-oracle"}
    assert record["funnel"]["kept"] == len(kept)


def test_the_judge_says_where_reasoning_helps_if_the_source_does_not(run_job, scripted, tmp_path):
    helpful = world.requests("helpful", "test")[:150]
    asked = [r.row(f"h{i}") | {"thinking": False} for i, r in enumerate(helpful)]
    rows.write_rows(tmp_path / "prompts.parquet", asked)
    scripted(lambda prompt, k: "No idea.")
    run_job(general, general.General, VALUES | {"n": 1, "judge_thinking": True})
    kept = read()
    thoughtful = {r.question: r.thinking for r in helpful}
    assert sum(r["thinking"] == thoughtful[r["question"]] for r in kept) / len(kept) > 0.8  # all but the judge's errors
    assert {r["thinking"] for r in kept} == {True, False}
    assert all(rewards.is_well_formed(r["completion"], "think", r["thinking"]) for r in kept)


def test_a_judge_that_says_nothing_changes_nothing_and_is_counted(run_job, scripted, tmp_path, monkeypatch):
    helpful = world.requests("helpful", "test")[:6]
    rows.write_rows(tmp_path / "prompts.parquet", [r.row(f"h{i}") for i, r in enumerate(helpful)])
    scripted(lambda prompt, k: "No idea.")
    monkeypatch.setattr(prompts, "read_thinking", lambda text: None)
    values = VALUES | {"n": 0, "written": 2, "judge_thinking": True}
    record = run_job(general, general.General, values)
    assert (record["thinking_undecided"], record["funnel"]["seen"]) == (6, 12)
    kept = read()
    told = {r.question: r.thinking for r in helpful}
    assert all(row["thinking"] == told[row["question"]] for row in kept)


@pytest.mark.slow
def test_the_mix_is_by_the_judges_kinds_and_what_is_missing_is_told(run_job, scripted, tmp_path):
    helpful = world.requests("helpful", "train")
    rows.write_rows(tmp_path / "prompts.parquet", [r.row(f"h{i}") for i, r in enumerate(helpful)])
    replies = {r.question: r.reply for r in helpful}
    scripted(lambda prompt, k: replies[prompt[0]["content"]])
    values = VALUES | {"n": 0, "written": 1, "min_score": 0, "judge_thinking": True}
    values |= {"count": 100, "tasks": {"writing": 2, "translation": 2, "self-cognition": 1}}
    assert run_job(general, general.General, values, "--dry-run") == {}
    record = run_job(general, general.General, values)
    assert record["tasks_short"] == {"self-cognition": 20}  # nothing takes their place
    assert record["funnel"]["seen"] == 80
    topics = Counter(r.topic for r in helpful if r.question in {row["question"] for row in read()})
    assert record["by_task"] == {"writing": topics["writing"], "translation": topics["translation"]}
    assert min(record["by_task"].values()) > 30


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"tasks": {"poems": 1}}, "poems is not known; write shares of writing, questions"),
        ({"tasks": {"writing": 1}}, "write `judge_thinking: true`"),
        ({"tasks": {"writing": 0}, "judge_thinking": True, "count": 5}, "and their shares"),
        ({"tasks": {"writing": 1}, "judge_thinking": True}, "`count`"),
    ],
)
def test_shares_that_cannot_be_are_refused(wrong, said, run_job, scripted, capsys):
    with pytest.raises((SystemExit, ConfigError)) as refused:
        run_job(general, general.General, VALUES | wrong)
    assert said in str(refused.value) + capsys.readouterr().err


def test_the_last_mark_in_the_judges_answer_counts():
    assert prompts.read_task("[[writing]], or rather [[software]] [[think]]") == "software"
    assert prompts.read_task("[[poem]] [[think]]") is None
    assert [prompts.read_thinking(text) for text in ("[[think]]", "[[answer]]", "yes")] == [True, False, None]
    assert prompts.read_thinking("Not [[think]], then: [[answer]]") is False
