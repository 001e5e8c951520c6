"""The paper's benchmarks, from files of their columns: prompts, order of options, figures, what is said of faults."""

import json
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


@pytest.fixture
def local(tmp_path, monkeypatch) -> dict[str, str]:
    monkeypatch.chdir(tmp_path)
    write_parquet(Path("aime.parquet"), AIME)
    Path("gpqa.jsonl").write_text("".join(json.dumps(one) + "\n" for one in GPQA), encoding="utf-8")
    return {"aime_2024": "aime.parquet", "gpqa_diamond": "gpqa.jsonl"}


def run(monkeypatch, answer, *argv: str, **settings) -> Path:
    """The command, asking `answer(prompt, sample)` in place of a model, since a tiny one knows nothing."""

    class Known:
        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def sample(self, asked, n, decoding, seed, store):
            assert (decoding.max_tokens, decoding.temperature, decoding.top_p) == (32768, 0.6, 0.95)
            return [[Sample(answer(one[0]["content"], at), "stop", 9, 20) for at in range(n)] for one in asked]

    monkeypatch.setattr(suites, "open_model", lambda *_: Known())
    Path("suites.yaml").write_text(yaml.safe_dump({"output_dir": "outputs/x/suites", "checkpoint": "me/m"} | settings))
    monkeypatch.setattr(sys, "argv", ["suites"])
    words = ["--config", "suites.yaml", *argv]
    assert jobs.run(suites.Suites, suites.load, suites.build, words, suites.plan) == 0
    return Path("outputs/x/suites")


def test_figures_stand_beside_the_published_ones(local, monkeypatch):
    def answer(prompt, at):
        if prompt.startswith("Find 1 + 1. Please reason step by step"):
            return "so it is 2</think>The answer is \\boxed{2}."
        if prompt.startswith("Find"):  # right in a quarter, and the wrong ones agree
            return "hm</think>" + ("\\boxed{4}" if at % 4 == 0 else "\\boxed{5}")
        number = prompt.partition("Which is ")[2].partition("?")[0]
        letter = next(line[0] for line in prompt.splitlines() if line[1:] == f") {number}")
        return f"easy</think>It is clear.\n\nANSWER: {letter}" if at else "cut off amid \\boxed{A}"

    folder = run(monkeypatch, answer, suites=[*local], local=local, prefilled=True)
    found = json.loads((folder / "results.json").read_text())["suites"]
    aime, gpqa = found["aime_2024"], found["gpqa_diamond"]
    assert (aime["k"], aime["n_problems"], aime["pass@1"], aime["cons@64"]) == (64, 2, 0.625, 0.5)
    assert aime["pass@1_stderr"] == pytest.approx(0.375)
    assert (gpqa["n_problems"], gpqa["cons@64"]) == (8, 1.0)
    assert gpqa["pass@1"] == pytest.approx(63 / 64)  # an answer that was cut off within its reasoning is none
    rows = (folder / "results.md").read_text().splitlines()
    assert rows[0] == "| model | AIME 2024 | cons@k | MATH-500 | GPQA Diamond | AIME 2025 |"
    assert rows[2].startswith("| me/m | 62.5 ± 37.5 | 50.0 ± 50.0 |  | 98.4 ± 0.0 |")
    assert "| R1, paper | 79.8 | 86.7 | 97.3 | 71.5 |  |" in rows
    assert "| R1-Distill-Qwen-1.5B, open-r1 | 30.7 |  | 83.1 | 35.8 |  |" in rows
    kept = read_parquet(folder / "generations.parquet")
    assert len(kept) == 64 * 10
    assert {one["question"] == "" for one in kept if one["set"] == "gpqa_diamond"} == {True}  # nobody is to publish it


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
        ({"suites": ["aime"]}, "there is no suite 'aime'; write aime_2024, aime_2025, math_500, gpqa_diamond"),
        ({"checkpoint": "outputs/x/nobody"}, "outputs/x/nobody has not been run"),
    ):
        with pytest.raises(SystemExit) as ended:
            run(monkeypatch, None, **wrong)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err


def test_the_yaml_is_the_papers_protocol():
    found = runs.settings(suites.Suites, ROOT / "recipes/configs/suites.yaml")
    assert {name: found.answers(name) for name in found.suites} == {
        "aime_2024": 64, "aime_2025": 64, "math_500": 16, "gpqa_diamond": 64,
    }  # fmt: skip
    assert (found.decoding.max_tokens, found.decoding.temperature, found.decoding.top_p) == (32768, 0.6, 0.95)
    text = (ROOT / "recipes/tools/suites.py").read_text(encoding="utf-8")
    assert all(f"https://huggingface.co/datasets/{one.hub_id}" in text for one in suites.SUITES.values())
