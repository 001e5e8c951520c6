"""Faults planted in rows, checkpoints and YAMLs: the doctor finds each before training, or in its first five steps."""

import json
import logging
import re
import shutil
import sys
from pathlib import Path

from data_prep import rows
from data_prep.rows import read_parquet
from recipes import checks
from recipes.tools import doctor

import moe
import pytest
import torch
import yaml
from conftest import CORPUS, GRPO, LORA, SFT, log_of, sums
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

BASE, WORLD = Path("outputs/t/base"), Path("outputs/t/world")
ASKED, SOLVED, SFT_1 = "reasoning.parquet", "sft.parquet", "cold_start_sft"
NORM, UP = "model.norm.weight", "model.layers.0.mlp.up_proj.weight"
RL = GRPO | {"reward_funcs": ["accuracy_reward", "code_reward", "format_reward"], "max_steps": 1}
TUNING = SFT | {"max_steps": 1}
SCORER = TUNING | {"dataset": None, "helpfulness_dataset": "pairs.parquet", "harmlessness_dataset": "labels.parquet"}
del SCORER["dataset"]


def change_rows(name: str, change) -> None:
    found = [change(number, row) for number, row in enumerate(read_parquet(WORLD / name))]
    rows.write_parquet(WORLD / name, found)


def change_json(name: str, **values) -> None:
    path = BASE / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_tokenizer(change) -> None:
    """As of a Hub model, which has not the tokens of our template."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    change(tokenizer)
    tokenizer.save_pretrained(BASE)


def foreign(old: str, new: str):
    """The checkpoint's template, changed; load_tokenizer must take it for somebody else's."""

    def plant():
        path = BASE / "chat_template.jinja"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return plant


def change_weights(change) -> None:
    path = BASE / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def special_tags() -> None:
    path = BASE / "tokenizer.json"
    content = json.loads(path.read_text())
    for token in content["added_tokens"]:
        token["special"] |= token["content"] in ("<think>", "</think>")
    path.write_text(json.dumps(content))


def shuffled_answers() -> None:
    texts = [row["completion"] for row in read_parquet(WORLD / SOLVED)]
    change_rows(SOLVED, lambda n, row: row | {"completion": texts[(n * 7 + 3) % len(texts)]})


def completions(change):
    return lambda: change_rows(SOLVED, lambda n, row: row | {"completion": change(n, row["completion"])})


def pairs(same: bool = False, label=lambda n: n % 2, without: str = ""):
    def plant():
        said = [(row["prompt"], row["completion"]) for row in sums(40)]
        found = [{"prompt": p, "chosen": c, "rejected": c if same else "No."} for p, c in said]
        rows.write_parquet("pairs.parquet", [{k: v for k, v in row.items() if k != without} for row in found])
        labels = [{"prompt": p, "response": c, "label": label(n)} for n, (p, c) in enumerate(said)]
        rows.write_parquet("labels.parquet", labels)

    return plant


NO_COLUMN = r"On known completions \S+ fails at \S+accuracy_rewards\.py:\d+: TypeError: .*'solution'"


def reward(body: str, name: str = "reward"):
    def plant():
        sys.modules.pop("planted", None)
        Path("planted.py").write_text(f"def {name}(completions, **columns):\n    {body}\n")

    return plant


def mixture(family: str = "qwen3_moe") -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    shutil.rmtree(BASE)
    moe.write(BASE, family, vocab=len(tokenizer), **ends)
    tokenizer.save_pretrained(BASE)
    (BASE / "run.json").write_text('{"id": "x"}')


def row_fault(name: str, every: int = 1, **values):
    return lambda: change_rows(name, lambda n, row: row | (values if n % every == 0 else {}))


def without(column: str):
    return lambda: change_rows(ASKED, lambda n, row: {key: row[key] for key in row if key != column})


ERRORS = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
QUANTISED = TUNING | {"load_in_4bit": True}
HUB = {"push_to_hub": True, "hub_model_id": "me/x"}
OWN = RL | {"reward_funcs": ["planted.reward"]}
SCORED = RL | {
    "reward_funcs": ["HelpfulnessReward"],
    "reward_kwargs": {"HelpfulnessReward": {"model": str(BASE)}},
    "general_datasets": [f"{WORLD}/helpful.parquet"],
}
STYLE = {"reward_kwargs": {"format_reward": {"style": "think"}}}
OPENED = foreign("  {{- '<|assistant|>' -}}\n{%- endif", "  {{- '<|assistant|><think>' -}}\n{%- endif")
EATEN = foreign("message['content'] + '", "message['content'].split('</think>')[-1] + '")
# What is wrong: (stage, settings, what plants it, what has to be said)
ZERO = "r1_zero"
FAULTS = {
    # rows of reinforcement learning
    "golds nobody can read": (ZERO, RL, row_fault(ASKED, 30, answer="\\frac{"), "gold answer"),
    "golds that are missing": (ZERO, RL, row_fault(ASKED, 40, answer=""), "gold answer"),
    "golds that stand for none": (ZERO, RL, row_fault(ASKED, 4, answer="notfound"), "stands for no answer"),
    "golds that are prose": (ZERO, RL, row_fault(ASKED, answer="we add the two " * 20), "whole solution"),
    "no rule for the rows": (ZERO, RL, row_fault(ASKED, verifier="none"), "no reward here grades"),
    "one gold for all": (ZERO, RL, row_fault(ASKED, answer="7"), "1 different gold answers"),
    "one prompt for all": (ZERO, RL, row_fault(ASKED, prompt="Solve it."), "1 different prompts"),
    "prompts in a template": (ZERO, RL, row_fault(ASKED, prompt="<|user|>2 + 3?<|assistant|><think>"), "prompt holds"),
    "rows no reward is for": (ZERO, RL, row_fault(ASKED, 3, kind="helpful"), "no reward is for"),
    "a column that is missing": (ZERO, RL, without("answer"), "column 'answer': missing"),
    "too few rows": (ZERO, RL | {"generation_batch_size": 800}, None, "100 rows, and a rollout takes 200"),
    # rows of supervised fine-tuning, and of reward models
    "traces over max_length": (
        SFT_1,
        TUNING,
        completions(lambda n, c: "again " * 200 * (n % 4 == 0) + c),
        "25% of the",
    ),
    "traces cut off": (SFT_1, TUNING, completions(lambda n, c: c.split("</think>")[0]), "not closed"),
    "reasoning that is lost": (SFT_1, TUNING, completions(lambda n, c: c.split("</think>")[1]), "reasoning is missing"),
    "end tokens in the text": (SFT_1, TUNING, completions(lambda n, c: c + "<|end|>"), r"holds '<\|end\|>'"),
    "answers of other questions": (SFT_1, TUNING, shuffled_answers, "its answer is not its gold"),
    "one completion for all": (SFT_1, TUNING, completions(lambda n, c: "<think>a</think>b"), "all the same"),
    "pairs of two alike": ("reward_models", SCORER, pairs(same=True), "both summaries are the same"),
    "labels all the same": ("reward_models", SCORER, pairs(label=lambda n: 1), "all labels are the same"),
    "pairs without a column": ("reward_models", SCORER, pairs(without="rejected"), "has no rejected"),
    # checkpoints
    "special tags": (ZERO, RL, special_tags, "do not survive decoding"),
    "padding with the end": (
        ZERO,
        RL,
        lambda: change_tokenizer(lambda t: setattr(t, "pad_token", t.eos_token)),
        "pad tok",
    ),
    "a template that ends otherwise": (
        "reasoning_rl",
        RL,
        foreign("'<|end|>'", "'<|user|>'"),
        "template ends an answer",
    ),
    "a template that eats": (SFT_1, TUNING, EATEN, "its chat template changes completions"),
    "a template that opens": (SFT_1, TUNING, OPENED, "does not go on from"),
    "a template that opens, unknown to rewards": ("reasoning_rl", RL, OPENED, "rewards with a key `prefilled`"),
    "too many tokens": (ZERO, RL, lambda: change_tokenizer(lambda t: t.add_tokens(["a b", "b c"])), "embeddings"),
    "weights missing": (ZERO, RL, lambda: change_weights(lambda w: w.pop("model.norm.weight")), "tensors are missing"),
    "weights not finite": (SFT_1, TUNING, lambda: change_weights(lambda w: w[NORM].fill_(float("nan"))), "not finite"),
    "weights that are zero": (ZERO, RL, lambda: change_weights(lambda w: w[UP].zero_()), "all zero"),
    "few positions": (ZERO, RL, lambda: change_json("config.json", max_position_embeddings=8), "a model of 8 pos"),
    "a policy for a reward model": ("all_scenarios_rl", SCORED, None, "is no reward model"),
    # YAMLs
    "a renamed key": (SFT_1, TUNING | {"max_seq_length": 99}, None, "unknown key `max_seq_length`"),
    "a group of none": (ZERO, RL | {"num_generations": 0}, None, "`num_generations` is 0; write at least 1"),
    "a batch that cannot be": (ZERO, RL | {"per_device_train_batch_size": 3}, None, "divisor of 8"),
    "room for no answer": (ZERO, RL | {"max_completion_length": 2}, None, "cut off at max_completion_length: 2"),
    "another style": (ZERO, RL | STYLE, None, "format_reward on known"),
    "rewards of weight 0": (ZERO, RL | {"reward_weights": [0.0, 0.0, 0.0]}, None, "Without one finite weight"),
    "a weight too few": (ZERO, RL | {"reward_weights": [1.0]}, None, "Without one finite weight"),
    "a rate of 0": (SFT_1, TUNING | {"learning_rate": 0.0}, None, "learning_rate: 0"),
    "greedy groups": (ZERO, RL | {"temperature": 1e-3}, None, "come out alike"),
    "bfloat16 weights": (SFT_1, TUNING | {"dtype": "bfloat16"}, None, "smaller than bfloat16 can add"),
    "wrapped conversations": (SFT_1, TUNING | {"packing": True, "packing_strategy": "wrapped"}, None, "wrapped cuts"),
    "prompts with a loss": (SFT_1, TUNING | {"completion_only_loss": False}, None, "prompts are trained too"),
    "an adapter of nothing": ("distill", TUNING | LORA | {"lora_target_modules": ["atention"]}, None, "lora_target"),
    "an adapter of the embeddings": (
        "distill",
        TUNING | LORA | {"lora_target_modules": ["embed_tokens"]},
        None,
        "lora_target_modules: an embedding",
    ),
    "no token for the Hub": (SFT_1, TUNING | HUB, None, "HF_TOKEN is not set"),
    "a reward of other rows": (ZERO, RL | {"reward_funcs": ["trl.rewards.accuracy_reward"]}, None, NO_COLUMN),
    "a reward for what is wrong": (
        ZERO,
        OWN,
        reward("return [float('not' in c) for c in completions]"),
        "not tell right",
    ),
    "a reward that is no number": (
        ZERO,
        OWN,
        reward("return [float('nan')] * len(completions)"),
        "not a finite number",
    ),
    "a reward that raises": (ZERO, OWN, reward("return [len(c.answer) for c in completions]"), "planted.py:2: return"),
    "a reward of another length": (ZERO, OWN, reward("return [1.0]"), r"planted.py:1\) returns 1 values for \d+ comp"),
    "a reward in words": (ZERO, OWN, reward("return ['good'] * len(completions)"), "no list of numbers"),
    "a reward for the whole batch": (ZERO, OWN, reward("return 1.0"), r"returns 1\.0, which is no list of numbers"),
    "a reward of nothing": (ZERO, OWN, reward("return [None] * len(completions)"), "returns None for every completion"),
    "a reward for other rows": (ZERO, RL | {"reward_funcs": ["code_reward"]}, None, "no reward here concerns any"),
    # mixtures of experts
    "ZeRO-3 without leaves": (SFT_1, TUNING, mixture, "no leaf modules"),
    "ZeRO-3 with 4 bits": ("distill", QUANTISED, mixture, "load_in_4bit with ZeRO-3"),
    "experts left in 16 bits": ("distill", QUANTISED, lambda: mixture("gpt_oss"), "would stay in 16 bits"),
    "a router that is trained": ("distill", QUANTISED | {"lora_target_modules": ["gate"]}, mixture, "is a router"),
    "half of an expert": ("distill", TUNING | LORA | {"lora_target_modules": ["up_proj"]}, mixture, "lora_target_mod"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name, run_stage, caplog, capfd, monkeypatch):
    script, settings, plant, said = FAULTS[name]
    if plant:
        plant()
    if name.startswith("a template"):
        monkeypatch.setattr("recipes.loading.MARKUP", {})
    if "ZeRO-3" in name:
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    ended = None
    try:
        run_stage(script, settings)
    except (SystemExit, *ERRORS) as error:  # it may well fail after it was told
        ended = error
    text = caplog.text + capfd.readouterr().err
    assert re.search(said, text), (text, ended)


@pytest.mark.parametrize(
    ("script", "settings"),
    [
        ("r1_zero", RL | {"max_completion_length": 40}),
        ("reasoning_rl", RL),
        ("cold_start_sft", TUNING),
        ("distill", TUNING | LORA),
    ],
)
def test_nothing_is_found_where_nothing_is_wrong(script, settings, run_stage, caplog):
    run_stage(script, settings)
    told = [text for text in caplog.messages if text.startswith(("doctor:", "red flag"))]
    # This base has learned nothing.
    assert not [text for text in told if "of a sample's completions are cut" not in text]


def test_switched_off_it_changes_no_number(run_stage):
    """The same losses with and without: what it samples leaves no trace."""
    on = run_stage("r1_zero", RL | {"max_steps": 4}, name="on")
    off = run_stage("r1_zero", RL | {"max_steps": 4, "doctor": False}, name="off")
    assert log_of(on) == log_of(off)
    assert (on / "model.safetensors").read_bytes() == (off / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("constant", "steps", "said"),
    [
        # A rollout is two steps, and counts once.
        ("0.0", 5, "stop_when_all_wrong: not one answer was right in 3 rollouts, up to step 5"),
        ("0.5", 8, "all completions get the same reward"),
        ("1.0", 8, ""),
    ],
)
def test_all_wrong_stops_a_run_and_all_right_does_not(constant, steps, said, run_stage, caplog, capsys):
    name = "reward" if constant == "0.5" else "accuracy_reward"
    reward(f"return [{constant}] * len(completions)", name)()
    settings = GRPO | {"reward_funcs": [f"planted.{name}"], "stop_when_all_wrong": 3}
    if steps < 8:
        with pytest.raises(SystemExit):
            run_stage("r1_zero", settings)
    else:
        run_stage("r1_zero", settings)
    assert len(log_of(Path("outputs/t/run"))) in (steps, steps - 1)
    flags = [text for text in caplog.messages if text.startswith("red flag") and "clipped" not in text]
    assert said in "".join(flags) + capsys.readouterr().err
    assert bool(flags) == bool(said)


def test_a_rate_that_breaks_the_policy_is_a_red_flag(run_stage, caplog):
    run_stage("r1_zero", GRPO | {"learning_rate": 0.9, "max_steps": 5, "max_grad_norm": 0.0})
    assert re.search(r"red flag at step [1-5]: (kl|entropy|grad_norm) is", caplog.text)


@pytest.mark.parametrize("body", ["raise KeyError('x')", "return [1.0]", "return [float('inf')] * len(completions)"])
def test_without_the_doctor_the_first_rollout_ends_in_one_paragraph(body, run_stage, caplog, capsys):
    """Which torchrun, where it has started several processes, shows at the end of its own report."""
    reward(body)()
    told = Path("error.json").absolute()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setenv("TORCHELASTIC_ERROR_FILE", str(told))
        run_stage(ZERO, OWN | {"doctor": False})
    (said,) = [text for text in caplog.messages if text.startswith("error: ")]
    assert ended.value.code == 1 and re.match(r"error: planted\.reward .*planted\.py:[12]\b", said)
    assert "\n" not in said and "Traceback" not in capsys.readouterr().err
    assert json.loads(told.read_text())["message"]["extraInfo"]["py_callstack"] == said


@pytest.mark.parametrize("able", [False, True])
def test_bfloat16_is_for_cpus_that_have_it(able, run_stage, caplog, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able})
    run_stage("cold_start_sft", TUNING | {"bf16": True, "max_steps": 1})
    assert ("Write bf16: false" in caplog.text) is not able


def test_layers_are_not_compiled_without_a_compiler(refuses, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    said = refuses("cold_start_sft", TUNING | {"compile_layers": True})
    assert "there is no no-such-compiler" in said and "compile_layers: false" in said


def test_other_versions_than_the_pins_are_named(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.1")
    assert "trl 0.1 instead of " in str(next(checks.settings.versions()))


def test_random_numbers_come_as_if_it_had_not_been_there():
    torch.manual_seed(1)
    first = torch.rand(3)
    torch.manual_seed(1)
    with checks.finding.same_random_numbers():
        torch.rand(100)
    assert torch.rand(3).equal(first)


def test_the_command_looks_at_a_whole_scale_without_weights(here, capsys, monkeypatch):
    """A YAML that is wrong, one that waits for another's run, and one that is well."""
    scale = here / "scale"
    scale.mkdir()
    write = {
        "base": CORPUS | {"batch_size": 10**8, "per_device_train_batch_size": 10**8},
        "r1_zero": RL,
        "cold_start_sft": TUNING | {"max_lenght": 3},
        "distill": TUNING | {"model_name_or_path": "outputs/t/nobody"},
    }
    for name, settings in write.items():
        (scale / f"{name}.yaml").write_text(yaml.safe_dump({"output_dir": f"outputs/scale/{name}"} | settings))
    (BASE / "model.safetensors").unlink()
    monkeypatch.setattr(logging.root, "handlers", logging.root.handlers[:])
    assert doctor.main(["--scale", str(scale)]) == 1
    said = capsys.readouterr().out
    assert "finding: " in said and "unknown key `max_lenght`" in said and "not yet: outputs/t/nobody" in said
    assert "GB, and there are" in said and "Write per_device_train_batch_size" in said
    assert "distill.yaml: outputs/t/nobody is not there: no YAML of this scale makes it\n" in said
    assert said.rstrip().endswith("3 findings")
    (here / "others.yaml").write_text("distill: {model_name_or_path: outputs/scale/colt_start_sft}\n", encoding="utf-8")
    assert doctor.main(["--scale", str(scale), "--override", "others.yaml", "--stage", "distill"]) == 1
    said = capsys.readouterr().out
    assert "no YAML of this scale makes it; did you mean outputs/scale/cold_start_sft?" in said
    assert said.rstrip().endswith("\n1 finding")
    (here / "others.yaml").write_text(
        "distill: {num_train_epochs: 0, judge: {serve: 1, base_url: x}}\n", encoding="utf-8"
    )
    assert doctor.main(["--scale", str(scale), "--override", "others.yaml"]) == 1
    assert "serve is 1; write arguments of `vllm serve`" in capsys.readouterr().out
