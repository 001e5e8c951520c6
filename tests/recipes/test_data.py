"""What SFT trains on: the tokens and labels that TRL would make, made once."""

import shutil
from pathlib import Path
from types import SimpleNamespace

from data_prep import rows
from data_prep.runs import ConfigError
from recipes import data, loading, training
from recipes.config import PolicyArguments
from recipes.trl_configs import SFTConfig

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import CPU, SFT, record_of, sums
from datasets import Dataset
from transformers import AutoModelForCausalLM

CACHE = Path("outputs/t/.tokenized")


def made_by_us(tokenizer, dataset="outputs/t/world/sft.parquet", **settings) -> Dataset:
    config = SFTConfig(output_dir="outputs/t/x", batch_size=1, **CPU | settings)
    args = PolicyArguments(model_name_or_path="outputs/t/base", dataset=dataset)
    return data.load_sft_rows(SimpleNamespace(args=args, config=config, figures={}), tokenizer)


@pytest.mark.parametrize("settings", [{}, {"completion_only_loss": False}, {"dataset_num_proc": 2}], ids=str)
def test_tokens_and_labels_are_those_of_trl(here, settings):
    tokenizer = loading.load_tokenizer("outputs/t/base")
    parts = {"prompt": "user", "completion": "assistant"}
    turns = [{part: data.as_messages(role, row[part]) for part, role in parts.items()} for row in sums(100)]
    config = SFTConfig(output_dir="outputs/t/x", batch_size=1, **CPU | settings)
    model = AutoModelForCausalLM.from_pretrained("outputs/t/base")
    trls = training.SFTTrainer(
        model, args=config, train_dataset=Dataset.from_list(turns), processing_class=tokenizer
    ).train_dataset
    ours = made_by_us(tokenizer, **settings)
    made = [{key: trls[n][key] for key in ("input_ids", "labels")} for n in range(100)]
    assert [ours[n] for n in range(100)] == [row | {"length": len(row["input_ids"])} for row in made]


def test_rows_are_tokenized_once_for_each_content_and_template(here):
    def files() -> set[Path]:
        return set(CACHE.glob("*/*.arrow"))

    tokenizer, source = loading.load_tokenizer("outputs/t/base"), Path("outputs/t/world/sft.parquet")
    made_by_us(tokenizer)
    (first,) = files()
    before = first.stat().st_mtime_ns
    copy = shutil.copyfile(source, "copy.parquet")  # the same rows, at another time
    Path(copy).replace(source)
    (first.parent / "tmpkilled").write_bytes(b"half")
    assert len(made_by_us(loading.load_tokenizer("outputs/t/base"))) == 100
    assert files() == {first} and first.stat().st_mtime_ns == before
    assert not (first.parent / "tmpkilled").exists()
    first.write_bytes(first.read_bytes()[:-1000])
    with pytest.raises(ConfigError, match=f"{first.parent} is damaged .*; delete it"):
        made_by_us(tokenizer)
    shutil.rmtree(first.parent)
    made_by_us(tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|assistant|>", "<|user|>")
    changed = made_by_us(tokenizer)
    assert len(files()) == 2 and changed[0] != made_by_us(loading.load_tokenizer("outputs/t/base"))[0]
    rows.write_rows(source, sums(99), sft=True)
    assert len(made_by_us(tokenizer)) == 99


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"completion": None}, r"sft.parquet, row 7, column 'completion': None is NoneType, must be str"),
        ({"id": "3"}, r"sft.parquet, row 7, column 'id': row 3 has '3', too"),
        ({"language": "de"}, r"sft.parquet, row 7, column 'language': 'de' is not one of en, zh"),
    ],
    ids=str,
)
def test_a_row_that_breaks_the_contract_is_named(refuses, change, said):
    broken = [row | (change if number == 7 else {}) for number, row in enumerate(sums(20))]
    rows.write_parquet("outputs/t/world/sft.parquet", broken)
    assert said in refuses("cold_start_sft", SFT | {"max_steps": 1})


def test_a_path_is_no_pattern_and_any_column_of_text_will_do(here):
    source = Path("outputs/t/world [1]/a*b?.parquet")
    source.parent.mkdir()
    table = pq.read_table("outputs/t/world/sft.parquet")
    views = [pa.field(one.name, pa.string_view() if one.type == pa.string() else one.type) for one in table.schema]
    pq.write_table(table.cast(pa.schema(views)), source)
    tokenizer = loading.load_tokenizer("outputs/t/base")
    assert made_by_us(tokenizer, str(source))[7] == made_by_us(tokenizer)[7]


def test_a_file_without_rows_or_cut_short_is_named(refuses, here):
    source = Path("outputs/t/world/sft.parquet")
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) // 2])
    assert "sft.parquet: not a readable Parquet file" in refuses("cold_start_sft", SFT | {"max_steps": 1})
    source.write_bytes(whole)
    pq.write_table(pq.read_table(source).slice(0, 0), source)
    assert "sft.parquet has no rows" in refuses("cold_start_sft", SFT | {"max_steps": 1})


def test_what_comes_too_late_for_tokenized_rows_is_refused(refuses):
    for change in ({"chat_template_path": "x"}, {"eos_token": "<|end|>"}, {"assistant_only_loss": True}):
        assert f"{next(iter(change))}: rows are tokenized before" in refuses("cold_start_sft", SFT | change)
    assert "max_length is none" in refuses("cold_start_sft", SFT | {"packing": True, "max_length": None})


def test_rows_of_like_length_come_together(run_stage, monkeypatch):
    seen = []
    collate = training.SFTTrainer.compute_loss

    def compute_loss(self, model, inputs, *more, **kwargs):
        seen.append((inputs["attention_mask"] == 0).float().mean().item())
        return collate(self, model, inputs, *more, **kwargs)

    monkeypatch.setattr(training.SFTTrainer, "compute_loss", compute_loss)
    padding = {}
    for strategy in ("random", "group_by_length"):
        run_stage("cold_start_sft", SFT | {"train_sampling_strategy": strategy, "num_train_epochs": 1}, name=strategy)
        padding[strategy] = sum(seen) / len(seen)
        seen.clear()
    assert padding["group_by_length"] < padding["random"] / 2


def test_packed_rows_and_their_budget(run_stage):
    """A budget in completion tokens counts the same tokens, packed or not."""
    alone = record_of(run_stage("distill", SFT | {"token_budget": 500, "use_peft": False}, name="alone"))
    packed = SFT | {"token_budget": 500, "use_peft": False, "packing": True, "batch_size": 1}
    packed = record_of(run_stage("distill", packed | {"per_device_train_batch_size": 1}, name="packed"))
    for record in (alone, packed):
        assert 500 <= record["completion_tokens_trained"] < 900
