"""The YAMLs of all scales: read as strictly as their stages read them, and true to what they say of themselves."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

from data_prep import runs
from data_prep.runs import commands, identity
from recipes import commandline
from recipes.tools import check, pipeline, plan
from recipes.tools.steps import load_steps

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "recipes/configs"
SCALES = sorted(path.parent.name for path in CONFIGS.glob("*/r1_zero.yaml"))
SHARED = "deepseek-v3-qlora"  # SFT alone: GRPO cannot share experts
BIG = [scale for scale in SCALES if "use_cpu" not in runs.load_config(CONFIGS / scale / "r1_zero.yaml")]
OVERRIDES = [(path.parents[1].name, path.relative_to(ROOT)) for path in sorted(CONFIGS.glob("*/overrides/*.yaml"))]
OVERRIDE = Path("recipes/configs/gpu-24gb/overrides/80gb.yaml")
FIRST_NIGHT = OVERRIDE.with_name("first_night.yaml")
HUB_ID = re.compile(r"(?<![\w./-])([\w-]+/[\w.-]+)(?![\w/.-])")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A working directory without outputs."""
    for name in ("recipes", "accelerate_configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("scale", "override"), [*((scale, None) for scale in SCALES), *OVERRIDES])
def test_every_yaml_is_parsed_by_its_own_stage(scale, override, here):
    steps = load_steps(Path("recipes/configs") / scale, override=override)
    assert len(steps) >= 16
    for step in steps:
        if not step.evaluates:  # read when the steps were listed
            check.check(step.target, *step.files, elsewhere=True)
            assert step.settings["output_dir"] == f"outputs/{scale}/{step.name}"


@pytest.mark.parametrize(
    "path", [p for scale in (*BIG, "smol", SHARED) for p in sorted((CONFIGS / scale).rglob("*.yaml"))], ids=str
)
def test_every_id_has_its_page_and_every_value_its_reason(path):
    text = path.read_text(encoding="utf-8")
    values = re.sub(r"#.*|http://\S+", "", text)
    for found in set(HUB_ID.findall(values)):
        if not (ROOT / found).exists() and found.split("/")[0] not in ("outputs", "recipes"):
            assert re.search(rf"https://huggingface\.co/(datasets/)?{re.escape(found)}(?![\w-])", text), found
    if re.search("^accelerate_config:", text, re.MULTILINE):  # a stage: what departs from the paper, with its reason
        inputs = ("model_name_or_path", "dataset", "helpfulness_dataset", "harmlessness_dataset", "general_datasets")
        plain = (*inputs, "output_dir", "accelerate_config", "reward_kwargs", "generation", "save_steps")
        lines = ["", *text.splitlines()]
        for before, line in zip(lines, lines[1:], strict=False):
            if line[0].isalpha() and "#" not in line and not before.startswith("#"):
                assert line.split(":")[0] in plain, line


def test_the_script_of_the_cpu_run_has_the_commands_of_the_pipeline_in_an_order_that_works(tmp_path, monkeypatch):
    for name in ("accelerate", "python"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\n', encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    said = subprocess.run(["bash", "recipes/cpu.sh"], cwd=ROOT, env=environment, check=True, capture_output=True)
    monkeypatch.chdir(ROOT)
    steps = {shlex.join(step.command): step for step in load_steps(Path("recipes/configs/cpu"))}
    *written, report = said.stdout.decode().splitlines()
    assert sorted(written) == sorted(steps)
    places = {steps[command].output_dir: place for place, command in enumerate(written)}
    assert all(places[need] < places[steps[command].output_dir] for command in written for need in steps[command].needs)
    assert report == "python -m recipes.tools.report --scale outputs/cpu"


@pytest.mark.parametrize("scale", [*BIG, "full"])
def test_a_dry_run_prints_the_command_of_every_stage(scale, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert commands.run(pipeline.main, ["--scale", scale, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    printed = [line for line in lines if not line.startswith(("vllm serve", "until curl", "kill $server"))]
    assert f"python -m data_prep.rl_prompts --config recipes/configs/{scale}/rl_prompts.yaml" in printed
    assert len(printed) == len(list((CONFIGS / scale).glob("*.yaml")))
    for line in printed:
        launch = re.match(r"accelerate launch --quiet --config_file (\S+) recipes/\w+\.py --config (\S+)$", line)
        assert launch or line.startswith("python -m data_prep.")
        if launch:
            assert launch[1] == runs.load_config(Path(launch[2]))["accelerate_config"]
            assert load_config_from_file(launch[1]).num_processes >= 1


def test_smol_walks_the_stages_in_their_order_and_measures_every_checkpoint(here, capsys):
    assert commands.run(pipeline.main, ["--scale", "smol", "--dry-run"]) == 0
    order = re.findall(r"configs/smol/(\w+)\.yaml$", capsys.readouterr().out, re.MULTILINE)
    assert sorted(order) == sorted(path.stem for path in (CONFIGS / "smol").glob("*.yaml"))
    line = ("gym", "prompts", "cold_start", "cold_start_mixture", "cold_start_sft", "rl_prompts")
    line += ("reasoning_rl", "rejection_sampling", "mixture", "sft_stage_2", "suites_sft_stage_2")
    assert [name for name in order if name in line] == list(line)
    steps = {step.name: step for step in load_steps(Path("recipes/configs/smol"))}
    trained = {str(step.output_dir) for step in steps.values() if step.trains}
    measured = {step.settings["checkpoint"] for name, step in steps.items() if name.startswith("suites_")}
    assert measured == trained | {"HuggingFaceTB/SmolLM2-135M-Instruct"}
    assert steps["distill"].settings["token_budget"] == steps["student_rl"].settings["token_budget"]
    alone = [step for step in steps.values() if step.trains or step.name in ("cold_start", "rl_prompts")]
    assert {step.threads for step in alone} == {2}  # one at a time: two would take twice the memory
    assert {step.threads for name, step in steps.items() if name.startswith("suites_")} == {1}  # two side by side


def test_local_files_of_smol_are_missed_before_the_first_step(here, capsys):
    local = CONFIGS / "smol/overrides/local_files.yaml"
    sets = ["data_prep.sources", "recipes/configs/smol/sources.yaml", "--override", str(local)]
    with pytest.raises(SystemExit):
        commands.run(check.main, sets)
    assert "sources.yaml: gsm8k_train.jsonl: no such file" in capsys.readouterr().err
    commands.run(check.main, [*sets, "--elsewhere"])
    named = set(identity.texts(runs.load_config(local)))
    for name in ("gsm8k_train.jsonl", "gsm8k_test.jsonl", "math_500.jsonl"):
        assert name in named
        (here / name).write_text("{}\n", encoding="utf-8")
    commands.run(check.main, sets)


def test_a_cpu_without_bfloat16_has_an_override_that_changes_nothing_else(here):
    float32 = CONFIGS / "smol/overrides/float32.yaml"
    usual, found = (load_steps(Path("recipes/configs/smol"), override=path) for path in (None, float32))
    text = json.dumps([step.settings for step in usual])
    assert text.count("bfloat16") == 11 and text.count('"bf16": true') == 6
    text = text.replace("bfloat16", "float32").replace('"bf16": true', '"bf16": false')
    assert [step.settings for step in found] == json.loads(text)


def test_a_card_has_a_judge_while_steps_ask_it_and_never_beside_a_trainer(here, capsys):
    """`gpu-24gb`, which one command runs: in which order servers start and stop."""
    assert commands.run(pipeline.main, ["--scale", "gpu-24gb", "--dry-run"]) == 0
    order, up = [], False
    for line in capsys.readouterr().out.splitlines():
        if line.startswith(("vllm serve", "kill $server")):
            assert up == line.startswith("kill")
            up = not up
        elif not line.startswith("until curl"):
            order.append((re.search(r"configs/gpu-24gb/(\w+)\.yaml$", line)[1], up))
    asked = {"cold_start", "rejection_sampling", "general", "preferences", "distillation"}
    assert {name for name, served in order if served} == asked and not up
    assert not any(load_steps(Path("recipes/configs/gpu-24gb"), override=FIRST_NIGHT)[0].services)
    for name in asked:  # what the job samples with lies on the card, too
        settings = runs.load_config(CONFIGS / f"gpu-24gb/{name}.yaml")
        served = settings.get("judge") or settings["rewriter"]
        share = served["serve"]["gpu_memory_utilization"] + settings["sampler"]["vllm"]["gpu_memory_utilization"]
        assert share <= 0.92


def test_a_first_night_takes_ten_gpu_hours_by_the_plan(here, capsys):
    """Of at least 100 steps of R1-Zero with 128 completions, 4 answers a prompt, 2,000 rows a data job."""
    assert commands.run(plan.main, ["--scale", "gpu-24gb", "--override", str(FIRST_NIGHT), "--gpu-memory", "24"]) == 0
    said = capsys.readouterr().out
    assert float(re.search(r"^GPU-hours: ([\d.]+),", said, re.MULTILINE)[1]) <= 10
    assert "NO" not in said.split() and said.rstrip().endswith("Everything fits.")
    steps = {step.name: step.settings for step in load_steps(Path("recipes/configs/gpu-24gb"), override=FIRST_NIGHT)}
    zero = steps["r1_zero"]
    assert zero["max_steps"] >= 100 and zero["prompts_per_step"] * 16 >= 128
    assert steps["rl_prompts"]["pass_rate"]["n"] == 4
    assert sum(steps["cold_start"]["r1_zero"]["prompts"].values()) >= 2000 <= steps["general"]["count"]


def test_deepseek_v3_fits_one_node_if_its_gpus_share_the_experts(here, capsys):
    for step in load_steps(Path(f"recipes/configs/{SHARED}")):
        check.check(step.target, *step.files, elsewhere=True)
        assert step.settings["output_dir"] == f"outputs/{SHARED}/{step.name}"
    assert commands.run(plan.main, ["--scale", SHARED]) == 0
    said = capsys.readouterr().out
    assert said.rstrip().endswith("Everything fits.")
    assert "8 GPUs share the experts; in a step 286 GB leave each" in said
    two = Path("recipes/configs/moe-qlora/overrides/two_24gb.yaml")
    assert commands.run(plan.main, ["--scale", "moe-qlora", "--override", str(two), "--gpu-memory", "24"]) == 0
    others = runs.load_config(two)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    fits = {row[0]: row[plan.HEADS.index("fits")] for row in rows if row and row[0] in others}
    assert fits == {"cold_start_sft": "yes", "sft_stage_2": "yes"}


def test_an_override_is_part_of_the_command_and_strict(here, capsys):
    command = ["--scale", "gpu-24gb", "--dry-run", "--override"]
    assert commands.run(pipeline.main, [*command, str(OVERRIDE)]) == 0
    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if "/r1_zero.yaml" in line)
    assert line.endswith(f"recipes/configs/gpu-24gb/r1_zero.yaml --override {OVERRIDE}")
    assert not (here / "outputs").exists()  # a dry run writes nothing
    _, merged = commandline.given(shlex.split(line.partition("r1_zero.py ")[2]))
    assert (merged["model_name_or_path"], merged["prompts_per_step"]) == ("Qwen/Qwen2.5-7B", 16)
    with pytest.raises(runs.ConfigError, match="write `mixture:` and `key: value` lines below it"):
        runs.load_config(CONFIGS / "gpu-24gb/mixture.yaml", OVERRIDE)
    (here / "wrong.yaml").write_text("r1_zer: {max_steps: 3}\n", encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        commands.run(pipeline.main, [*command, "wrong.yaml"])
    assert ended.value.code == 2
    assert "no YAML is called r1_zer" in capsys.readouterr().err
    (here / "wrong.yaml").write_text("r1_zero: {max_stepz: 3}\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        commands.run(pipeline.main, [*command, "wrong.yaml"])
    said = capsys.readouterr()
    assert "r1_zero.yaml: unknown key `max_stepz`" in said.err and not said.out


def test_the_papers_hyper_parameters_to_the_letter():
    """Sections 2.1, 3.2.1, 3.2.2, B.4.1 and Table 6; what no YAML says is a default, see test_settings.py."""
    read = {path.stem: runs.load_config(path) for path in (CONFIGS / "deepseek-v3").glob("*.yaml")}
    hardware = {"output_dir", "script", "accelerate_config", "per_device_train_batch_size", "generation"}
    inputs = {"model_name_or_path", "dataset", "general_datasets", "reward_kwargs", "max_position_embeddings"}
    inputs |= {"helpfulness_dataset", "harmlessness_dataset"}
    said = {stage: {k: v for k, v in values.items() if k not in hardware | inputs} for stage, values in read.items()}
    assert said["r1_zero"] == {"max_steps": 8192}
    assert said["r1_zero_long"] == {"max_steps": 10400 - 8192, "max_completion_length": 65536}
    assert said["reasoning_rl"].keys() == {"epsilon", "max_steps"} and said["reasoning_rl"]["epsilon"] == 10
    assert said["all_scenarios_rl"] == {"epsilon": 10, "max_steps": 1700, "temperature": 0.7}
    assert said["student_rl"] == {"learning_rate": 2e-6, "max_steps": 10000}
    assert said["cold_start_sft"] == said["sft_stage_2"] == said["reward_models"] == {}
    rates = {"Qwen/Qwen2.5-Math-1.5B": 1e-4, "Qwen/Qwen2.5-Math-7B": 8e-5, "Qwen/Qwen2.5-14B": 7e-5}
    rates |= {"Qwen/Qwen2.5-32B": 6e-5, "meta-llama/Llama-3.1-8B": 5e-5, "meta-llama/Llama-3.3-70B-Instruct": 2e-5}
    students = {v["model_name_or_path"]: said[stage] for stage, v in read.items() if re.match("distill(_|$)", stage)}
    assert students == {
        base: {"use_peft": False, "learning_rate": rate, "batch_size": 64} for base, rate in rates.items()
    }


def test_how_processes_are_started_is_read_by_accelerate():
    for path in sorted((ROOT / "accelerate_configs").glob("*.yaml")):
        found = load_config_from_file(str(path))
        kind = yaml.safe_load(path.read_text())["distributed_type"]
        assert found.distributed_type == kind
        processes = found.num_processes // found.num_machines
        assert found.num_processes == found.num_machines * processes and (processes > 1) == (kind != "NO"), path
