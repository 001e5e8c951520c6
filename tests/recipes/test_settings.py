"""Settings: the paper's values, a YAML's departures, and errors that say what to write instead."""

import re
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import recipes
from data_prep.runs import ConfigError
from recipes import (
    all_scenarios_rl,
    base,
    commandline,
    config,
    distill,
    r1_zero,
    reasoning_rl,
    reward_models,
    trl_configs,
    trl_keys,
)
from recipes.commandline import given, parse
from recipes.config import GRPOConfig, PolicyArguments, RewardConfig, SFTConfig

import pytest
import torch
import trl
import yaml
from conftest import CPU, GRPO, SFT

CLASSES = {
    "base": (base.BaseArguments, SFTConfig),
    "r1_zero": (r1_zero.R1ZeroArguments, GRPOConfig),
    "cold_start_sft": (PolicyArguments, SFTConfig),
    "reasoning_rl": (reasoning_rl.ReasoningRLArguments, GRPOConfig),
    "sft_stage_2": (PolicyArguments, SFTConfig),
    "reward_models": (reward_models.RewardModelArguments, RewardConfig),
    "all_scenarios_rl": (all_scenarios_rl.AllScenariosArguments, GRPOConfig),
    "distill": (distill.DistillArguments, SFTConfig),
}
VARIANTS = {"student_base": "base", "student_rl": "r1_zero", "reasoning_rl_no_language": "reasoning_rl"}
REPOSITORY = Path(recipes.__file__).parents[1]
FOLDERS = [REPOSITORY / "recipes/configs/cpu", REPOSITORY / "tests/configs/tiny"]


def write(folder: Path, settings: dict) -> list[str]:
    path = folder / "stage.yaml"
    path.write_text(yaml.safe_dump({"output_dir": str(folder)} | settings), encoding="utf-8")
    return ["--config", str(path)]


def test_grpo_defaults_are_the_papers(tmp_path):
    grpo = trl_configs.GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    assert (grpo.learning_rate, grpo.lr_scheduler_type, grpo.beta, grpo.temperature) == (3e-6, "constant", 0.001, 1.0)
    assert (grpo.num_generations, grpo.prompts_per_step, grpo.generation_batch_size) == (16, 32, 8192)
    assert (grpo.max_completion_length, grpo.max_steps, grpo.num_iterations) == (32768, 10400, 1)
    assert (grpo.sync_ref_model, grpo.ref_model_sync_steps, grpo.ref_model_mixup_alpha) == (True, 400, 1.0)
    assert (grpo.loss_type, grpo.scale_rewards, grpo.use_bias_correction_kl) == ("grpo", "group", False)
    assert grpo.gradient_accumulation_steps * grpo.per_device_train_batch_size == 512
    assert grpo.rollout_window == 16
    assert grpo.steps_per_generation == 16 * grpo.gradient_accumulation_steps
    assert grpo.save_steps % grpo.rollout_window == 0


def test_sft_and_reward_model_defaults_are_the_papers(tmp_path):
    sft = trl_configs.SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    assert (sft.learning_rate, sft.lr_scheduler_type, sft.num_train_epochs) == (5e-5, "cosine_with_min_lr", 2)
    assert sft.learning_rate * sft.lr_scheduler_kwargs["min_lr_rate"] == pytest.approx(5e-6)
    assert sft.gradient_accumulation_steps * sft.per_device_train_batch_size == 128
    assert (sft.max_length, sft.packing) == (32768, False)
    scorer = trl_configs.RewardConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    assert (scorer.learning_rate, scorer.num_train_epochs, scorer.max_length) == (6e-6, 1, 8192)
    assert scorer.gradient_accumulation_steps * scorer.per_device_train_batch_size == 256


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_yaml_for_a_gpu_says_that_there_is_none():
    path = REPOSITORY / "recipes/configs/gpu-24gb/r1_zero.yaml"
    with pytest.raises(ConfigError, match=r"r1_zero.yaml: no GPU is visible.*`use_cpu: true`"):
        parse(*CLASSES["r1_zero"], argv=["--config", str(path)])


