"""The merge: file by file, in float32, to be gone on with; and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from data_prep.runs import ConfigError
from recipes.parent import KEPT, Parent, align, refuse_quantized
from recipes.tools import merge as module
from recipes.tools.merge import merge

import moe
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

IDS = torch.arange(3, 67).view(2, 32)
EXPERTS = ["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapter(parent: Path, folder: Path, targets: list[str], **more) -> Path:
    """An adapter that plain PEFT made and saved, none of its matrices zero."""
    model = AutoModelForCausalLM.from_pretrained(parent)
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=12, target_modules=targets, task_type="CAUSAL_LM", **more))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    return folder


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {key: one for path in sorted(folder.glob("model*.safetensors")) for key, one in load_file(path).items()}


@torch.no_grad()
def logits(folder: Path) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(IDS).logits


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "olmoe"])
def test_an_adapter_of_plain_peft_on_stacked_experts_is_merged_as_peft_does(family, stacked, tmp_path):
    parent = moe.write(tmp_path / "base", family, stacked=stacked)
    folder = adapter(parent, tmp_path / "adapter", [*EXPERTS, "q_b_proj"])
    merge(parent, folder, tmp_path / "merged", dtype="float32")
    by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(parent), folder).merge_and_unload()
    by_peft.save_pretrained(tmp_path / "by_peft", save_original_format=not stacked)
    one, other = tensors(tmp_path / "merged"), tensors(tmp_path / "by_peft")
    assert one.keys() == other.keys() == tensors(parent).keys()
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)
    assert not all(one[name].equal(tensors(parent)[name]) for name in one)


def test_linear_layers_are_merged_exactly_as_peft_does(tmp_path):
    parent = moe.write(tmp_path / "base", "deepseek_v3")
    folder = adapter(parent, tmp_path / "adapter", ["q_a_proj", "o_proj"], rank_pattern={"o_proj": 8}, use_rslora=True)
    merge(parent, folder, tmp_path / "merged", dtype="float32")
    by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(parent), folder).merge_and_unload()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    assert all(merged[name].equal(tensor) for name, tensor in by_peft.state_dict().items())


WHOLE = [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]]


@pytest.mark.parametrize(
    ("targets", "more"),
    [(["q_proj"], {"init_lora_weights": "orthogonal"})]
    + [(["q_proj"], {"modules_to_save": names}) for names in WHOLE]
    + [(["q_proj"], {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True})]
    + [(["q_proj", "lm_head"], more) for more in ({}, {"modules_to_save": ["embed_tokens"]})],
)
@pytest.mark.parametrize("stored", ["untied", "tied", "tied, with a head", "tied, as the head"])
def test_heads_embeddings_and_ways_to_begin_are_merged_as_peft_does(targets, more, stored, tmp_path):
    parent = moe.write(tmp_path / "base", "qwen3_moe", tie_word_embeddings=stored != "untied")
    held = load_file(parent / "model.safetensors")
    if stored.startswith("tied,"):
        held["lm_head.weight"] = held["model.embed_tokens.weight"].clone()
        if stored == "tied, as the head":
            del held["model.embed_tokens.weight"]
        save_file(held, parent / "model.safetensors", metadata={"format": "pt"})
    same_as_peft(parent, adapter(parent, tmp_path / "adapter", targets, **more), tmp_path / "merged")


def same_as_peft(parent: Path, folder: Path, output: Path) -> None:
    """Tensors that an adapter has whole are changed first, as training would."""
    held = load_file(folder / "adapter_model.safetensors")
    for key in held:
        if ".lora_" not in key and ".base_layer." not in key:
            alike = torch.Generator().manual_seed(0)  # for a head and an embedding that PEFT ties
            held[key] = held[key] + torch.rand(held[key].shape, generator=alike)
    save_file(held, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    merge(parent, folder, output, dtype="float32")
    by_peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(parent), folder)
    with torch.no_grad():
        assert torch.allclose(logits(output), by_peft(IDS).logits, atol=1e-4)
    assert not torch.allclose(logits(output), logits(parent), atol=0.1)


@pytest.mark.parametrize("names", WHOLE)
def test_ties_that_a_nested_config_says_are_untied(names, tmp_path):
    """Gemma 3: its language model is a part, whose tensors have other names in the file than in the model."""
    text = moe.SIZES | {"vocab_size": 320, "head_dim": 16}
    image = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=image | {"image_size": 28})
    assert config.text_config.tie_word_embeddings
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    folder = adapter(tmp_path / "base", tmp_path / "adapter", ["o_proj"], modules_to_save=names)
    same_as_peft(tmp_path / "base", folder, tmp_path / "merged")
    assert not AutoConfig.from_pretrained(tmp_path / "merged").text_config.tie_word_embeddings


def test_a_list_of_end_tokens_stays_where_the_tokenizer_s_is_among_them():
    config = GenerationConfig(eos_token_id=[1, 7], pad_token_id=0)
    align(SimpleNamespace(eos_token_id=1, pad_token_id=None, bos_token_id=2), config, None)
    assert (config.eos_token_id, config.pad_token_id, config.bos_token_id) == ([1, 7], 0, 2)
    align(SimpleNamespace(eos_token_id=3, pad_token_id=4, bos_token_id=None), config)
    assert (config.eos_token_id, config.pad_token_id, config.bos_token_id) == (3, 4, 2)


def test_experts_that_are_stored_transposed_are_refused(tmp_path):
    """gpt-oss: its down projections are square, so that the wrong way round would fit."""
    parent = moe.write(tmp_path / "base", "gpt_oss", intermediate_size=64)
    model = AutoModelForCausalLM.from_pretrained(parent)
    config = LoraConfig(r=4, target_modules=["q_proj"], target_parameters=["experts.down_proj"])
    get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ConfigError, match="experts.down_proj is stored transposed; merge it with PEFT"):
        merge(parent, tmp_path / "adapter", tmp_path / "merged")


def test_what_a_16_bit_parent_keeps_in_float32_stays_so(tmp_path):
    parent = moe.write(tmp_path / "base", "deepseek_v3", dtype="bfloat16")
    held = load_file(parent / "model.safetensors")
    bias = next(key for key in held if key.endswith("e_score_correction_bias"))
    save_file(held | {bias: torch.rand(8)}, parent / "model.safetensors", metadata={"format": "pt"})
    merge(parent, adapter(parent, tmp_path / "adapter", ["o_proj"]), tmp_path / "merged")
    merged, held = tensors(tmp_path / "merged"), tensors(parent)
    assert merged[bias].equal(held[bias])
    changed = [key for key in held if not merged[key].equal(held[key])]
    assert len(changed) == 2 and all("o_proj" in key for key in changed)
    for key in changed:
        a, b = (load_file(tmp_path / "adapter/adapter_model.safetensors")[name] for name in pair_of(key))
        assert merged[key].equal((held[key].float() + 3 * (b.float() @ a.float())).bfloat16())


def pair_of(key: str) -> tuple[str, str]:
    return tuple(f"base_model.model.{key.removesuffix('.weight')}.lora_{one}.weight" for one in "AB")


@pytest.fixture
def sharded(tmp_path) -> tuple[Path, Path]:
    """A parent in several files, and an adapter for it."""
    parent = moe.write(tmp_path / "one_file", "qwen3_moe")
    model = AutoModelForCausalLM.from_pretrained(parent)
    model.save_pretrained(tmp_path / "base", max_shard_size="200KB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 3
    return tmp_path / "base", adapter(parent, tmp_path / "adapter", EXPERTS)


def test_a_killed_merge_goes_on_and_ends_the_same(sharded, tmp_path, monkeypatch):
    parent, folder = sharded
    merge(parent, folder, tmp_path / "straight")
    written = []

    def until(content, path, metadata):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path)
        save_file(content, path, metadata)

    monkeypatch.setattr(module, "save_file", until)
    with pytest.raises(KeyboardInterrupt):
        merge(parent, folder, tmp_path / "killed")
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*.safetensors")}
    assert len(done) == 2
    monkeypatch.setattr(module, "save_file", save_file)
    merge(parent, folder, tmp_path / "killed")
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())
    assert sorted(os.listdir(tmp_path / "killed")) == sorted(os.listdir(tmp_path / "straight"))
    for path in (tmp_path / "straight").iterdir():
        assert path.read_bytes() == (tmp_path / "killed" / path.name).read_bytes()
    assert not torch.allclose(logits(tmp_path / "killed"), logits(parent), atol=0.1)


def test_a_killed_merge_of_something_else_is_begun_anew(sharded, tmp_path, monkeypatch):
    parent, folder = sharded
    merge(parent, folder, tmp_path / "straight", dtype="float32")

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_finish", stop)
        merge(parent, folder, tmp_path / "other", dtype="bfloat16")
    merge(parent, folder, tmp_path / "other", dtype="float32")
    one, other = tensors(tmp_path / "straight"), tensors(tmp_path / "other")
    assert all(one[name].equal(other[name]) for name in one)


def test_files_of_any_name_are_written_anew_by_another_merge(tmp_path):
    parent = moe.write(tmp_path / "base", "qwen3_moe")
    (parent / "model.safetensors").rename(parent / "weights-1.safetensors")
    weight_map = dict.fromkeys(load_file(parent / "weights-1.safetensors"), "weights-1.safetensors")
    (parent / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for name in ("one", "other"):
        merge(parent, adapter(parent, tmp_path / name, ["q_proj"]), tmp_path / "merged", dtype="float32")
        merge(parent, tmp_path / name, tmp_path / f"merged_{name}", dtype="float32")
        assert logits(tmp_path / "merged").equal(logits(tmp_path / f"merged_{name}"))


@pytest.mark.slow
def test_fp8_as_deepseek_publishes_it_becomes_16_bits_by_the_command(tmp_path):
    parent = moe.write(tmp_path / "base", "deepseek_v3", dtype="bfloat16", intermediate_size=112)
    held = load_file(parent / "model.safetensors")
    key = next(key for key in held if key.endswith("e_score_correction_bias"))
    held[key] = torch.rand(8)  # published in float32, among FP8 and bfloat16
    save_file(held, parent / "model.safetensors", metadata={"format": "pt"})
    wanted = moe.to_fp8(parent)
    command = [sys.executable, "-m", "recipes.tools.merge", "--parent", parent, "--output", tmp_path / "bf16"]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(module.__file__).parents[2])
    assert tensors(tmp_path / "bf16").keys() == wanted.keys()
    assert all(tensor.equal(wanted[key]) for key, tensor in tensors(tmp_path / "bf16").items())
    assert logits(tmp_path / "bf16").isfinite().all()


def test_a_merge_into_fp8_stays_in_its_blocks(tmp_path):
    """What the adapter changes is that of a merge into float32, rounded to three bits. What it does not keeps its
    bytes."""
    parent = moe.write(tmp_path / "base", "deepseek_v3", dtype="bfloat16", intermediate_size=112)
    added = adapter(parent, tmp_path / "adapter", ["o_proj"])
    moe.to_fp8(parent)
    merge(parent, added, tmp_path / "fp8", dtype="float8")
    merge(parent, added, tmp_path / "float32", dtype="float32")
    before, after, exact = (tensors(folder) for folder in (parent, tmp_path / "fp8", tmp_path / "float32"))
    assert after.keys() == before.keys()
    changed = {key for key in before if not before[key].view(torch.uint8).equal(after[key].view(torch.uint8))}
    keys = [f"model.layers.{layer}.self_attn.o_proj.weight" for layer in range(2)]
    assert changed == {*keys, *(f"{key}_scale_inv" for key in keys)}
    for key in keys:
        assert torch.allclose(Parent(tmp_path / "fp8").read(key), exact[key], rtol=1 / 16, atol=1e-3)
    with pytest.raises(ConfigError, match="is not in FP8, so that its blocks are not known"):
        merge(tmp_path / "float32", added, tmp_path / "no", dtype="float8")


def test_what_does_not_fit_is_refused(tmp_path):
    parent = moe.write(tmp_path / "base", "qwen3_moe")
    other = moe.write(tmp_path / "other", "qwen3_moe", num_hidden_layers=3)
    folder = adapter(other, tmp_path / "adapter", ["q_proj"])
    with pytest.raises(ConfigError, match=r"1 of its 3 parts are not in .*layers.2.self_attn.q_proj"):
        merge(parent, folder, tmp_path / "merged")
    with pytest.raises(ConfigError, match="is the parent itself"):
        merge(other, folder, other)
    with pytest.raises(ConfigError, match="holds no LoRA adapter"):
        merge(parent, parent, tmp_path / "merged")
    with pytest.raises(ConfigError, match="not a plain LoRA adapter .use_dora."):
        merge(parent, adapter(parent, tmp_path / "dora", ["q_proj"], use_dora=True), tmp_path / "merged")
    with pytest.raises(ConfigError, match=r"embed_tokens.lora_embedding_A does not belong to a linear layer"):
        merge(parent, adapter(parent, tmp_path / "words", ["q_proj", "embed_tokens"]), tmp_path / "merged")
    with pytest.raises(ConfigError, match=r"not a plain LoRA adapter .init_lora_weights."):  # it changes the parent too
        merge(parent, adapter(parent, tmp_path / "pissa", ["o_proj"], init_lora_weights="pissa"), tmp_path / "merged")
    with pytest.raises(ConfigError, match=r"trainable_tokens_delta does not belong to a linear layer"):
        merge(
            parent, adapter(parent, tmp_path / "tokens", ["q_proj"], trainable_token_indices=[3]), tmp_path / "merged"
        )
    with pytest.raises(ConfigError, match=r"not a plain LoRA adapter .bias."):
        merge(parent, adapter(parent, tmp_path / "bias", ["q_proj"], bias="all"), tmp_path / "merged")
    more = moe.write(tmp_path / "more", "qwen3_moe", vocab=330)
    with pytest.raises(ConfigError, match=r"embed_tokens.weight has another shape than model.embed_tokens.weight"):
        saved = adapter(more, tmp_path / "of_more", ["q_proj"], modules_to_save=["embed_tokens"])
        merge(parent, saved, tmp_path / "merged")
    wide = moe.write(tmp_path / "wide", "qwen3_moe", hidden_size=128)
    with pytest.raises(ConfigError, match=r"matrices of \[4, 128\] and \[64, 4\] at rank 4, which do not fit"):
        merge(parent, adapter(wide, tmp_path / "of_wide", ["q_proj"]), tmp_path / "merged")
    many = moe.write(tmp_path / "many", "qwen3_moe", num_experts=16)
    with pytest.raises(ConfigError, match=r"at rank 4, which do not fit model.layers.0.mlp.experts.0"):
        merge(parent, adapter(many, tmp_path / "of_many", EXPERTS), tmp_path / "merged")
    (parent / "model.safetensors").rename(parent / "weights.safetensors")
    with pytest.raises(ConfigError, match=r"no model.safetensors and no model.safetensors.index.json"):
        merge(parent, None, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_fp8_of_another_form_is_refused(tmp_path):
    """One scale for each tensor, as others publish it: read without it, the weights would be noise."""
    parent = moe.write(tmp_path / "base", "mixtral", dtype="bfloat16")
    held = load_file(parent / "model.safetensors")
    key = next(key for key in held if key.endswith("q_proj.weight"))
    held |= {key: held[key].to(torch.float8_e4m3fn), f"{key}_scale": torch.ones(())}
    save_file(held, parent / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((parent / "config.json").read_text())
    for more, said in (({}, "in FP8 without weight_block_size"), ({"weight_block_size": [32, 32]}, f"no {key}_scale")):
        (parent / "config.json").write_text(
            json.dumps(config | {"quantization_config": {"quant_method": "fp8"} | more})
        )
        with pytest.raises(ConfigError, match=said):
            merge(parent, None, tmp_path / "merged")
    with pytest.raises(ConfigError, match="is in FP8. Convert it once"):
        refuse_quantized(parent, "load_in_4bit")
    (parent / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(ConfigError, match=r"is quantised already \(fp8\)"):
        refuse_quantized(parent, "load_in_4bit")


def test_one_file_goes_before_an_index_as_in_transformers_and_a_lost_file_is_named(sharded, tmp_path):
    parent, folder = sharded
    before = logits(parent)
    lost = sorted(parent.glob("model-*.safetensors"))[1]
    lost.rename(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=f"lacks {lost.name}, which its index lists"):
        merge(parent, folder, tmp_path / "merged")
    save_file(
        load_file(tmp_path / "one_file/model.safetensors"), parent / "model.safetensors", metadata={"format": "pt"}
    )
    merge(parent, None, tmp_path / "merged", dtype="float32")
    assert sorted(path.name for path in (tmp_path / "merged").glob("model*")) == ["model.safetensors"]
    assert logits(tmp_path / "merged").equal(before)


def test_a_parent_of_the_hub_comes_with_all_of_its_tokenizer():
    names = ["model.safetensors", "config.json", "tokenizer.model", "merges.txt", "chat_template.jinja"]
    names += ["x.bin", "a.gguf"]
    assert list(filter_repo_objects(names, allow_patterns=KEPT)) == names[:5]
