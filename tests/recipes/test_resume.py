"""A run that was killed ends as if it had not been: the same losses, the same KL, the same weights, bit for bit."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from data_prep.runs import ROOT
from recipes import checkpoints, training

import pytest
import yaml
from conftest import CORPUS, GRPO, LORA, SFT, log_of, record_of
from safetensors.torch import load_file

FEW = {"dataset": "outputs/t/world/few.parquet", "max_steps": 14}  # an epoch is six steps
STAGES = {
    "base": ("base", CORPUS | {"max_steps": 8, "save_steps": 3, "logging_steps": 1}),
    "grpo": ("r1_zero", GRPO),
    "grpo_second_epoch": ("r1_zero", GRPO | FEW),
    "grpo_lora_second_epoch": ("r1_zero", GRPO | FEW | LORA),
    "sft_second_epoch": ("cold_start_sft", SFT | {"max_steps": 18, "logging_steps": 2}),  # an epoch is 13 steps
    "sft_lora": ("distill", SFT | LORA | {"max_steps": 8}),
}


def assert_same(straight: Path, resumed: Path) -> None:
    assert log_of(resumed) == log_of(straight)
    one, other = (load_file(folder / "model.safetensors") for folder in (straight, resumed))
    assert all(one[name].equal(other[name]) for name in one)
    assert record_of(resumed)["completion_tokens_trained"] == record_of(straight)["completion_tokens_trained"] > 0


@pytest.fixture
def crash_at(monkeypatch):
    """Makes the next runs crash while they work on the step after the given one."""

    def arm(step: int | None) -> None:
        def count(self, mask):
            if self.state.global_step == step:
                raise RuntimeError("crash")
            real(self, mask)

        monkeypatch.setattr(training.Resumable, "count", count)

    real = training.Resumable.count
    return arm


@pytest.mark.slow
@pytest.mark.parametrize("kind", STAGES)
def test_a_crash_changes_nothing(kind, run_stage, crash_at, caplog, capfd):
    script, settings = STAGES[kind]
    straight = run_stage(script, settings, name="straight")
    reached = settings["max_steps"] - 1
    crash_at(reached)
    with pytest.raises(RuntimeError, match="crash"):
        run_stage(script, settings, name="resumed")
    assert reached - 4 < checkpoints.step_of(checkpoints.complete(Path("outputs/t/resumed"))[-1]) <= reached
    crash_at(None)
    caplog.set_level("INFO")
    resumed = run_stage(script, settings, name="resumed")
    assert "resuming from outputs/t/resumed/checkpoint-" in caplog.text
    assert "missing keys" not in caplog.text + capfd.readouterr().err
    assert_same(straight, resumed)
    assert record_of(resumed)["tries"] == 2


@pytest.mark.slow
def test_a_refreshed_reference_comes_back(run_stage, crash_at):
    """Refreshed after step 6, the reference is the policy that step 7 samples from, so KL is 0 there; after the refresh
    at step 3 a rollout is still under way, whose KL was measured from the reference before."""
    for kind in (GRPO, GRPO | LORA):
        name = "lora" if "use_peft" in kind else "full"
        crash_at(6)
        with pytest.raises(RuntimeError, match="crash"):
            run_stage("r1_zero", kind, name=name)
        crash_at(None)
        kl = {row["step"]: row["kl"] for row in log_of(run_stage("r1_zero", kind, name=name))}
        assert kl[1] == kl[7] == 0.0
        assert min(kl[2], kl[3], kl[4], kl[5], kl[6], kl[8]) > 0


@pytest.mark.slow
def test_a_crash_after_the_last_step_changes_nothing(run_stage, monkeypatch):
    def save(trainer, args):
        if not Path("crashed").exists():
            Path("crashed").touch()
            raise RuntimeError("crash")
        real(trainer, args)

    straight = run_stage("r1_zero", GRPO, name="straight")
    real = training.save
    monkeypatch.setattr(training, "save", save)
    with pytest.raises(RuntimeError, match="crash"):
        run_stage("r1_zero", GRPO, name="resumed")
    assert_same(straight, run_stage("r1_zero", GRPO, name="resumed"))


def test_saves_move_to_where_a_rollout_begins(run_stage, caplog):
    caplog.set_level("INFO")
    folder = run_stage("r1_zero", GRPO | {"save_total_limit": None})
    assert [path.name for path in checkpoints.complete(folder)] == [f"checkpoint-{step}" for step in (4, 6)]
    said = [record.getMessage() for record in caplog.records if "resumed exactly" in record.getMessage()]
    assert len(said) == 1
    assert "step 3" in said[0] and "multiple of 2" in said[0]


def test_a_save_at_the_end_of_an_epoch_moves_too(run_stage, refuses):
    often = {"save_strategy": "epoch", "logging_steps": 4, "save_total_limit": None}
    folder = run_stage("r1_zero", GRPO | FEW | often)  # an epoch ends at step 6, amid a log row
    assert [path.name for path in checkpoints.complete(folder)] == [f"checkpoint-{step}" for step in (8, 12)]
    assert "save_strategy: best would save amid a rollout" in refuses(
        "r1_zero", GRPO | {"save_strategy": "best"}, name="b"
    )


@pytest.mark.slow
def test_half_written_checkpoints_do_not_count(run_stage, crash_at):
    straight = run_stage("r1_zero", GRPO, name="straight")
    crash_at(7)
    with pytest.raises(RuntimeError, match="crash"):
        run_stage("r1_zero", GRPO, name="resumed")
    newest = Path("outputs/t/resumed/checkpoint-6")
    (newest / checkpoints.MARKER).unlink()
    (newest / "model.safetensors").write_bytes(b"half")
    (newest / "optimizer.pt").unlink()
    crash_at(None)
    assert_same(straight, run_stage("r1_zero", GRPO, name="resumed"))


def test_rotation_keeps_the_newest(tmp_path):
    for step in (2, 10, 4):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"")
        checkpoints.mark_complete(folder, keep=None)
    (tmp_path / "checkpoint-12").mkdir()
    checkpoints.mark_complete(tmp_path / "checkpoint-12", keep=2, seen=3)
    assert [checkpoints.step_of(path) for path in checkpoints.complete(tmp_path)] == [10, 12]
    assert checkpoints.record_of(tmp_path / "checkpoint-12") == {"step": 12, "seen": 3}
    assert not (tmp_path / "checkpoint-2").exists()


def test_a_finished_run_is_left_alone_until_redo(run_stage, capsys):
    settings = SFT | {"max_steps": 2}
    folder = run_stage("cold_start_sft", settings)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(SystemExit) as ended:
        run_stage("cold_start_sft", settings)
    assert ended.value.code == 0
    for changed in (("--seed", "7"), ("--max_steps", "4"), ("--logging_steps=2",)):
        with pytest.raises(SystemExit) as ended:
            run_stage("cold_start_sft", settings, *changed)
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert f"`{changed[0].strip('-').partition('=')[0]}` was" in said and "`--redo`" in said
    for wrong in (("--dataset", "outputs/t/world/nothing.parquet"), ("--max_length", "3")):
        with pytest.raises(SystemExit):  # what is wrong is found before anything is moved
            run_stage("cold_start_sft", settings, *wrong, "--redo")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    run_stage("cold_start_sft", settings, "--seed", "7", "--redo")
    assert record_of(folder)["seed"] == 7 and record_of(folder)["settings"]["seed"] == 7
    (old,) = Path("outputs/t/replaced").iterdir()
    assert {old / path.relative_to(folder): content for path, content in before.items()} == {
        path: path.read_bytes() for path in old.rglob("*") if path.is_file()
    }


def test_an_rl_run_that_is_run_anew_keeps_its_completions_as_the_old_one_does(run_stage):
    folder = run_stage("r1_zero", GRPO | {"max_steps": 2, "save_steps": 2})
    run_stage("r1_zero", GRPO | {"max_steps": 2, "save_steps": 2}, "--seed", "7", "--redo")
    (old,) = Path("outputs/t/replaced").iterdir()
    assert len([*folder.glob("completions/*.parquet")]) == len([*old.glob("completions/*.parquet")]) == 2


@pytest.mark.slow
def test_a_killed_run_does_not_go_on_with_another_reward_or_other_rows(run_stage, crash_at, here, capsys):
    shutil.copy("outputs/t/world/reasoning.parquet", "my_rows.parquet")
    settings = GRPO | {"dataset": "my_rows.parquet"}
    crash_at(7)
    with pytest.raises(RuntimeError, match="crash"):
        run_stage("r1_zero", settings)
    crash_at(None)
    shutil.copy("outputs/t/world/few.parquet", "my_rows.parquet")
    with (here / "probe.py").open("a") as file:
        file.write("\n\ndef other(): ...\n")
    with pytest.raises(SystemExit) as ended:
        run_stage("r1_zero", settings)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "holds checkpoints of a run" in said
    assert "the content of my_rows.parquet has changed; your module probe.py has changed" in said
    assert (Path("outputs/t/run/checkpoint-6") / checkpoints.MARKER).is_file()


KILL = """
import sys, time
from pathlib import Path
from recipes.tools import children, pipeline

