"""Filters: for each a pair of texts that differ in as little as decides, and the funnel's arithmetic."""

from data_prep import filters
from data_prep.filters import FILTERS, Candidate, Funnel, Thresholds, first_failure

import pytest
from hypothesis import given
from hypothesis import strategies as st

GOOD = "<think>I first work out 3 * 4 = 12. Then I get 2 + 12 = 14.</think>\n2 + 3 * 4 = 14. The answer is 14."
THRESHOLDS = Thresholds(max_paragraph_chars=200, repetition_ngram=4)
LOOP = "<think>Then 2 + 12 = 14. {}</think>\nThe answer is 14."
LONG = "<think>" + "I look at this sum. It is {}. Then I get the total of both{}" * 3 + "</think>\nThe answer is 14."
CODE = "<think>I run this:\n{0}python\nprint(2 + 3 * 4)\n{0}\nThen I read 14.</think>\nThe answer is 14."


def failure(row, text, finish="stop", **thresholds):
    failed = first_failure(Candidate(row, text, finish), Thresholds(**(THRESHOLDS.__dict__ | thresholds)))
    return failed and failed[0]


def test_a_good_one_passes(row):
    assert failure(row(), GOOD) is None


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("empty", "", GOOD),
        ("malformed", GOOD.replace("</think>", ""), GOOD),
        ("incorrect", GOOD.replace("is 14.", "is 20."), GOOD),
        ("mixed_language", GOOD.replace("Then I get", "然后得到"), GOOD),
        ("long_paragraph", LONG.replace("{}", " "), LONG.replace("{}", "\n\n")),
        ("code_block", CODE.format("```"), CODE.format("")),
        ("repetitive", LOOP.format("Then 2 + 12 = 14. " * 8), LOOP.format("So it is, as 3 * 4 = 12 shows.")),
    ],
)
def test_minimal_pairs(row, name, bad, good):
    loose = {"min_distinct_ngrams": 0.0} if name == "long_paragraph" else {}
    assert (failure(row(), bad, **loose), failure(row(), good, **loose)) == (name, None)


def test_truncated_comes_before_all_others(row):
    assert (failure(row(), GOOD, "length"), failure(row(), "half", "length")) == ("truncated", "truncated")


def test_code_rows_may_hold_code_blocks(row):
    code = row(domain="code", verifier="none", answer="")
    assert failure(code, CODE.format("```")) is None


def test_rows_without_thinking_take_plain_text_only(row):
    greeting = row(kind="helpful", domain="general", verifier="judge", thinking=False, question="Hello!", answer="Hi!")
    assert (failure(greeting, "Hello! 你好"), failure(greeting, GOOD)) == (None, "malformed")


def test_a_base_models_page_has_no_tags(row):
    page = "First work out 3 * 4 = 12. Then 2 + 12 = 14. The answer is 14."
    assert failure(row(), page, style="plain") is None
    assert failure(row(), page.replace("Then", "然后我们来计算一下"), style="plain") == "mixed_language"


def test_chinese(row):
    text = "<think>我先算 3 * 4 = 12。 然后得到 2 + 12 = 14。</think>\n答案是 14。"
    chinese = row(language="zh", question="2 + 3 * 4 等于多少？")
    assert (failure(chinese, text), failure(chinese, text.replace("然后得到", "Then I get"))) == (
        None,
        "mixed_language",
    )


ENGLISH = "We look at the sum once more, and we see that the second part of it is the larger one by far. "
SPANISH = "Primero sumamos los dos números y después restamos el tercero para llegar al resultado final. "


@pytest.mark.parametrize("at", [0, 3, 29, 57, 96])
def test_a_passage_in_another_language_is_seen_wherever_it_stands_in_a_long_text(row, at):
    """100 sentences, of which eight are foreign, side by side; and ten strewn over the text."""

    def page(foreign):
        sentences = [SPANISH if number in foreign else ENGLISH for number in range(100)]
        return f"<think>{''.join(sentences)}</think>\nThe answer is 14."

    steps = {"steps": ["mixed_language"]}
    assert failure(row(), page(()), **steps) is None
    assert failure(row(), page(range(min(at, 92), min(at, 92) + 8)), **steps) == "mixed_language"
    assert failure(row(), page(range(at % 10, 100, 10)), **steps) == "mixed_language"
    assert failure(row(), page([at]), **steps) is None


@given(st.text(alphabet=st.characters(max_codepoint=400), max_size=200))
def test_words_are_the_same_by_the_fast_way(text):
    fast = [word.decode() if isinstance(word, bytes) else word for word in filters._words(text)]
    assert fast == filters.WORD.findall(text.lower())


def test_only_named_steps_apply(row):
    assert failure(row(), "nonsense", steps=["truncated"]) is None
    with pytest.raises(ValueError, match="filter 'truncate' is not known"):
        Thresholds(steps=["truncate"])


def test_the_funnel_counts_each_candidate_once_by_its_first_failure(row):
    funnel = Funnel([check.__name__ for check in FILTERS] + ["surplus"])
    mixed_and_wrong = GOOD.replace("Then I get", "然后得到").replace("is 14.", "is 20.")
    texts = [GOOD, GOOD, GOOD.replace("is 14.", "is 20."), mixed_and_wrong, "half"]
    finishes = ["stop"] * 4 + ["length"]
    candidates = [Candidate(row(), text, finish) for text, finish in zip(texts, finishes, strict=True)]
    passed = funnel.passing([candidates[:1], [], candidates[1:]], THRESHOLDS)
    funnel.drop("surplus", row(), "one is enough")
    figures = funnel.figures()
    assert passed == [candidates[:1], [], candidates[1:2]]
    assert list(figures["dropped"]) == [check.__name__ for check in FILTERS] + ["surplus"]
    assert {name: count for name, count in figures["dropped"].items() if count} == {
        "truncated": 1, "incorrect": 2, "surplus": 1,
    }  # fmt: skip
    assert (figures["seen"], figures["kept"]) == (5, 1)
    assert figures["first_dropped"]["incorrect"] == "q0: not the answer '14'"
