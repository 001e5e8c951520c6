"""A model of a few thousand parameters with its tokenizer and chat template. Imports what is slow when it is called."""

import contextlib
import io
import os
import runpy
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml
from hub_server import WRITER

ROOT = Path(__file__).resolve().parents[2]


def save_model(folder: str | Path, seed: int = 0) -> None:
    """A random Qwen3 over bytes, in plain transformers format, in the chat template of the recipes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, set_seed

    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytewise = Tokenizer(models.BPE({token: at for at, token in enumerate([*special, *alphabet])}, []))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytewise, pad_token="<|pad|>", eos_token="<|end|>", additional_special_tokens=special[2:]
    )
    tokenizer.chat_template = (ROOT / "recipes" / "chat_template.jinja").read_text(encoding="utf-8")
    set_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True}
    ends = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    config = Qwen3Config(vocab_size=len(tokenizer), max_position_embeddings=512, **sizes, **heads, **ends)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def logits(name: str, **more) -> list[float]:
    """The model's answer to one question, as the numbers behind its next token."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (kind.from_pretrained(name, **more) for kind in (AutoModelForCausalLM, AutoTokenizer))
    asked = [{"role": "user", "content": "What is 2 + 3?"}]
    inputs = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        return model(inputs["input_ids"]).logits[0, -1].tolist()


@contextlib.contextmanager
def no_waiting() -> Iterator[list[float]]:
    """Long sleeps are noted instead of slept."""
    import time

    waits: list[float] = []
    sleep, time.sleep = time.sleep, lambda seconds: waits.append(seconds) if seconds >= 0.5 else sleep(seconds)
    try:
        yield waits
    finally:
        time.sleep = sleep


def push_branch(folder: str | Path, name: str, branch: str) -> tuple[str, list[float]]:
    """A checkpoint's files to a branch, as `--checkpoints` sends them; returns what went wrong and the waits."""
    from data_prep import hub

    files = {path.name: path for path in Path(folder).iterdir()}
    with no_waiting() as waits:
        try:
            hub.push(hub.Repository(name, "model"), hub.additions(files), "a checkpoint", branch=branch)
        except hub.HubError as error:
            return str(error), waits
    return "", waits


def run_push(cwd: str | Path, *arguments: str, token: str | None = WRITER) -> tuple[int, str, list[float]]:
    """`python -m data_prep.push` in this process; returns its exit status, its log, and how long it would have waited
    each time that it did."""
    import logging

    from data_prep import push
    from data_prep.runs import commands

    os.chdir(cwd)
    os.environ.pop("HF_TOKEN", None)
    os.environ.update({"HF_TOKEN": token} if token else {})
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.INFO)
    try:
        with contextlib.redirect_stderr(text), no_waiting() as waits:
            status = commands.run(push.main, list(arguments))
    except SystemExit as ended:
        status = ended.code
    finally:
        logging.getLogger().removeHandler(handler)
        os.environ["HF_TOKEN"] = WRITER
    return status, text.getvalue(), waits


def run_command(cwd: str | Path, target: str, settings: dict) -> tuple[int, str]:
    """The command of a stage or job in this process, which has the libraries already; returns its exit status and what
    it and the processes that it starts said."""
    os.chdir(cwd)
    config = Path(settings["output_dir"]).name + ".yaml"
    Path(config).write_text(yaml.safe_dump(settings))
    sys.argv = [target, "--config", config]
    streams = {number: os.dup(number) for number in (1, 2)}
    with tempfile.TemporaryFile("w+") as said:
        for number in streams:
            os.dup2(said.fileno(), number)
        try:
            if target.endswith(".py"):
                runpy.run_path(str(ROOT / target), run_name="__main__")
            else:
                runpy.run_module(target, run_name="__main__", alter_sys=True)
            status = 0
        except SystemExit as ended:
            status = ended.code or 0
        finally:
            sys.stdout.flush()
            for number, stream in streams.items():
                os.dup2(stream, number)
                os.close(stream)
        said.seek(0)
        return status, said.read()


def save_run(folder: Path, stage: str, config: dict, **record) -> Path:
    """The folder of a finished run with this record; what it made is put there by the caller."""
    from data_prep import runs

    path = folder / "outputs" / "t" / stage
    runs.finish(path, config=config, **record)
    return path


def sums(count: int) -> list[dict]:
    """Rows of the contract with completions."""
    found = []
    for number in range(count):
        asked = f"What is {number} + 3?" if number % 2 else f"{number} + 3 等于多少？"
        row = {"id": str(number), "question": asked, "prompt": asked, "answer": str(number + 3), "kind": "reasoning"}
        row |= {"domain": "math", "language": "en" if number % 2 else "zh", "verifier": "math", "thinking": True}
        row |= {"source": "toy-world", "license": "apache-2.0"}
        found.append(row | {"completion": f"<think>{number} + 3 = {number + 3}</think>\n{number + 3}"})
    return found
