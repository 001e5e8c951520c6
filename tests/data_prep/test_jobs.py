"""Jobs: what is wrong is one line before any work; done is done; a trial never stands for the full run."""

import importlib
import typing
from dataclasses import dataclass
from pathlib import Path

from data_prep import jobs, rows, runs
from data_prep.sampling import Sampler, ServerError
from rewards.settings import Count

import pytest
import yaml


@dataclass(frozen=True)
class Settings:
    output_dir: str
    source: str
    count: Count = 0
    seed: int = 0
    limit: int = 0


def load(config):
    return {"rows": jobs.choose(rows.load_rows(config.source), config.limit or config.count, config.seed)}


built = []


def build(config, output_dir, rows):
    built.append(len(rows))
    (output_dir / "made").write_text(str(len(rows)))
    return {"rows": len(rows)}


@pytest.fixture
def job(tmp_path, monkeypatch, row):
    monkeypatch.chdir(tmp_path)
    built.clear()
    rows.write_rows("rows.parquet", [row(id=f"q{i}") for i in range(10)])

    def run(*flags, **values):
        lines = {"output_dir": "out/test/job", "source": "rows.parquet"} | values
        Path("job.yaml").write_text("".join(f"{key}: {value}\n" for key, value in lines.items()))
        return jobs.run(Settings, load, build, ["--config", "job.yaml", *flags])

    return run


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"sed": 1}, "unknown key `sed`; did you mean `seed`?"),
        ({"count": "many"}, "`count` is 'many'; write a value of type int"),
        ({"count": -1}, "`count` is -1; write at least 0"),
        ({"source": "other.parquet"}, "other.parquet: no such file"),
        ({"source": "outputs/cpu/world/rows.parquet"}, "outputs/cpu/world has not been run"),
    ],
)
def test_what_is_wrong_is_one_line_before_any_work(job, capsys, values, told):
    with pytest.raises(SystemExit) as stopped:
        job(**values)
    lines = capsys.readouterr().err.strip().splitlines()
    assert (stopped.value.code, len(lines)) == (2, 1)
    assert told in lines[0]
    assert not built
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(28, "No space left on device", "out/train.parquet"), "No space left on device: 'out/train.parquet'"),
        (rows.NoRowsError("train.parquet: no rows to write"), "no rows to write"),
        (ServerError("http://localhost:1/v1: 7 attempts failed"), "7 attempts failed"),
    ],
)
def test_what_ends_the_work_is_one_line_and_the_same_command_goes_on(job, monkeypatch, caplog, error, told):
    def fail(config, output_dir, rows):
        raise error

    with monkeypatch.context() as patch:
        patch.setitem(globals(), "build", fail)
        assert job() == 1
    assert [told in message for message in caplog.messages[-1:]] == [True]
    assert not Path("out/test/job/run.json").exists()
    assert job() == 0
    assert built == [10]


def test_done_is_done_and_a_changed_setting_needs_redo(job, capsys, caplog):
    caplog.set_level("INFO")
    assert [job(), job()] == [0, 0]
    assert caplog.messages[-2:] == ["built out/test/job, 10 rows", "out/test/job is done already"]
    with pytest.raises(SystemExit) as ended:
        job("--seed", "4")
    assert (ended.value.code, built) == (2, [10])
    assert "`seed` was 0 and is 4 now" in capsys.readouterr().err
    assert [job("--seed", "4", "--redo"), job("--seed", "4"), job("--redo", count=5)] == [0] * 3
    assert built == [10, 10, 5]
    assert len(list(Path("out/test/replaced").glob("job-*/run.json"))) == 2


def test_an_override_has_other_values_by_the_name_of_the_yaml(job, capsys):
    Path("other.yaml").write_text("job: {count: 4}\n")
    assert job("--override", "other.yaml") == 0
    assert (built, runs.read(Path("out/test/job"))["config"]["count"]) == ([4], 4)
    Path("other.yaml").write_text("jobs: {count: 4}\n")
    with pytest.raises(SystemExit):
        job("--override", "other.yaml")
    assert "write `job:` and `key: value` lines below it" in capsys.readouterr().err


def test_a_trial_writes_beside_the_full_run(job):
    job()
    job("--limit", "2")
    assert Path("out/test/job/made").read_text() == "10"
    assert Path("out/test/job_limit_2/made").read_text() == "2"


def test_a_dry_run_does_nothing(job, caplog):
    caplog.set_level("INFO")
    assert job("--dry-run") == 0
    assert "would build out/test/job: 10 rows" in caplog.text
    assert not Path("out").exists()
    assert not built


SERVER = {"base_url": "world", "model": "m"}
JUDGED = {"checkpoint": "m", "prompts": "p.parquet", "judge": SERVER, "decoding": {"max_tokens": 8}}
GENERAL = JUDGED | {"writer": SERVER}
PREFERENCES = {**GENERAL, "helpful": "p.parquet", "harmless": "p.parquet"}
del PREFERENCES["prompts"]
WAY = {"checkpoint": "m", "prompts": {"math": 1}, "decoding": {"max_tokens": 8}}
COLD = {"prompts": "p.parquet", "rewriter": SERVER, "rewriting": {"max_tokens": 8}, "r1_zero": WAY}
RATE = {"checkpoint": "m", "decoding": {"max_tokens": 8}}
ROWS = [{"name": "rows", "local": "p.parquet"}]
NO_COLUMNS = {"path": "p.parquet", "columns": []}
OF_ALL = {"executor": {"memory_gb": 0}, "seed": True, "limit": -1}


