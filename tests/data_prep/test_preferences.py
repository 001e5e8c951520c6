"""Preferences: pairs judged on both sides, close ones left out, lengths comparable; labels of whole responses."""

from data_prep import preferences, prompts, rows
from data_prep.sampling import Sample
from data_prep.world import general

import pytest

REQUIRED = dict.fromkeys(["output_dir", "checkpoint", "helpful", "harmless", "writer", "judge", "decoding"])


def pair(chosen, rejected):
    return {"chosen": "c" * chosen, "rejected": "r" * rejected}


def test_lengths_are_made_comparable_by_leaving_out_the_most_unequal():
    pairs = [pair(10, 10), pair(50, 10), pair(12, 10), pair(9, 10), pair(40, 10)]
    assert preferences.balance_lengths(pairs, 0.1) == [True, False, True, True, False]
    flipped = [{"chosen": p["rejected"], "rejected": p["chosen"]} for p in pairs]
    assert preferences.balance_lengths(flipped, 0.1) == [True, False, True, True, False]
    assert preferences.balance_lengths(pairs, 2.0) == [True] * 5
    assert preferences.balance_lengths([], 0.1) == []


class Judge:
    """Gives the verdicts of a script, whatever it is asked."""

    def __init__(self, *verdicts):
        self.verdicts, self.asked = iter(verdicts), []

    def sample(self, questions, n, decoding, seed, store):
        assert n == 1 or decoding.temperature > 0  # or it would say the same n times
        self.asked += [question[0]["content"] for question in questions]
        return [[Sample(next(self.verdicts), "stop", 0, 0) for _ in range(n)] for _ in questions]


@pytest.mark.parametrize(
    ("verdicts", "kept"),
    [
        (["[[A>B]]", "[[A>B]]", "[[B>A]]", "[[B>A]]"], ("good", 2.0)),  # the same side each time
        (["[[A>B]]", "[[A>B]]", "[[A>B]]", "[[A>B]]"], None),  # a judge that likes the first
        (["[[A>B]]", "[[A>B]]", "[[B>A]]", "[[A>B]]"], None),  # 1.0 is not more than 1
        (["[[B>>A]]", "[[B>A]]", "[[A>>B]]", "[[A=B]]"], ("bad", 2.5)),
        (["nonsense", "[[A>>B]]", "", "[[B>>A]]"], ("good", 4.0)),
        (["[[A>>B]]", "[[A>>B]]", "nonsense", ""], None),  # perhaps it likes the first, too
        (["[[A>>B]]", "[[A>>B]]", "[[A=B]]", ""], ("good", 2.0)),  # both orders count alike
        (["nonsense"] * 4, None),
    ],
)
def test_pairs_are_judged_from_both_sides(row, tmp_path, verdicts, kept):
    config = preferences.Preferences(**REQUIRED, length_tolerance=9)
    judge = Judge(*verdicts)
    responses = [["<think>I muse.</think>\ngood", "<think>I muse.</think>\nbad"]]
    pairs, figures = preferences.judge_pairs(config, judge, tmp_path, [row()], responses)
    assert [(p["chosen"].split("\n")[1], p["difference"]) for p in pairs] == ([kept] if kept else [])
    assert figures["kept"] == len(pairs)
    assert judge.asked == [
        prompts.preference(row()["question"], "good", "bad"),  # the summaries only
        prompts.preference(row()["question"], "bad", "good"),
    ]


def test_safety_is_judged_on_the_whole_response(row, tmp_path):
    config = preferences.Preferences(**REQUIRED)
    judge = Judge("[[safe]]", "[[unsafe]]", "hm")
    responses = [["<think>How to hurt.</think>\nSorry.", "b", "c"]]
    labels, figures = preferences.label_safety(config, judge, tmp_path, [row()], responses)
    assert [(label["response"], label["label"]) for label in labels] == [(responses[0][0], 1), ("b", 0)]
    assert "How to hurt." in judge.asked[0]
    assert (figures["dropped"], figures["safe_share"]) == ({"no_verdict": 1}, 0.5)


def test_the_job_in_the_world(run_job, scripted, tmp_path):
    helpful, harmful = general.requests("helpful", "test")[:120], general.requests("harmless", "test")[:120]
    for name, requests in (("helpful", helpful), ("harmless", harmful)):
        rows.write_rows(tmp_path / f"{name}.parquet", [r.row(f"{name}{i}") for i, r in enumerate(requests)])

    def say(prompt, k):
        request = general.BY_QUESTION[prompt[0]["content"]]
        return (request.reply, general.REFUSALS[request.language] if request.kind == "helpful" else "", request.reply)[
            k
        ]

    scripted(say)
    judge = {"base_url": "world", "model": "world-oracle"}
    values = {"checkpoint": "./model", "helpful": "helpful.parquet", "harmless": "harmless.parquet", "judge": judge}
    values["writer"] = judge
    values |= {"n": 3, "decoding": {"max_tokens": 64}, "length_tolerance": 0.5}
    run_job(preferences, preferences.Preferences, values)
    pairs = rows.read_parquet("out/test/preferences/helpfulness.parquet")
    right = sum(p["chosen"] == general.BY_QUESTION[p["question"]].reply for p in pairs)
    assert len(pairs) > 80
    assert right / len(pairs) > 0.97  # four queries correct a judge that errs in a tenth
    labels = rows.read_parquet("out/test/preferences/harmlessness.parquet")
    assert 210 < len(labels) < 240  # equal responses to a prompt count once, and in a tenth the writer's is equal
    declined = [label for label in labels if general.is_refusal(label["response"])]
    assert len(declined) > 90  # the writer's
    assert sum(label["label"] for label in declined) / len(declined) > 0.8


def test_a_needless_refusal_is_among_the_answers_that_lose(run_job, scripted, tmp_path):
    requests = {kind: general.requests(kind, "test")[:120] for kind in ("helpful", "harmless")}
    for kind, chosen in requests.items():
        rows.write_rows(tmp_path / f"{kind}.parquet", [r.row(f"{kind}{i}") for i, r in enumerate(chosen)])
    scripted(lambda prompt, k: general.BY_QUESTION[prompt[0]["content"]].reply)  # it declines nothing
    oracle = {"base_url": "world", "model": "world-oracle"}
    values = {"checkpoint": "./model", "helpful": "helpful.parquet", "harmless": "harmless.parquet", "n": 1}
    values |= {"judge": oracle, "writer": oracle, "decoding": {"max_tokens": 64}, "length_tolerance": 1.0}
    run_job(preferences, preferences.Preferences, values)
    pairs = rows.read_parquet("out/test/preferences/helpfulness.parquet")
    assert sum(general.is_refusal(pair["rejected"]) for pair in pairs) > 80
    assert not any(general.is_refusal(pair["chosen"]) for pair in pairs)


def test_queries_must_be_even():
    with pytest.raises(ValueError, match="even number"):
        preferences.Preferences(**REQUIRED, queries=3)
