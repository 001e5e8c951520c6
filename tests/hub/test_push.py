"""`python -m data_prep.push` against the server: what lies on disk arrives, explains itself, and is not lost."""

from collections.abc import Callable
from pathlib import Path

from data_prep import rows

import pytest
import tiny
from hub_server import Hub


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    folder = tiny.save_run(tmp_path, "mixture", {"total": 40}, seed=0, inputs=[], rows=40)
    rows.write_rows(folder / "train.parquet", tiny.sums(40), sft=True)
    return folder


@pytest.fixture
def sft(tmp_path: Path, mixture: Path, client: Callable) -> Path:
    """A model that was trained on the mixture, from a base that was not pushed."""
    base = tiny.save_run(tmp_path, "base", {"vocab_size": 300}, inputs=[])
    client(tiny.save_model, str(base), 1)
    config = {"dataset": "outputs/t/mixture/train.parquet", "learning_rate": 1e-3, "batch_size": 8, "seed": 42}
    inputs = ["outputs/t/base", "outputs/t/mixture"]
    folder = tiny.save_run(tmp_path, "sft", config, parent="outputs/t/base", inputs=inputs, steps=3)
    client(tiny.save_model, str(folder), 2)
    log = '{"step": 1, "max_steps": 2, "loss": 2.0}\n{"step": 2, "max_steps": 2, "loss": 1.0}\n'
    (folder / "log.jsonl").write_text(log)
    return folder


def load_rows(name: str, streaming: bool) -> list[dict]:
    from datasets import load_dataset

    return list(load_dataset(name, split="train", streaming=streaming))


def test_a_data_set_arrives_with_its_card(hub: Hub, client: Callable, tmp_path: Path, mixture: Path) -> None:
    status, log, waits = client(tiny.run_push, tmp_path, "outputs/t/mixture", "--hub-model-id", "me/mixture")
    assert (status, waits) == (0, []), log
    assert client(load_rows, "me/mixture", False) == client(load_rows, "me/mixture", True) == tiny.sums(40)
    card = hub.files("datasets", "me/mixture")["README.md"].decode()
    assert "license: apache-2.0" in card and "# Mixture" in card
    assert hub.repo("datasets", "me/mixture").private


def test_a_model_arrives_with_its_card(hub: Hub, client: Callable, tmp_path: Path, sft: Path) -> None:
    status, log, waits = client(tiny.run_push, tmp_path, "outputs/t/sft", "--hub-model-id", "me/sft")
    assert (status, waits) == (0, []), log
    assert client(tiny.logits, "me/sft") == client(tiny.logits, str(sft))
