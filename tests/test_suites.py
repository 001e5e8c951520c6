"""The paper's benchmarks, from files of their columns: prompts, order of options, figures, what is said of faults."""

import gzip
import json
import re
import sys
from pathlib import Path

from data_prep import jobs, runs
from data_prep.rows import read_parquet, write_parquet
from data_prep.sampling import Sample
from recipes.tools import suites

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
AIME = [{"id": n, "problem": f"Find {n} + {n}.", "answer": str(2 * n), "year": "2024"} for n in (1, 2)]
GPQA = [
    {"Record ID": f"r{n}", "Question": f"Which is {n}?", "Correct Answer": f"{n}"}
    | {f"Incorrect Answer {wrong}": f"{n + wrong}" for wrong in (1, 2, 3)}
    for n in range(8)
]


WORKED = [
    {"question": f"Tom had {n} eggs and ate one.", "answer": f"Tom has {n}-1=<<{n}-1={n - 1}>>{n - 1}.\n#### {n - 1}"}
    for n in range(1, 11)
]
PAPERS = {"k": 0, "decoding": {"max_tokens": 32768, "temperature": 0.6, "top_p": 0.95}}


def lines(name: str, records: list[dict]) -> str:
    text = "".join(json.dumps(one) + "\n" for one in records)
    (gzip.open if name.endswith(".gz") else open)(name, "wt", encoding="utf-8").write(text)
    return name


@pytest.fixture
def local(tmp_path, monkeypatch) -> dict[str, str]:
    monkeypatch.chdir(tmp_path)
    write_parquet(Path("aime.parquet"), AIME)
    return {"aime_2024": "aime.parquet", "gpqa_diamond": lines("gpqa.jsonl", GPQA)}


def run(monkeypatch, answer, *argv: str, **settings) -> Path:
    """The command, asking `answer(prompt, sample)` in place of a model, since a tiny one knows nothing."""

    class Known:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def sample(self, asked, n, decoding, seed, store):
            self.decoding = decoding
            texts = [one if isinstance(one, str) else one[0]["content"] for one in asked]
            return [[Sample(answer(one, at), "stop", 9, 20) for at in range(n)] for one in texts]

    model = Known()
    monkeypatch.setattr(suites, "open_model", lambda *_: model)
    Path("suites.yaml").write_text(yaml.safe_dump({"output_dir": "outputs/x/suites", "checkpoint": "me/m"} | settings))
    monkeypatch.setattr(sys, "argv", ["suites"])
    words = ["--config", "suites.yaml", *argv]
    assert jobs.run(suites.Suites, suites.load, suites.build, words, suites.plan) == 0
    Path("asked.json").write_text(json.dumps(vars(model.decoding)))
    return Path("outputs/x/suites")


def cells(folder: Path, name: str) -> list[str]:
    """The row of a set in the table."""
    found = [line for line in (folder / "results.md").read_text().splitlines() if line.startswith(f"| {name} |")]
    return found[0].strip("| ").split(" | ")


def whole(number: int) -> list[dict]:
    return [{"id": n, "problem": f"Find {n} + {n}.", "answer": str(2 * n)} for n in range(1, number + 1)]


def test_figures_stand_beside_the_published_ones(local, monkeypatch):
    def answer(prompt, at):
        if prompt.startswith("Find 1 + 1. Please reason step by step"):
            return "so it is 2</think>The answer is \\boxed{2}."
        if prompt.startswith("Find"):  # right in a quarter, and the wrong ones agree
            number = int(prompt.split()[1])
            return "hm</think>" + (f"\\boxed{{{2 * number}}}" if at % 4 == 0 else "\\boxed{5}")
        number = prompt.partition("Which is ")[2].partition("?")[0]
        letter = next(line[0] for line in prompt.splitlines() if line[1:] == f") {number}")
        return f"easy</think>It is clear.\n\nANSWER: {letter}" if at else "cut off amid \\boxed{A}"

    local |= {"aime_2024": lines("aime.jsonl.gz", whole(30))}
    folder = run(monkeypatch, answer, suites=[*local], local=local, prefilled=True)
    found = json.loads((folder / "results.json").read_text())["suites"]
    aime, gpqa = found["aime_2024"], found["gpqa_diamond"]
    assert (aime["k"], aime["n_problems"], aime["pass@1"]) == (64, 30, pytest.approx((1 + 29 / 4) / 30))
    assert aime["cons@64"] == pytest.approx(1 / 30)
    assert (gpqa["n_problems"], gpqa["cons@64"]) == (8, 1.0)
    assert gpqa["pass@1"] == pytest.approx(63 / 64)  # an answer that was cut off within its reasoning is none
    sampled = ["64", "32,768", "temperature 0.6, top-p 0.95"]
    assert cells(folder, "AIME 2024") == ["AIME 2024", "30", *sampled, "27.5 ± 2.5", "3.3 ± 3.3", "yes"]
    assert cells(folder, "gpqa.jsonl") == [
        "gpqa.jsonl", "8", *sampled, "98.4 ± 0.0", "100.0 ± 0.0", "no: no figure of this set",
    ]  # fmt: skip
    rows = (folder / "results.md").read_text().splitlines()
    assert "GPQA Diamond" not in "".join(rows)  # another set, and nothing of the paper beside it
    assert "| model | AIME 2024 | AIME 2024, cons@k |" in rows
    assert "| me/m | 27.5 ± 2.5 | 3.3 ± 3.3 |" in rows
    assert "| R1, paper | 79.8 | 86.7 |" in rows
    assert "| R1-Distill-Qwen-1.5B, open-r1 | 30.7 |  |" in rows
    kept = read_parquet(folder / "generations.parquet")
    assert len(kept) == 64 * 38
    assert {one["question"] == "" for one in kept if one["set"] == "gpqa_diamond"} == {True}  # nobody is to publish it


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"k": 2}, "no: 2 answers each, not 64"),
        ({"decoding": PAPERS["decoding"] | {"max_tokens": 32}}, "no: at most 32 tokens, not 32,768"),
        ({"decoding": {"max_tokens": 32768}}, "no: not temperature 0.6, top-p 0.95"),
        ({"limit": 3}, "no: 3 of 30 problems"),
    ],
)
def test_what_is_not_the_papers_protocol_stands_beside_nothing_of_it(local, monkeypatch, settings, why):
    local = {"aime_2024": lines("aime.jsonl", whole(30))}
    found = cells(run(monkeypatch, lambda *_: "\\boxed{2}", local=local, **settings), "AIME 2024")
    assert found[1] == ("3 of 30" if "limit" in settings else "30")
    assert found[-1] == why
    assert "paper |" not in Path("outputs/x/suites/results.md").read_text().partition("as in the paper |")[2]


