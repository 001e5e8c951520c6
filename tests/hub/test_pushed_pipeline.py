"""The whole pipeline at the scale of tests/configs/tiny: pushed step by step, and loaded again once nothing of it is
left on disk."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny
import yaml
from hub_server import Hub
from tiny_run import SCALE

pytestmark = pytest.mark.slow


@pytest.fixture
def outputs(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of `outputs/tiny` of the session's one run of the pipeline, or of the run that --outputs names."""
    made = request.config.getoption("--outputs") or request.getfixturevalue("whole") / "outputs" / "tiny"
    return shutil.copytree(made, tmp_path / "outputs" / made.name)


def rows_of(name: str, config: str, streaming: bool) -> list[dict]:
    from datasets import load_dataset

    return list(load_dataset(name, config, split="train", streaming=streaming))


def score_of(name: str) -> float:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(name)
    return model(**AutoTokenizer.from_pretrained(name)("What is 2 + 3?", return_tensors="pt")).logits.item()


def test_every_kind_of_stage_and_job_pushes_by_its_own_yaml(hub: Hub, client: Callable, outputs: Path) -> None:
    """Each is done, so that its command does nothing but push."""
    here = outputs.parents[1]
    scripts = {name: f"recipes/{name}.py" for name in ("r1_zero", "sft_stage_2", "reward_models")}
    for name, target in (scripts | {"mixture": "data_prep.mixture"}).items():
        settings = yaml.safe_load((SCALE / f"{name}.yaml").read_text())
        settings |= {"push_to_hub": True, "hub_model_id": f"me/own-{name}"}
        status, log = client(tiny.run_command, here, target, settings)
        assert status == 0 and "is done already" in log, log
    for name in ("r1_zero", "sft_stage_2"):
        assert client(tiny.logits, f"me/own-{name}") == client(tiny.logits, str(outputs / name))
    for name in ("helpfulness", "harmlessness"):
        assert client(score_of, f"me/own-reward_models-{name}") == client(
            score_of, str(outputs / "reward_models" / name)
        )
    assert client(contract_rows, "me/own-mixture") == pq.read_table(outputs / "mixture" / "train.parquet").to_pylist()


def contract_rows(name: str) -> list[dict]:
    from data_prep import rows

    return rows.load_rows(name, sft=True)


def test_all_of_it_comes_back_from_the_hub_alone(hub: Hub, client: Callable, outputs: Path) -> None:
    here = outputs.parents[1]
    records = sorted(outputs.glob("*/run.json"), key=lambda path: path.stat().st_mtime)
    for step in [*(path.parent for path in records), outputs / "report"]:
        name = f"me/tiny-{step.name}"
        status, log, _ = client(tiny.run_push, here, str(step.relative_to(here)), "--hub-model-id", name)
        assert status == 0, f"{step.name}: {log}"
    tables = {path: pq.read_table(path).to_pylist() for path in outputs.glob("*/*.parquet")}
    models = {path.parent: client(tiny.logits, str(path.parent)) for path in outputs.glob("*/config.json")}
    scores = {path.parent: client(score_of, str(path.parent)) for path in outputs.glob("reward_models/*/config.json")}
    assert (len(models), len(scores)) == (10, 2) and len(tables) > 20
    shutil.rmtree(outputs)
    for number, (path, rows) in enumerate(tables.items()):
        assert client(rows_of, f"me/tiny-{path.parent.name}", path.stem, streaming=bool(number % 2)) == rows, path
    for folder, said in models.items():
        assert client(tiny.logits, f"me/tiny-{folder.name}") == said, folder
    for folder, said in scores.items():
        assert client(score_of, f"me/tiny-reward_models-{folder.name}") == said, folder
    by_run = {path.parent.name: rows for path, rows in tables.items()}
    assert client(contract_rows, "me/tiny-mixture") == by_run["mixture"]
    assert client(rows_of, "me/tiny-report", "r1", streaming=False) == by_run["evaluate_r1"]
    card = hub.files("models", "me/tiny-all_scenarios_rl")["README.md"].decode()
    for said in ("base_model: me/tiny-sft_stage_2", "- me/tiny-world", "HelpfulnessReward", "model-index"):
        assert said in card
    assert "samples_a_problem: 16" in card and "standard_error" in card
