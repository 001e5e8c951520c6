"""RL prompts: Table 4's proportions from named sources, equal prompts once, and a pass rate that RL can learn from."""

import json
from collections import Counter
from pathlib import Path

from data_prep import jobs, rl_prompts, rows, runs, sources
from data_prep.rl_prompts import TABLE_4, RLPrompts

import pytest

TESTS = [{"input": "4\n", "output": "5\n"}]


@pytest.fixture
def prompts(row, tmp_path):
    """Files of own rows: 60 of math (each twice), 30 of code, 30 of STEM, 10 of logic, 80 general, 8 harmless."""
    made = [row(id=f"m{i}", question=f"What is {i} + 1?", answer=str(i + 1)) for i in range(60)]
    made += [one | {"id": f"again-{one['id']}", "prompt": f" what is {i} +\n1? "} for i, one in enumerate(made)]
    code = {"domain": "code", "verifier": "code", "answer": "", "tests": TESTS}
    made += [row(id=f"c{i}", question=f"Program {i}: print n + 1.", **code) for i in range(30)]
    made += [row(id=f"s{i}", question=f"Option {i}?", domain="stem", verifier="choice", answer="B") for i in range(30)]
    made += [row(id=f"l{i}", question=f"Puzzle {i}?", domain="logic", answer="7") for i in range(10)]
    general = {"domain": "general", "verifier": "none", "answer": "", "thinking": False, "license": "cc-by-nc-4.0"}
    made += [row(id=f"g{i}", question=f"Poem {i}!", kind="helpful", **general) for i in range(80)]
    made += [row(id=f"h{i}", question=f"Harm {i}!", kind="harmless", **general) for i in range(8)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in made) + '{"id": "half')
    return {"sources": [{"name": "rows", "local": str(path)}], "total": 158}