def test_a_set_of_ones_own_has_its_own_name_whatever_its_columns(local, monkeypatch):
    row = {"id": "r", "question": "What is 1 - 1?", "prompt": "What is 1 - 1? Be brief.", "answer": "0"}
    row |= {"kind": "reasoning", "domain": "math", "language": "en", "verifier": "math", "thinking": True}
    records = [
        {"problem": "Find 5 - 5.", "answer": 0},
        {"question": "Find 2 - 2.", "answer": 0.0},
        {"question": "Find 3 - 3.", "answer": "3 - 3 = <<3-3=0>>0\n#### 0"},
        {"problem": "Find 4 - 4.", "solution": "As $4 = 4$, it is $\\boxed{0}$."},
        {"question": "Find 6 - 6.", "final_answer": ["$0$"], "answer": None, "id": None},
        row | {"source": "mine", "license": "mit"},
    ]
    asked = []
    folder = run(
        monkeypatch, lambda prompt, at: asked.append(prompt) or "It is 0.", local={"mine": lines("a.jsonl", records)}
    )
    assert cells(folder, "mine")[:2] + cells(folder, "mine")[-3:] == [
        "mine", "6", "100.0 ± 0.0", "100.0 ± 0.0", "no: no figure of this set",
    ]  # fmt: skip
    assert len(asked) == 6 * 16
    assert asked[0].startswith("Find 5 - 5. Please reason step by step")
    assert asked[-1] == row["prompt"]  # a row is asked as it stands


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"question": "1?", "answer": float("nan")}, "no problem or question"),
        ({"question": "1?", "answer": [1, 2]}, "`answer` is [1, 2], which is no single number"),
        ({"question": "1?", "answer": True}, "`answer` is True, which is no single number"),
        ({"question": "Which?", "choices": ["a", "b"], "answer": 1}, "`choices` would not be asked"),
        ({"problem": "1?", "solution": "First we add them. " * 20}, "`solution` states no answer"),
        ({"prompt": "1?", "answer": "2", "verifier": "code"}, "column 'id': missing"),
    ],
    ids=str,
)
def test_what_ones_own_set_cannot_be_graded_by_is_refused(local, record, said):
    with pytest.raises(ValueError, match=f"mine: a.jsonl, record 1: .*{re.escape(said)}"):
        suites.read("mine", lines("a.jsonl", [{"problem": "1 + 1?", "answer": "2"}, record]), 0)


def test_gsm8k_is_asked_as_the_paper_asks_and_as_bases_are(local, monkeypatch):
    test, train = lines("test.jsonl", WORKED[::-1]), lines("train.jsonl", WORKED)
    sets = {"gsm8k": test, "gsm8k_8_shot": test}
    pages = []

    def answer(prompt, at):
        number = int(prompt.rpartition("Tom had ")[2].split()[0]) - 1
        if prompt.startswith("Tom had"):
            assert "Please reason step by step" in prompt
            return f"<think>x</think>\\boxed{{{number}}}"
        pages.append(prompt)
        return f" Tom ate 1 of ${number + 1}. That leaves ${number}.00\n\nQ: Is it 7?" if number == 3 else f" {number}."

    folder = run(monkeypatch, answer, local=sets, exemplars=train, limit=9)
    found = json.loads((folder / "results.json").read_text())["suites"]
    assert (found["gsm8k"]["pass@1"], found["gsm8k"]["k"]) == (1.0, 16)
    assert found["gsm8k_8_shot"]["pass@1"] == pytest.approx(8 / 9)  # "3.00" is not "3", as in the public figures
    assert json.loads(Path("asked.json").read_text()) == {
        "max_tokens": 256,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
    }
    assert len(pages) == 9
    assert pages[0].startswith("Q: Tom had 1 eggs and ate one.\nA: Tom has 1-1=0. The answer is 0.\n\nQ: Tom had 2")
    assert pages[0].endswith("The answer is 7.\n\nQ: Tom had 10 eggs and ate one.\nA:")
    told = cells(folder, "test.jsonl")
    assert told[1:4] == ["9", "16", "32,768"]
    table = (folder / "results.md").read_text()
    assert "| greedy, the first 8 of train.jsonl |" in table
    kept = read_parquet(folder / "generations.parquet")
    assert not any("Q:" in one["completion"] for one in kept)


