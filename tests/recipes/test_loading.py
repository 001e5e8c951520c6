"""Tokenizer, chat template, rows and rewards, as the trainers see them."""

import json
from pathlib import Path
from types import SimpleNamespace

import rewards
from data_prep import prompts, sampling
from data_prep.rows import write_rows
from data_prep.runs import ConfigError
from recipes import checks, data, grpo, loading, patches, training
from recipes.config import RLArguments
from recipes.tokenizer import TAGS
from recipes.tools.merge import merge
from recipes.trl_configs import SFTConfig

import pyarrow.parquet as pq
import pytest
import torch
import trl
import yaml
from conftest import CPU, GRPO, LORA, SFT, record_of, sums
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3Config,
    GPT2Config,
    MambaConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

ASKED = {"role": "user", "content": "What is 2 + 3?"}
SOLVED = "<think>First 2 + 3 = 5</think>\nThe answer is 5."


@pytest.fixture
def tokenizer(here):
    return loading.load_tokenizer("outputs/t/base")


def test_tags_digits_operators_and_the_prefix_are_one_token_each(tokenizer):
    for tag in [*TAGS, prompts.R1_ZERO_PREFIX, *"0123456789+-*/=()"]:
        assert len(tokenizer(tag)["input_ids"]) == 1, tag
    assert len(tokenizer("12 + 3 = 15")["input_ids"]) == 7
    assert set(tokenizer.all_special_tokens) == {"<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"}
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.pad_token == "<|pad|>"


@pytest.mark.parametrize("text", [SOLVED, prompts.r1_zero("7 * (8 - 3) 等于多少？"), "naïve\n\n  12 -3 é😀 "])
def test_text_comes_back_whole_with_special_tokens_skipped(tokenizer, text):
    """TRL decodes so before it asks the rewards: a special `<think>` would be lost, and with it every reward."""
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_the_template_never_touches_a_completion(tokenizer):
    turns = [ASKED, {"role": "assistant", "content": SOLVED}]
    text = tokenizer.apply_chat_template(turns * 2, tokenize=False)
    assert text == f"<|user|>What is 2 + 3?<|assistant|>{SOLVED}<|end|>" * 2
    asked = tokenizer.apply_chat_template([ASKED], tokenize=False, add_generation_prompt=True)
    assert asked == "<|user|>What is 2 + 3?<|assistant|>"
    with pytest.raises(Exception, match="knows user and assistant"):
        tokenizer.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)


def test_loss_falls_on_the_whole_completion_and_its_end(tokenizer, here):
    """Prompt and completion, and whole conversations under assistant_only_loss: the same tokens are trained."""
    model = AutoModelForCausalLM.from_pretrained("outputs/t/base")
    turns = [ASKED, {"role": "assistant", "content": SOLVED}]
    for row, only in (({"prompt": turns[:1], "completion": turns[1:]}, False), ({"messages": turns}, True)):
        config = SFTConfig(output_dir="outputs/t/x", batch_size=1, **CPU)
        config.assistant_only_loss = only  # our stages refuse the key
        turn = Dataset.from_list([row])
        trainer = training.SFTTrainer(model, args=config, train_dataset=turn, processing_class=tokenizer)
        prepared = trainer.train_dataset[0]
        trained = [token for token in prepared["labels"] if token != -100]
        assert tokenizer.decode(trained) == SOLVED + "<|end|>"
        assert tokenizer.decode(prepared["input_ids"]) == f"<|user|>What is 2 + 3?<|assistant|>{SOLVED}<|end|>"


