"""How the pipeline starts its steps: forked where one process on a CPU does the work, else by the command itself.

Each in a process of its own, as the pipeline is: multiprocessing has one fork server for each, begun at its first use.
"""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

pytestmark = pytest.mark.slow

START = """
from pathlib import Path
from recipes.tools import children, pipeline
children.hold_libraries()
for command in {commands}:
    process = children.start(tuple(command), Path("log.txt"), pipeline.child_environment(1))
    process.join()
    print(process.exitcode, Path("log.txt").read_text())
    if (then := Path("then.py")).exists():
        then.rename("job.py")
"""
SCRIPT = """
import sys
import torch
import recipes.base, sibling
print("run as", sys.argv, torch.get_num_threads(), sibling.__file__)
print("libraries were there:", "accelerate.commands.launch" in sys.modules, flush=True)
raise SystemExit(7)
"""


def said_by(folder: Path, *commands: list[str]) -> str:
    driver = START.format(commands=commands)
    return subprocess.run([sys.executable, "-c", driver], cwd=folder, check=True, capture_output=True, text=True).stdout


def launch(folder: Path, processes: int) -> list[str]:
    (folder / "script.py").write_text(SCRIPT)
    (folder / "sibling.py").touch()
    settings = {"use_cpu": True, "num_processes": processes, "num_machines": 1, "machine_rank": 0}
    settings |= {"distributed_type": "MULTI_CPU" if processes > 1 else "NO", "mixed_precision": "no"}
    (folder / "accelerate.yaml").write_text(yaml.safe_dump(settings))
    return ["accelerate", "launch", "--config_file", f"{folder}/accelerate.yaml", f"{folder}/script.py", "--a", "b"]


def test_one_process_is_forked_and_many_are_started_by_the_command(tmp_path: Path) -> None:
    log = said_by(tmp_path, launch(tmp_path, 1))
    assert log.startswith(f"7 $ accelerate launch --config_file {tmp_path}/accelerate.yaml {tmp_path}/script.py --a b")
    assert f"run as ['{tmp_path}/script.py', '--a', 'b'] 1 {tmp_path}/sibling.py" in log
    assert "libraries were there: True" in log
    log = said_by(tmp_path, launch(tmp_path, 2))
    assert log.startswith("1 ")
    assert f"run as ['{tmp_path}/script.py', '--a', 'b'] 1" in log
    assert "libraries were there: False" in log


FAR = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "far"], start_new_session=True)
open("started", "w").close()
time.sleep(600)
"""
KILLED = """
import time
from pathlib import Path
from recipes.tools import children, pipeline
process = children.start(("python", "far.py"), Path("log.txt"), pipeline.child_environment(1))
while not Path("started").exists():
    time.sleep(0.05)
{end}
"""


@pytest.mark.parametrize("end", ["children.end(process)", "import os; os.kill(os.getpid(), 9)"])
def test_what_has_a_session_of_its_own_ends_too(end: str, tmp_path: Path) -> None:
    """As the processes of torch's launcher have."""
    (tmp_path / "far.py").write_text(FAR)
    subprocess.run([sys.executable, "-c", KILLED.format(end=end)], cwd=tmp_path, capture_output=True)
    until = time.monotonic() + 20
    while left := [one for one in psutil.process_iter(["cmdline"]) if (one.info["cmdline"] or [])[-1:] == ["far"]]:
        assert time.monotonic() < until, left
        time.sleep(0.1)


def test_the_code_is_the_one_on_the_disk(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text("import sys; print('first', sys.argv[1:])")
    (tmp_path / "then.py").write_text("import sys; print('second', sys.argv[1:])")
    command = ["python", "-m", "job"]
    log = said_by(tmp_path, [*command, "a"], [*command, "b"])
    assert log == "0 $ python -m job a\nfirst ['a']\n\n0 $ python -m job b\nsecond ['b']\n\n"
