"""The training data of a stage: rows and records, a filter for their length, and the tokens of SFT rows.

SFT rows are tokenized once and memory-mapped. The result is cached beside the run, in `.tokenized/`. Its key is the
content of the rows, the tokenizer with its template, and the code of `_tokenized`. The first process tokenizes, with
`dataset_num_proc` workers, and all others on that file system wait.
"""

import errno
import glob
import hashlib
import inspect
import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep import hub
from data_prep.rows import CHATS, COLUMNS, Row, fault, load_rows, local_files, read_parquet
from data_prep.runs import ConfigError, identity
from recipes import checks
from recipes.config import PolicyArguments

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, Features, List, Value, load_dataset
from datasets.exceptions import DatasetsError
from huggingface_hub.utils import WeakFileLock
from transformers import PreTrainedTokenizerBase

if TYPE_CHECKING:
    from recipes.training import Run

logger = logging.getLogger(__name__)
CACHE = ".tokenized"
BATCH = 200  # rows tokenized at a time: 20 MB of ids at the paper's 5,355 tokens a row
PROCESS = 5_000  # minimum number of rows for each process if `dataset_num_proc` is not set
IDS = List(Value("int32"))
TOKENIZED = Features({"input_ids": IDS, "labels": IDS, "length": Value("int32")})


def read_rows(args: PolicyArguments, source: str | None = None) -> list[Row]:
    """The rows of `source`, or of the key `dataset`."""
    source = source or named(args)
    try:
        return load_rows(source, split=args.dataset_split)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"dataset: {error}") from error


def named(args: PolicyArguments) -> str:
    """The key `dataset`."""
    if not args.dataset:
        raise ConfigError("dataset is missing: write the Parquet file, or the Hub id, of the rows to train on.")
    return args.dataset


def read_records(source: str, key: str, *columns: str) -> list[Row]:
    """The records of the Parquet file that `key` names. They have at least these columns."""
    if not source:
        raise ConfigError(f"{key} is missing: write the Parquet file to train on.")
    try:
        records = read_parquet(source)
    except (ValueError, FileNotFoundError) as error:
        raise ConfigError(f"{key}: {error}") from error
    if not records:
        raise ConfigError(f"{key}: {source} has no rows.")
    if missing := [column for column in columns if records[0].get(column) is None]:
        raise ConfigError(f"{key}: {source} has no {', '.join(missing)}; its columns must be {', '.join(columns)}.")
    return records


def as_messages(role: str, content: str) -> list[dict]:
    return [{"role": role, "content": content}]


def count_tokens(text: str | list[dict], tokenizer: PreTrainedTokenizerBase) -> int:
    """Number of tokens of a text or of a prompt of messages, as the trainers count them."""
    return len(tokenizer(checks.opening(tokenizer, text), add_special_tokens=False)["input_ids"])


def keep_short(run: "Run", rows: Dataset, lengths: np.ndarray | list[int], limit: int | None, key: str) -> Dataset:
    """The rows whose length in tokens is within the limit that `key` sets. run.json counts the others."""
    short = np.flatnonzero(np.asarray(lengths) <= (np.inf if limit is None else limit))
    if run.args.doctor:
        checks.tell("lengths", lengths=lengths, limit=limit, key=key)
    run.figures |= {"rows": len(short), "rows_too_long": len(rows) - len(short)}
    if len(short) < len(rows):
        logger.info(
            "%d of %d rows are longer than %s: %s, and are left out", len(rows) - len(short), len(rows), key, limit
        )
    if not len(short):
        told = f"all of its {len(rows)} rows are longer than {key}: {limit}; raise it, or write shorter rows."
        raise ConfigError(f"{run.args.dataset}: {told}")
    return rows.select(short)


# Supervised fine-tuning


