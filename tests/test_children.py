"""How the pipeline starts its steps: forked where one process on a CPU does the work, else by the command itself."""

from pathlib import Path

from recipes.tools import children, pipeline

import pytest
import yaml

pytestmark = pytest.mark.slow

SCRIPT = """
import sys
import torch
import recipes.base, sibling
print("run as", sys.argv, torch.get_num_threads(), sibling.__file__)
print("libraries were there:", "accelerate.commands.launch" in sys.modules, flush=True)
raise SystemExit(7)
"""


def said_by(folder: Path, processes: int) -> tuple[str, int]:
    (folder / "script.py").write_text(SCRIPT)
    (folder / "sibling.py").touch()
    settings = {"use_cpu": True, "num_processes": processes, "num_machines": 1, "machine_rank": 0}
    settings |= {"distributed_type": "MULTI_CPU" if processes > 1 else "NO", "mixed_precision": "no"}
    (folder / "accelerate.yaml").write_text(yaml.safe_dump(settings))
    command = ("accelerate", "launch", "--config_file", f"{folder}/accelerate.yaml", f"{folder}/script.py", "--a", "b")
    process = children.start(command, folder / "log.txt", pipeline.child_environment(1))
    process.join()
    return (folder / "log.txt").read_text(), process.exitcode


def test_one_process_is_forked_and_many_are_started_by_the_command(tmp_path: Path) -> None:
    children.hold_libraries()
    log, code = said_by(tmp_path, 1)
    assert log.startswith(f"$ accelerate launch --config_file {tmp_path}/accelerate.yaml {tmp_path}/script.py --a b\n")
    assert f"run as ['{tmp_path}/script.py', '--a', 'b'] 1 {tmp_path}/sibling.py" in log
    assert "libraries were there: True" in log
    assert code == 7
    log, code = said_by(tmp_path, 2)
    assert f"run as ['{tmp_path}/script.py', '--a', 'b'] 1" in log
    assert "libraries were there: False" in log
    assert code == 1


def test_the_code_is_the_one_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    log = tmp_path / "log.txt"
    for answer in ("first", "second"):
        (tmp_path / "job.py").write_text(f"import sys; print('{answer}', sys.argv[1:])")
        children.start(("python", "-m", "job", answer), log, pipeline.child_environment(None)).join()
        assert f"{answer} ['{answer}']" in log.read_text()
