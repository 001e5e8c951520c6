"""Stages and jobs whose YAML says `push_to_hub: true`, by their own commands, against the server."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

from data_prep import rows

import pyarrow.parquet as pq
import pytest
import tiny
from hub_server import WRITER, Hub

pytestmark = pytest.mark.slow

SFT = {
    "model_name_or_path": "outputs/t/base",
    "dataset": "outputs/t/mixture/train.parquet",
    "learning_rate": 1e-2,
    "batch_size": 4,
    "per_device_train_batch_size": 4,
    "max_length": 256,
    "max_steps": 3,
    "save_steps": 2,
    "logging_steps": 1,
    "use_peft": True,
    "lora_r": 4,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
}


@pytest.fixture
def here(tmp_path: Path, client: Callable) -> Path:
    """A working directory with a base, which is on the Hub, and rows, which are not."""
    mixture = tiny.save_run(tmp_path, "mixture", {"total": 40}, seed=0, inputs=[], rows=40)
    rows.write_rows(mixture / "train.parquet", tiny.sums(40), sft=True)
    client(tiny.save_model, str(tiny.save_run(tmp_path, "base", {"vocab_size": 260}, inputs=[])))
    return tmp_path


def adapter_logits(name: str) -> list[float]:
    """What the adapter of a model says, on the base that its own config names."""
    import torch
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = PeftConfig.from_pretrained(name, subfolder="adapter")
    base = AutoModelForCausalLM.from_pretrained(config.base_model_name_or_path, revision=config.revision)
    model = PeftModel.from_pretrained(base, name, subfolder="adapter")
    tokenizer = AutoTokenizer.from_pretrained(name)
    asked = [{"role": "user", "content": "What is 2 + 3?"}]
    inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        return model(inputs["input_ids"]).logits[0, -1].tolist()


def texts(content: bytes) -> bytes:
    """A file with what is packed in it: the members of an archive, the values of a Parquet file."""
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return b"".join(archive.read(name) for name in archive.namelist())
    if content.startswith(b"PAR1"):
        return repr(pq.read_table(io.BytesIO(content)).to_pylist()).encode()
    return content


def test_an_adapter_and_its_checkpoints_load_from_the_hub_alone(hub: Hub, client: Callable, here: Path) -> None:
    settings = SFT | {"output_dir": "outputs/t/sft", "push_to_hub": True, "hub_model_id": "me/stage"}
    settings |= {"hub_strategy": "all_checkpoints"}

    # Its base is nowhere to be had, which is said before any training.
    status, log = client(tiny.run_command, here, "recipes/cold_start_sft.py", settings)
    assert status == 2 and "python -m data_prep.push outputs/t/base --hub-model-id" in log, log
    assert not (here / "outputs/t/sft/log.jsonl").exists()

    # A push that fails leaves a run that is done, and its last words finish it.
    assert client(tiny.run_push, here, "outputs/t/base", "--hub-model-id", "me/stage-base")[0] == 0
    hub.fail("commit", 403)
    status, log = client(tiny.run_command, here, "recipes/cold_start_sft.py", settings)
    assert status == 1, log
    last = log.strip().splitlines()[-1]
    assert last == "python -m data_prep.push --hub-model-id me/stage outputs/t/sft --checkpoints"
    assert (here / "outputs/t/sft/run.json").exists()
    before = (here / "outputs/t/sft/model.safetensors").stat().st_mtime_ns

    # The same stage, asked again, pushes only.
    status, again = client(tiny.run_command, here, "recipes/cold_start_sft.py", settings)
    assert status == 0, again
    assert (here / "outputs/t/sft/model.safetensors").stat().st_mtime_ns == before
    merged = client(tiny.logits, str(here / "outputs/t/sft"))
    (here / "outputs").rename(here / "gone")
    assert client(tiny.logits, "me/stage") == merged
    assert client(adapter_logits, "me/stage") == pytest.approx(merged, abs=1e-4)
    config = json.loads(hub.files("models", "me/stage")["adapter/adapter_config.json"])
    assert config["base_model_name_or_path"] == "me/stage-base"
    assert config["revision"] == hub.repo("models", "me/stage-base").branches["main"]
    assert hub.repo("models", "me/stage").branches.keys() == {"main", "checkpoint-2"}
    state = hub.files("models", "me/stage", "checkpoint-2")
    assert {"adapter_model.safetensors", "optimizer.pt", "trainer_state.json", "complete.json"} <= state.keys()
    assert "model.safetensors" not in state
    assert json.loads(state["adapter_config.json"])["base_model_name_or_path"] == "me/stage-base"

    # Nobody's token is in anything: neither what was uploaded, nor what was said, nor what lies here.
    repositories = [repo for repo in hub.repos.values() if repo.name.startswith("me/stage")]
    commits = [commit for repo in repositories for commit in repo.commits.values()]
    uploaded = [(path, hub.blobs[file.sha256]) for commit in commits for path, file in commit.files.items()]
    assert len(uploaded) > 20
    assert not [path for path, content in uploaded if WRITER.encode() in texts(content)]
    assert not [path for path, _ in uploaded if path.endswith("training_args.bin")]
    assert WRITER not in log + again
    local = [path for path in here.rglob("*") if path.is_file()]
    assert not [path for path in local if WRITER.encode() in texts(path.read_bytes())]
