"""Merge a LoRA adapter into its parent: python -m recipes.tools.merge --parent DIR --adapter DIR --output DIR.

The sum is computed in float32 and cast once at the end: added in bfloat16, the result differs from parent plus adapter
by rounding, which in a mixture of experts can change which experts are chosen.
"""

import argparse
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer


def merge(parent: str | Path, adapter: str | Path, output: str | Path, dtype: str = "bfloat16") -> None:
    """Write the checkpoint `parent` + `adapter`, weights in `dtype`, and the parent's tokenizer to `output`."""
    model = AutoModelForCausalLM.from_pretrained(str(parent), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(str(parent))
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    merged.to(getattr(torch, dtype)).save_pretrained(str(output))
    tokenizer.save_pretrained(str(output))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("parent", "adapter", "output"):
        parser.add_argument(f"--{name}", required=True, type=Path)
    parser.add_argument("--dtype", default="bfloat16", help="float32, bfloat16 or float16")
    merge(**vars(parser.parse_args()))
