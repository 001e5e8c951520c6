"""Engines: the same bytes here, on Slurm and on Ray, also when a node dies; a killed worker ends the job, by name."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from data_prep import engine, jobs, mixture, rows, runs
from data_prep.engine import EngineError, Executor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datatrove.pipeline.base import PipelineStep

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def local(tmp_path, monkeypatch, row):
    """The mixture of 300 rows in many small parts, made in this process; returns its files' bytes."""
    monkeypatch.chdir(tmp_path)
    found = [
        rows.sft_row(row(id=f"q{number}", question=f"Question {number}?"), 0, f"text {number}", "model")
        for number in range(300)
    ]
    pq.write_table(pa.Table.from_pylist(found), "a.parquet", row_group_size=20)
    values = {"output_dir": "out/test/local", "sources": ["a.parquet"], "total": 200, "tasks": 8}
    Path("job.yaml").write_text(yaml.safe_dump(values | {"executor": {"workers": 1}}))
    assert jobs.run(mixture.Mixture, mixture.load, mixture.build, ["--config", "job.yaml"], mixture.plan) == 0
    return files("out/test/local")


@pytest.fixture
def job(local):
    """Starts the mixture's own command over the same rows; returns the process."""

    def start(output_dir, *flags, env=(), tasks=8, **executor):
        values = {"output_dir": output_dir, "sources": ["a.parquet"], "total": 200, "tasks": tasks}
        Path("job.yaml").write_text(yaml.safe_dump(values | {"executor": executor}))
        command = [sys.executable, "-m", "data_prep.mixture", "--config", "job.yaml", *flags]
        return subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": str(ROOT)} | dict(env), stderr=subprocess.PIPE, text=True
        )

    return start


def files(output_dir):
    return {
        path.name: path.read_bytes() for path in Path(output_dir).iterdir() if path.is_file() and path.suffix != ".json"
    }


def made(process, output_dir):
    told = process.communicate(timeout=300)[1]
    assert process.returncode == 0, told
    return files(output_dir)


@pytest.mark.slow
def test_a_ray_cluster_that_loses_a_node_ends_with_the_bytes_of_the_local_run(local, job):
    pytest.importorskip("ray", reason="Ray is not installed")
    from ray.cluster_utils import Cluster

    before = signal.getsignal(signal.SIGTERM)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=1, wait=False) for _ in range(2)]
        cluster.wait_for_nodes()
        process = job("out/test/ray", "--engine", "ray", env={"RAY_ADDRESS": cluster.address}, memory_gb=0.1)
        completions = Path("out/test/ray/work/read/completions")
        while process.poll() is None and not (completions.is_dir() and any(completions.iterdir())):
            time.sleep(0.05)
        assert process.poll() is None, process.communicate()[1]
        assert len(list(completions.iterdir())) < 8
        cluster.remove_node(nodes[0], allow_graceful=False)
        assert made(process, "out/test/ray") == local
    finally:
        cluster.shutdown()
        signal.signal(signal.SIGTERM, before)  # Ray's own would stay, in every process forked from here too


SBATCH = """#!/bin/bash
# Runs the array's tasks one after the other, where the real one would queue them.
script="${@: -1}"
last=$(sed -nE 's/#SBATCH --array=0-([0-9]+).*/\\1/p' "$script")
for task in $(seq 0 "$last"); do
  SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=here bash "$script" >> slurm.out 2>&1
done
echo "Submitted batch job 7"
"""


@pytest.fixture
def slurm(tmp_path):
    """Stands in for Slurm's commands; returns the PATH that has them."""
    tools = {"sbatch": SBATCH, "squeue": "#!/bin/bash\n", "scontrol": "#!/bin/bash\necho here\n"}
    tools["srun"] = '#!/bin/bash\nwhile [[ "$1" == -* ]]; do [[ "$1" == -n ]] && shift; shift; done\nexec "$@"\n'
    (tmp_path / "bin").mkdir()
    for name, text in tools.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    return {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}


@pytest.mark.slow
def test_slurm_ends_with_the_bytes_of_the_local_run(local, job, slurm):
    process = job("out/test/slurm", "--engine", "slurm", env=slurm, tasks=2, partition="cpu", sbatch={"account": "us"})
    assert made(process, "out/test/slurm") == local


