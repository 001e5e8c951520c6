"""The pipeline tool, through its command, over four data jobs that do next to nothing: a <- b, c <- d.

The tool, what starts its children, the jobs' runner and the records are real; only the list of stages is another.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from recipes.tools import pipeline, view

import psutil
import pytest

JOB = '''
"""Writes its numbers one by one, going on from those that are there, and what its inputs hold."""
import os, sys, time
from dataclasses import dataclass, field
from pathlib import Path
from data_prep import jobs

@dataclass
class Numbers:
    output_dir: str
    inputs: list[str] = field(default_factory=list)
    count: int = 3
    pause: float = 0.0
    fail: bool = False
    seed: int = 0
    limit: int = 0
    threads: int = 1
    script: str = ""
    checkpoint: str = ""

def load(config: Numbers):
    return {"rows": [Path(path).read_text() for path in config.inputs]}

def tell(what):
    with Path("threads.log").open("a") as log:
        log.write(what + "\\n")

def build(config, output_dir, rows):
    with Path("starts.log").open("a") as starts:
        starts.write(f"{output_dir.name}\\n")
    tell(f"{output_dir.name} begins with {os.environ['OMP_NUM_THREADS']}")
    file = output_dir / "numbers.txt"
    have = len(file.read_text().splitlines()) if file.exists() else 0
    for number in range(have, config.count):
        time.sleep(config.pause)
        with file.open("a") as numbers:
            numbers.write(f"{config.seed} {number} {len(rows)}\\n")
    tell(f"{output_dir.name} ends")
    if config.fail:
        raise RuntimeError("the disk is made of cheese")
    return {"count": config.count}

if __name__ == "__main__":
    sys.exit(jobs.run(Numbers, load, build))
'''
DRIVER = """
import sys
from data_prep.runs import commands
from recipes.tools import pipeline
sys.exit(commands.run(pipeline.main, ["--scale", "./tiny", *sys.argv[1:]]))
"""
NEEDS = {"a": "", "b": "a", "c": "a", "d": "bc"}


class Toy:
    """A working directory with the four jobs and their YAMLs."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "tiny").mkdir()
        for name, needs in NEEDS.items():
            (folder / f"job_{name}.py").write_text(JOB)
            inputs = ", ".join(f"outputs/tiny/{need}/numbers.txt" for need in needs)
            (folder / "tiny" / f"{name}.yaml").write_text(
                f"script: job_{name}\noutput_dir: outputs/tiny/{name}\ninputs: [{inputs}]\n"
            )

    def add(self, name: str, line: str) -> None:
        with (self.folder / "tiny" / f"{name}.yaml").open("a") as file:
            file.write(line + "\n")

    def start(self, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-c", DRIVER, *arguments]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            # A shell's background job ignores Ctrl-C, and so would what it starts: the tests too may run in one.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, *arguments: str, status: int = 0) -> str:
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == status, output
        return output

    def starts(self) -> list[str]:
        """Which jobs have begun work since the last call, sorted."""
        log = self.folder / "starts.log"
        names = sorted(log.read_text().split()) if log.exists() else []
        log.unlink(missing_ok=True)
        return names

    def everything(self) -> dict[Path, bytes]:
        """What lies in the folders of the runs."""
        found = (path for name in NEEDS for path in (self.folder / "outputs/tiny" / name).rglob("*"))
        return {path: path.read_bytes() for path in found if path.is_file()}

    def bytes(self) -> dict[str, bytes]:
        return {name: (self.folder / f"outputs/tiny/{name}/numbers.txt").read_bytes() for name in NEEDS}


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


@pytest.mark.slow
def test_a_second_run_does_nothing_and_a_changed_yaml_stops_it_until_redo(toy: Toy) -> None:
    toy.run()
    assert toy.starts() == ["a", "b", "c", "d"]
    assert "nothing to do" in toy.run()
    toy.add("c", "# a remark changes nothing")
    assert "nothing to do" in toy.run()
    toy.add("c", "seed: 0")  # nor does a default, written out
    assert "nothing to do" in toy.run()
    before = toy.everything()
    toy.add("c", "count: 4")
    said = toy.run(status=2)
    assert said.startswith("error: outputs/tiny/c no longer fits: `count` was 3 and is 4 now. Nothing was started")
    assert "moves c, and what was made from it (d), to outputs/tiny/replaced/" in said and said.count("\n") == 1
    assert "# changed: c: `count` was 3 and is 4 now" in toy.run("--dry-run")
    assert toy.everything() == before and toy.starts() == []
    assert "--redo" in toy.run("--redo", "--dry-run")
    toy.run("--redo")
    assert toy.starts() == ["c", "d"]
    old = {path.name.partition("-2")[0]: path for path in (toy.folder / "outputs/tiny/replaced").iterdir()}
    assert (old["c"] / "numbers.txt").read_text().count("\n") == 3 and (old["d"] / "run.json").is_file()
    assert "nothing to do" in toy.run()


@pytest.mark.slow
def test_what_older_code_made_is_named_and_made_again_when_asked(toy: Toy) -> None:
    toy.run()
    toy.starts()
    (toy.folder / "job_b.py").write_text(JOB.replace("the disk is", "the tape is"))
    said = toy.run()
    assert "1 runs were made by older code, and stay: b (" in said and "make r1 ARGS=--redo-code" in said
    assert toy.starts() == []
    toy.run("--redo-code")
    assert toy.starts() == ["b", "d"]
    assert "older code" not in toy.run()


@pytest.mark.slow
def test_a_run_whose_input_is_gone_is_not_thrown_away(toy: Toy) -> None:
    toy.run()
    toy.starts()
    shutil.rmtree(toy.folder / "outputs/tiny/a")
    said = toy.run(status=2)
    assert "outputs/tiny/b no longer fits: outputs/tiny/a will be made anew" in said
    assert toy.starts() == []
    toy.run("--only", "a")  # with the same content
    assert toy.starts() == ["a"]
    assert "nothing to do" in toy.run()


@pytest.mark.slow
def test_the_runs_of_a_scale_are_listed_and_replaced_ones_removed(toy: Toy) -> None:
    toy.run()
    toy.run("--from", "d")
    (toy.folder / "outputs/tiny/a/numbers.txt").write_text("other\n")
    command = [sys.executable, "-m", "recipes.tools.runs"]

    def call(*arguments: str, status: int = 0) -> str:
        done = subprocess.run([*command, *arguments], cwd=toy.folder, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    lines = call("outputs/tiny").splitlines()
    assert len(lines) == 6 and lines[1].endswith("done")
    assert lines[2].endswith("changed: the content of outputs/tiny/a/numbers.txt has changed")
    (old,) = (toy.folder / "outputs/tiny/replaced").iterdir()
    assert lines[5].split()[0] == f"outputs/tiny/replaced/{old.name}" and lines[5].endswith("replaced")
    for other in ("outputs/tiny/d", "outputs/tiny/replaced/..", "outputs/tiny/replaced", f"{old}/../../d"):
        assert "only replaced runs are removed" in call("--remove", other, status=2)
    assert (toy.folder / "outputs/tiny/d/run.json").is_file()
    call("--remove", f"outputs/tiny/replaced/{old.name}")
    assert not old.exists()


def test_dry_run_prints_commands_that_can_be_copied(toy: Toy) -> None:
    lines = toy.run("--dry-run", "--seed", "7").splitlines()
    assert lines[0] == "python -m job_a --config tiny/a.yaml --seed 7"
    assert len(lines) == 4
    assert toy.starts() == []
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(lines[0], shell=True, check=True, cwd=toy.folder, env=environment, capture_output=True)
    assert toy.run("--dry-run", "--seed", "7").splitlines()[0] == "# done: a"


@pytest.mark.slow
def test_a_step_has_the_threads_of_its_yaml_and_waits_for_them(toy: Toy) -> None:
    toy.add("b", "threads: 2")
    toy.add("c", "pause: 0.2")
    toy.run()
    begun = [f"{name} begins with {2 if name == 'b' else 1}" for name in "abcd"]
    told = (toy.folder / "threads.log").read_text().splitlines()
    assert told == [line for name, start in zip("abcd", begun, strict=True) for line in (start, f"{name} ends")]


@pytest.mark.slow
def test_only_and_from(toy: Toy) -> None:
    assert "outputs/tiny/a is not there: run `--only a` first" in toy.run("--only", "b", status=2)
    toy.run("--only", "a")
    assert toy.starts() == ["a"]
    toy.run("--from", "b")
    assert toy.starts() == ["b", "c", "d"]
    toy.run("--from", "b")
    assert toy.starts() == ["b", "d"]
    assert len(list((toy.folder / "outputs/tiny/replaced").iterdir())) == 2
    assert "no step is called 'e'; they are a, b, c, d" in toy.run("--only", "e", status=2)


@pytest.mark.slow
def test_a_seed_of_the_command_line_is_another_run(toy: Toy) -> None:
    toy.run()
    first = toy.bytes()
    toy.starts()
    assert "nothing to do" in toy.run("--seed", "0")  # the default, but now it is given
    assert "outputs/tiny/a no longer fits: `seed` was 0 and is 3 now." in toy.run("--seed", "3", status=2)
    toy.run("--seed", "3", "--redo")
    assert toy.starts() == ["a", "b", "c", "d"]
    assert toy.bytes() != first


@pytest.mark.slow
def test_what_can_be_known_to_fail_fails_before_any_work(toy: Toy) -> None:
    own = "script: job_d\n"
    toy.add("d", "checkpoint: org/model")
    toy.add("d", "cout: 4")
    assert "d.yaml: unknown key `cout`; did you mean `count`?" in toy.run(status=2)
    assert toy.starts() == []
    (toy.folder / "tiny/d.yaml").write_text(own + "output_dir: outputs/tiny/d\ninputs: [outputs/tiny/nobody/x.txt]\n")
    assert "outputs/tiny/nobody is not there: no YAML of this scale makes it" in toy.run(status=2)
    (toy.folder / "tiny/d.yaml").write_text(own + "output_dir: outputs/tiny/c\n")
    assert "d.yaml: its output_dir outputs/tiny/c is also that of c" in toy.run(status=2)
    (toy.folder / "tiny/d.yaml").write_text(own + "count: 3\n")
    assert "write `output_dir: outputs/tiny/d`" in toy.run(status=2)
    (toy.folder / "tiny/d.yaml").write_text(own + "output_dir: outputs/tiny/d\ncount: 1\ncount: 2\n")
    assert "the key `count` is given twice" in toy.run(status=2)
    (toy.folder / "tiny/d.yaml").write_text("output_dir: outputs/tiny/d\n")
    assert "d.yaml: no recipe or data job is called d; write `script: recipes/r1_zero.py`" in toy.run(status=2)
    (toy.folder / "tiny/d.yaml").write_text("script: job_e\noutput_dir: outputs/tiny/d\n")
    assert "d.yaml: there is no job_e; write `script:" in toy.run(status=2)
    assert toy.starts() == []


def test_a_full_disk_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "FREE_DISK_GB", 1e9)
    with pytest.raises(pipeline.PipelineError, match="1000000000 GB are needed: make room"):
        pipeline.preflight([], [], Path())


def test_the_first_failure_stops_all_and_says_how_to_go_on(toy: Toy) -> None:
    toy.add("b", "fail: true")
    toy.add("c", "pause: 600")
    started = time.monotonic()
    output = toy.run(status=1)
    assert time.monotonic() - started < 300
    assert "b ended with exit status 1. The end of outputs/tiny/logs/b.log:" in output
    assert "the disk is made of cheese" in output
    assert "python -m job_b --config tiny/b.yaml" in output
    assert not (toy.folder / "outputs/tiny/c/run.json").exists()


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bytes(toy: Toy, tmp_path: Path) -> None:
    toy.run()
    uninterrupted = toy.bytes()
    shutil.rmtree(toy.folder / "outputs")
    for name in NEEDS:
        toy.add(name, "pause: 0.2")
    chance = random.Random(0)
    for _ in range(5):
        process = toy.start()
        time.sleep(chance.uniform(0.3, 2.0))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=20)
        wait_until(lambda: not children_in(toy.folder), "a child outlived the pipeline")
    toy.run()
    assert toy.bytes() == uninterrupted


