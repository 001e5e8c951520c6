"""The mixture: Table 5 to the row at full size, in proportion at any other, short where short, never padded; what is no
row is dropped and named; neither tasks nor workers nor kills change a byte."""

import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from data_prep import jobs, mixture, rows, runs

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]


def test_full_size_is_the_papers_table():
    assert mixture.quotas(804_745) == mixture.TABLE_5
    assert sum(count for domain, count in mixture.TABLE_5.items() if domain != "general") == 626_933


def test_the_full_scales_yaml_makes_the_papers_mixture():
    config = runs.settings(mixture.Mixture, ROOT / "recipes/configs/full/mixture.yaml")
    assert mixture.quotas(config.total) == mixture.TABLE_5


@given(st.integers(1, 2_000_000))
def test_quotas_sum_to_the_total_and_are_within_one_row(total):
    quotas = mixture.quotas(total)
    assert sum(quotas.values()) == total
    assert all(abs(quotas[d] - count * total / 804_745) < 1 for d, count in mixture.TABLE_5.items())


@pytest.fixture
def sft(row):
    """Makes SFT rows of a domain, each with a question of its own."""

    def make(domain, count, **changes):
        return [
            rows.sft_row(row(id=f"{domain}-{i}", question=f"{domain} {i}?", domain=domain), 0, f"text {i}", "model")
            | changes
            for i in range(count)
        ]

    return make


@pytest.fixture
def mix(run_job):
    """Runs the mixture of some files of the working directory; returns run.json."""

    def run(*sources, total=100, flags=("--redo",), **values):
        given = {"sources": list(sources), "total": total} | values
        return run_job(mixture, mixture.Mixture, given, *flags)

    return run


def made():
    return rows.load_rows("out/test/mixture/train.parquet", sft=True)


def dropped():
    return [json.loads(line) for line in Path("out/test/mixture/dropped.jsonl").read_text().splitlines()]


def test_shortfalls_are_reported_and_not_padded(mix, sft, tmp_path):
    rows.write_rows(tmp_path / "a.parquet", sft("math", 100) + sft("code", 3), sft=True)
    rows.write_rows(tmp_path / "b.parquet", sft("general", 50), sft=True)
    record = mix("a.parquet", "b.parquet")
    assert record["domains"] == {
        "math": {"quota": 49, "available": 100, "rows": 49, "shortfall": 0},
        "code": {"quota": 26, "available": 3, "rows": 3, "shortfall": 23},
        "stem": {"quota": 1, "available": 0, "rows": 0, "shortfall": 1},
        "logic": {"quota": 2, "available": 0, "rows": 0, "shortfall": 2},
        "general": {"quota": 22, "available": 50, "rows": 22, "shortfall": 0},
    }
    assert len(made()) == record["rows"] == 74
    assert [row["domain"] for row in made()[:49]] != ["math"] * 49  # shuffled
    assert sorted(path.name for path in Path("out/test/mixture").iterdir()) == [
        "begun.json", "dropped.jsonl", "run.json", "train.parquet",
    ]  # fmt: skip


def test_another_seed_takes_other_rows_in_another_order(mix, sft, tmp_path):
    rows.write_rows(tmp_path / "a.parquet", sft("math", 100), sft=True)
    taken = []
    for seed in (1, 1, 2):
        mix("a.parquet", seed=seed)
        taken.append([row["id"] for row in made()])
    assert taken[0] == taken[1] != taken[2]
    assert set(taken[0]) != set(taken[2])


def test_where_it_runs_is_no_part_of_what_is_made(mix, sft, tmp_path, caplog):
    caplog.set_level("INFO")
    rows.write_rows(tmp_path / "a.parquet", sft("math", 3), sft=True)
    mix("a.parquet")
    mix("a.parquet", executor={"workers": 2}, flags=())
    assert caplog.messages[-1] == "out/test/mixture is done already"


def test_licence_and_source_stay_on_each_row_and_one_key_leaves_non_commercial_ones_out(mix, sft, tmp_path):
    free = sft("math", 3, source="theirs", verified_by="rule")
    rows.write_rows(tmp_path / "a.parquet", free, sft=True)
    rows.write_rows(tmp_path / "b.parquet", sft("code", 2, license="cc-by-nc-4.0"), sft=True)
    mix("a.parquet", "b.parquet")
    assert {(r["domain"], r["source"], r["license"], r["verified_by"]) for r in made()} == {
        ("math", "theirs", "apache-2.0", "rule"), ("code", "test", "cc-by-nc-4.0", None),
    }  # fmt: skip
    record = mix("a.parquet", "b.parquet", exclude_non_commercial=True)
    assert {r["license"] for r in made()} == {"apache-2.0"}
    assert record["funnel"]["dropped"]["non_commercial"] == 2


