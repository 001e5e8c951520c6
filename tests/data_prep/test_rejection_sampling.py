"""Rejection sampling: rules first, the judge for the rest, the best k of a prompt, and a funnel that adds up."""

import json
import signal
import subprocess
import sys
import time
import types

from data_prep import (
    decontaminate,
    distillation,
    jobs,
    mixture,
    push,
    rejection_sampling,
    rl_prompts,
    rows,
    runs,
    sources,
)
from data_prep.hub import cards
from data_prep.rejection_sampling import RejectionSampling
from recipes import data

import pyarrow.parquet as pq
import pytest
import torch
import yaml

GOOD = "<think>I first work out 3 * 4 = 12. Then I get 2 + 12 = 14.</think>\n2 + 3 * 4 = 14. The answer is 14."
SAMPLES = [
    GOOD,
    GOOD.replace("Then I get", "So now I really get"),  # longer
    GOOD,  # a duplicate
    GOOD.replace("is 14.", "is 20."),
    GOOD.replace("Then I get", "然后得到"),
    "14",
]


def settings(**changes):
    return {
        "checkpoint": "./model",
        "prompts": "prompts.parquet",
        "judge": {"base_url": "world", "model": "world-oracle"},
        "decoding": {"max_tokens": 64},
        "n": len(SAMPLES),
        "keep": 1,
    } | changes


def test_the_best_is_kept_and_every_drop_is_counted(run_job, scripted, row, tmp_path):
    helpful = row(id="h", kind="helpful", domain="general", verifier="judge")
    rows.write_rows(tmp_path / "prompts.parquet", [row(id="a"), helpful, row(id="b", answer="15")])
    scripted(lambda prompt, k: SAMPLES[k])
    record = run_job(rejection_sampling, RejectionSampling, settings())
    kept = rows.load_rows("out/test/rejection_sampling/train.parquet", sft=True)
    assert [(r["id"], r["completion"], r["generator"]) for r in kept] == [("a-0", GOOD, "./model")]
    assert (record["prompts"], record["prompts_with_rows"], record["rows"]) == (2, 1, 1)
    funnel = record["funnel"]
    assert funnel["seen"] == 12
    assert {name: count for name, count in funnel["dropped"].items() if count} == {
        "malformed": 2, "incorrect": 6, "mixed_language": 1, "duplicate": 1, "surplus": 1,
    }  # fmt: skip
    assert funnel["kept"] == 1


def test_where_nothing_is_left_the_commonest_reason_is_told(run_job, scripted, row, tmp_path, capsys, caplog):
    rows.write_rows(tmp_path / "prompts.parquet", [row(id="a")])
    scripted(lambda prompt, k: "14")
    with pytest.raises(AssertionError):
        run_job(rejection_sampling, RejectionSampling, settings())
    assert "all 6 samples were dropped, 6 of them as `malformed`, such as a: not in the form" in caplog.messages[-1]
    rows.write_rows(tmp_path / "prompts.parquet", [row(id="a", kind="helpful", verifier="judge")])
    with pytest.raises(SystemExit):
        run_job(rejection_sampling, RejectionSampling, settings())
    assert "prompts.parquet: no row has the kind `reasoning`" in capsys.readouterr().err


def test_a_dry_run_says_what_is_asked_of_whom(run_job, row, tmp_path, caplog):
    caplog.set_level("INFO")
    rows.write_rows(tmp_path / "prompts.parquet", [row(id="a"), row(id="b", verifier="judge")])
    run_job(rejection_sampling, RejectionSampling, settings(tasks=3), "--dry-run", "--engine", "ray")
    for told in (
        "2 prompts of prompts.parquet, at most 1 rows of each",
        "2 x 6 answers by ./model (transformers): at most 768 tokens, 0.0 GB of disk, 0.0 hours at 1,000 tokens a sec",
        "6 x 1 answers by the judge world-oracle",
        "3 tasks (ray)",
    ):
        assert told in caplog.text
    assert not (tmp_path / "out").exists()


