"""Decontamination: what differs only in how it is written is found, what differs in meaning is not; whoever reads the
report can find the item, the set and the words."""

import json
import random
from pathlib import Path

from data_prep import decontaminate, mixture, rows
from data_prep.decontaminate import Decontamination, EvaluationSet, Index, Match

import pytest
from hypothesis import given
from hypothesis import strategies as st

QUESTION = "If three people need four days to paint a house, how many days do two people need for it?"
FORMULA = r"Find the value of $\frac{1}{2} + \frac{3}{4} \times x$ when $x = 5$."
CHINESE = "一个农场有鸡和兔共三十五只，请问各有多少只？"
THAI = "ถ้าฉันมีแอปเปิ้ลห้าลูกแล้วกินไปสองลูก"
RUSSIAN = "Сколько дней нужно двум рабочим, чтобы покрасить дом, если три рабочих красят его за четыре дня?"


def found(item, text, n=10):
    index = Index(n)
    index.add("aime", "7", item)
    return index.find(text) is not None


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (QUESTION, f"First: {QUESTION} Then more."),
        (QUESTION, QUESTION.upper()),
        (QUESTION, QUESTION.replace(" ", " \n\t ")),
        (QUESTION, QUESTION.replace(",", " -- ").replace("?", "!!")),
        (QUESTION, "".join(chr(ord(c) + 0xFEE0) if c.isalpha() else c for c in QUESTION)),
        (QUESTION, QUESTION.replace("people", "peo\u200bple")),
        (QUESTION, "well, four days to paint a house: how many days do two"),
        ("Ten well-known facts, each of them true, are below", "ten well known facts each of them true are below"),
        (FORMULA, r"**Find** the value of \[\dfrac{1}{2}\,+\,\tfrac{3}{4}\cdot x\] when $x=5$"),
        (FORMULA, r"find the value of \( \frac 1 2+\left(\frac 3 4\right)× x \)"),
        (FORMULA, r"Find   the value of $\displaystyle \frac{1}{2} + \quad \frac{3}{4} \times x"),
        (CHINESE, "解：一个农场有鸡 和兔共三十五只， 请问各有"),
        (CHINESE, "農場問題。农场有鸡和兔共三十五"),
        (THAI, f"คำถาม {THAI} เหลือเท่าไร"),
        (RUSSIAN, RUSSIAN.upper().replace(",", "")),
        ("Was sind Ä, ö und ü?", "was sind a\u0308 o\u0308 und u\u0308"),
        ("What is 2 + 3 * 4?", "Tell me what is 2+3*4"),
        (r"Compute $12 \div 4 - x$ now.", "compute 12/4-x NOW"),
        ("2 + 3 * 4", "2+3*4"),
    ],
)  # fmt: skip
def test_what_is_only_written_otherwise_is_found(item, text):
    assert found(item, text)


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (QUESTION, QUESTION.replace("four", "five").replace("many", "few")),
        (QUESTION, "days to paint a house, how many days do"),  # nine words
        ("What is 2 + 3 * 4?", "What is 2 * 3 + 4?"),
        ("What is 2 + 3 * 4?", "What is 2 + 3 * 5?"),
        ("What is 2 + 3 * 4?", "What is 2 - 3 * 4?"),
        ("What is 12 + 3 * 4?", "What is 1 2 + 3 * 4?"),
        (CHINESE, "一个农场有鸡和兔"),
        ("2 + 3", "so 2 + 3 is 5, then I go on"),  # too short to be told from chance, but as a whole prompt
        ("", "anything"),
        (QUESTION, ""),
    ],
)
def test_what_differs_is_not_found(item, text):
    assert not found(item, text)


def test_fewer_words_are_a_setting():
    text = "how many days do two people"
    assert (found(QUESTION, text), found(QUESTION, text, n=6)) == (False, True)


def test_solutions_count_by_n_grams_only():
    index = Index()
    index.add("aime", "7", "The answer is 14.", question=False)
    index.add("aime", "7", f"We see this: {QUESTION}", question=False)
    assert index.find("So the answer is 14.") is None
    assert index.find(QUESTION) is not None


def test_the_match_names_set_item_words_and_text():
    index = Index()
    index.add("gpqa", "0", CHINESE)
    index.add("aime", "7", QUESTION)
    told = "Three  people need four days to PAINT a house"
    expected = Match("aime", "7", f"If {told}", 1)
    assert index.find("a prompt", f"Well. If {told}; how many", "14") == expected


def test_no_match_across_two_texts():
    words = QUESTION.split()
    assert not Index().items
    index = Index()
    index.add("aime", "7", QUESTION)
    assert index.find(" ".join(words[:6]), " ".join(words[6:13])) is None