def test_a_large_vocabulary_is_projected_where_labels_are_and_nothing_changes(monkeypatch):
    for name in ("_use_triton", "_CHUNKED_LOGPROB_CHUNK_SIZE"):
        monkeypatch.setattr(trl.trainer.utils, name, getattr(trl.trainer.utils, name))  # put back after the test
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True}
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=5000, **sizes, **heads))
    trl.trainer.utils.add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    ids = torch.randint(5000, (3, 20))
    labels = ids.masked_fill(torch.arange(20) < torch.tensor([[5], [9], [19]]), -100)
    projected, found = [], []
    monkeypatch.setattr(
        trl.trainer.utils._ChunkedLogProbFunction,
        "forward",
        lambda ctx, hidden, *more, forward=trl.trainer.utils._ChunkedLogProbFunction.forward: (
            projected.append(len(hidden)) or forward(ctx, hidden, *more)
        ),
    )
    for vocabulary in (400, 5000):  # a small one is left as it is
        patches.project_labels_alone(vocabulary)
        out = model(ids, labels=labels, fused_lm_head=True)
        out.loss.backward()
        found.append([out.loss.detach(), out.entropy, out.is_top1.float(), model.lm_head.weight.grad.clone()])
        model.zero_grad()
    assert projected == [57, 27]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [{}, LORA], ids=["all weights", "LoRA"])
def test_generation_stops_at_the_end_token(kind, run_stage, here):
    """Of a base too that ended at another one, as the Hub's do; and what the YAML changes in its config stays."""
    base = Path("outputs/t/base")
    for name in ("config.json", "generation_config.json"):
        config = json.loads((base / name).read_text())
        (base / name).write_text(json.dumps(config | {"eos_token_id": 7, "pad_token_id": 7}))
    saved = run_stage("cold_start_sft", SFT | kind | {"max_steps": 1, "max_position_embeddings": 1024})
    model, tokenizer = AutoModelForCausalLM.from_pretrained(saved), AutoTokenizer.from_pretrained(saved)
    for config in (model.config, model.generation_config):
        assert config.eos_token_id == tokenizer.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")
        assert config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.config.max_position_embeddings == 1024
    assert "generation" in tokenizer.chat_template
    assert not list(saved.glob("*.bin"))
    if kind:
        merge(base, saved / "adapter", "by_hand")
        merged = AutoModelForCausalLM.from_pretrained("by_hand")
        assert merged.config.eos_token_id == merged.generation_config.eos_token_id == tokenizer.eos_token_id
        assert AutoTokenizer.from_pretrained("by_hand").chat_template == tokenizer.chat_template


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_an_adapter_of_what_is_the_embedding_is_refused_before_training(target, refuses):
    said = refuses("cold_start_sft", SFT | LORA | {"lora_target_modules": ["q_proj", target]})
    assert "lora_target_modules: an embedding's adapter could not be merged. Write names of linear layers" in said


def test_prompts_in_both_styles(tokenizer, here):
    run = SimpleNamespace(args=RLArguments(dataset="outputs/t/world/reasoning.parquet"), figures={})
    chat = grpo.load_prompts(run, tokenizer)
    run.args.completion_style = "r1_zero"
    plain = grpo.load_prompts(run, tokenizer)
    row = sums(1)[0]
    assert chat[0]["prompt"] == [{"role": "user", "content": row["prompt"]}]
    assert plain[0]["prompt"] == prompts.r1_zero(row["prompt"])
    assert {key: plain[0][key] for key in row if key not in ("prompt", "completion")} == {
        key: row[key] for key in row if key not in ("prompt", "completion")
    }


def test_long_rows_are_left_out_and_counted(run_stage, refuses, tokenizer):
    limit = 22
    turns = [
        data.as_messages("user", row["prompt"]) + data.as_messages("assistant", row["completion"]) for row in sums(100)
    ]
    lengths = [len(tokenizer.apply_chat_template(turn)["input_ids"]) for turn in turns]
    short = sum(length <= limit for length in lengths)
    assert 8 <= short < 100
    record = record_of(run_stage("cold_start_sft", SFT | {"max_length": limit, "max_steps": 1}))
    assert (record["rows"], record["rows_too_long"]) == (short, 100 - short)
    assert "all of its 100 rows are longer than max_length: 3" in refuses(
        "cold_start_sft", SFT | {"max_length": 3}, name="none"
    )
    assert "longer than max_prompt_length: 2" in refuses("r1_zero", GRPO | {"max_prompt_length": 2}, name="none")


