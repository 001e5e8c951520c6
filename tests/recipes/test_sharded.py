"""Weights that are gathered and written tensor by tensor are those that `save_pretrained` writes at once."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import recipes
from data_prep import runs
from data_prep.runs import ConfigError
from recipes import checks, sharded

import moe
import pytest
import torch
from conftest import SFT
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from transformers.integrations import is_deepspeed_zero3_enabled

ROOT = Path(recipes.__file__).parents[1]
SHIPPED = [path for path in sorted(ROOT.glob("recipes/configs/*/*.yaml")) if "\naccelerate_config:" in path.read_text()]


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: one for file in folder.glob("*.safetensors") for name, one in load_file(file).items()}


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "mixtral"])
@pytest.mark.parametrize("largest", [10**5, 10**9])
def test_a_model_is_written_as_published(family, largest, tmp_path, monkeypatch):
    monkeypatch.setattr(sharded, "LARGEST", largest)
    model = AutoModelForCausalLM.from_pretrained(moe.write(tmp_path / "parent", family))
    for folder in ("ours", "theirs"):
        (tmp_path / folder).mkdir()
    sharded.save(model, tmp_path / "ours", writes=True)
    model.save_pretrained(tmp_path / "theirs")
    ours, theirs = (tensors_of(tmp_path / folder) for folder in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in theirs)
    for name in ("config.json", "generation_config.json"):
        assert (tmp_path / "ours" / name).read_text() == (tmp_path / "theirs" / name).read_text()
    index = tmp_path / "ours/model.safetensors.index.json"
    assert index.is_file() == (largest < 10**9)
    if index.is_file():
        named = json.loads(index.read_text())["weight_map"]
        assert named.keys() == ours.keys()
        assert {path.name for path in (tmp_path / "ours").glob("*.safetensors")} == set(named.values())
    _, info = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_tied_weights_are_written_once(made, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(made / "outputs/t/base")
    sharded.save(model, tmp_path, writes=True)
    assert "lm_head.weight" not in tensors_of(tmp_path)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_what_does_not_write_leaves_nothing(made, tmp_path):
    sharded.save(AutoModelForCausalLM.from_pretrained(made / "outputs/t/base"), tmp_path, writes=False)
    assert list(tmp_path.iterdir()) == []


def test_what_is_stored_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(sharded, "LARGEST", 100)
    named = {name: torch.nn.Parameter(torch.randn(5, 3)) for name in "abc"}
    sharded.store(named, tmp_path / "reference", writes=True)
    other = {name: torch.nn.Parameter(torch.zeros(5, 3)) for name in named}
    sharded.restore(other, tmp_path / "reference")
    assert all(other[name].equal(named[name]) for name in named)


def test_the_size_is_that_of_all_parts():
    part = torch.empty(0)
    part.ds_shape = torch.Size((3, 4))  # as ZeRO-3 leaves it
    assert sharded.shape(part) == (3, 4)
    assert sharded.nbytes(part) == sharded.nbytes(torch.empty(3, 4)) == 48


def test_broken_weights_are_named():
    sound = {"a": torch.ones(2, 2), "norm": torch.zeros(2), "steps": torch.zeros(2, 2, dtype=torch.long)}
    broken = {"b": torch.zeros(2, 2), "c": torch.tensor([[1.0, float("nan")]])}
    assert sharded.broken(sound | broken, torch.device("cpu")) == ["b", "c"]


def test_a_reward_model_is_whole(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with sharded.whole_models():
        assert os.environ["ACCELERATE_USE_FSDP"] == "false"
        assert not is_deepspeed_zero3_enabled()
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"


def test_the_first_fsdp_is_refused_with_the_doctor_or_without(refuses, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    for doctor in (True, False):
        assert "fsdp_version: 2" in refuses("cold_start_sft", SFT | {"max_steps": 1, "doctor": doctor})
    assert "flattens weights" in str(pytest.raises(ConfigError, sharded.refuse_fsdp_1).value)


def test_the_doctor_reads_the_version_of_fsdp_from_an_accelerate_config(tmp_path):
    for version, refused in ((1, True), (2, False)):
        path = tmp_path / "fsdp.yaml"
        path.write_text(f"distributed_type: FSDP\nfsdp_config:\n  fsdp_version: {version}\n", encoding="utf-8")
        assert sharded.is_fsdp_1(checks.launched(path)) == refused


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: "-".join(path.parts[-2:]))
def test_no_shipped_combination_is_refused(path):
    settings = runs.load_config(path)
    args = SimpleNamespace(load_in_4bit=False, use_peft=False, dtype="float32")
    vars(args).update({key: value for key, value in settings.items() if key in vars(args)})
    launched = checks.launched(ROOT / settings["accelerate_config"])
    assert [one for one in checks.settings.of_sharding(args, None, launched) if one.stops] == []
