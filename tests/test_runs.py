"""The record of a run: settings, what decides whether it is done, and who may use a folder."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import data_prep.runs
import data_prep.runs.files
import data_prep.runs.identity
from data_prep import runs
from rewards.settings import Count

import pytest


@dataclass
class Judge:
    base_url: str
    attempts: int = 3


@dataclass
class Job:
    output_dir: str
    rate: float = 0.1
    mode: Literal["teacher", "mixture"] = "teacher"
    judge: Judge | None = None
    sources: list[str] = field(default_factory=list)
    limit: Count | None = None


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str) -> Path:
    path = Path("job.yaml")
    path.write_text(text)
    return path


def test_settings_take_the_types_that_yaml_writes() -> None:
    path = write("output_dir: outputs/a/b\nrate: 1e-4\njudge: {base_url: world}\nsources: [x]\nlimit: null\n")
    assert runs.settings(Job, path) == Job("outputs/a/b", 1e-4, judge=Judge("world"), sources=["x"])
    assert runs.settings(Job, path, limit=3, rate=None).limit == 3
    assert runs.settings(Job, write("output_dir: x\nrate: -0.5\n")).rate == -0.5  # a count is another thing


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("outputdir: x", "job.yaml: unknown key `outputdir`; did you mean `output_dir`?"),
        ("rate: 1", "job.yaml: the key `output_dir` is missing; write `output_dir: ...`"),
        ("output_dir: x\nrate: fast", "job.yaml: `rate` is 'fast'; write a value of type float"),
        ("output_dir: x\nlimit: -1", "job.yaml: `limit` is -1; write at least 0"),
        ("output_dir: x\nrate: .nan", "job.yaml: `rate` is nan; write a finite number"),
        ("output_dir: x\nlimit: true", "job.yaml: `limit` is True; write a value of type int"),
        ("output_dir: x\nmode: paper", "job.yaml: `mode` is 'paper'; write one of 'teacher', 'mixture'"),
        ("output_dir: x\njudge: {url: y}", "job.yaml: `judge`: unknown key `url`"),
        ("output_dir: x\njudge: {base_url: 7}", "job.yaml: `judge`: `base_url` is 7; write a value of type str"),
        ("output_dir: x\nsources: [1]", "job.yaml: `sources`[0] is 1; write a value of type str"),
        ("output_dir: x\noutput_dir: y", "the key `output_dir` is given twice"),
        ("a: &a {b: 1, b: 2}\noutput_dir: x", "the key `b` is given twice"),
        ("- x", "job.yaml: holds a list; write `key: value` lines"),
        ("a: [", "job.yaml: not valid YAML"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(text: str, message: str) -> None:
    with pytest.raises(runs.ConfigError) as caught:
        runs.settings(Job, write(text))
    assert message in str(caught.value)


def test_keys_can_be_merged_from_another_mapping() -> None:
    write("one: &one {a: 1, b: 2}\ntwo: &two {<<: *one, b: 3}\nthree: {<<: *two, c: 4}")
    found = runs.load_config(Path("job.yaml"))
    assert (found["two"], found["three"]) == ({"a": 1, "b": 3}, {"a": 1, "b": 3, "c": 4})


def test_a_config_that_is_not_there_is_named_with_those_that_are() -> None:
    write("a: 1")
    with pytest.raises(runs.ConfigError, match=r"jop.yaml: no such file; . holds job.yaml"):
        runs.load_config(Path("jop.yaml"))
    with pytest.raises(runs.ConfigError, match=r"jobs/job.yaml: no such file; there is no folder jobs"):
        runs.load_config(Path("jobs/job.yaml"))
    with pytest.raises(runs.ConfigError, match=r"\.: a folder, not a file; \. holds job.yaml"):
        runs.load_config(Path())


def test_inputs_are_the_runs_that_any_value_names() -> None:
    config = {
        "output_dir": "outputs/cpu/mixture",
        "sources": ["outputs/cpu/general/train.parquet", {"deep": "outputs/cpu/world"}],
        "again": "outputs/cpu/general/other.parquet",
        "hub": "org/model",
        "own": "outputs/cpu/mixture/samples",
    }
    assert runs.inputs(config) == [Path("outputs/cpu/general"), Path("outputs/cpu/world")]
    old = Path("outputs/cpu/replaced/base-2026")
    runs.finish(old)
    assert runs.inputs({"path": str(old)}) == [old]


SCRIPT = Path("script.py")
FOLDER = Path("outputs/a/b")


def identity(settings: dict | None = None, defaults: dict | None = None) -> runs.Identity:
    SCRIPT.write_text("x = 1\n")
    return runs.identify(SCRIPT, {"output_dir": str(FOLDER)} | (settings or {}), defaults=defaults)


def finish(settings: dict | None = None, defaults: dict | None = None, **record: object) -> None:
    assert runs.begin(FOLDER, identity(settings, defaults)) == "fresh"
    runs.finish(FOLDER, **record)


def why(settings: dict | None = None, defaults: dict | None = None) -> list[str]:
    """What has changed since the run in FOLDER."""
    return list(runs.look(FOLDER, identity(settings, defaults)).why)


def test_settings_decide_by_their_values() -> None:
    finish({"rate": "1e-4", "names": ["a"], "judge": {"url": "x", "n": 1}}, {"rate": 0.1}, config={"seed": 0, "n": [1]})
    same = {"rate": 1e-4, "names": "a", "judge": {"n": 1.0, "url": "x"}}
    assert why(same) == []
    assert why(same | {"rate": "1E-4", "push_to_hub": True, "doctor": False, "executor": {"kind": "ray"}}) == []
    assert why(same | {"seed": 0, "n": 1}) == []  # what was in force anyway
    assert why(same | {"limit": 3}, {"limit": 3}) == []  # a default, written out
    assert why(same | {"rate": 2e-4}) == ["`rate` was 0.0001 and is 0.0002 now"]
    assert why({key: same[key] for key in ("names", "judge")}) == ["`rate` was 0.0001 and is 0.1 now"]
    assert why(same | {"seed": 1}) == ["`seed` was 0 and is 1 now"]
    assert why(same | {"more": "x"}) == ['`more` was not set and is "x" now']


def test_a_figure_does_not_write_over_what_a_record_knows_of_its_run() -> None:
    with pytest.raises(ValueError, match="code, files: run.json has these keys of its own"):
        finish({}, files={"reasoning": 77}, code={"quota": 5})


def test_the_content_of_a_file_decides_and_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("rows.parquet").write_text("1")
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    Path("model/model.safetensors").write_text("w")
    settings = {"deep": {"files": ["rows.parquet"]}, "model": "./model", "accelerate_config": "script.py"}
    finish(settings)
    stored = json.loads(Path("outputs/.hashes.json").read_text())
    assert str(Path("rows.parquet").absolute()) in stored
    Path("rows.parquet").touch()
    SCRIPT.write_text("x = 2")  # how processes are started is no input
    assert why(settings) == []
    Path("rows.parquet").write_text("2")
    Path("model/model.safetensors").write_text("v")
    said = why(settings)
    assert said[0] == "the content of rows.parquet has changed"
    assert said[1].startswith("./model was made by run ")
    Path("model/model.safetensors").write_text("w")
    Path("rows.parquet").write_text("1")
    assert why(settings) == []
    monkeypatch.setattr("hashlib.file_digest", None)  # nothing is read again
    assert why(settings) == []


def test_rows_in_several_files_and_a_model_in_the_working_directory_count() -> None:
    Path("data").mkdir()
    Path("data/train-00000-of-00002.parquet").write_text("1")
    Path("my_model").mkdir()
    Path("my_model/config.json").write_text("{}")
    Path("my_model/pytorch_model.bin").write_text("w")
    Path("outputs").mkdir()
    Path("outputs/mine.parquet").write_text("1")  # a file of the user's own, which no run made
    settings = {"dataset": "data/train.parquet", "model": "my_model", "more": "outputs/mine.parquet", "name": "x" * 300}
    finish(settings)
    assert why(settings | {"model": "./my_model/"}) == []  # one folder, however it is spelt
    Path("data/train-00000-of-00002.parquet").write_text("2")
    Path("my_model/pytorch_model.bin").write_text("v")
    Path("outputs/mine.parquet").write_text("2")
    assert [one.partition(" has")[0].partition(" was")[0] for one in why(settings)] == [
        "the content of data/train-00000-of-00002.parquet", "the content of outputs/mine.parquet", "my_model",
    ]  # fmt: skip


def test_nothing_and_an_empty_mapping_are_values() -> None:
    finish({"rate": 1}, {"length": 32768, "more": {"a": 1}}, config={"length": 32768, "more": {"a": 1}})
    assert why({"rate": 1, "length": None}) == ["`length` was 32768 and is null now"]
    assert why({"rate": 1, "more": {}}) == ['`more` was {"a": 1} and is {} now']
    assert why({"rate": 1, "length": 32768}, {"length": 1024}) == []  # our default is another one today


@pytest.mark.parametrize(
    ("place", "here"),
    [
        ("Qwen/Qwen2.5-1.5B", True), ("deepseek-ai/DeepSeek-R1", True), ("outputs/mine", False), ("my_model", False),
        ("sums.jsonl", False), ("data/sums.parquet", False), ("a/b/c", False), ("../mine", False), ("~/mine", False),
        ("/data/mine", False), ("there/model", False),
    ],
)  # fmt: skip
def test_a_hub_id_is_owner_and_name_and_nothing_that_is_here(place: str, here: bool) -> None:
    Path("there/model").mkdir(parents=True)
    assert runs.is_here(place) is not here


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (
            "outputs/cpu/base/model.safetensors",
            ": run `python -m recipes.tools.pipeline --scale cpu --only base` first",
        ),
        ("outputs/cpu/evaluate_r1", ": run `python -m recipes.tools.pipeline --scale cpu --only evaluate_r1` first"),
        ("outputs/cpu/r1", "; r1 lies in outputs/cpu/all_scenarios_rl"),
        ("outputs/gpu-24gb/student_distilled", "; student_distilled lies in outputs/gpu-24gb/distill"),
        ("outputs/cpu/bass", "; did you mean outputs/cpu/base?"),
        ("outputs/gpu-24gb/world", "; the steps of gpu-24gb are all_scenarios_rl, cold_start, "),
        ("outputs/mine/base", "; there is no scale mine: name an existing path"),
        ("my_model", "; a Hub id is owner/name"),
    ],
)
def test_advice_names_only_steps_that_are(path: str, said: str) -> None:
    assert runs.advice(path).startswith(said)


def test_an_input_is_known_by_the_run_that_made_it() -> None:
    settings = {"model": "outputs/a/base", "rows": "outputs/a/base/rows.parquet"}
    with pytest.raises(runs.MissingRunError, match="outputs/a/base has not been run"):
        identity(settings)
    Path("outputs/a/base").mkdir(parents=True)
    Path("outputs/a/base/rows.parquet").write_text("1")
    runs.finish(Path("outputs/a/base"))
    first = runs.read(Path("outputs/a/base"))["id"]
    finish(settings)
    assert why(settings) == []
    runs.finish(Path("outputs/a/base"))  # the same rows, another model
    second = runs.read(Path("outputs/a/base"))["id"]
    assert why(settings) == [f"outputs/a/base was made by run {first[:12]} and now holds run {second[:12]}"]


def test_the_users_own_reward_decides_with_what_it_imports() -> None:
    Path("my_rewards.py").write_text("import my_words\n\ndef brief(): ...\n")
    Path("my_words.py").write_text("MANY = 40\n")
    settings = {"reward_funcs": ["accuracy_reward", "my_rewards.brief", "rewards.format_reward"]}
    finish(settings)
    Path("my_rewards.py").write_text('"""Mine."""\nimport my_words  # of words\n\ndef brief(): ...\n')
    assert why(settings) == []
    Path("my_words.py").write_text("MANY = 50\n")
    assert why(settings) == ["your module my_words.py has changed"]
    installed = identity({"reward_funcs": ["math_verify.verify"]})  # by its own file, not all that it imports
    assert list(installed.modules) == ["math_verify/__init__.py"]


def test_our_own_code_is_recorded_and_does_not_decide() -> None:
    finish()
    made = json.loads((FOLDER / "run.json").read_text())["code"]["hash"]
    now = identity()
    assert runs.look(FOLDER, now) == runs.State("done")
    SCRIPT.write_text('"""A docstring."""\nx = 1  # and a remark\n')
    assert runs.identify(SCRIPT, {}).code["hash"] == made
    SCRIPT.write_text("x = 2\n")
    found = runs.look(FOLDER, runs.identify(SCRIPT, {"output_dir": str(FOLDER)}))
    assert (found.kind, found.why) == ("done", ()) and found.older_code
    Path("chat.jinja").write_text("{{ messages }}")  # what a model is trained on follows from it
    SCRIPT.write_text("x = 1\n")
    assert runs.identify(SCRIPT, {}).code["hash"] != made


def test_code_counts_through_imports_also_inside_functions() -> None:
    def version() -> str:
        return runs.identify(SCRIPT, {}).code["hash"]

    SCRIPT.write_text("def f():\n    from recipes.tools.metrics import win_rate\n")
    one = version()
    SCRIPT.write_text("def f():\n    from recipes.tools.metrics import pass_at_k\n")
    assert version() != one  # the script itself
    names = {path.name for path in data_prep.runs.identity.closure_of_ours(SCRIPT)}
    assert {"script.py", "metrics.py", "equality.py"} <= names and "training.py" not in names


def test_a_folder_is_fresh_then_resumed_then_done() -> None:
    assert runs.begin(FOLDER, identity()) == "fresh"
    (FOLDER / "half.txt").write_text("half")
    (FOLDER / ".rows.host-1.partial").write_text("half")
    assert runs.begin(FOLDER, identity()) == "resume"
    assert (FOLDER / "half.txt").exists() and not list(FOLDER.glob(".*.partial"))
    assert runs.look(FOLDER, identity()).kind == "unfinished"
    runs.finish(FOLDER, figure=3)
    assert runs.begin(FOLDER, identity()) == "done"
    record = runs.read(FOLDER)
    assert (record["stage"], record["figure"], record["tries"]) == ("b", 3, 2)


@pytest.mark.parametrize("finished", [True, False])
def test_what_was_trained_stays_until_redo_moves_it_aside(finished: bool) -> None:
    runs.begin(FOLDER, identity({"rate": 1}))
    for name in ("checkpoint-3/model.safetensors", "samples/one.parquet", "thesis.txt"):
        (FOLDER / name).parent.mkdir(exist_ok=True)
        (FOLDER / name).write_text(name)
    if finished:
        runs.finish(FOLDER)
    before = {path: path.read_bytes() for path in FOLDER.rglob("*") if path.is_file()}
    with pytest.raises(runs.ConfigError) as caught:
        runs.begin(FOLDER, identity({"rate": 2}))
    said = str(caught.value)
    assert "a finished run" in said if finished else "checkpoints of a run" in said
    assert "`rate` was 1 and is 2 now" in said and "`--redo`" in said and "another output_dir" in said
    assert {path: path.read_bytes() for path in FOLDER.rglob("*") if path.is_file()} == before
    assert runs.begin(FOLDER, identity({"rate": 2}), redo=True) == "fresh"
    assert sorted(path.name for path in FOLDER.iterdir()) == ["begun.json", "samples"]  # which stay good for both
    (aside,) = Path("outputs/a/replaced").iterdir()
    assert (aside / "checkpoint-3/model.safetensors").is_file() and (aside / "thesis.txt").is_file()
    assert runs.begin(FOLDER, identity({"rate": 2}), redo=True) == "resume"  # what a kill left of the same run


def test_redo_runs_a_finished_run_anew_and_keeps_the_old_one() -> None:
    finish(figure=1)
    assert runs.begin(FOLDER, identity(), redo=True) == "fresh"
    runs.finish(FOLDER, figure=2)
    assert runs.begin(FOLDER, identity(), redo=True) == "fresh"
    assert [json.loads((path / "run.json").read_text())["figure"] for path in Path("outputs/a/replaced").iterdir()]


def test_samples_go_on_also_after_a_kill_amid_a_redo() -> None:
    finish()
    (FOLDER / "samples").mkdir()
    (FOLDER / "samples/one.parquet").write_text("paid for")
    data_prep.runs.set_aside(FOLDER)  # and killed
    assert runs.begin(FOLDER, identity()) == "fresh"
    assert (FOLDER / "samples/one.parquet").read_text() == "paid for"


def test_a_folder_behind_a_link_is_one_folder() -> None:
    finish({"rate": 1})
    Path("disk").mkdir()
    FOLDER.rename("disk/b")
    FOLDER.symlink_to(Path("disk/b").absolute())
    assert data_prep.runs.files.lock_of(FOLDER) == data_prep.runs.files.lock_of(Path("disk/b"))
    assert runs.begin(FOLDER, identity({"rate": 2}), redo=True) == "fresh"
    assert FOLDER.is_symlink() and Path("disk/b/begun.json").is_file()
    assert next(Path("disk/replaced").glob("b-*/run.json"))


@pytest.mark.parametrize("name", ["run.json", "begun.json"])
@pytest.mark.parametrize("content", ["", "{}", "[]", '{"id": "a'])
def test_a_damaged_record_is_no_run_and_nothing_is_lost(name: str, content: str) -> None:
    runs.begin(FOLDER, identity())
    (FOLDER / "checkpoint-3").mkdir()
    (FOLDER / name).write_text(content)
    with pytest.raises(runs.ConfigError, match=rf"{name} cannot be read .*add `--redo`"):
        runs.begin(FOLDER, identity())
    assert runs.begin(FOLDER, identity(), redo=True) == "fresh"
    assert next(Path("outputs/a/replaced").glob("b-*/checkpoint-3"))


def test_what_nothing_was_trained_in_is_moved_aside_unasked() -> None:
    runs.begin(FOLDER, identity({"rate": 1}))
    (FOLDER / "log.jsonl").write_text("")
    assert runs.begin(FOLDER, identity({"rate": 2})) == "fresh"
    assert next(Path("outputs/a/replaced").glob("b-*/log.jsonl"))


def test_a_folder_that_is_nobodys_is_left_alone() -> None:
    FOLDER.mkdir(parents=True)
    (FOLDER / "thesis.txt").write_text("years of work")
    for redo in (False, True):
        with pytest.raises(runs.ConfigError, match="it is no run's folder"):
            runs.begin(FOLDER, identity(), redo)
    assert (FOLDER / "thesis.txt").exists()


def test_a_record_of_an_earlier_version_is_compared_by_its_config() -> None:
    FOLDER.mkdir(parents=True)
    old = {"fingerprint": "f", "stage": "b", "config": {"rate": 1.0, "judge": {"url": "x", "n": 3}, "seed": 0}}
    (FOLDER / "run.json").write_text(json.dumps(old))
    assert why({"rate": 1, "judge": {"url": "x"}}) == []
    assert why({"rate": 2}) == ["`rate` was 1.0 and is 2 now"]
    (FOLDER / "run.json").rename(FOLDER / "begun.json")
    (FOLDER / "checkpoint-2").mkdir()
    assert "an earlier version of this project" in why()[0]


WEIGHTS = {"config.json": b"{}", "tokenizer.json": b"{}", "tokenizer_config.json": b"{}"}


def weights(numbers: int) -> bytes:
    """A safetensors file."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [numbers], "data_offsets": [0, 4 * numbers]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4 * numbers)