def test_prompts_that_leave_no_room_for_a_completion_are_left_out(run_stage, refuses):
    path = Path("outputs/t/world/reasoning.parquet")
    long = [
        row | {"prompt": "again " * 300 * (number % 10 == 0) + row["prompt"]} for number, row in enumerate(sums(100))
    ]
    write_rows(path, [{key: value for key, value in row.items() if key != "completion"} for row in long])
    write_rows("outputs/t/world/sft.parquet", long, sft=True)
    record = record_of(run_stage("cold_start_sft", SFT | {"max_steps": 1, "max_length": 32768}, name="sft"))
    assert (record["rows"], record["rows_too_long"]) == (90, 10)
    one = GRPO | {"max_steps": 1}
    record = record_of(run_stage("r1_zero", one))
    assert (record["rows"], record["rows_too_long"]) == (90, 10)
    mixed = one | {"general_datasets": [f"outputs/t/world/{kind}.parquet" for kind in ("helpful", "harmless")]}
    record = record_of(run_stage("all_scenarios_rl", mixed, name="mixed"))
    assert (record["rows"], record["rows_too_long"]) == (4, 10)  # of the one rollout; its order has no gap
    said = refuses("r1_zero", one | {"max_prompt_length": 505}, name="both")
    assert "in a model of 512 positions for max_prompt_length: 505 and max_completion_length: 12." in said
    assert "in a model of 512 positions for max_completion_length: 600." in refuses(
        "r1_zero", one | {"max_completion_length": 600}, name="b"
    )
    record = record_of(run_stage("r1_zero", one | {"max_position_embeddings": 4096}, name="longer"))
    assert record["rows_too_long"] == 0


@pytest.mark.parametrize(
    ("config", "room"),
    [
        (Qwen3Config(max_position_embeddings=512), 512),
        (Qwen3Config(max_position_embeddings=512, rope_parameters={"rope_type": "linear", "factor": 4.0}), 2048),
        (
            Qwen3Config(
                max_position_embeddings=640,
                rope_parameters={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
            ),
            2048,
        ),
        (GPT2Config(n_positions=128), 128),
        (MambaConfig(), None),
        (Gemma3Config(text_config={"max_position_embeddings": 256}), 256),
    ],
)
def test_a_model_takes_as_many_tokens_as_its_config_says(config, room):
    assert sampling.positions(config) == room


@pytest.mark.parametrize("key", ["attn_implementation: flash_attention_2", "report_to: wandb"])
def test_a_package_that_is_missing_is_a_sentence(key, refuses):
    said = refuses("r1_zero", GRPO | yaml.safe_load(key)).strip().splitlines()[-1]
    assert said.startswith("error: ") and "installed" in said and "requirements-gpu.txt list" in said


def test_a_data_set_without_rows_is_called_so(refuses):
    for script, settings, name in (("r1_zero", GRPO, "reasoning"), ("cold_start_sft", SFT, "sft")):
        path = f"outputs/t/world/{name}.parquet"
        pq.write_table(pq.read_table(path).slice(0, 0), path)
        assert f"{path} has no rows" in refuses(script, settings, name=name)


def test_a_template_that_drops_reasoning_is_refused(refuses, tokenizer):
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message['content'] + '<|end|>'", "message['content'].split('</think>')[-1] + '<|end|>'"
    )
    tokenizer.save_pretrained("outputs/t/base")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "MARKUP", {})  # as with a Hub model of a family that we do not know
        said = refuses("cold_start_sft", SFT)
    assert "its chat template changes completions" in said


