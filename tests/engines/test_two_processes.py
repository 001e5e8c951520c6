"""Two processes train what one does, whatever spreads the weights: each cell of the matrix in docs/scales.md."""

import json
import time
from pathlib import Path

import cells
import pytest
import torch
from conftest import REPOSITORY, kill, launch, log_of, record_of
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

each = pytest.mark.parametrize("case", cells.CASES, ids=lambda case: case.name)
sampled = [case for case in cells.CASES if case.samples]
spread = [case for case in sampled if case.config != "ddp" and case._replace(config="ddp") in sampled]
METRICS = ("loss", "kl", "reward", "num_tokens")  # means of means, such as entropy, are another matter


def parts(folder: Path) -> list[Path]:
    """The models that a run leaves: one, or two reward models."""
    both = [folder / "helpfulness", folder / "harmlessness"]
    return both if both[0].is_dir() else [folder]


def assert_alike(one: list[dict], other: list[dict], tolerance: float = 1e-6) -> None:
    assert [row["step"] for row in one] == [row["step"] for row in other] == [1, 2, 3, 4]
    for name in METRICS:
        here, there = ([row.get(name, 0.0) for row in rows] for rows in (one, other))
        assert here == pytest.approx(there, abs=tolerance, rel=tolerance), name
    here, there = ([row["grad_norm"] for row in rows] for rows in (one, other))
    assert here == pytest.approx(there, rel=1e-3)


@each
def test_losses_are_those_of_one_process(case, world):
    """GRPO: on the completions that one process sampled."""
    for two, one in zip(parts(world.folder_of(case)), parts(world.folder_of(case, "one")), strict=True):
        assert_alike(log_of(two), log_of(one))
    key = "completion_tokens_trained"
    assert record_of(world.folder_of(case)).get(key) == record_of(world.folder_of(case, "one")).get(key)


@each
def test_killed_and_resumed_is_as_not_killed(case, world):
    """From the checkpoint at step 2, which is all that a kill after it would leave."""
    pairs = zip(parts(world.folder_of(case)), parts(world.folder_of(case, "straight")), strict=True)
    for resumed, straight in pairs:
        assert (resumed / "checkpoint-2").is_dir()
        assert_alike(log_of(resumed), log_of(straight), 1e-7)
        here, there = (load_file(folder / "model.safetensors") for folder in (resumed, straight))
        assert all(here[name].allclose(there[name], atol=1e-6) for name in there)


@pytest.mark.parametrize("case", sampled, ids=lambda case: case.name)
@pytest.mark.parametrize("kind", ["straight", "", "live"])
def test_kl_is_zero_at_the_start_and_after_each_refresh(case, kind, world):
    """The reference is refreshed after steps 2 and 4, and the run resumed at step 2."""
    kl = {row["step"]: row["kl"] for row in log_of(world.folder_of(case, kind))}
    assert kl[1] == kl[3] == 0.0
    assert kl[2] > 1e-5 < kl[4]


@pytest.mark.parametrize("case", spread, ids=lambda case: case.name)
def test_sampling_by_itself_it_equals_ddp(case, world):
    ddp = world.folder_of(case._replace(config="ddp"), "live")
    assert_alike(log_of(world.folder_of(case, "live")), log_of(ddp))


@each
def test_the_model_is_that_of_one_process_and_loads(case, world):
    for two, one in zip(parts(world.folder_of(case)), parts(world.folder_of(case, "one")), strict=True):
        here, there = (load_file(folder / "model.safetensors") for folder in (two, one))
        assert here.keys() == there.keys()
        apart = torch.cat([(here[name] - there[name]).abs().flatten() for name in there])
        # Steps of 1e-3, which Adam takes for the gradients' signs where they are next to nothing, as some are in RL and
        # those of a few numbers of an expert that hardly a token meets (2 of 191,944 on a CPU with AVX512: 3e-6).
        assert apart.max() < (1e-4 if case.samples else 1e-5)
        assert case.samples or (apart > 1e-6).sum() <= len(apart) / 10_000
        config = json.loads((two / "config.json").read_text())
        assert config == json.loads((one / "config.json").read_text())
        scorer = "SequenceClassification" in config["architectures"][0]
        kind = AutoModelForSequenceClassification if scorer else AutoModelForCausalLM
        model, info = kind.from_pretrained(two, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert (two / "tokenizer_config.json").is_file()
        if case.column != "full" and case.column != "moe_qlora":  # tests/recipes/test_moe_qlora.py loads those
            tokens = torch.arange(20, 60).view(1, 40)
            parent, more = f"outputs/t/{case.family}", {"num_labels": 1} if scorer else {}
            adapted = PeftModel.from_pretrained(kind.from_pretrained(parent, **more), two / "adapter")
            with torch.no_grad():
                assert torch.allclose(model(tokens).logits, adapted(tokens).logits, atol=1e-5)


def test_a_real_kill_changes_nothing(world):
    """SIGKILL to all processes as soon as the checkpoint of step 2 is complete."""
    case = cells.Case("zero3", "lora", cells.LORA_RL)
    straight = log_of(world.folder_of(case, "straight"))
    settings = world.settings(case) | {"use_cpu": False, "ddp_backend": "gloo"}
    job = {"argv": world.yaml(f"{case.name}-killed", settings), "replay": True}
    job["completions"] = f"{case.column}-{case.recipe}-{case.family}.json".replace("/", "-")
    folder = world.folder / f"outputs/t/{case.name}-killed"
    process = world.start("zero3", [job], num_machines=1, num_processes=2, main_process_port=19999)
    while not (folder / "checkpoint-2/complete.json").exists():
        assert process.poll() is None
        time.sleep(0.001)
    kill(process)
    assert not (folder / "run.json").exists()
    process = world.start("zero3", [job], num_machines=1, num_processes=2, main_process_port=19998)
    assert process.wait(300) == 0
    assert record_of(folder)["tries"] == 2
    assert_alike(log_of(folder), straight, 1e-7)


# What is tested is what is shipped


def test_nothing_else_may_be_said_otherwise():
    for key in ("zero_stage", "fsdp_cpu_ram_efficient_loading", "zero3_init_flag", "fsdp_state_dict_type"):
        with pytest.raises(ValueError, match=key):
            launch("zero3", ["stage.py"], **{key: "false"})


def test_every_shipped_config_is_run():
    """On two processes, save those for one: single_gpu in what these are compared with, cpu in the other tests. With
    two, ddp is ddp_2."""
    shipped = {path.stem for path in (REPOSITORY / "accelerate_configs").glob("*.yaml")}
    assert shipped == set(cells.CONFIGS) | {"cpu", "single_gpu", "ddp_2"}


def test_versions_are_the_pins():
    from importlib.metadata import version

    for name in ("requirements.txt", "requirements-gpu.txt"):
        for line in (REPOSITORY / name).read_text(encoding="utf-8").splitlines():
            package, pinned, wanted = line.split("#")[0].strip().partition("==")
            if pinned:
                assert version(package).partition("+")[0] == wanted, package
