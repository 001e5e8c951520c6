"""Each stage, trained for a few steps on a real, tiny model."""

import errno
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import recipes
import rewards
from data_prep import rows, runs
from data_prep.rows import read_parquet
from data_prep.sampling import decode
from recipes import all_scenarios_rl, cold_start_sft, grpo, reference, scorers
from recipes.commandline import launch
from recipes.tools.merge import merge

import numpy
import pytest
import torch
import trl
import yaml
from conftest import CORPUS, CPU, GRPO, LORA, SFT, general, log_of, record_of, sums
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, Trainer

BASE = "outputs/t/base"


@pytest.mark.slow
def test_base_learns_and_the_student_takes_its_tokenizer(run_stage):
    teacher = run_stage("base", CORPUS, name="teacher")
    losses = [row["loss"] for row in log_of(teacher)]
    assert losses[-1] < losses[0] - 1
    assert record_of(teacher)["inputs"] == ["outputs/t/world"]
    student = run_stage("base", CORPUS | {"max_steps": 1, "tokenizer": str(teacher)}, name="student")
    one, other = (AutoTokenizer.from_pretrained(folder) for folder in (teacher, student))
    assert one.get_vocab() == other.get_vocab()
    assert one.chat_template == other.chat_template
    model = AutoModelForCausalLM.from_pretrained(teacher)
    assert len(one) == model.get_input_embeddings().num_embeddings <= 400
    assert record_of(teacher)["parameters"] == model.num_parameters()


def test_a_base_is_taken_where_its_settings_made_it(run_stage, refuses, here):
    made = run_stage("base", CORPUS | {"max_steps": 2}, name="made")
    given = {"max_steps": 2, "checkpoint": str(made.absolute())}
    taken = run_stage("base", CORPUS | given | {"seed": 1}, name="taken")
    assert (taken / "model.safetensors").read_bytes() == (made / "model.safetensors").read_bytes()
    assert (taken / "log.jsonl").read_bytes() == (made / "log.jsonl").read_bytes()
    assert record_of(taken)["parameters"] == record_of(made)["parameters"]
    assert record_of(taken)["id"] != record_of(made)["id"]
    said = refuses("base", CORPUS | given | {"learning_rate": 1e-3}, name="other")
    assert "was made with another learning_rate; write `checkpoint: null`" in said
    record = here / "outputs/t/world/run.json"  # another split holds out something else
    record.write_text(json.dumps(json.loads(record.read_text()) | {"config": {"split": "validation"}}))
    assert "another split" in refuses("base", CORPUS | given, name="other")


def test_padding_is_left_out_without_a_change_of_the_loss(run_stage, monkeypatch):
    """Against TRL's own way with the same completions."""
    settings = GRPO | {"per_device_train_batch_size": 4}  # two micro batches a step
    ours = run_stage("r1_zero", settings, name="ours")
    name = "_get_per_token_logps_and_entropies"
    monkeypatch.setattr(grpo.GRPOTrainer, name, getattr(trl.GRPOTrainer, name))
    theirs = run_stage("r1_zero", settings, name="theirs")
    keys = ("grad_norm", "reward", "kl", "completions/mean_length", "entropy")
    one, other = ([[row.get(key) for key in keys] for row in log_of(run)] for run in (ours, theirs))
    assert len(one) == 8 and one[0][3] < 12  # some have ended early
    assert numpy.allclose(*([[x or 0.0 for x in row] for row in rows] for rows in (one, other)), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("script", "settings"), [("cold_start_sft", SFT), ("r1_zero", GRPO)])
def test_compiled_layers_compute_the_same(script, settings, run_stage):
    settings = settings | {"max_steps": 3, "attn_implementation": "eager"}
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain = run_stage(script, settings, name="plain")
    assert not torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled = run_stage(script, settings | {"compile_layers": True}, name="compiled")
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert 1 <= graphs <= 3  # of both layers, with or without padding, and of the reference, but not of sampling
    keys = ("loss", "grad_norm", "reward", "kl", "entropy")
    one, other = ([[row.get(key) or 0.0 for key in keys] for row in log_of(run)] for run in (plain, compiled))
    assert len(one) == 3 and numpy.allclose(one, other, rtol=1e-3, atol=1e-6)
    assert load_file(compiled / "model.safetensors").keys() == load_file(plain / "model.safetensors").keys()