def test_rewards_by_name_by_path_and_with_settings(here):
    names = ["accuracy_reward", "format_reward", "language_consistency_reward", "HelpfulnessReward", "probe.reward"]
    found = grpo.load_rewards(
        RLArguments(
            completion_style="think",
            reward_funcs=names,
            reward_kwargs={"HelpfulnessReward": {"model": "outputs/t/base"}},
        )
    )
    assert [getattr(one, "__name__", None) for one in found] == [
        *("accuracy_reward", "format_reward", "language_consistency_reward", "helpfulness_reward", "reward"),
    ]
    assert found[1].style == "think" != rewards.format_reward.style
    assert (
        grpo.load_rewards(RLArguments(completion_style="r1_zero", reward_funcs=["format_reward"]))[0].style == "r1_zero"
    )


OWN_REWARDS = """
import dataclasses, functools

def texts(reward):
    @functools.wraps(reward)
    def call(completions, **columns):
        return reward([str(one) for one in completions], columns["scale"])
    return call

@texts
def decorated(said, scale):
    return (float(scale[0]) for one in said)

class Object:
    def __init__(self, scale=1.0):
        self.scale = scale
    def __call__(self, completions, **columns):
        return [self.scale] * len(completions)
    def method(self, completions, **columns):
        return [self.scale] * len(completions)

@dataclasses.dataclass
class Data(Object):
    scale: float = 1.0
    other: int = 0

made, data, method = Object(5.0), Data(5.0), Object(5.0).method
part = functools.partial(made, unused=1)
number = 3

def none_found(completions, **columns):
    return [next(iter(())) for one in completions]

def late(completions, **columns):
    for one in completions:
        yield undefined

def nested(completions, **columns):
    return [[1.0] for one in completions]

def huge(completions, **columns):
    return [10**400 for one in completions]
"""


def test_any_callable_is_a_reward_and_keeps_what_it_was_made_with(here):
    Path("own_callables.py").write_text(OWN_REWARDS, encoding="utf-8")

    def rewarded(member: str, **kwargs: object) -> list[float]:
        name = f"own_callables.{member}"
        (reward,) = grpo.load_rewards(
            RLArguments(reward_funcs=[name], reward_kwargs={name: kwargs} if kwargs else None)
        )
        return checks.guarded(name, reward)(completions=["a", "b"], scale=[5, 5])

    for member in ("decorated", "made", "data", "method", "part"):
        assert rewarded(member) == [5.0, 5.0]
    assert rewarded("data", other=1) == [5.0, 5.0]
    assert rewarded("Object", scale=2.0) == rewarded("made", scale=2.0) == [2.0, 2.0]
    with pytest.raises(ConfigError, match="takes no settings"):
        rewarded("part", a=1)
    with pytest.raises(ConfigError, match="'own_callables.number' is 3, which cannot be called"):
        rewarded("number")
    for member, said in {
        "none_found": "fails at .*own_callables.py.*next.*StopIteration",
        "late": "fails at .*own_callables.py.*yield undefined: NameError",
        "nested": "which is no list of numbers",
        "huge": "which is no list of numbers",
    }.items():
        with pytest.raises(checks.RewardError, match=said):
            rewarded(member)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"reward_funcs": ["acuracy_reward"]}, "no 'acuracy_reward'.*accuracy_reward"),
        ({"reward_funcs": ["nowhere.reward"]}, "no 'nowhere.reward'"),
        ({"reward_funcs": ["format_reward"], "reward_kwargs": {"x": {}}}, "x is not among reward_funcs"),
        ({"reward_funcs": ["format_reward"], "reward_kwargs": {"format_reward": {"stile": 1}}}, "stile"),
        ({"reward_funcs": ["probe.reward"], "reward_kwargs": {"probe.reward": {"a": 1}}}, "takes no settings"),
        (
            {"reward_funcs": ["HelpfulnessReward"], "reward_kwargs": {"HelpfulnessReward": {"model": "./no"}}},
            "./no holds",
        ),
    ],
)
def test_rewards_that_are_not_there(wrong, said, here):
    with pytest.raises(ConfigError, match=said):
        grpo.load_rewards(RLArguments(**wrong))