def test_a_folder_that_a_trainer_made_is_still_an_input_to_come() -> None:
    Path("outputs/a/base/helpfulness").mkdir(parents=True)
    assert runs.inputs({"model": "outputs/a/base"}) == [Path("outputs/a/base")]
    Path("outputs/a/base/helpfulness/rows.parquet").write_text("1")  # what no run made
    assert runs.inputs({"model": "outputs/a/base"}) == []


def test_checkpoints_may_be_deleted_from_a_finished_run() -> None:
    runs.begin(FOLDER, identity())
    for name in ("checkpoint-3", "part/checkpoint-3"):
        (FOLDER / name).mkdir(parents=True)
        (FOLDER / name / "model.safetensors").write_bytes(weights(3))
    runs.finish(FOLDER)
    assert runs.read(FOLDER)["made"] == {}


def test_done_means_that_the_model_is_there() -> None:
    whole = WEIGHTS | {
        "model.safetensors.index.json": b'{"weight_map": {"w": "model-1.safetensors", "v": "model-2.safetensors"}}',
        "model-1.safetensors": weights(3),
        "model-2.safetensors": weights(4),
    }
    for lacking, said in {
        "config.json": "config.json is missing",
        "tokenizer.json": "its tokenizer is missing",  # tokenizer_config.json is none
        "model.safetensors.index.json": "it has no weights",
        "model-2.safetensors": "model-2.safetensors is missing",
    }.items():
        runs.begin(FOLDER, identity())
        for name, content in whole.items():
            (FOLDER / name).write_bytes(content)
        (FOLDER / lacking).unlink()
        with pytest.raises(runs.Stopped, match=said):
            runs.finish(FOLDER, [""])
        assert not (FOLDER / "run.json").exists()
        (FOLDER / lacking).write_bytes(whole[lacking])
    (FOLDER / "rows.parquet").write_bytes(b"1234")
    runs.finish(FOLDER, [""])
    assert runs.look(FOLDER, identity()).kind == "done"
    for name, content, said in (
        ("model-1.safetensors", weights(3)[:-1], "model-1.safetensors has 81 bytes instead of 82"),
        ("model-1.safetensors", b"{}", "the header of model-1.safetensors cannot be read"),
        ("rows.parquet", b"12", "rows.parquet has 2 bytes instead of 4"),
        ("config.json", b"{", "config.json cannot be read"),
    ):
        before = (FOLDER / name).read_bytes()
        (FOLDER / name).write_bytes(content)
        found = runs.look(FOLDER, identity())
        assert (found.kind, found.why[0]) == ("incomplete", said)
        with pytest.raises(runs.ConfigError, match="Copy it there again; or add `--redo`"):
            runs.begin(FOLDER, identity())
        (FOLDER / name).write_bytes(before)
    assert runs.begin(FOLDER, identity()) == "done"


