"""The record of a run: settings, fingerprints, and who may use a folder."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_prep import runs

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
    limit: int | None = None


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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("outputdir: x", "job.yaml: unknown key `outputdir`; did you mean `output_dir`?"),
        ("rate: 1", "job.yaml: the key `output_dir` is missing; write `output_dir: ...`"),
        ("output_dir: x\nrate: fast", "job.yaml: `rate` is 'fast'; write a value of type float"),
        ("output_dir: x\nlimit: true", "job.yaml: `limit` is True; write a value of type int"),
        ("output_dir: x\nmode: paper", "job.yaml: `mode` is 'paper'; write one of 'teacher', 'mixture'"),
        ("output_dir: x\njudge: {url: y}", "job.yaml: `judge`: unknown key `url`"),
        ("output_dir: x\njudge: {base_url: 7}", "job.yaml: `judge`: `base_url` is 7; write a value of type str"),
        ("output_dir: x\nsources: [1]", "job.yaml: `sources`[0] is 1; write a value of type str"),
        ("output_dir: x\noutput_dir: y", "the key `output_dir` is given twice"),
        ("- x", "job.yaml: holds a list; write `key: value` lines"),
        ("a: [", "job.yaml: not valid YAML"),
    ],
)
def test_a_wrong_setting_is_named_with_its_remedy(text: str, message: str) -> None:
    with pytest.raises(runs.ConfigError) as caught:
        runs.settings(Job, write(text))
    assert message in str(caught.value)


def test_a_config_that_is_not_there_is_named_with_those_that_are() -> None:
    write("a: 1")
    with pytest.raises(runs.ConfigError, match=r"jop.yaml: no such file; . holds job.yaml"):
        runs.load_config(Path("jop.yaml"))


def test_inputs_are_the_runs_that_any_value_names() -> None:
    config = {
        "output_dir": "outputs/cpu/mixture",
        "sources": ["outputs/cpu/general/train.parquet", {"deep": "outputs/cpu/world"}],
        "again": "outputs/cpu/general/other.parquet",
        "hub": "org/model",
        "own": "outputs/cpu/mixture/samples",
    }
    assert runs.inputs(config) == [Path("outputs/cpu/general"), Path("outputs/cpu/world")]


def test_a_fingerprint_covers_settings_code_and_inputs_and_nothing_else() -> None:
    script = Path("script.py")
    script.write_text("x = 1  # one\n")
    path = write("output_dir: outputs/a/b\nrate: 1\nsource: outputs/a/world/x.parquet\n")
    with pytest.raises(
        runs.MissingRunError, match="run `python -m recipes.tools.pipeline --scale a --only world` first"
    ):
        runs.fingerprint(script, path)
    runs.begin(Path("outputs/a/world"), "first")
    runs.finish(Path("outputs/a/world"), "first")
    first = runs.fingerprint(script, path)
    assert runs.fingerprint(script, path, {"seed": None}) == first
    assert runs.fingerprint(script, runs.load_config(path)) == first
    assert runs.fingerprint(script, path, {"seed": 1}) != first
    assert runs.fingerprint(script, path, {"rate": 1}) == first
    path.write_text("rate: 1  # a remark\nsource: outputs/a/world/x.parquet\noutput_dir: outputs/a/b\n")
    script.write_text("# a remark\nx   =  1\n")
    assert runs.fingerprint(script, path) == first
    script.write_text("x = 2\n")
    assert runs.fingerprint(script, path) != first
    script.write_text("x = 1\n")
    Path("chat.jinja").write_text("{{ messages }}")  # what a model is trained on follows from it
    assert runs.fingerprint(script, path) != first
    Path("chat.jinja").unlink()
    runs.begin(Path("outputs/a/world"), "second")
    runs.finish(Path("outputs/a/world"), "second")
    assert runs.fingerprint(script, path) != first


def test_code_counts_through_imports_also_inside_functions() -> None:
    script = Path("script.py")
    script.write_text("def f():\n    from recipes.tools.metrics import win_rate\n")
    names = [str(path.relative_to(runs.ROOT)) for path in runs.sources(script) if path.is_relative_to(runs.ROOT)]
    assert names == [
        "data_prep/__init__.py",
        "recipes/__init__.py",
        "recipes/tools/__init__.py",
        "recipes/tools/metrics.py",
    ]


def test_a_folder_is_fresh_then_resumed_then_done_and_another_run_wipes_it() -> None:
    folder = Path("outputs/a/b")
    assert runs.begin(folder, "one") == "fresh"
    (folder / "half.txt").write_text("half")
    assert runs.begin(folder, "one") == "resume"
    assert (folder / "half.txt").exists()
    assert not runs.is_done(folder, "one")
    runs.finish(folder, "one", figure=3)
    assert runs.begin(folder, "one") == "done"
    record = runs.read(folder)
    assert (record["stage"], record["fingerprint"], record["figure"], record["tries"]) == ("b", "one", 3, 2)
    assert runs.begin(folder, "two") == "fresh"
    assert sorted(path.name for path in folder.iterdir()) == ["begun.json"]


def test_a_wipe_that_was_cut_short_is_not_taken_for_the_old_run() -> None:
    folder = Path("outputs/a/b")
    runs.begin(folder, "one")
    (folder / "half.txt").write_text("half")
    (folder / "begun.json").write_text(json.dumps({"fingerprint": None, "tries": 0}))  # what a wipe leaves first
    assert runs.begin(folder, "one") == "fresh"
    assert not (folder / "half.txt").exists()


def test_a_folder_that_is_nobodys_is_never_wiped() -> None:
    folder = Path("outputs/a/b")
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="it is no run's folder"):
        runs.begin(folder, "one")
    assert (folder / "thesis.txt").exists()


def test_a_forgotten_run_starts_afresh() -> None:
    folder = Path("outputs/a/b")
    runs.begin(folder, "one")
    runs.finish(folder, "one")
    runs.forget(folder)
    assert runs.begin(folder, "one") == "fresh"


def test_a_record_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"fingerprint": "a", "sta')  # as a disk that failed may have it
    with pytest.raises(runs.ConfigError, match=r"run\.json cannot be read .*: delete it"):
        runs.read(tmp_path)