def test_a_folder_that_no_yaml_names_is_measured_by_its_path(local, monkeypatch):
    Path("outputs/mine").mkdir(parents=True)
    Path("outputs/mine/config.json").write_text("{}")
    folder = run(monkeypatch, lambda *_: "\\boxed{2}", "--checkpoint", "outputs/mine", local={"sums": "aime.parquet"})
    assert not folder.exists()  # that is another checkpoint's
    folder = folder.with_name("suites_outputs-mine")
    assert json.loads((folder / "results.json").read_text())["checkpoint"] == "outputs/mine"
    assert cells(folder, "sums")[-3] == "50.0 ± 50.0"


def test_a_checkpoint_of_ours_is_asked_as_its_stage_taught_it(local, monkeypatch):
    Path("outputs/mine").mkdir(parents=True)
    Path("outputs/mine/config.json").write_text("{}")
    Path("outputs/mine/run.json").write_text('{"config": {"completion_style": "r1_zero"}}')
    own, asked = {"checkpoint": "outputs/mine", "local": {"sums": "aime.parquet"}}, []
    folder = run(monkeypatch, lambda prompt, _: asked.append(prompt) or "2", **own)
    assert (folder / "results.md").read_text().startswith("outputs/mine, asked in the style `r1_zero`, percent:")
    assert all("<think> reasoning process here </think>" in prompt for prompt in asked)
    asked.clear()
    run(monkeypatch, lambda prompt, _: asked.append(prompt) or "2", "--redo", **own, style="think")
    assert not any("reasoning process here" in prompt for prompt in asked)


def test_options_are_shuffled_by_seed_and_problem_alone(local):
    first, again, other = (suites.read("gpqa_diamond", "gpqa.jsonl", seed) for seed in (0, 0, 1))
    assert first == again != other
    assert len({row["answer"] for row in first}) > 2  # the first option of each record is the right one
    assert suites.read("gpqa_diamond", "gpqa.jsonl", 0, limit=3) == first[:3]


def test_what_cannot_be_read_is_named(local, monkeypatch, capsys):
    write_parquet(Path("other.parquet"), [{"question": "1 + 1?", "answer": "2"}])
    for wrong, said in (
        (
            {"local": {"aime_2024": "none.jsonl"}, "suites": ["aime_2024"]},
            "aime_2024: none.jsonl: no such file; or write",
        ),
        (
            {"local": {"aime_2024": "other.parquet"}, "suites": ["aime_2024"]},
            "aime_2024: other.parquet, record 0: no problem",
        ),
        ({"suites": ["aime"]}, "there is no suite 'aime'; write aime_2024, aime_2025, math_500, gpqa_diamond, gsm8k"),
        ({"local": {"mine": "other.csv"}}, "mine: other.csv: no such file"),
        ({"local": {"mine": "mine"}}, "mine: mine: no such file; a Hub id is owner/name"),
        ({"local": {"mine": lines("a.jsonl", [{"text": "1"}])}}, "mine: a.jsonl, record 0: no problem or question or"),
        ({"local": {"mine": lines("b.jsonl", [{"problem": "1 + x?", "answer": "x^2+"}])}}, "record 0: the gold answer"),
        (
            {"local": {"gsm8k": lines("c.jsonl", [{"question": "?", "answer": "4"}])}},
            "c.jsonl, record 0: gold: `answer`",
        ),
        ({"checkpoint": "outputs/x/nobody"}, "outputs/x/nobody has not been run"),
    ):
        with pytest.raises(SystemExit) as ended:
            run(monkeypatch, None, **wrong)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err


def test_the_yaml_is_the_papers_protocol():
    found = runs.settings(suites.Suites, ROOT / "recipes/configs/suites.yaml")
    assert {name: found.answers(name) for name in found.names} == {
        "aime_2024": 64, "aime_2025": 64, "math_500": 16, "gpqa_diamond": 64,
    }  # fmt: skip
    assert (found.decoding.max_tokens, found.decoding.temperature, found.decoding.top_p) == (32768, 0.6, 0.95)
    text = (ROOT / "recipes/tools/suites.py").read_text(encoding="utf-8")
    assert all(f"https://huggingface.co/datasets/{one.hub_id}" in text for one in suites.SUITES.values())