HOLDER = """
import sys, time
from pathlib import Path
from data_prep import runs
from rewards.settings import Count
Path("script.py").write_text("x = 1\\n")
print(runs.begin(Path("outputs/a/b"), runs.identify(Path("script.py"), {})), flush=True)
time.sleep(600)
"""


STARTED = """
import subprocess
from pathlib import Path
from data_prep import runs
from rewards.settings import Count
held = b"1" * 2**29
subprocess.run(["true"], check=True)
Path("run").mkdir()
runs.finish(Path("run"))
"""


def test_memory_that_a_child_shares_before_it_is_another_program_is_counted_once() -> None:
    subprocess.run([sys.executable, "-c", STARTED], check=True, env=os.environ | {"PYTHONPATH": str(runs.ROOT)})
    assert 0.5 <= runs.read(Path("run"))["peak_rss_gb"] < 0.9


def test_a_second_start_says_who_works_there(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", HOLDER, "recipes/r1_zero.py"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(runs.ROOT)}
    ) as first:
        assert first.stdout.readline() == "fresh\n"
        assert data_prep.runs.files.is_held(FOLDER)
        monkeypatch.setattr(data_prep.runs.files, "PATIENCE", 1)
        with pytest.raises(runs.Busy, match=rf"in use by process {first.pid} on .* since .*recipes/r1_zero.py"):
            runs.begin(FOLDER, identity())
        first.kill()
    assert not data_prep.runs.files.is_held(FOLDER)
    assert runs.begin(FOLDER, identity()) == "resume"


def test_a_record_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"id": "a", "sta')  # as a disk that failed may have it
    with pytest.raises(runs.ConfigError, match=r"run\.json cannot be read"):
        runs.read(tmp_path)