children.hold_libraries()
for name, kills in (("full", (4, 14)), ("lora", (9,))):
    def start():
        command = ("accelerate", "launch", "--config_file", *sys.argv[1:], "--config", f"{name}.yaml")
        return children.start(command, said, pipeline.child_environment(1))

    folder, said = Path("outputs/t", name), Path(f"{name}.txt")
    for step in kills:
        process = start()
        while not (log := folder / "log.jsonl").exists() or f'"step": {step},' not in log.read_text():
            assert process.exitcode is None, said.read_text()
            time.sleep(0.005)
        children.end(process)
        assert not (folder / "run.json").exists()
    process = start()
    process.join()
    assert process.exitcode == 0, said.read_text()
"""


@pytest.mark.slow
def test_kill_9_as_the_pipeline_starts_it(run_stage, here):
    """Each kill comes while the next steps are under way."""
    straight = {}
    for name, tries in (("full", 3), ("lora", 2)):
        settings = GRPO | (LORA if name == "lora" else {}) | {"max_steps": 24, "save_total_limit": 1}
        straight[name] = run_stage("r1_zero", settings, name=f"straight_{name}"), tries
        (here / f"{name}.yaml").write_text(yaml.safe_dump({"output_dir": f"outputs/t/{name}"} | settings))
    arguments = [str(ROOT / "accelerate_configs/cpu.yaml"), str(ROOT / "recipes/r1_zero.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{here}{os.pathsep}{ROOT}"}
    done = subprocess.run([sys.executable, "-c", KILL, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, (folder, tries) in straight.items():
        assert_same(folder, Path("outputs/t", name))
        assert record_of(Path("outputs/t", name))["tries"] == tries