def test_every_unprinted_default_has_its_reason():
    """A default that a config class changes is either the paper's, named by a section above it, or `chosen:`."""
    source = (REPOSITORY / "recipes/config.py").read_text(encoding="utf-8")
    unprinted = ("epsilon", "max_grad_norm", "top_p", "warmup_steps", "save_steps", "logging_steps", "save_total_limit")
    for key in unprinted:
        lines = re.findall(rf"^    {key}: .*$", source, re.MULTILINE)
        assert lines and all("# chosen" in line for line in lines), key


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_yaml_of_a_training_stage_parses(folder, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    for stage in [*CLASSES, *VARIANTS]:
        arguments, trainer = parse(
            *CLASSES[VARIANTS.get(stage, stage)], argv=["--config", str(folder / f"{stage}.yaml"), "--seed", "5"]
        )
        assert trainer.output_dir == f"outputs/{folder.name}/{stage}"
        assert trainer.seed == 5
        assert "chosen" not in (folder / f"{stage}.yaml").read_text(encoding="utf-8")
        assert not getattr(arguments, "bf16", False)


def test_the_command_line_wins(tmp_path):
    _, settings = parse(*CLASSES["r1_zero"], argv=[*write(tmp_path, GRPO | {"seed": 1}), "--seed", "3"])
    assert settings.seed == 3
    assert settings.gradient_accumulation_steps == 1


@pytest.mark.parametrize(
    ("words", "read"),
    [
        ("--packing false --lora_target_modules q --packing false", {"packing": False, "lora_target_modules": ["q"]}),
        ("--seed 3 --max_steps 4 --seed 5", {"seed": 5, "max_steps": 4}),
        ("--no_include_num_input_tokens_seen", {"include_num_input_tokens_seen": False}),  # true, false or text
        ("--seed 010 --max_length none --max_steps -1", {"seed": 10, "max_length": None, "max_steps": -1}),
        ("--max_length=", "`max_length` is ''; write a value of type int"),
        ("--learning_rate nan", "`learning_rate` is 'nan'; write a value of type float"),
        ("--lora_target_modules q -seed 3", "unrecognized arguments: -seed"),
        ("--config", "--config names no file"),
    ],
)
def test_words_of_a_command_line(words, read):
    def settings():
        args, settings, _ = commandline.read(PolicyArguments, SFTConfig, words.split())
        return vars(args) | settings

    if isinstance(read, dict):
        assert settings().items() >= read.items()
    else:
        with pytest.raises(ConfigError, match=f"command line: {read}"):
            settings()


def test_the_number_of_processes_shares_a_batch(monkeypatch):
    monkeypatch.setattr(config, "world_size", lambda: 4)
    assert config._micro_batches(128, 8) == 4
    with pytest.raises(ConfigError, match="batch_size 128 does not divide.* = 48 x 4"):
        config._micro_batches(128, 48)


def test_the_batch_is_said_as_an_equation(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "world_size", lambda: 8)
    settings = trl_configs.GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, generation="vllm_server")
    assert settings.equation == (
        "32 prompts x 16 completions = 512 a step = 16 in a micro batch x 8 processes x 4 accumulated; "
        "8192 are sampled at once, which makes 16 steps"
    )
    assert (settings.use_vllm, settings.vllm_mode) == (True, "server")


def test_a_group_that_a_reward_needs_whole_is_not_split(tmp_path, monkeypatch):
    argv = write(tmp_path, GRPO | {"reward_funcs": ["length_reward"], "per_device_train_batch_size": 1})
    parse(*CLASSES["r1_zero"], argv=argv)
    monkeypatch.setattr(config, "world_size", lambda: 8)  # 16 completions at once: two each, of groups of 4
    with pytest.raises(ConfigError, match="length_reward compares the 4 .* 8 processes gets 2 .* a multiple of 32"):
        parse(*CLASSES["r1_zero"], argv=argv)


@pytest.mark.parametrize(
    ("stage", "wrong", "said"),
    [
        ("r1_zero", {"learning_rat": 1e-4}, r"stage.yaml: unknown key `learning_rat`; did you mean `learning_rate`"),
        ("cold_start_sft", {"reward_funcs": []}, r"unknown key `reward_funcs`"),
        ("r1_zero", {"max_steps": "many"}, r"stage.yaml: `max_steps` is 'many'; write a value of type int"),
        ("r1_zero", {"learning_rate": "fast"}, r"`learning_rate` is 'fast'.*float"),
        ("r1_zero", {"use_cpu": "perhaps"}, r"`use_cpu` is 'perhaps'.*bool"),
        ("r1_zero", {"reward_funcs": "accuracy_reward"}, r"`reward_funcs` is 'accuracy_reward'.*list"),
        ("r1_zero", {"gradient_accumulation_steps": 2}, r"follows from the batch of a step; leave it out"),
        ("r1_zero", {"per_device_train_batch_size": 3}, r"stage.yaml: .*2 x 4 = 8.*divisor of 8"),
        ("r1_zero", {"generation_batch_size": 12}, r"12.*not a multiple of the 8.*Set it to 8"),
        ("r1_zero", {"use_vllm": True}, r"use_vllm is part of `generation`; write generation: transformers, vllm_co"),
        (
            "r1_zero",
            {"generation": "vllm_colocate", "generation_batch_size": 8192},
            r"gives each engine 8192 completions at once; beside training vLLM takes 4096",
        ),
        (
            "r1_zero",
            {"generation": "vllm_colocate", "vllm_max_model_length": 40, "max_prompt_length": 30},
            r"vllm_max_model_length is 40 tokens, but max_prompt_length 30 and max_completion_length 12 make 42; write",
        ),
        ("r1_zero", {"generation": "vllm"}, r"`generation` is 'vllm'; write one of 'transformers', 'vllm_colocate"),
        ("r1_zero", {"dtype": "float"}, r"`dtype` is 'float'; write one of 'float32', 'bfloat16'"),
        ("r1_zero", {"completion_style": "chat"}, r"write one of 'r1_zero', 'think'"),
        (
            "r1_zero",
            {"reward_kwargs": {"OverlongReward": {"max_length": 5, "cache": 6}}},
            r"reward_kwargs: OverlongReward: `cache` is 6; write at most `max_length`, which is 5",
        ),
        ("r1_zero", {"reward_kwargs": {"code_reward": {"workers": True}}}, r"`workers` is True; write a whole number"),
        ("cold_start_sft", {"token_budget": 0}, r"`token_budget` is 0; write at least 1"),
        ("r1_zero", {"max_prompt_length": -1}, r"`max_prompt_length` is -1; write at least 1"),
        ("cold_start_sft", {"use_peft": True, "lora_r": 0}, r"`lora_r` is 0; write at least 1"),
        ("cold_start_sft", {"dataset_num_proc": -1}, r"`dataset_num_proc` is -1; write at least 0"),
        ("cold_start_sft", {"batch_size": 9}, r"batch_size 9 does not divide.*divisor of 9"),
        ("r1_zero", {"lr_scheduler_type": "constnat"}, r"stage.yaml: .*constnat"),
        ("reward_models", {"batch_size": 9, "per_device_train_batch_size": 2}, r"batch_size 9 does not divide"),
    ],
)
def test_what_cannot_work_is_named(stage, wrong, said, tmp_path):
    settings = {"r1_zero": GRPO, "cold_start_sft": SFT}.get(stage, CPU) | wrong
    with pytest.raises(ConfigError) as raised:
        parse(*CLASSES[stage], argv=write(tmp_path, settings))
    assert re.search(said, str(raised.value), re.DOTALL), raised.value