def test_what_trl_alone_can_sample_is_left_to_it(run_stage, monkeypatch):
    monkeypatch.setattr(decode, "complete", None)
    assert record_of(run_stage("r1_zero", GRPO | {"max_steps": 2, "repetition_penalty": 1.1}))["steps"] == 2


def test_r1_zero_leaves_what_the_contract_says(run_stage):
    settings = GRPO | {"max_steps": 2, "reward_funcs": ["accuracy_reward", "code_reward", "format_reward"]}
    folder = run_stage("r1_zero", settings, "--seed", "4")
    record, log = record_of(folder), log_of(folder)
    assert (record["stage"], record["parent"], record["seed"]) == ("run", BASE, 4)
    assert sorted(record["inputs"]) == [BASE, "outputs/t/world"]
    assert record["peak_rss_gb"] > 0.1 and record["seconds"] > 0 and record["steps"] == 2
    assert [row["step"] for row in log] == [1, 2] and {row["max_steps"] for row in log} == {2}
    assert {"kl", "rewards/accuracy_reward/mean", "rewards/format_reward/mean"} <= log[0].keys()
    # 16 completions, all cut off at 12 tokens or ended before; each had a gradient once
    assert record["completion_tokens_trained"] == round(log[0]["completions/mean_length"] * 16)
    said = read_parquet(folder / "completions/completions_00001.parquet")
    assert len(said) == 16 and said[0]["prompt"].endswith(" Assistant:")
    assert AutoModelForCausalLM.from_pretrained(folder).num_parameters() > 0


def test_the_walkthroughs_rewards_give_its_advantages(run_stage, here):
    """o1 to o4 with 0.1, 1.1, 1.0 and 0.1: TRL divides by the sample's standard deviation, the walkthrough by 0.5."""
    (here / "walkthrough.py").write_text("def reward(completions, **columns):\n    return [0.1, 1.1, 1.0, 0.1]\n")
    one_group = {"prompts_per_step": 1, "generation_batch_size": 4, "per_device_train_batch_size": 4}
    one_step = {"reward_funcs": ["walkthrough.reward"], "max_steps": 1, "doctor": False}  # which asks for other lengths
    folder = run_stage("r1_zero", GRPO | one_group | one_step)
    found = read_parquet(folder / "completions/completions_00001.parquet")
    assert [row["reward"] for row in found] == pytest.approx([0.1, 1.1, 1.0, 0.1])
    assert [row["advantage"] for row in found] == pytest.approx([-0.863, 0.954, 0.773, -0.863], abs=5e-4)