@pytest.mark.parametrize(
    ("module", "given", "wrong"),
    [
        ("rejection_sampling", JUDGED, {"n": 0, "keep": 0, "tasks": 0, "count": -1, **OF_ALL}),
        ("rejection_sampling", JUDGED, {"decoding": {"max_tokens": 0}, "filters": {"min_language_share": 1.5}}),
        ("rejection_sampling", JUDGED, {"decoding": {"max_tokens": 8, "temperature": -0.1}}),
        ("rejection_sampling", JUDGED, {"decoding": {"max_tokens": 8, "top_p": 0}, "filters": {"repetition_ngram": 0}}),
        ("rejection_sampling", JUDGED, {"decoding": {"max_tokens": 8, "top_p": 1.1}, "n": True, "keep": "2"}),
        ("rejection_sampling", JUDGED, {"filters": {"min_distinct_ngrams": -0.1}, "sampler": {"batch_size": 0}}),
        ("rejection_sampling", JUDGED, {"judge": SERVER | {"timeout_s": 0}, "sampler": {"max_refused": 2}}),
        ("rejection_sampling", JUDGED, {"judge": SERVER | {"max_refused": -1}, "filters": {"max_paragraph_chars": 0}}),
        ("distillation", {"mode": "mixture", "mixture": "p.parquet"}, {"n": 0, "keep": -1}),
        ("general", GENERAL | {"written": 0}, {"n": 0}),
        ("general", GENERAL, {"keep": 0, "min_score": 4, "written": -1, "n": 0.5}),
        ("preferences", PREFERENCES, {"n": 0, "pairs": 0, "queries": 0, "min_difference": 5, "length_tolerance": -1}),
        ("cold_start", COLD, {"r1_zero": WAY | {"n": 0}, "direct": WAY | {"prompts": {}}}),
        ("cold_start", COLD, {"r1_zero": WAY | {"prompts": {"math": 0}}, "direct": WAY | {"keep": 0}}),
        ("rl_prompts", {"sources": ROWS}, {"total": 0, "pass_rate": RATE | {"n": 0}, "sources": []}),
        ("rl_prompts", {"sources": ROWS}, {"pass_rate": RATE | {"most": 1.5}}),
        ("rl_prompts", {"sources": ROWS}, {"pass_rate": RATE | {"least": 0.9, "most": 0.1}}),
        ("sources", {"sources": ROWS}, {"sources": [ROWS[0] | {"limit": -1}]}),
        ("mixture", {"sources": ["p.parquet"], "total": 9}, {"total": 0, "near_duplicates": 1.1, "tasks": -1}),
        ("mixture", {"sources": ["p.parquet"], "total": 9}, {"per_prompt": -1, "sources": []}),
        ("mixture", {"sources": ["p.parquet"], "total": 9}, {"decontamination": {"n": 0}}),
        ("mixture", {"sources": ["p.parquet"], "total": 9}, {"decontamination": {"sets": {"a": NO_COLUMNS}}}),
        ("world.__main__", {}, {"pages": 0, "problems": -1, "held_out": 0}),
        ("hub.cards", {"data": "outputs/x", "title": "x"}, {"read_rows": 0}),
    ],
)  # fmt: skip
def test_no_job_takes_a_setting_that_cannot_work(module, given, wrong, tmp_path, monkeypatch, capsys, row):
    """Each is refused by a dry run, in one line that names the file, the key and what to write."""
    monkeypatch.chdir(tmp_path)
    rows.write_rows("p.parquet", [row()])
    found = importlib.import_module(f"data_prep.{module}")
    kind = typing.get_type_hints(found.load)["config"]
    for key, value in wrong.items():
        Path("job.yaml").write_text(yaml.safe_dump(given | {"output_dir": "out/test/x", key: value}))
        with pytest.raises(SystemExit) as stopped:
            jobs.run(kind, found.load, found.build, ["--config", "job.yaml", "--dry-run"], getattr(found, "plan", None))
        told = capsys.readouterr().err
        assert (stopped.value.code, told.count("\n")) == (2, 1)
        assert f"`{key}" in told and "; write " in told


def test_choosing_depends_on_the_seed_only(row):
    ten = [row(id=f"q{i}") for i in range(10)]
    assert jobs.choose(ten, 4, 1) == jobs.choose(ten, 10, 1)[:4] != jobs.choose(ten, 4, 2)
    assert len(jobs.choose(ten, 0, 1)) == len(jobs.choose(ten, 99, 1)) == 10


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint \(no config\.json\)"):
        Sampler().require(str(tmp_path))
    Sampler().require("Qwen/Qwen3-0.6B")