QUEUE = """#!/bin/bash
# Takes the next of the answers in a file: what is in the queue, that nothing is, an error, or the end of all tasks.
answer=$(head -n 1 {folder}/{tool}); sed -i 1d {folder}/{tool}
case "$answer" in
  error) echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1 ;;
  unknown) echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1 ;;
  done) mkdir -p {folder}/read/completions; touch {folder}/read/completions/0000{{0,1,2,3}} ;;
  *) printf '%b\\n' "$answer" ;;
esac
"""


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """Slurm's commands of which squeue and sacct give some answers, one after the other; runs a job of four tasks, and
    returns how often sbatch was called so far."""
    (tmp_path / "bin").mkdir()
    tools = {"sbatch": f"#!/bin/bash\necho $1 >> {tmp_path}/submitted\necho Submitted batch job 7\n"}
    tools |= {tool: QUEUE.format(folder=tmp_path, tool=tool) for tool in ("squeue", "sacct")}
    for name, text in tools.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(engine, "POLL_S", 0.0)

    def run(squeue, sacct=()):
        for tool, answers in {"squeue": squeue, "sacct": sacct}.items():
            (tmp_path / tool).write_text("".join(f"{answer}\n" for answer in answers))
        try:
            engine.run([Odd()], 4, tmp_path / "read", Executor("slurm", partition="cpu"))
        finally:
            assert not (tmp_path / "squeue").read_text()
        return len((tmp_path / "submitted").read_text().splitlines())

    return run


NOTHING, HERE = "", "7_[0-3] cpu R"


def test_an_array_has_ended_when_squeue_has_said_so_twice_and_sacct_does_not_deny_it(queue, tmp_path):
    assert queue([HERE, "error", "error", NOTHING, "error", NOTHING, HERE, NOTHING, HERE, "done"]) == 1
    assert not (tmp_path / "read/slurm_job").exists()


@pytest.mark.parametrize(
    ("squeue", "sacct"),
    [
        ([HERE, NOTHING, NOTHING], []),
        ([HERE, "unknown", "unknown"], ["error"] * 3),
        ([NOTHING] * 4, ["PENDING", "RUNNING", "RUNNING\\nCOMPLETED", "COMPLETED\\nCANCELLED by 1000"]),
        (["error"] * 3, ["RUNNING", "FAILED", "TIMEOUT"]),
    ],
)
def test_what_an_array_has_left_undone_is_told_and_submitted_again(queue, squeue, sacct):
    with pytest.raises(EngineError, match=r"4 of 4 tasks did not finish"):
        queue(squeue, sacct)
    assert queue([HERE, "done"]) == 2


def test_an_array_that_still_runs_is_waited_for_and_not_submitted_again(queue, monkeypatch):
    def stop(seconds):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine.time, "sleep", stop)
        queue([HERE])
    assert queue(["error", NOTHING, HERE, "done"]) == 1


@pytest.mark.parametrize("said", ["lua: 16 cpus asked\n7", "7;west", "Submitted batch job 7 on cluster west"])
def test_a_jobs_number_is_found_among_what_a_site_says(queue, tmp_path, monkeypatch, said):
    def stop(seconds):
        raise KeyboardInterrupt

    (tmp_path / "bin/sbatch").write_text(f"#!/bin/bash\necho >> {tmp_path}/submitted\necho '{said}'\n")
    monkeypatch.setattr(engine.time, "sleep", stop)
    with pytest.raises(KeyboardInterrupt):
        queue([HERE])
    assert (tmp_path / "read/slurm_job").read_text() == "7"


def test_what_sbatch_refuses_is_told(queue, tmp_path):
    (tmp_path / "bin/sbatch").write_text("#!/bin/bash\nexit 1\n")
    with pytest.raises(EngineError, match=r"4 of 4 tasks did not finish .*sbatch.* returned non-zero exit status 1"):
        queue([])


