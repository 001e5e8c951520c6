"""Live curves: `report_to` in a YAML, as the README says."""

import subprocess
import sys
from pathlib import Path

import recipes

import pytest
import yaml
from conftest import GRPO

pytestmark = pytest.mark.slow


def test_trackio_keeps_the_curves_on_this_machine(here: Path, offline: tuple[Path, dict[str, str]]) -> None:
    settings = GRPO | {"output_dir": "outputs/t/tracked", "reward_funcs": ["format_reward"], "max_steps": 2}
    settings |= {"report_to": "trackio", "project": "ours", "run_name": "first"}
    (here / "tracked.yaml").write_text(yaml.safe_dump(settings))
    environment = offline[1] | {"TRACKIO_DIR": str(here / "trackio"), "FORBIDDEN_LOG": str(here / "forbidden.log")}
    script = Path(recipes.__file__).with_name("r1_zero.py")
    subprocess.run([sys.executable, script, "--config", "tracked.yaml"], cwd=here, env=environment, check=True)
    command = [Path(sys.executable).with_name("trackio"), "list", "metrics", "--project", "ours", "--run", "first"]
    listed = subprocess.run(command, cwd=here, env=environment, check=True, capture_output=True, text=True).stdout
    assert {"train/reward", "train/kl", "train/completions/mean_length"} <= set(listed.replace("- ", "").split())
    assert not (here / "forbidden.log").exists()