def test_quotas_are_the_papers_and_in_proportion():
    assert rl_prompts.quotas(158_000) == TABLE_4
    assert rl_prompts.quotas(158) == {name: count // 1000 for name, count in TABLE_4.items()}
    assert all(sum(rl_prompts.quotas(total).values()) == total for total in (1, 7, 100, 157_999))


def test_quotas_shortfalls_and_equal_prompts(run_job, prompts):
    record = run_job(rl_prompts, RLPrompts, prompts)
    folder = Path("out/test/rl_prompts")
    found = {kind: rows.load_rows(folder / f"{kind}.parquet") for kind in ("reasoning", "helpful", "harmless")}
    counts = Counter(one["domain"] for one in found["reasoning"])
    assert counts == {"math": 26, "code": 17, "stem": 22, "logic": 10}
    assert (len(found["helpful"]), len(found["harmless"])) == (66, 8)
    assert record["rows_by_file"] == {"reasoning": 75, "helpful": 66, "harmless": 8}
    assert record["groups"]["math"] == {"quota": 26, "available": 60, "asked": 0, "rows": 26, "shortfall": 0}
    assert (record["groups"]["logic"]["shortfall"], record["groups"]["harmless"]["shortfall"]) == (5, 4)
    assert record["duplicates"] == 60
    assert record["sources"]["rows-rows"] == {"rows": 278, "refused": 1, "reasons": {"unreadable": 1}}
    assert all(json.loads(one["tests"]) == TESTS for one in found["reasoning"] if one["domain"] == "code")
    assert run_job(rl_prompts, RLPrompts, prompts)["id"] == record["id"]  # is done already
    before = {kind: (folder / f"{kind}.parquet").read_bytes() for kind in found}
    (folder / "run.json").unlink()
    run_job(rl_prompts, RLPrompts, prompts)
    assert {kind: (folder / f"{kind}.parquet").read_bytes() for kind in found} == before


def test_a_trial_takes_a_few_records_of_each_source(run_job, prompts):
    assert jobs.run(RLPrompts, rl_prompts.load, rl_prompts.build, config(prompts, "--limit", "12")) == 0
    record = runs.read(Path("out/test/rl_prompts_limit_12"))
    assert record["sources"]["rows-rows"]["rows"] == 12
    assert record["rows_by_file"] == {"reasoning": 2}  # the first records are of mathematics only


def config(values, *flags):
    Path("trial.yaml").write_text(json.dumps(values | {"output_dir": "out/test/rl_prompts"}))
    return ["--config", "trial.yaml", *flags]


def test_only_commercial_rows(run_job, prompts):
    record = run_job(rl_prompts, RLPrompts, prompts | {"commercial": True})
    assert record["rows_by_file"] == {"reasoning": 75}
    assert record["not_commercial"] == 88
    assert not Path("out/test/rl_prompts/helpful.parquet").exists()


def test_what_meets_an_evaluation_set_is_left_out_and_named(run_job, prompts):
    Path("held_out.jsonl").write_text(json.dumps({"id": "e1", "question": "what is  7+1"}) + "\n")
    sets = {"held": {"path": "held_out.jsonl", "columns": ["question"]}}
    record = run_job(rl_prompts, RLPrompts, prompts | {"decontamination": {"sets": sets}})
    assert (record["contaminated"], record["groups"]["math"]["available"]) == (1, 59)
    (line,) = Path("out/test/rl_prompts/contaminated.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "m7"
    assert "held, item e1, in the prompt: 'What is 7 + 1'" in json.loads(line)["why"]


def test_prompts_that_are_always_or_never_right_are_left_out(run_job, prompts, scripted):
    """Of four samples the model gets i % 5 right, on every kind of prompt that a rule can grade."""

    def say(prompt, k):
        question = prompt.split("User: ")[1].removesuffix(" Assistant:")
        number = int("".join(filter(str.isdigit, question.split("+")[0])))
        answer = "B" if "Option" in question else "7" if "Puzzle" in question else str(number + 1)
        if "Program" in question:
            answer = "```python\nprint(int(input()) + 1)\n```"
        wrong = "```python\nprint(0)\n```" if "Program" in question else "C" if "Option" in question else "-1"
        return f"<think> so </think> <answer> {answer if k < number % 5 else wrong} </answer>"

    scripted(say)
    rate = {"checkpoint": "./model", "decoding": {"max_tokens": 64}, "n": 4, "least": 0.25, "most": 0.75}
    record = run_job(rl_prompts, RLPrompts, prompts | {"pass_rate": rate})
    found = rows.load_rows("out/test/rl_prompts/reasoning.parquet")
    assert Counter(one["domain"] for one in found) == {"math": 26, "code": 17, "stem": 18, "logic": 6}
    assert {one["pass_rate"] for one in found} == {0.25, 0.5, 0.75}
    assert record["groups"]["stem"] == {"quota": 22, "available": 30, "asked": 30, "rows": 18, "shortfall": 4}
    assert all(one["pass_rate"] is None for one in rows.read_parquet("out/test/rl_prompts/helpful.parquet"))
    assert record["groups"]["general"]["rows"] == 66


def test_no_prompts_at_all_are_an_error(run_job, prompts, row, tmp_path, caplog):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row(license="cc-by-nc-4.0")) + "\n")
    with pytest.raises(AssertionError):
        run_job(rl_prompts, RLPrompts, prompts | {"commercial": True})
    assert "no prompt is left" in caplog.text


def test_groups_without_a_source_are_named_once(run_job, prompts, row, tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "rows.jsonl").write_text(json.dumps(row()) + "\n")
    run_job(rl_prompts, RLPrompts, prompts)
    assert "the sources have no prompts of code, stem, logic, general, harmless" in caplog.messages
    short = [text for text in caplog.messages if "short of the quota" in text]
    assert short == ["math: 25 prompts short of the quota of 26"]


@pytest.mark.parametrize("job", ["rl_prompts", "sources"])
def test_the_full_scales_config_is_sound(job, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    module = {"rl_prompts": rl_prompts, "sources": sources}[job]
    settings = {"rl_prompts": RLPrompts, "sources": sources.Sources}[job]
    config = Path(__file__).parents[2] / f"recipes/configs/full/{job}.yaml"
    monkeypatch.chdir(tmp_path)
    assert jobs.run(settings, module.load, module.build, ["--config", str(config), "--dry-run"], module.plan) == 0
    assert "103,110 records of zwhe99/DeepMath-103K @0406dc9d" in caplog.text
    assert f"would build outputs/full/{job}: 8 sources" in caplog.text
    assert not Path("outputs").exists()