@pytest.mark.slow
def test_a_job_that_shares_nothing_out_is_one_task_with_the_same_bytes(row, slurm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows.write_rows("own.parquet", [row(id=f"q{number}", question=f"Question {number}?") for number in range(30)])
    values = {"sources": [{"name": "rows", "local": "own.parquet"}], "total": 20, "executor": {"partition": "cpu"}}
    found = []
    for engine_name in ("local", "slurm"):
        output_dir = f"out/test/{engine_name}"
        Path(f"{engine_name}.yaml").write_text(yaml.safe_dump(values | {"output_dir": output_dir}))
        command = [sys.executable, "-m", "data_prep.rl_prompts", "--config", f"{engine_name}.yaml", "--engine"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | slurm
        process = subprocess.Popen([*command, engine_name], env=environment, stderr=subprocess.PIPE, text=True)
        found.append((made(process, output_dir), runs.read(Path(output_dir))["rows"]))
    assert found[0] == found[1]
    assert found[0][0].keys() == {"reasoning.parquet", "contaminated.jsonl"}


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(local):
    """A limit on the size of files stands in for the disk: what is written past it fails in the same way."""
    values = yaml.safe_load(Path("job.yaml").read_text()) | {"output_dir": "out/test/full"}
    Path("full.yaml").write_text(yaml.safe_dump(values))
    command = f"ulimit -f 4; {sys.executable} -m data_prep.mixture --config full.yaml"
    path = {"PYTHONPATH": str(ROOT)}
    found = subprocess.run(["bash", "-c", command], env=os.environ | path, capture_output=True, text=True)
    assert found.returncode == 1
    assert "File too large" in found.stderr.splitlines()[-1]
    assert found.stderr.splitlines()[-1].endswith("what is done is kept, and the same command resumes from it")
    command = [sys.executable, "-m", "data_prep.mixture", "--config", "full.yaml"]
    assert (
        made(subprocess.Popen(command, env=os.environ | path, stderr=subprocess.PIPE, text=True), "out/test/full")
        == local
    )


class Odd(PipelineStep):
    """Does its task, save that of number 2."""

    type, name = "test", "odd"

    def __init__(self, kill=False):
        super().__init__()
        self.kill = kill

    def run(self, data=None, rank=0, world_size=1):
        if rank == 2 and self.kill:
            os.kill(os.getpid(), 9)
        if rank == 2:
            raise ValueError("the second is odd")
        yield from ()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failed_task_is_named_with_its_cause_and_its_log(tmp_path, workers):
    with pytest.raises(EngineError, match=r"tasks did not finish .*: the second is odd; see .*read/logs"):
        engine.run([Odd()], 4, tmp_path / "read", Executor(workers=workers))
    assert "the second is odd" in (tmp_path / "read/logs/task_00002.log").read_text()


def test_finished_tasks_are_not_done_again(tmp_path):
    with pytest.raises(EngineError, match=r"2 of 4 tasks did not finish \(2, 3\)"):
        engine.run([Odd()], 4, tmp_path / "read", Executor(workers=1))
    before = (tmp_path / "read/stats/00001.json").stat().st_mtime_ns
    with pytest.raises(EngineError):
        engine.run([Odd()], 4, tmp_path / "read", Executor(workers=1))
    assert (tmp_path / "read/stats/00001.json").stat().st_mtime_ns == before


def test_a_killed_worker_ends_the_job_instead_of_hanging_it(tmp_path):
    code = (
        "import logging, sys; from pathlib import Path; from data_prep import engine; from test_engine import Odd\n"
        "logging.basicConfig()\n"
        "engine.run([Odd(kill=True)], 4, Path('read'), engine.Executor(workers=2))"
    )
    path = {"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | path, capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 1
    assert "was killed, perhaps because memory ran out; the same command resumes" in found.stderr


@pytest.mark.parametrize(
    ("values", "told"),
    [({"kind": "slurm"}, "needs the name of a partition"), ({"workers": -1}, "`executor: workers` is -1")],
)
def test_wrong_settings_are_named(values, told):
    with pytest.raises(ValueError, match=told):
        Executor(**values)


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(OSError, match="full"), runs.whole_file(tmp_path / "a") as file:
        file.write(b"half")
        raise OSError("full")
    assert list(tmp_path.iterdir()) == []
    with runs.whole_file(tmp_path / "a") as file:
        file.write(b"all")
    assert (tmp_path / "a").read_bytes() == b"all"


def test_a_folder_is_discarded_at_once(tmp_path):
    (tmp_path / "work" / "deep").mkdir(parents=True)
    shutil.copytree(tmp_path / "work", tmp_path / ".work.trash")  # of a discard that was cut off
    engine.discard(tmp_path / "work")
    engine.discard(tmp_path / "work")
    assert list(tmp_path.iterdir()) == []
