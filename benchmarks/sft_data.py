"""What the rows of supervised fine-tuning cost at the paper's length: tokens a second, memory, and the next start.

    python -m benchmarks.sft_data [--rows 1000 5000] [--tokenizer FOLDER]

For each number of rows, all of about 5,355 tokens (the mean of the paper's Table 5), `recipes/cold_start_sft.py` trains
one step twice, in separate processes: the first tokenizes the rows, the second finds the tokens on disk. For the first,
the benchmark prints tokens per second and core, and the resulting hours for 804,745 rows (computed, not measured). For
the second, it prints the seconds from its start to the end of its first step, and its peak memory, without and with the
pages of memory-mapped files. The smallest number of rows stands for the memory of a process without rows. `--tokenizer`
replaces the default tokenizer of 4,000 made-up words.
"""

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.plan import CPU, WORDS, write_base
from data_prep import rows, shards
from recipes import data

import psutil
import pyarrow as pa
import yaml
from transformers import AutoTokenizer, PreTrainedTokenizerBase

TOKENS, PAPER = 5355, 804_745  # tokens per row; rows of the paper
SETTINGS = CPU | {
    "max_length": 8192,
    "batch_size": 1,
    "per_device_train_batch_size": 1,
    "max_steps": 1,
    "dataset": "rows.parquet",
}
SETTINGS |= {"logging_steps": 1, "gradient_checkpointing": False, "dataset_num_proc": 1}
SETTINGS |= {"model_name_or_path": "base", "max_position_embeddings": 8192}
SCHEMA = pa.schema([*shards.CONTRACT, ("completion", pa.string())])


def solved(count: int, tokenizer: PreTrainedTokenizerBase) -> Iterator[rows.Row]:
    """Rows of words with the frequencies of a natural language: the nth is half as frequent as the (n / 2)th."""
    draw, weights = random.Random(0), [1 / (rank + 3) for rank in range(len(WORDS))]
    sample = " ".join(draw.choices(WORDS, weights, k=2000))
    words = round(TOKENS / data.count_tokens(sample, tokenizer) * 2000)
    row = {"kind": "reasoning", "domain": "math", "language": "en", "verifier": "math", "thinking": True, "answer": "1"}
    row |= {"source": "benchmark", "license": "cc0-1.0"}
    for number in range(count):
        text = " ".join(draw.choices(WORDS, weights, k=words))
        asked = f"Question {number}?"
        yield row | {"id": str(number), "question": asked, "prompt": asked, "completion": f"<think>{text}</think>\n1"}


def first_step(folder: Path, name: str) -> tuple[float, float, float]:
    """Return (seconds to the end of the first step, peak of anonymous memory in GB, peak of all memory in GB)."""
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(SETTINGS | {"output_dir": f"out/{name}"}))
    script = Path(data.__file__).with_name("cold_start_sft.py")
    environment = os.environ | {"PYTHONPATH": str(script.parents[1])}
    began, log = time.monotonic(), folder / "out" / name / "log.jsonl"
    command = [sys.executable, str(script), "--config", f"{name}.yaml"]
    took = own = whole = 0.0
    with (
        (folder / f"{name}.txt").open("w") as said,
        subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=said) as process,
    ):
        while process.poll() is None:
            try:
                memory = psutil.Process(process.pid).memory_info()
            except psutil.NoSuchProcess:
                break
            own, whole = max(own, (memory.rss - memory.shared) / 1e9), max(whole, memory.rss / 1e9)
            if not took and log.is_file() and log.stat().st_size:
                took = time.monotonic() - began
            time.sleep(0.02)
    if process.returncode:
        raise SystemExit((folder / f"{name}.txt").read_text())
    return took, own, whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 5000])
    parser.add_argument("--tokenizer", type=Path, help="a folder with a tokenizer and its chat template")
    given = parser.parse_args()
    for count in given.rows:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            tokenizer = AutoTokenizer.from_pretrained(given.tokenizer) if given.tokenizer else None
            made = write_base(folder / "base", [" ".join(WORDS)], 8000, len(tokenizer or range(8000)), 128, 1)
            if tokenizer:
                tokenizer.save_pretrained(folder / "base")
            rows.write_stream(folder / "rows.parquet", solved(count, tokenizer or made), SCHEMA)
            first, *_ = first_step(folder, "first")
            again, own, whole = first_step(folder, "again")
            size = sum(path.stat().st_size for path in (folder / "out/.tokenized").rglob("*.arrow")) / 1e9
        speed = count * TOKENS / (first - again)
        print(
            f"{count:,} rows: {speed:,.0f} tokens/s a core ({PAPER:,} rows: {PAPER * TOKENS / speed / 3600:.1f} core "
            f"hours, computed), {size:.2f} GB on disk; next start: {again:.1f} s to the first step, {own:.2f} GB "
            f"beside mapped files, {whole:.2f} GB with them"
        )


if __name__ == "__main__":
    main()