def test_a_judge_is_only_needed_where_rules_cannot_decide(run_job, scripted, row, tmp_path, capsys):
    without = {key: value for key, value in settings().items() if key != "judge"}
    scripted(lambda prompt, k: SAMPLES[k])
    rows.write_rows(tmp_path / "prompts.parquet", [row(id="a")])
    assert run_job(rejection_sampling, RejectionSampling, without)["rows"] == 1
    rows.write_rows(tmp_path / "prompts.parquet", [row(id="a"), row(id="b", verifier="judge")])
    with pytest.raises(SystemExit):
        run_job(rejection_sampling, RejectionSampling, without, "--redo")
    told = "1 prompts of prompts.parquet have the verifier `judge`; write `judge: ...`"
    assert told in capsys.readouterr().err


def test_a_judge_decides_where_rules_cannot(run_job, scripted, row, tmp_path):
    from data_prep.world import general

    requests = [r for r in general.requests("helpful", "test") if not r.thinking][:200]
    judged = [r.row(f"g{i}") | {"kind": "reasoning"} for i, r in enumerate(requests)]
    rows.write_rows(tmp_path / "prompts.parquet", judged)
    replies = {r.question: r.reply for r in requests}
    scripted(lambda prompt, k: replies[prompt[0]["content"]] if k else "I am not sure.")
    record = run_job(rejection_sampling, RejectionSampling, settings(n=2, keep=2, filters={"steps": ["malformed"]}))
    kept = rows.load_rows("out/test/rejection_sampling/train.parquet", sft=True)
    right = sum(r["completion"] == replies[r["question"]] for r in kept)
    assert 0.8 < right / 200 < 1  # the judge errs in a tenth
    assert 0 < len(kept) - right < 0.2 * 200
    assert record["funnel"]["dropped"]["judged_incorrect"] == 400 - len(kept)


def test_programs_are_graded_by_their_tests(run_job, scripted, row, tmp_path):
    from rewards.sandbox import LocalSandbox, SandboxRefused

    try:
        LocalSandbox().run("")
    except SandboxRefused as refusal:
        pytest.skip(str(refusal))
    tests = json.dumps([{"input": "4\n", "output": "5\n"}, {"input": "7\n", "output": "8\n"}])
    code = {"domain": "code", "verifier": "code", "answer": "", "question": "Read n, print n + 1.", "tests": tests}
    asked = [row(id="sum", tests=""), row(id="c", **code), row(id="odd", **code | {"tests": "[{}]"})]
    rows.write_rows(tmp_path / "prompts.parquet", asked)
    program = "<think>I add one.</think>\n```python\nprint({})\n```"
    answers = ["5", "int(input()) + 1", "input("]  # right for the first test alone, for both, for none
    scripted(lambda prompt, k: program.format(answers[k]) if "Read" in prompt[0]["content"] else GOOD)
    steps = {"filters": {"steps": ["malformed", "incorrect"]}}
    record = run_job(rejection_sampling, RejectionSampling, settings(n=3) | steps)
    kept = rows.load_rows("out/test/rejection_sampling/train.parquet", sft=True)
    assert {(r["id"], r["completion"], r["tests"]) for r in kept} == {
        ("sum-0", GOOD, None), ("c-0", program.format(answers[1]), tests),
    }  # fmt: skip
    assert record["funnel"]["dropped"]["incorrect"] == 2 + 3
    assert record["funnel"]["first_dropped"]["incorrect"] in (
        "c: not what its tests ask for", "odd: tests: a test needs `input` and `output`; this one has nothing",
    )  # fmt: skip


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_ends_with_the_same_bytes(checkpoint, row, stored, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    half = [{"verifier": "judge"} if i % 2 else {} for i in range(30)]
    rows.write_rows(tmp_path / "prompts.parquet", [row(id=f"q{i}", prompt=f"{i}?", **half[i]) for i in range(30)])
    values = settings(checkpoint=str(checkpoint), prompts="../prompts.parquet", n=4, keep=4, sampler={"batch_size": 4})
    values |= {"decoding": {"max_tokens": 48}, "filters": {"steps": ["empty"]}, "output_dir": "out/test/job"}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values))
    flags = ["--config", "../job.yaml"]
    (tmp_path / "killed").mkdir()
    (tmp_path / "whole").mkdir()
    command = [sys.executable, "-m", "data_prep.rejection_sampling", *flags]
    killed = subprocess.Popen(command, cwd=tmp_path / "killed", stderr=subprocess.DEVNULL)
    samples = tmp_path / "killed/out/test/job/samples"
    log = samples / "requests.sqlite-wal"  # grows by two pages a batch; no other process may read the store meanwhile
    while not log.exists() or log.stat().st_size < 100_000:
        assert killed.poll() is None
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = stored(samples)
    assert 5 * 4 <= len(before) < 30 * 4
    assert not (samples.parent / "run.json").exists()
    torch.set_num_threads(1)
    for folder in ("killed", "whole"):
        monkeypatch.chdir(tmp_path / folder)
        assert jobs.run(RejectionSampling, rejection_sampling.load, rejection_sampling.build, flags) == 0
    assert stored(samples)[: len(before)] == before
    assert len(stored(samples)) == 30 * 4
    ends = [(tmp_path / folder / "out/test/job/train.parquet").read_bytes() for folder in ("killed", "whole")]
    assert ends[0] == ends[1]
    assert runs.read(samples.parent)["tries"] == 2