def test_ctrl_c_ends_the_children_too(toy: Toy) -> None:
    toy.add("a", "pause: 20")
    process = toy.start()
    wait_until(lambda: (toy.folder / "starts.log").exists(), "a has not started")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted; the same command resumes from here" in output
    wait_until(lambda: not children_in(toy.folder), "a child outlived the pipeline")


@pytest.mark.slow
def test_two_pipelines_never_work_in_one_folder(toy: Toy) -> None:
    toy.add("a", "pause: 20")
    first = toy.start()
    wait_until(lambda: (toy.folder / "starts.log").exists(), "a has not started")
    assert f"another pipeline is at work in outputs/tiny: process {first.pid} on " in toy.run(status=1)
    first.kill()
    first.communicate(timeout=20)


@pytest.mark.slow
def test_time_and_memory_of_all_calls_are_kept(toy: Toy) -> None:
    toy.run("--only", "a")
    toy.run()
    sessions = json.loads((toy.folder / "outputs/tiny/report/sessions.json").read_text())
    assert len(sessions) == 2
    assert all(session["seconds"] > 0 for session in sessions)


def wait_until(holds, otherwise: str, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, otherwise
        time.sleep(0.05)


def children_in(folder: Path) -> list[str]:
    """Jobs that are still at work in this folder."""
    found = []
    for process in psutil.process_iter(["cwd", "cmdline", "status"]):
        info = process.info
        if info["cwd"] == str(folder) and info["status"] != psutil.STATUS_ZOMBIE:
            found.append(" ".join(info["cmdline"] or []))
    return found


def test_the_view_shows_the_mean_reward_of_ten_steps_beside_that_of_the_first_ten(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    rows = [{"step": n, "max_steps": 100, "reward": 1.0 if n <= 10 else 1.5, "loss": 0.0} for n in range(1, 26)]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(row | {"padding": "x" * 2000}) + "\n" for row in rows[:5]))
    assert str(view.read_progress(tmp_path, {})) == "step 5/100, reward 1.000, loss 0.000"
    log.write_text("".join(json.dumps(row | {"padding": "x" * 2000}) + "\n" for row in rows) + '{"step": 26')
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    step, other = (SimpleNamespace(name=name, output_dir=tmp_path, settings={}) for name in "ab")
    with view.View([step, other], set()) as shown:
        shown.started(step)
        shown.update([(step, 50.0)])
    said = capsys.readouterr().out
    assert "step 25/100, reward 1.500 (at first 1.000), loss 0.000, 2:30 left" in said and "1 to come: b" in said
