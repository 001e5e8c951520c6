"""QLoRA on a mixture of experts in two processes, which choose different experts."""

import os
import subprocess
import sys
from pathlib import Path

import recipes
from data_prep import runs
from recipes import checkpoints

import moe
import pytest
import yaml
from conftest import SFT, log_of, record_of
from transformers import AutoTokenizer


@pytest.mark.slow
def test_two_processes_train_one_adapter(here):
    tokenizer = AutoTokenizer.from_pretrained("outputs/t/base")
    parent = moe.write(Path("outputs/t/moe"), "deepseek_v3", vocab=len(tokenizer))
    tokenizer.save_pretrained(parent)
    runs.finish(parent)
    settings = SFT | {"load_in_4bit": True, "lora_r": 4, "model_name_or_path": str(parent), "max_steps": 4}
    settings["dtype"] = "float32"
    script = Path(recipes.__file__).with_name("cold_start_sft.py")
    for name, start in (
        ("one", [sys.executable]),
        ("two", [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]),
    ):
        settings["output_dir"] = f"outputs/t/{name}"
        both = {"ddp_backend": "gloo"} if name == "two" else {}
        Path(f"{name}.yaml").write_text(yaml.safe_dump(settings | both), encoding="utf-8")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parents[1])}
        done = subprocess.run(
            [*start, str(script), "--config", f"{name}.yaml"], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (log_of(Path("outputs/t") / name) for name in ("one", "two"))
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], abs=2e-3)
    key = "experts_never_routed_to"
    assert record_of(Path("outputs/t/two"))["experts"] == 8
    assert record_of(Path("outputs/t/two"))[key] == record_of(Path("outputs/t/one"))[key]
    one, two = (checkpoints.record_of(Path("outputs/t") / name / "checkpoint-3")["routed"] for name in ("one", "two"))
    assert two == [pytest.approx(row, rel=0.05) for row in one]  # the tokens of both processes