def test_a_changed_threshold_throws_no_sample_away(checkpoint, row, stored, run_job, tmp_path, caplog):
    rows.write_rows(tmp_path / "prompts.parquet", [row(id=f"q{i}", prompt=f"{i}?", verifier="none") for i in range(9)])
    values = settings(checkpoint=str(checkpoint), n=4, keep=4, decoding={"max_tokens": 24})
    first = run_job(rejection_sampling, RejectionSampling, values | {"filters": {"steps": ["empty"]}})
    folder = tmp_path / "out/test/rejection_sampling/samples"
    before = stored(folder)
    again = values | {"filters": {"steps": ["empty", "repetitive"], "repetition_ngram": 1, "min_distinct_ngrams": 1.0}}
    second = run_job(rejection_sampling, RejectionSampling, again, "--redo")
    assert second["rows"] < first["rows"]
    assert stored(folder) == before


@pytest.mark.slow
def test_tasks_share_the_prompts_and_workers_change_no_byte(checkpoint, row, run_job, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    asked = [row(id=f"q{i}", prompt=f"{i}?", verifier="none") for i in range(21)]
    rows.write_rows(tmp_path / "prompts.parquet", asked)
    values = settings(
        checkpoint=str(checkpoint), n=3, keep=3, decoding={"max_tokens": 24}, filters={"steps": ["empty"]}
    )
    made = []
    for workers in (1, 2):
        values |= {"tasks": 3, "executor": {"workers": workers}, "output_dir": f"out/test/workers{workers}"}
        record = run_job(rejection_sampling, RejectionSampling, values)
        folder = tmp_path / f"out/test/workers{workers}"
        made.append({path.name: path.read_bytes() for path in folder.glob("train-*.parquet")})
        assert len(list((folder / "samples").glob("*-of-00003"))) == 3
    assert made[0] == made[1]
    assert sorted(made[0]) == [f"train-0000{i}-of-00003.parquet" for i in range(3)]
    kept = rows.load_rows(folder / "train.parquet", sft=True)
    assert record["rows"] == len(kept) == record["funnel"]["kept"]
    assert record["funnel"]["seen"] == 63
    assert {one["id"].rpartition("-")[0] for one in kept} <= {one["id"] for one in asked}
    assert record["prompts"] == 21


def test_every_job_reads_what_several_tasks_wrote(run_job, scripted, row, tmp_path):
    """Five prompts in four parts: one part has no row, one a row with tests; all parts have the same columns."""
    asked = [row(id=f"q{i}", question=f"What is {i} + {i}?", verifier="none") for i in range(5)]
    asked[2] |= {"tests": '[{"input": "1", "output": "2"}]', "domain": "code"}
    rows.write_rows(tmp_path / "prompts.parquet", asked)
    scripted(lambda prompt, k: "" if "3 + 3" in str(prompt) else "It is even.")
    values = settings(n=1, filters={"steps": ["empty"]}, tasks=4, executor={"workers": 1})
    folder, written = tmp_path / "out/test/rejection_sampling", "out/test/rejection_sampling/train.parquet"

    def parts():
        return sorted(path.name for path in folder.glob("*.parquet"))

    assert run_job(rejection_sampling, RejectionSampling, values)["rows"] == 4
    assert parts() == [f"train-0000{i}-of-00004.parquet" for i in range(4)]
    assert len({pq.read_schema(path) for path in folder.glob("*.parquet")}) == 1
    ids = {"q0-0", "q1-0", "q2-0", "q4-0"}
    mixed = {"sources": [written], "total": 1_000_000}
    run_job(mixture, mixture.Mixture, mixed)
    copied = {"mode": "mixture", "mixture": written, "output_dir": "out/test/copied"}
    run_job(distillation, distillation.Distillation, copied)
    for one in ("out/test/mixture/train.parquet", "out/test/copied/train.parquet"):
        found = {one["id"]: one["tests"] for one in rows.load_rows(one, sft=True)}
        assert found == dict.fromkeys(ids) | {"q2-0": asked[2]["tests"]}
    taught = {key: value for key, value in settings(n=1).items() if key != "prompts"}
    taught |= {"mode": "teacher", "mixture": written, "filters": {"steps": ["empty"]}, "output_dir": "out/test/taught"}
    assert run_job(distillation, distillation.Distillation, taught)["prompts"] == 4
    own = {"sources": [{"name": "rows", "local": written}]}
    assert run_job(sources, sources.Sources, own)["sources"]["rows-train"]["rows"] == 4
    assert run_job(rl_prompts, rl_prompts.RLPrompts, own | {"total": 100})["rows"] == 4
    assert run_job(cards, cards.Card, {"data": str(folder), "title": "All"})["rows"] == 4
    assert {one["id"] for one in decontaminate.records(decontaminate.EvaluationSet(written))} == ids
    assert sorted(push.data_files(folder)) == ["run.json", *parts()]
    stage = types.SimpleNamespace(dataset=written, dataset_split="train")
    assert {one["id"] for one in data.read_rows(stage)} == ids
    assert run_job(rejection_sampling, RejectionSampling, values | {"tasks": 2}, "--redo")["rows"] == 4
    assert parts() == [f"train-0000{i}-of-00002.parquet" for i in range(2)]
    assert {one["id"] for one in rows.load_rows(written)} == ids


@pytest.mark.parametrize(
    ("there", "told"),
    [
        (["train", "train-00000-of-00001"], "holds train.parquet, train-00000-of-00001.parquet, which are not all"),
        (["train-00000-of-00002", "train-00001-of-00002", "train-00002-of-00003"], "train-00002-of-00003.parquet"),
        (["train-00000-of-00003", "train-00002-of-00003"], "train-00000-of-00003.parquet, train-00002-of-00003"),
    ],
)
def test_parts_of_two_runs_are_never_read_as_one_data_set(run_job, row, tmp_path, capsys, there, told):
    for at, name in enumerate(there):
        rows.write_rows(tmp_path / f"{name}.parquet", [rows.sft_row(row(id=f"q{at}"), 0, "14", "m")], sft=True)
    with pytest.raises(ValueError, match=told):
        rows.load_rows("train.parquet")
    with pytest.raises(SystemExit):
        run_job(mixture, mixture.Mixture, {"sources": ["train.parquet"], "total": 9}, "--dry-run")
    assert told in capsys.readouterr().err
