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


PLACES = (
    "create", "auth_check", "info", "tree", "validate", "preupload", "batch", "upload", "verify", "commit", "head",
    "resolve", "download",
)  # fmt: skip
FINAL = (401, 403, 404)


@pytest.mark.parametrize("fault", [*FINAL, 408, 409, 412, 429, 500, 503, "cut", "lost", "slow"])
def test_each_fault_in_each_place(hub: Hub, client: Callable, tmp_path: Path, mixture: Path, fault: str | int) -> None:
    """One that may pass is waited for; one that will not ends the push with what finishes it; nothing is lost."""
    for place in PLACES:
        where, name = f"{fault} in {place}", f"me/{place}-{fault}"
        hub.fail(place, fault)
        status, log, waits = client(tiny.run_push, tmp_path, "outputs/t/mixture", "--hub-model-id", name)
        assert hub.faults == [], f"{where}: never met"
        if fault in FINAL:
            assert status == (2 if place in ("create", "auth_check") else 1), f"{where}: {log}"
            assert (str(fault) in log or "404" in log) and waits == [], where
            if status == 1:
                command = f"python -m data_prep.push outputs/t/mixture --hub-model-id {name}"
                assert log.splitlines()[-1] == command, where
            status, log, waits = client(tiny.run_push, tmp_path, "outputs/t/mixture", "--hub-model-id", name)
        assert status == 0, f"{where}: {log}"
        assert hub.files("datasets", name)["train.parquet"] == (mixture / "train.parquet").read_bytes(), where
        assert len(hub.repo("datasets", name).commits) == 2, where
        if fault == 429:
            assert waits and max(waits) >= 7, where