def test_what_is_no_row_is_dropped_counted_and_named_by_file_and_row(mix, sft, tmp_path):
    good = sft("math", 6)
    lines = [json.dumps(row) for row in good]
    lines[1] = lines[1][:40]
    lines[2] = json.dumps(good[2] | {"answer": None})
    lines[3] = json.dumps(good[3] | {"thinking": "yes"})
    lines[4] = "[]"
    Path("lines.jsonl").write_text("\n".join(lines))
    with gzip.open("more.jsonl.gz", "wt") as file:
        file.write(json.dumps(sft("code", 1)[0]) + "\n" + json.dumps(sft("code", 1)[0] | {"generator": 7}) + "\n")
    Path("cut.jsonl.gz").write_bytes(gzip.compress(json.dumps(sft("stem", 1)[0]).encode() + b"\n")[:-4])
    rows.write_rows(tmp_path / "whole.parquet", sft("general", 5), sft=True)
    Path("half.parquet").write_bytes(Path("whole.parquet").read_bytes()[:-20])
    table = pa.Table.from_pylist(sft("logic", 40))
    pq.write_table(table, "torn.parquet", row_group_size=20, compression="zstd", write_page_checksum=True)
    torn = bytearray(Path("torn.parquet").read_bytes())
    start = pq.read_metadata("torn.parquet").row_group(1).column(0).data_page_offset
    torn[start + 60 : start + 70] = b"\0" * 10
    Path("torn.parquet").write_bytes(torn)
    sources = ["lines.jsonl", "more.jsonl.gz", "cut.jsonl.gz", "half.parquet", "torn.parquet", "whole.parquet"]
    record = mix(*sources, total=100_000)
    found = [(r["file"], r["row"], r["why"]) for r in dropped()]
    assert [place[:2] for place in found] == [
        ("lines.jsonl", 1), ("lines.jsonl", 2), ("lines.jsonl", 3), ("lines.jsonl", 4), ("more.jsonl.gz", 1),
        ("cut.jsonl.gz", 1), ("half.parquet", 0), ("torn.parquet", 20),
    ]  # fmt: skip
    told = ["not JSON", "'answer': None is NoneType", "'thinking': 'yes' is str", "a list, not an object"]
    told += ["'generator': 7 is int", "not readable", "not readable", "not readable to 39"]
    assert [want in why for want, (_, _, why) in zip(told, found, strict=True)] == [True] * 8
    assert {r["step"] for r in dropped()} == {"broken"}
    assert record["funnel"]["dropped"]["broken"] == 8
    assert sorted(r["id"] for r in made()) == sorted(
        ["math-0-0", "math-5-0", "code-0-0", "stem-0-0"]
        + [f"logic-{i}-0" for i in range(20)]
        + [f"general-{i}-0" for i in range(5)]
    )


def test_the_first_of_equal_ids_and_rows_stays(mix, sft, tmp_path):
    math = sft("math", 3)
    spaced = math[1] | {"id": "other", "prompt": " MATH  1? "}
    rows.write_rows(tmp_path / "a.parquet", [*math, spaced], sft=True)
    rows.write_rows(tmp_path / "b.parquet", [math[0] | {"completion": "another"}], sft=True)
    record = mix("a.parquet", "b.parquet")
    assert [(r["file"], r["row"], r["id"], r["step"]) for r in dropped()] == [
        ("b.parquet", 0, "math-0-0", "duplicate_id"), ("a.parquet", 3, "other", "duplicate"),
    ]  # fmt: skip
    assert (record["funnel"]["seen"], record["funnel"]["kept"], record["rows"]) == (5, 3, 3)


def test_at_most_so_many_rows_a_prompt(mix, sft, tmp_path):
    many = [row | {"id": f"{row['id']}-{k}", "completion": f"way {k}"} for row in sft("math", 4) for k in range(3)]
    rows.write_rows(tmp_path / "a.parquet", many, sft=True)
    assert mix("a.parquet")["domains"]["math"]["available"] == 12
    assert mix("a.parquet", per_prompt=2)["funnel"]["dropped"]["per_prompt"] == 4
    assert {row["completion"] for row in made()} == {"way 0", "way 1"}


def test_a_file_of_a_run_must_be_sound(mix, sft, tmp_path, caplog):
    path = tmp_path / "outputs/test/other/train.parquet"
    runs.finish(path.parent)
    pq.write_table(pa.Table.from_pylist([*sft("math", 1), sft("code", 1)[0] | {"id": ""}]), path)
    with pytest.raises(AssertionError):
        mix("outputs/test/other/train.parquet")
    assert "outputs/test/other/train.parquet, row 1, column 'id': empty" in caplog.messages[-1]


def test_an_id_in_two_runs_is_an_error(mix, sft, tmp_path, caplog):
    for name in ("one", "other"):
        runs.finish(tmp_path / f"outputs/test/{name}")
        rows.write_rows(tmp_path / f"outputs/test/{name}/train.parquet", sft("math", 2), sft=True)
    with pytest.raises(AssertionError):
        mix("outputs/test/one/train.parquet", "outputs/test/other/train.parquet")
    assert "outputs/test/other/train.parquet, row 0, column 'id': an earlier row" in caplog.messages[-1]


