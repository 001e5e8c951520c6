"""How fast the data jobs that need no model are, on made documents of 10 kB.

    python -m benchmarks.data_prep [--rows 4000] [--tasks 0] [--keep FOLDER]

First, decontamination is measured on one core: ours, and open-r1's rule, once for one evaluation set and once for five,
as in its script. Then the whole path runs by its own command, `python -m data_prep.mixture`: reading, filters with the
language check, decontamination, exact duplicates, the mixture by Table 5, zstd Parquet. ``--rows 804745`` is the
paper's size. Peak memory is the sum over all processes of the job (PSS, which counts shared memory once). A second run
on a quarter of the rows gives the memory per row. Some of the rows must be dropped, and the result is checked exactly.
"""

import argparse
import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from data_prep import mixture, rows
from data_prep.decontaminate import Index
from rewards.language import ENGLISH

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

_NOUNS = (
    "triangle circle sequence integer fraction remainder function graph vertex angle digit prime factor matrix vector"
    " probability distance speed price candle basket teacher garden river engine signal molecule energy loop string"
    " index variable theorem lemma proof approach result condition value sign side edge root square cube"
)
NOUNS = _NOUNS.split()
FORMULAS = (
    r"$x^2 - {0}x + {1} = 0$",
    r"\(\frac{{{0}}}{{4}} + \frac{{1}}{{{1}}}\)",
    "{0} + 7 * {1}",
    "$a_{{n+{0}}} = {1}$",
)
SPANISH = "Primero sumamos los dos números y después restamos el tercero para llegar al resultado final. "
FILTERS = ["empty", "truncated", "malformed", "mixed_language", "long_paragraph", "code_block", "repetitive"]
PER_FILE, PER_GROUP = 20_000, 1_000  # rows
DOCUMENT = 10_000  # characters


def sentences(rng: random.Random, count: int) -> list[str]:
    common = sorted(ENGLISH)
    made = []
    for _ in range(count):
        words = [rng.choice(common) if rng.random() < 0.7 else rng.choice(NOUNS) for _ in range(rng.randint(8, 22))]
        if rng.random() < 0.4:
            formula = rng.choice(FORMULAS).format(rng.randint(2, 999), rng.randint(2, 999))
            words.insert(rng.randrange(len(words)), formula)
        if rng.random() < 0.5:
            words.insert(rng.randrange(len(words)), str(rng.randint(2, 9999)))
        made.append(" ".join(words).capitalize() + ".")
    return made


