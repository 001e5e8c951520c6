"""A random Qwen3 of a few thousand parameters and the rows that the data jobs' tests share."""

import json
import sqlite3
from contextlib import closing

import pytest
import yaml


@pytest.fixture
def scripted(monkeypatch):
    """Every checkpoint answers as ``say(prompt, k)`` does: the text of the kth sample."""

    def install(say):
        from data_prep import sampling
        from data_prep.sampling import Sample

        class Scripted:
            def __init__(self, checkpoint, batch_size, revision):
                pass

            def sample(self, prompts, n, decoding, seed, store=None):
                return [[Sample(say(p, k), "stop", 5, len(say(p, k))) for k in range(n)] for p in prompts]

        monkeypatch.setattr(sampling, "LocalModel", Scripted)

    return install


@pytest.fixture
def run_job(tmp_path, monkeypatch):
    """Runs a job of a module in tmp_path with a YAML of the given values; returns its run.json."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")

    def run(module, settings, values, *flags):
        from data_prep import jobs, runs

        values = {"output_dir": f"out/test/{module.__name__.rsplit('.')[-1]}", "seed": 3} | values
        config = tmp_path / "job.yaml"
        config.write_text(yaml.safe_dump(values, allow_unicode=True))
        flags = ["--config", str(config), *flags]
        assert jobs.run(settings, module.load, module.build, flags, getattr(module, "plan", None)) == 0
        return {} if "--dry-run" in flags else runs.read(values["output_dir"])

    return run


@pytest.fixture
def stored():
    """Reads a store of samples: (number, key, sample) in the order in which they were stored."""

    def read(folder):
        with closing(sqlite3.connect(folder / "requests.sqlite")) as file:
            rows = file.execute("select rowid, * from answers order by rowid").fetchall()
        return [(number, key, json.loads(sample)) for number, key, sample in rows]

    return read


@pytest.fixture
def row():
    """Makes a row of the contract: the walkthrough's question, with any column changed."""

    def make(**changes):
        question = changes.get("question", "What is 2 + 3 * 4?")
        return {
            "id": "q0",
            "question": question,
            "prompt": question,
            "answer": "14",
            "kind": "reasoning",
            "domain": "math",
            "language": "en",
            "verifier": "math",
            "thinking": True,
            "source": "test",
            "license": "apache-2.0",
        } | changes

    return make


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A checkpoint with random weights, a byte-level tokenizer and a chat template; it ends now and then."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"]
    vocabulary = {token: at for at, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", additional_special_tokens=special[2:]
    )
    wrapped.chat_template = (
        "{% for m in messages %}<|user|>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=256,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    model = Qwen3ForCausalLM(config)
    path = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(path)
    wrapped.save_pretrained(path)
    return path