def test_the_command_line_is_checked_too(tmp_path):
    argv = write(tmp_path, GRPO)
    with pytest.raises(ConfigError, match="sead"):
        parse(*CLASSES["r1_zero"], argv=[*argv, "--sead", "3"])
    with pytest.raises(ConfigError, match="command line: `seed` is 'three'; write a value of type int"):
        parse(*CLASSES["r1_zero"], argv=[*argv, "--seed", "three"])


@pytest.mark.parametrize("number", ["1e-4", "1E-4", "+.1e-3", "0.0001", "1.0e-04"])
def test_numbers_may_be_written_as_people_write_them(tmp_path, number):
    argv = write(tmp_path, {key: value for key, value in GRPO.items() if key != "learning_rate"})
    with open(argv[1], "a", encoding="utf-8") as file:
        file.write(f"\nlearning_rate: {number}\nweight_decay: 0\n")
    _, settings = parse(*CLASSES["r1_zero"], argv=argv)
    assert (settings.learning_rate, settings.weight_decay) == (1e-4, 0)


def test_what_a_command_line_gives_is_known_whole(tmp_path):
    path, said = given(
        [*write(tmp_path, {"seed": 1, "beta": 0.1}), "--reward_funcs", "a", "b", "--seed=3", "--debug", "--use_cpu"]
    )
    assert path == str(tmp_path / "stage.yaml")
    del said["output_dir"]
    assert said == {"seed": 3, "beta": 0.1, "reward_funcs": ["a", "b"], "use_cpu": True}
    with pytest.raises(ConfigError, match="max_step"):  # no abbreviations, which would be other settings by name
        parse(*CLASSES["r1_zero"], argv=[*write(tmp_path, GRPO), "--max_step", "4"])


def test_no_key_is_in_two_places():
    """A key that both the stage's and the trainer's settings had would go to one of them only."""
    for arguments, trainer in CLASSES.values():
        whole = getattr(trl_configs, trainer.__name__)
        assert not {f.name for f in fields(arguments)} & {f.name for f in fields(whole) if f.init}


@pytest.mark.parametrize("name", ["GRPOConfig", "SFTConfig", "RewardConfig"])
def test_the_keys_of_trl_are_read_from_its_source_as_its_classes_have_them(name):
    """In their order, with their types, save what is a class of a library."""
    kind = getattr(trl, name)
    hints, known = get_type_hints(kind), [f for f in fields(kind) if f.init]
    theirs = [(f.name, re.sub(r"(transformers|accelerate)[\w.]*", "typing.Any", str(hints[f.name]))) for f in known]
    found = trl_keys.read(name)
    assert [(key, str(one.kind)) for key, one in found.items()] == theirs
    assert [one.help for one in found.values()] == [f.metadata["help"].split(". ")[0] for f in known]


def test_a_missing_file_is_named():
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        parse(*CLASSES["r1_zero"], argv=["--config", "nowhere.yaml"])


def test_stage_scripts_are_short_and_share_no_block():
    """Each reads like its section of the paper; what two of them need has one home."""
    blocks: dict[tuple[str, ...], str] = {}
    for stage in CLASSES:
        lines = (REPOSITORY / f"recipes/{stage}.py").read_text(encoding="utf-8").splitlines()
        assert len(lines) < 100, stage
        code = [line for line in lines if line.strip()]
        for block in zip(*(code[start:] for start in range(12)), strict=False):
            assert blocks.setdefault(block, stage) == stage, block