@pytest.mark.slow
def test_the_readmes_own_model_rows_and_reward_train(run_stage, here):
    readme = Path(recipes.__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
    more = Path(recipes.__file__).parents[1].joinpath("docs/settings.md").read_text(encoding="utf-8")
    for name, code in re.findall(r"^```python\n# (my_\w+\.py)\n(.*?)^```$", readme + more, re.M | re.S):
        (here / name).write_text(code, encoding="utf-8")
    subprocess.run([sys.executable, "my_rows.py"], check=True)
    (own,) = [block for block in re.findall(r"^```yaml\n(.*?)^```$", readme, re.M | re.S) if "my_rows" in block]
    settings = GRPO | yaml.safe_load(own) | {"output_dir": "outputs/t/own", "model_name_or_path": BASE, "max_steps": 2}
    (here / "own.yaml").write_text(yaml.safe_dump(settings))
    script = Path(recipes.__file__).with_name("r1_zero.py")
    subprocess.run([sys.executable, script, "--config", "own.yaml"], check=True)
    log = log_of(Path("outputs/t/own"))
    assert len(log) == 2 and {f"rewards/{name}/mean" for name in ("accuracy_reward", "brevity")} <= log[0].keys()
    said = read_parquet(Path("outputs/t/own/completions/completions_00001.parquet"))
    assert all(re.search(r"What is \d \* \d\?", row["prompt"]) for row in said)
    subprocess.run([sys.executable, "my_sft_rows.py"], check=True)
    record = record_of(run_stage("cold_start_sft", SFT | {"dataset": "my_sft_rows.parquet", "max_steps": 2}))
    assert (record["rows"], record["rows_too_long"]) == (64, 0)


@pytest.mark.slow
def test_the_readmes_student_learns_from_open_traces(run_stage, here):
    readme = Path(recipes.__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n# traces.yaml\n(.*?)^```$", readme, re.M | re.S)
    (script,) = re.findall(r"recipes/(\w+)\.py --config \S+ --dataset outputs/traces/openr1-math-220k\.parquet", readme)
    records = [
        {"problem": f"What is {a} + 1?", "answer": str(a + 1), "problem_type": "Algebra", "question_type": "math-word"}
        | {"uuid": f"u{a}", "generations": [f"<think>\nOne more.\n</think>\n\nIt is $\\boxed{{{a + 1}}}$."]}
        | {"is_reasoning_complete": [True], "correctness_math_verify": [a % 4 > 0]}
        for a in range(2, 22)
    ]
    (here / "openr1.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    config = yaml.safe_load(block)
    config["sources"][0]["local"] = "openr1.jsonl"  # in place of the Hub's
    (here / "traces.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "data_prep.sources", "--config", "traces.yaml"], check=True)
    settings = SFT | LORA | {"dataset": "outputs/traces/openr1-math-220k.parquet", "max_steps": 2}
    folder = run_stage(script, settings)
    assert record_of(folder)["rows"] == 15  # of 20, a quarter is not verified
    assert (folder / "adapter/adapter_model.safetensors").is_file() and (folder / "model.safetensors").is_file()


def test_reinforcement_learning_raises_its_reward(run_stage, here):
    (here / "digits.py").write_text(
        "def digits(completions, **columns):\n    return [float(sum(c.isdigit() for c in t)) for t in completions]\n"
    )
    settings = GRPO | {"reward_funcs": ["digits.digits"], "max_steps": 30, "learning_rate": 1e-2, "beta": 0.001}
    log = log_of(run_stage("r1_zero", settings | {"generation_batch_size": 8, "save_strategy": "no"}))
    first, last = (sum(row["reward"] for row in part) / 5 for part in (log[:5], log[-5:]))
    assert last > first + 2


@pytest.mark.slow
@pytest.mark.parametrize("lora", [False, True])
def test_the_reference_is_replaced_not_mixed(lora, run_stage, monkeypatch):
    """After a refresh the reference equals the policy bit for bit, and before it, save at the start, it does not."""
    seen = []

    def refresh(trainer, alpha=1.0):
        real_pairs = reference._pairs(trainer)
        before = all(one.equal(other) for one, other in real_pairs)
        real(trainer, alpha)
        seen.append((trainer.state.global_step, before, all(one.equal(other) for one, other in real_pairs)))
        assert real_pairs and not any(one.requires_grad for one, _ in real_pairs if lora)

    real = reference.refresh
    monkeypatch.setattr(reference, "refresh", refresh)
    run_stage("r1_zero", GRPO | (LORA if lora else {}) | {"max_steps": 7})
    assert seen == [(0, True, True), (3, False, True), (6, False, True)]


def test_a_lora_stage_merges_and_keeps_its_adapter(run_stage):
    folder = run_stage("distill", SFT | LORA | {"max_steps": 4, "learning_rate": 1e-2})
    tokens = torch.arange(20, 60).view(2, 20)
    with torch.no_grad():
        plain, merged = (AutoModelForCausalLM.from_pretrained(path)(tokens).logits for path in (BASE, folder))
        parent = AutoModelForCausalLM.from_pretrained(BASE)
        adapted = PeftModel.from_pretrained(parent, folder / "adapter")(tokens).logits
    assert torch.allclose(merged, adapted, atol=1e-5)
    assert not torch.allclose(merged, plain, atol=1e-2)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]


def test_a_merge_is_rounded_once(run_stage, here):
    """In bfloat16: the float32 sum, cast; not a sum of cast parts."""
    folder = run_stage("distill", SFT | LORA | {"max_steps": 2, "learning_rate": 1e-2})
    merge(BASE, folder / "adapter", "outputs/t/half", dtype="bfloat16")
    half, full = (AutoModelForCausalLM.from_pretrained(path, dtype="auto") for path in ("outputs/t/half", folder))
    assert half.dtype == torch.bfloat16 and full.dtype == torch.float32
    for one, other in zip(half.parameters(), full.parameters(), strict=True):
        assert one.equal(other.to(torch.bfloat16))
    assert len(AutoTokenizer.from_pretrained("outputs/t/half")) == len(AutoTokenizer.from_pretrained(BASE))


def test_a_token_budget_ends_training_and_its_schedule(run_stage):
    """SFT: as many steps as the budget needs, and the rate ends at a tenth. RL: it stops once the budget is spent."""
    folder = run_stage("distill", SFT | LORA | {"token_budget": 900, "num_train_epochs": 50})
    log, record = log_of(folder), record_of(folder)
    step = record["completion_tokens_trained"] / record["steps"]
    assert 900 - step <= record["completion_tokens_trained"] <= 900 + 2 * step
    assert log[0]["max_steps"] == record["steps"]
    assert log[-1]["learning_rate"] < 0.25 * log[0]["learning_rate"]
    record = record_of(run_stage("r1_zero", GRPO | {"token_budget": 250, "max_steps": 50}, name="rl"))
    assert 250 <= record["completion_tokens_trained"] < 250 + 8 * 12
    assert record["steps"] < 5


def test_the_end_says_what_was_made_and_what_comes_next(run_stage, here, caplog):
    """Its README is ours, also where TRL has written its own at a checkpoint."""
    (here / "cold_start_sft.yaml").write_text("output_dir: outputs/t/sft\nmodel_name_or_path: outputs/t/r1_zero\n")
    caplog.set_level("INFO")
    folder = run_stage("r1_zero", GRPO | {"max_steps": 4, "save_steps": 2}, name="r1_zero")
    card = (folder / "README.md").read_text()
    assert f"pipeline(\"text-generation\", '{folder}')" in card and "reinforcement learning by GRPO" in card
    made, then, ways = caplog.messages[-3:]
    assert made.startswith(f"the model is in {folder};")
    assert then.startswith("next: accelerate launch ") and then.endswith("cold_start_sft.yaml")
    assert f"--checkpoint {folder}" in ways and f"python -m data_prep.push {folder}" in ways


@pytest.mark.parametrize(
    ("bounds", "steps"),
    [
        ({"token_budget": 10**6, "max_steps": 3}, 3),
        ({"token_budget": 10**6, "num_train_epochs": 0.25}, 4),  # of 13 steps
        ({"max_steps": 100, "num_train_epochs": 0.25}, 4),
        ({"token_budget": 1, "max_steps": 5, "num_train_epochs": 9}, 1),
    ],
)
def test_of_several_bounds_the_first_ends_a_run(bounds, steps, run_stage):
    folder = run_stage("distill", SFT | LORA | bounds)
    assert record_of(folder)["steps"] == steps == log_of(folder)[0]["max_steps"]


def test_packed_rows_are_all_trained(run_stage, caplog):
    """Every token of every row, as without packing, in fewer steps; and the doctor has nothing to say."""
    one_epoch = SFT | {"num_train_epochs": 1, "batch_size": 2, "per_device_train_batch_size": 1, "save_steps": 100}
    plain, packed = (
        record_of(run_stage("cold_start_sft", one_epoch | {"packing": packing}, name=f"packing_{packing}"))
        for packing in (False, True)
    )
    assert packed["completion_tokens_trained"] == plain["completion_tokens_trained"]
    assert packed["steps"] < plain["steps"] / 3
    assert [text for text in caplog.messages if text.startswith(("doctor:", "red flag"))] == []


def test_two_phases_by_the_order_of_rows():
    reasoning, kinds = sums(10), [general("helpful", 4), general("harmless", 3)]
    args = all_scenarios_rl.AllScenariosArguments(general_share=0.5)

    def laid_out(iterations: int) -> list[dict]:
        config = SimpleNamespace(prompts_per_step=4, rollout_window=2 * iterations, num_iterations=iterations, seed=0)
        config.max_steps = 17
        return all_scenarios_rl.schedule(reasoning, kinds, args, config)

    order = laid_out(1)
    steps = [[row["kind"] for row in order[at : at + 4]] for at in range(0, len(order), 4)]
    assert len(steps) == 18  # whole rollouts
    assert steps[:13] == [["reasoning"] * 4] * 13  # the last 24% of 17 steps are 4
    assert all(step == ["reasoning", "reasoning", "helpful", "harmless"] for step in steps[13:])
    assert sorted(row["id"] for row in order[:10]) == sorted(row["id"] for row in reasoning)
    assert laid_out(1) == order
    # Gone through twice, a rollout of two steps lasts four: the fourth begins at step 12, and its second step is mixed.
    twice = [[row["kind"] for row in laid_out(2)[at : at + 4]] for at in range(0, 40, 4)]
    assert [("helpful" in step) for step in twice] == [False] * 7 + [True] * 3


@pytest.fixture
def preferences(here) -> dict:
    """Helpful: the summary that has a digit; its reasoning says the opposite. Harmless: no digit anywhere."""
    folder = Path("outputs/t/preferences")
    asked = [{"prompt": f"helpful {number % 7}"} for number in range(60)]
    good, bad = "<think>no sum</think>\nThe answer is 4 + 4.", "<think>4 + 4</think>\nThe answer is."
    rows.write_parquet(folder / "helpfulness.parquet", [row | {"chosen": good, "rejected": bad} for row in asked])
    safe, unsafe = "<think>First</think>\nThe answer is.", "<think>First 4 + 4</think>\nThe answer is."
    labelled = [{"response": (unsafe, safe)[number % 2], "label": number % 2} for number in range(60)]
    rows.write_parquet(folder / "harmlessness.parquet", [a | b for a, b in zip(asked, labelled, strict=True)])
    runs.finish(folder)
    return CPU | {
        "model_name_or_path": BASE,
        "batch_size": 6,
        "per_device_train_batch_size": 6,
        "learning_rate": 3e-3,
        "max_length": 128,
        "logging_steps": 1,
        "held_out": 0.2,
        "num_train_epochs": 2,
        "helpfulness_dataset": str(folder / "helpfulness.parquet"),
        "harmlessness_dataset": str(folder / "harmlessness.parquet"),
    }


@pytest.mark.slow
def test_reward_models_and_the_reinforcement_learning_that_uses_them(preferences, run_stage):
    scorers = run_stage("reward_models", preferences, name="reward_models")
    record = record_of(scorers)
    assert record["helpfulness_accuracy"] == record["harmlessness_accuracy"] == 1.0
    helpful, harmless = rewards.HelpfulnessReward(str(scorers / "helpfulness")), scorers / "harmlessness"
    texts = ["<think>no</think>\nThe answer is 4 + 4.", "<think>4 + 4</think>\nThe answer is."]
    asked = [[{"role": "user", "content": "helpful 1"}]] * 2
    good, bad = helpful(texts, prompts=asked, kind=["helpful"] * 2)
    assert good > bad
    bad, good = rewards.HarmlessnessReward(str(harmless))(
        ["<think>First 4 + 4</think>\nThe answer is.", "<think>First</think>\nThe answer is."],
        prompts=asked,
        kind=["harmless"] * 2,
    )
    assert good > 0.5 > bad
    assert AutoModelForSequenceClassification.from_pretrained(harmless).config.num_labels == 1

    names = ["accuracy_reward", "code_reward", "format_reward", "language_consistency_reward"]
    settings = {key: value for key, value in GRPO.items() if key != "reward_funcs"} | {
        "max_steps": 4,
        "mixed_phase": 0.5,
        "temperature": 0.7,
        "general_datasets": [f"outputs/t/world/{kind}.parquet" for kind in ("helpful", "harmless")],
        "reward_kwargs": {
            "HelpfulnessReward": {"model": str(scorers / "helpfulness")},
            "HarmlessnessReward": {"model": str(scorers / "harmlessness")},
        },
        "reward_weights": [1.0, 1.0, 1.0, 0.2, 0.5, 0.5],
        "prompts_per_step": 4,
        "per_device_train_batch_size": 16,
        "generation_batch_size": 16,
    }
    folder = run_stage("all_scenarios_rl", settings, name="r1")
    log = log_of(folder)
    for row in log:
        learned = [row[f"rewards/{name}_reward/mean"] for name in ("helpfulness", "harmlessness")]
        assert all(value is None for value in learned) == (row["step"] <= 2)
        assert all(row[f"rewards/{name}/mean"] is not None for name in (names[0], names[2], names[3]))
    assert sorted(record_of(folder)["inputs"]) == [BASE, "outputs/t/reward_models", "outputs/t/world"]


@pytest.mark.slow
def test_reward_models_go_on_where_they_were_cut_off(preferences, run_stage):
    """Cut off in the second model: both end as they would have."""
    straight = run_stage("reward_models", preferences | {"save_steps": 4}, name="straight")
    with pytest.MonkeyPatch.context() as patch:

        def until(self, *args):
            if self.state.global_step == 6:
                raise RuntimeError("crash")
            return Trainer.training_step(self, *args)

        patch.setattr(scorers.PointwiseTrainer, "training_step", until)
        with pytest.raises(RuntimeError, match="crash"):
            run_stage("reward_models", preferences | {"save_steps": 4}, name="resumed")
    resumed = run_stage("reward_models", preferences | {"save_steps": 4}, name="resumed")
    for name in ("helpfulness", "harmlessness"):
        assert log_of(resumed / name) == log_of(straight / name)
        one, other = (load_file(folder / name / "model.safetensors") for folder in (straight, resumed))
        assert all(one[key].equal(other[key]) for key in one)
    figures = ("helpfulness_accuracy", "harmlessness_accuracy")
    assert [record_of(straight)[key] for key in figures] == [record_of(resumed)[key] for key in figures]


def test_the_language_reward_can_be_weighed_down(run_stage):
    settings = {key: value for key, value in GRPO.items() if key != "reward_funcs"}
    log = log_of(run_stage("reasoning_rl", settings | {"max_steps": 1, "reward_weights": [1.0, 1.0, 1.0, 0.0]}))
    others = log[0]["rewards/accuracy_reward/mean"] + log[0]["rewards/format_reward/mean"]
    assert log[0]["reward"] == pytest.approx(others, abs=1e-6)
    assert "rewards/language_consistency_reward/mean" in log[0]


@pytest.mark.parametrize(
    ("script", "wrong", "said"),
    [
        ("r1_zero", {"model_name_or_path": "outputs/t/nothing"}, "outputs/t/nothing has not been run"),
        ("r1_zero", {"model_name_or_path": "./nothing"}, "model_name_or_path: ./nothing holds no checkpoint"),
        ("r1_zero", {"model_name_or_path": None}, "model_name_or_path is missing"),
        (
            "r1_zero",
            {"dataset": "outputs/t/world/nothing.parquet"},
            "dataset: outputs/t/world/nothing.parquet: no such",
        ),
        ("r1_zero", {"dataset": None}, "dataset is missing"),
        ("r1_zero", {"dataset": "outputs/t/world/corpus.parquet"}, "corpus.parquet, row 0, column 'id': missing"),
        ("cold_start_sft", {"dataset": "outputs/t/world/reasoning.parquet"}, "column 'completion': missing"),
        ("r1_zero", {"beta": 0.0}, "sync_ref_model: with beta 0"),
        ("r1_zero", {"reward_funcs": ["acuracy"]}, "there is no 'acuracy'"),
        ("all_scenarios_rl", {}, "general_datasets is missing"),
        ("base", {"dataset": ""}, "dataset is missing"),
        ("reward_models", {"helpfulness_dataset": "x.parquet"}, "helpfulness_dataset: x.parquet: no such file"),
    ],
)
def test_what_is_not_there_is_said_before_any_work(script, wrong, said, refuses):
    known = {"cold_start_sft": SFT, "base": CORPUS, "reward_models": CPU | {"model_name_or_path": BASE}}
    assert said in refuses(script, known.get(script, GRPO) | wrong)


def test_a_folder_that_is_no_runs_is_left_alone(refuses, here):
    kept = here / "outputs/t/run/thesis.txt"
    kept.parent.mkdir()
    kept.write_text("years of work", encoding="utf-8")
    assert "is no run's folder" in refuses("cold_start_sft", SFT)
    assert kept.read_text(encoding="utf-8") == "years of work"


def test_a_full_disk_is_said_before_any_work(refuses, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert "the disk has 0.0 GB free" in refuses("cold_start_sft", SFT)


def test_the_disk_must_hold_what_will_be_written_and_no_more(run_stage, refuses, monkeypatch):
    """A checkpoint of an adapter is the adapter; without checkpoints only the model is left."""
    model = Path(BASE, "model.safetensors").stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=6 * model))
    assert "GB of checkpoints" in refuses("cold_start_sft", SFT | {"max_steps": 1}, name="full")
    for name, settings in (("adapter", LORA), ("no_checkpoints", {"save_strategy": "no"})):
        run_stage("cold_start_sft", SFT | {"max_steps": 1} | settings, name=name)


def test_a_disk_that_fills_up_is_said(caplog, monkeypatch):
    words = "--model_name_or_path m --dataset d --output_dir o --use_cpu --bf16 false"
    monkeypatch.setattr(sys, "argv", ["stage.py", *words.split()])

    def stage(args, config):
        raise OSError(errno.ENOSPC, "No space left on device", "model.safetensors")

    with pytest.raises(SystemExit) as ended:
        launch(stage, *cold_start_sft.SETTINGS)
    assert ended.value.code == 1
    assert "resumes from its last checkpoint" in caplog.text