def test_boilerplate_on_the_stop_list_is_no_contamination():
    plea = "Please reason step by step and put your final answer within a box"
    index = Index()
    index.add("aime", "7", f"{plea}. {QUESTION}")
    index.add("aime", "8", "Is it true or false?")
    assert index.find(f"Who is it? {plea}.") is not None
    index.stop([plea.upper(), "is it true or false"])
    assert index.find(f"Who is it? {plea}.") is None
    assert index.find("Is it true or false?") is None
    assert index.find(QUESTION) is not None


def test_a_text_longer_than_a_piece(monkeypatch):
    monkeypatch.setattr(decontaminate, "PIECE", 400)
    filler = "nothing of that kind stands here " * 40
    for at in range(0, len(filler), 97):
        assert found(QUESTION, f"{filler[:at]} {QUESTION} {filler[at:]}")
    assert not found(QUESTION, filler)


@given(st.lists(st.text(max_size=60), max_size=4))
def test_any_text_can_be_read(texts):
    index = Index()
    index.add("aime", "7", QUESTION)
    index.add("aime", "8", "\ud800 \x00 \\left")
    assert index.find("", *texts) is None


@given(st.integers(0, 2**32))
def test_against_a_slow_reading_of_the_rule(seed):
    """Random texts of few words, so that runs of five agree often."""
    rng = random.Random(seed)
    items = [[rng.choice("abcd") * 2 for _ in range(rng.randint(5, 9))] for _ in range(3)]
    text = [rng.choice("abcd") * 2 for _ in range(rng.randint(0, 60))]
    index = Index(5)
    for number, item in enumerate(items):
        index.add("set", str(number), " ".join(item))
    runs = {tuple(item[at : at + 5]) for item in items for at in range(len(item) - 4)}
    expected = any(tuple(text[at : at + 5]) in runs for at in range(len(text) - 4))
    assert (index.find(" ".join(text)) is not None) == expected


def test_the_mixture_leaves_contaminated_rows_out_and_says_why(run_job, row, tmp_path):
    texts = {
        "prompt": ("Tell me. " + QUESTION, "Six."),
        "reasoning": ("Hello?", f"<think>It is like this: {QUESTION.upper()}</think>\nSix."),
        "none": ("Hi there?", "Six."),
    }
    found = [
        rows.sft_row(row(id=name, question=prompt), 0, completion, "model")
        for name, (prompt, completion) in texts.items()
    ]
    rows.write_rows(tmp_path / "rows.parquet", found, sft=True)
    records = [{"problem": QUESTION, "solution": "It is six."}, {"problem": "Hi there?", "solution": None}]
    (tmp_path / "aime.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "stop.txt").write_text("hi there\n")
    sets = {"aime": {"path": "aime.jsonl", "columns": ["problem", "solution"]}}
    values = {"sources": ["rows.parquet"], "total": 10, "decontamination": {"sets": sets}}
    rows.write_rows(tmp_path / "more.parquet", [rows.sft_row(row(id="clean"), 0, "14", "model")], sft=True)
    values["sources"].append("more.parquet")
    record = run_job(mixture, mixture.Mixture, values)
    told = [json.loads(line) for line in Path("out/test/mixture/dropped.jsonl").read_text().splitlines()]
    assert [(one["id"], one["step"]) for one in told] == [(f"{name}-0", "contaminated") for name in texts]
    assert [one["why"].split(": ")[0] for one in told] == [
        "aime, item 0, in the prompt", "aime, item 0, in the completion", "aime, item 1, in the prompt",
    ]  # fmt: skip
    assert told[1]["why"].endswith(": 'IF THREE PEOPLE NEED FOUR DAYS TO PAINT A HOUSE'")
    assert record["funnel"]["dropped"]["contaminated"] == 3
    values["decontamination"]["stop_list"] = "stop.txt"
    assert run_job(mixture, mixture.Mixture, values, "--redo")["rows"] == 2


def test_what_is_wrong_with_a_set_is_named(tmp_path):
    (tmp_path / "aime.jsonl").write_text('{"problem": "x"}\n')
    settings = Decontamination({"aime": EvaluationSet(str(tmp_path / "aime.jsonl"))})
    with pytest.raises(ValueError, match=r"aime\.jsonl, row 0: no column 'question'; it has problem"):
        decontaminate.load(settings)
    (tmp_path / "aime.jsonl").write_text('{"question": "x", "answer": ""}\n{"question"')
    with pytest.raises(ValueError, match=r"aime\.jsonl, row 1: not JSON"):
        decontaminate.load(settings)
    (tmp_path / "aime.jsonl").write_text('{"question": [{"role": "user"}], "answer": ""}\n')
    with pytest.raises(ValueError, match=r"aime\.jsonl, row 0: column 'question' is list, must be text"):
        decontaminate.load(settings)
    (tmp_path / "aime.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"aime\.jsonl: holds nothing"):
        decontaminate.load(settings)
    (tmp_path / "aime.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"aime\.jsonl"):
        decontaminate.load(settings)
    with pytest.raises(ValueError, match="`n` is 2; write 5 to 256 words"):
        Decontamination(n=2)