def document(rng: random.Random, pool: list[str], length: int = DOCUMENT) -> str:
    found = rng.choices(pool, k=length // 93)
    return "\n\n".join(" ".join(found[at : at + 7]) for at in range(0, len(found), 7))


def evaluation(rng: random.Random, pool: list[str]) -> list[str]:
    """1,000 items of 25 to 180 words, from other sentences."""
    return [" ".join(" ".join(rng.choices(pool, k=14)).split()[: rng.randint(25, 180)]) for _ in range(1_000)]


# --- decontamination --------------------------------------------------------------------------------------------------


def open_r1(sets: list[list[str]], n: int = 8) -> Callable[[str], bool]:
    """The rule of open-r1's scripts/decontaminate.py, which goes over the sets one by one and splits words by spaces.
    This version is faster than the script, which always looks up all n-grams of a text."""

    def ngrams(text: str) -> list[str]:
        words = text.lower().split()
        return [" ".join(words[at : at + n]) for at in range(len(words) - n + 1)]

    lookups = [{ngram for item in items for ngram in ngrams(item)} for items in sets]
    return lambda text: sum(any(ngram in lookup for ngram in ngrams(text)) for lookup in lookups) > 0


def ours(sets: list[list[str]]) -> Callable[[str], bool]:
    index = Index()
    for name, items in enumerate(sets):
        for number, item in enumerate(items):
            index.add(str(name), str(number), item)
    return lambda text: index.find(text) is not None


def decontamination(rng: random.Random, pool: list[str], items: list[str]) -> None:
    texts = [document(rng, pool) for _ in range(2_000)]
    for at in range(0, 2_000, 20):
        texts[at] = f"{texts[at][:5000]} {items[at // 2]} {texts[at][5000:]}"
    size = sum(map(len, texts)) / len(texts)
    print(f"decontamination, {len(texts):,} documents of {size / 1000:.1f} kB, 100 of them contaminated, one core")
    fifths = [items[at::5] for at in range(5)]
    for name, check in (
        ("ours, five sets", ours(fifths)),
        ("open-r1's rule, one set", open_r1([items])),
        ("open-r1's rule, five sets", open_r1(fifths)),
    ):
        check(texts[0])  # builds the tables, once
        start = time.process_time()
        found = sum(map(check, texts))
        seconds = time.process_time() - start
        print(f"  {name:26} {len(texts) / seconds:>8,.0f} documents/s, {found} found", flush=True)


# --- the whole path ---------------------------------------------------------------------------------------------------


def make_rows(folder: Path, total: int, pool: list[str], items: list[str]) -> tuple[list[str], dict[str, int]]:
    """Return (files, number of rows that each step must drop). The domains have their shares of Table 5; for every
    hundred rows, one row of each of four kinds that must be dropped is added."""
    rng = random.Random(0)
    wrong = dict.fromkeys(("mixed_language", "contaminated", "duplicate", "repetitive"), total // 100)
    kinds = [domain for domain, count in mixture.quotas(total).items() for _ in range(count)]
    kinds += [kind for kind, count in wrong.items() for _ in range(count)]
    rng.shuffle(kinds)
    files, before = [], None
    for start in range(0, len(kinds), PER_FILE):
        files.append(str(folder / f"source-{start // PER_FILE:03d}.parquet"))
        with pq.ParquetWriter(files[-1], SCHEMA, compression="zstd") as writer:
            for first in range(start, min(start + PER_FILE, len(kinds)), PER_GROUP):
                group = []
                for number in range(first, min(first + PER_GROUP, start + PER_FILE, len(kinds))):
                    row = make_row(rng, number, kinds[number], pool, items, before)
                    before = row if kinds[number] in mixture.TABLE_5 else before
                    group.append(row)
                writer.write_table(pa.Table.from_pylist(group, SCHEMA))
    return files, wrong


SCHEMA = pa.schema(
    [(name, pa.bool_() if kind is bool else pa.string()) for name, kind in rows.COLUMNS.items()]
    + [("completion", pa.string()), ("generator", pa.string())]
)


def make_row(
    rng: random.Random, number: int, kind: str, pool: list[str], items: list[str], before: dict | None
) -> dict:
    prompt, text = f"Question {number}: {document(rng, pool, 400)}", document(rng, pool)
    if kind == "mixed_language":
        text = text[:5_000] + "\n\n" + SPANISH * 12 + "\n\n" + text[5_000:]
    elif kind == "contaminated":
        text = f"{text[:7_000]}\n\n{rng.choice(items)}\n\n{text[7_000:]}"
    elif kind == "repetitive":
        text = text[:2_500] + f"Wait, {pool[number % len(pool)]}\n\n" * 60
    row = {
        "id": f"made-{number}", "question": prompt, "prompt": prompt, "answer": str(number), "kind": "reasoning",
        "domain": kind if kind in mixture.TABLE_5 else "math", "language": "en", "verifier": "none", "thinking": True,
        "source": "made", "license": "apache-2.0", "generator": "made",
        "completion": f"<think>{text}</think>\n\nThe answer is {number}.",
    }  # fmt: skip
    if kind == "duplicate" and before:
        row |= {"prompt": before["prompt"].upper(), "completion": before["completion"]}
    return row


def whole_path(folder: Path, total: int, tasks: int, pool: list[str], items: list[str]) -> int:
    """Make the rows, mix them, print the figures, and return the peak memory in bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    files, wrong = make_rows(folder, total, pool, items)
    stored = sum(Path(file).stat().st_size for file in files)
    (folder / "items.jsonl").write_text(
        "".join(json.dumps({"id": i, "question": q}) + "\n" for i, q in enumerate(items))
    )
    config = {
        "output_dir": str(folder / "out" / "bench" / "mixture"),
        "sources": files,
        "total": total,
        "tasks": tasks,
        "filters": {"steps": FILTERS},
        "decontamination": {"sets": {"made": {"path": str(folder / "items.jsonl"), "columns": ["question"]}}},
    }
    (folder / "mixture.yaml").write_text(yaml.safe_dump(config))
    start = time.monotonic()
    command = [sys.executable, "-m", "data_prep.mixture", "--config", str(folder / "mixture.yaml")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as job:
        peak, busy, disk = watch(job, folder)
        told = job.stderr.read()
    seconds = time.monotonic() - start
    if job.returncode:
        raise SystemExit(told)
    record = json.loads((Path(config["output_dir"]) / "run.json").read_text())
    seen, dropped = record["funnel"]["seen"], record["funnel"]["dropped"]
    print(f"whole path, {seen:,} rows, {stored / 2**30:.2f} GB of zstd Parquet")
    print(f"  {seen / seconds:,.0f} rows/s in {seconds:,.0f} s, {seen / busy:,.0f} a second of one core's time")
    print(f"  peak of memory {peak / 2**20:,.0f} MB, of disk {disk / 2**30:,.2f} GB, its sources among it")
    print("  dropped", {name: count for name, count in dropped.items() if count})
    for step, count in wrong.items():
        if dropped.get(step) != count:
            raise SystemExit(f"{step}: {count} rows were made to be dropped")
    made = {domain: figures["rows"] for domain, figures in record["domains"].items()}
    if made != mixture.quotas(total):
        raise SystemExit(f"not the quotas of {total:,} rows: {made}")
    print(f"  {sum(made.values()):,} rows by Table 5, exact to the row: {made}", flush=True)
    return peak


def watch(job: subprocess.Popen, folder: Path) -> tuple[int, float, int]:
    """Return (peak memory in bytes, CPU seconds, peak size of the folder in bytes) of a job and its child processes."""
    peak, busy, disk = 0, {}, 0
    while job.poll() is None:
        used = 0
        for process in [psutil.Process(job.pid), *psutil.Process(job.pid).children(recursive=True)]:
            try:
                used += process.memory_full_info().pss
                times = process.cpu_times()
            except psutil.Error:
                continue  # it has just ended
            busy[process.pid] = times.user + times.system
        peak, disk = max(peak, used), max(disk, size(folder))
        time.sleep(0.2)
    return peak, sum(busy.values()), disk


def size(folder: Path) -> int:
    """The bytes of all files in a folder, in which files may appear or vanish."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=4_000, help="of the mixture; 804745 are the paper's")
    parser.add_argument("--tasks", type=int, default=0, help="of the job; 0: one for every 128 MB of text")
    parser.add_argument("--keep", type=Path, help="a folder for the files, instead of a temporary one")
    options = parser.parse_args()
    rng = random.Random(1)
    pool, items = sentences(rng, 20_000), evaluation(rng, sentences(rng, 4_000))
    decontamination(rng, pool, items)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        quarter = whole_path(folder / "quarter", options.rows // 4, options.tasks, pool, items)
        shutil.rmtree(folder / "quarter")
        full = whole_path(folder / "full", options.rows, options.tasks, pool, items)
    added = (full - quarter) / (options.rows - options.rows // 4)
    print(f"  a row adds {added:,.0f} bytes of memory" + (" (too few rows to tell)" if options.rows < 400_000 else ""))


if __name__ == "__main__":
    main()