def load_sft_rows(run: "Run", tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """The rows of `dataset` for SFTTrainer: `input_ids`, and `labels` that are -100 on the prompt. `length` is for
    `train_sampling_strategy: group_by_length`.

    Rows longer than `max_length` are left out and counted, because truncation would remove the answer and the end
    token. Raises ConfigError if a row breaks the contract or no row is short enough.
    """
    args, config = run.args, run.config
    source = named(args)
    cache = Path(config.output_dir).parent / CACHE
    cache.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(cache / f"{_digest(source.encode())}.lock"):  # it logs that it waits
        rows, content = _mapped(source, args.dataset_split, cache)
        completion_only = config.completion_only_loss is not False
        code = f"{completion_only} {inspect.getsource(_tokenized)}"
        key = _digest(content.encode(), code.encode(), *_files(tokenizer))
        for partial in (cache / content).glob("tmp*"):  # from a process that was killed
            partial.unlink()
        said = {"tokenizer": tokenizer, "source": source, "name": args.model_name_or_path}
        try:
            tokenized = rows.with_format("arrow").map(
                _tokenized,
                with_indices=True,
                batched=True,
                batch_size=BATCH,
                writer_batch_size=BATCH,
                remove_columns=rows.column_names,
                features=TOKENIZED,
                num_proc=config.dataset_num_proc or max(1, min(len(os.sched_getaffinity(0)), len(rows) // PROCESS)),
                cache_file_name=str(cache / content / f"{key}.arrow"),
                new_fingerprint=key,
                fn_kwargs=said | {"completion_only": completion_only},
            )
            lengths = tokenized.data.column("length").to_numpy()
        except (pa.ArrowInvalid, OSError) as error:
            if getattr(error, "errno", None) == errno.ENOSPC:
                raise
            raise ConfigError(f"{cache / content} is damaged ({error}); delete it: it is made again") from error
    _refuse_double(rows, source)
    if args.doctor:
        checks.tell("SFT rows", rows=rows, tokenizer=tokenizer)
    return keep_short(run, tokenized.with_format(None), lengths, *checks.limit(run, config.max_length, "max_length"))


def _mapped(source: str, split: str, cache: Path) -> tuple[Dataset, str]:
    """(the memory-mapped rows, a name for their content, which is also their folder below `cache`)."""
    try:
        files = local_files(source)
        if files is None:
            rows = hub.find(source, lambda: load_dataset(source, split=split), "dataset")
            content = _digest(rows._fingerprint.encode())
            (cache / content).mkdir(exist_ok=True)
            return rows, content
        content = _digest(*(identity.content(file).encode() for file in files))
        identity.remember()
        if not sum(pq.read_metadata(file).num_rows for file in files):
            raise ConfigError(f"dataset: {source} has no rows.")
        there = pq.read_schema(files[0]).names
        rows = load_dataset(
            "parquet",
            data_files=[glob.escape(str(file)) for file in files],
            split="train",
            columns=[name for name in (*COLUMNS, "completion", "entry", *CHATS) if name in there],
            batch_size=BATCH,
            cache_dir=str(cache / content),
        )
    except FileNotFoundError as error:
        raise ConfigError(f"dataset: {error}") from error
    except (pa.ArrowInvalid, OSError, DatasetsError) as error:
        text = f"dataset: {source}: not a readable Parquet file ({error.__cause__ or error}); delete it"
        raise ConfigError(f"{text} and run its stage again") from error
    return rows, content


def _files(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """The files of a tokenizer, including its chat template."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return [path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()]


def _digest(*parts: bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(hashlib.sha256(part).digest())
    return found.hexdigest()[:16]


def _tokenized(
    table: pa.Table,
    numbers: list[int],
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    completion_only: bool,
    name: str,
) -> pa.Table:
    """The tokens of each row's chat prompt and completion. As in TRL, the completion begins where the prompt's tokens
    end or first differ."""
    rows = table.to_pylist()
    for number, row in zip(numbers, rows, strict=True):
        if wrong := fault(row, sft=True):
            raise ConfigError(f"dataset: {source}, row {number}, {wrong}")
    asked = [as_messages("user", row["prompt"]) for row in rows]
    said = [one + as_messages("assistant", row["completion"]) for one, row in zip(asked, rows, strict=True)]
    texts = [checks.faithful(tokenizer, one, name) for one in said] + [checks.opening(tokenizer, one) for one in asked]
    found = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    whole = [np.array(one, np.int32) for one in found[: len(rows)]]
    labels = [one.copy() for one in whole]
    for ids, prompt, trained in zip(whole, found[len(rows) :], labels, strict=True):
        start = min(len(ids), len(prompt))
        differs = np.flatnonzero(ids[:start] != np.array(prompt[:start], np.int32))
        if completion_only:
            trained[: differs[0] if len(differs) else start] = -100
    ends = np.cumsum([0, *map(len, whole)], dtype=np.int32)
    lists = [pa.ListArray.from_arrays(ends, np.concatenate(one)) for one in (whole, labels)]
    return pa.table([*lists, np.diff(ends)], schema=TOKENIZED.arrow_schema)


def _refuse_double(rows: Dataset, source: str) -> None:
    """Raises ConfigError if two rows have the same id."""
    ids = rows.data.column("id").cast(pa.large_string())  # Arrow cannot count string_view
    if pc.count_distinct(ids).as_py() < len(ids):
        seen: dict[str, int] = {}
        for number, id in enumerate(ids.to_pylist()):
            if id in seen:
                raise ConfigError(f"dataset: {source}, row {number}, column 'id': row {seen[id]} has {id!r}, too")
            seen[id] = number