def test_when_no_row_is_left_the_list_says_why(mix, sft, tmp_path, caplog):
    rows.write_rows(tmp_path / "a.parquet", sft("math", 2, license="cc-by-nc-4.0"), sft=True)
    with pytest.raises(AssertionError):
        mix("a.parquet", exclude_non_commercial=True)
    assert "no rows to write" in caplog.messages[-1]
    assert [record["why"] for record in dropped()] == ["cc-by-nc-4.0"] * 2
    pq.write_table(pq.read_table("a.parquet")[:0], "none.parquet")
    with pytest.raises(AssertionError):
        mix("none.parquet")
    assert "no rows to write" in caplog.messages[-1]


def test_a_mixture_of_nothing_is_refused(mix, capsys):
    with pytest.raises(SystemExit):
        mix()
    assert "`sources` is empty; write the Parquet or JSONL files" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [("--dry-run",), ()])
def test_what_is_no_parquet_file_is_refused_before_any_work(mix, sft, tmp_path, capsys, flags):
    Path("table.parquet").write_text("id,prompt\n1,What is 2 + 2?\n")
    Path("empty.parquet").write_text("")
    ours = tmp_path / "outputs/test/other"
    runs.finish(ours)
    rows.write_rows(ours / "train.parquet", sft("math", 50), sft=True)
    (ours / "train.parquet").write_bytes((ours / "train.parquet").read_bytes()[:-9])
    for source in ("table.parquet", "empty.parquet", "outputs/test/other/train.parquet"):
        with pytest.raises(SystemExit):
            mix(source, flags=flags)
        told = capsys.readouterr().err
        assert f"{source}: not a readable Parquet file (" in told and told.count("\n") == 1
    assert not Path("out").exists()


def test_filters_drop_rows_and_count_them(mix, sft, tmp_path):
    good = sft("math", 3, completion="<think>I add.</think>\nThe answer is 14.")
    bad = [good[1] | {"completion": "<think>I add."}, good[2] | {"completion": "<think>我先把它们加起来。</think>\n14"}]
    rows.write_rows(tmp_path / "a.parquet", [good[0], *bad], sft=True)
    record = mix("a.parquet", filters={"steps": ["malformed", "mixed_language"]})
    assert record["funnel"]["dropped"] == {"malformed": 1, "mixed_language": 1, "duplicate_id": 0, "duplicate": 0}


def test_a_dry_run_prints_sources_rows_quotas_disk_and_time(sft, tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    rows.write_rows(tmp_path / "a.parquet", sft("math", 7), sft=True)
    Path("job.yaml").write_text(yaml.safe_dump({"output_dir": "out", "sources": ["a.parquet"], "total": 100}))
    arguments = ["--config", "job.yaml", "--dry-run"]
    assert jobs.run(mixture.Mixture, mixture.load, mixture.build, arguments, plan=mixture.plan) == 0
    for told in ("a.parquet: 7 rows", "quotas: 49 math, 26 code", "1 tasks (local), 1 files", "GB of disk", "minutes"):
        assert told in caplog.text
    assert not Path("out").exists()


@pytest.fixture
def small_shards(monkeypatch, sft, tmp_path):
    """600 rows in two files, and shards so small that they make several files and runs; returns their settings."""
    monkeypatch.chdir(tmp_path)
    values = []
    for name, domains in (("a", ("math", "code")), ("b", ("general", "stem", "logic"))):
        found = [row for domain in domains for row in sft(domain, 120)]
        pq.write_table(pa.Table.from_pylist(found), f"{name}.parquet", row_group_size=25)
        values.append(f"{name}.parquet")
    return {"output_dir": "out/test/mixture", "sources": values, "total": 100}


COMMAND = """
import sys
from data_prep import mixture, jobs, shards
shards.RUN_BYTES, shards.TASK_BYTES = 4_000, 20_000
sys.exit(jobs.run(mixture.Mixture, mixture.load, mixture.build, sys.argv[1:], plan=mixture.plan))
"""


def start(values, **changes):
    Path("job.yaml").write_text(yaml.safe_dump(values | changes))
    command = [sys.executable, "-c", COMMAND, "--config", "job.yaml"]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)


def finish(values, **changes):
    """The bytes of every file that the job made, by name."""
    process = start(values, **changes)
    told = process.communicate()[1]
    assert process.returncode == 0, told
    made = Path(values["output_dir"]).iterdir()
    return {path.name: path.read_bytes() for path in made if path.suffix != ".json"}


@pytest.mark.slow
def test_neither_tasks_nor_workers_change_a_byte(small_shards):
    one = finish(small_shards, tasks=1)
    assert len(one) > 3
    assert finish(small_shards | {"output_dir": "out/test/b"}, tasks=5, executor={"workers": 2}) == one


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_ends_with_the_same_bytes(small_shards):
    whole = finish(small_shards | {"output_dir": "out/test/whole"}, tasks=6)
    for seconds in (0.6, 1.0, 1.4, 1.8):
        process = start(small_shards, tasks=6, executor={"workers": 2})
        time.sleep(seconds)
        process.kill()
        process.communicate()  # no worker of it is left that holds the pipe
    assert finish(small_shards, tasks=6, executor={"workers": 2}) == whole
