"""Push what lies on disk to the Hub: `python -m data_prep.push FOLDER --hub-model-id OWNER/NAME`.

FOLDER is a finished run of a stage, a data job or an evaluation, the report of a scale, a model, or an adapter. A card
that explains it is pushed with its files and replaces README.md. Before the upload, the rows of a data set are loaded
as its card says, and the files of the repository that will be replaced are listed. No other files are touched. After
the upload, checksums are compared, and a model that fits into memory and disk is asked one question. The same command
finishes a push that failed or was killed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.hub import (
    Additions,
    Files,
    HubError,
    Repository,
    additions,
    files_of,
    push,
    read_back,
    require_write,
    same,
)
from data_prep.runs import ConfigError, Stopped, advice, commands, memory, write_json
from data_prep.runs.publishing import pushed

log = logging.getLogger("data_prep.push")
MODEL_FILES = (".safetensors", ".json", ".jsonl", ".jinja", ".txt", ".model", ".py")
STATE_FILES = (*MODEL_FILES, ".pt", ".pth")  # files to resume training from; never training_args.bin
DATA_FILES = (".parquet", ".json", ".jsonl", ".png", ".svg", ".html")
OURS = {"begun.json", "hub.json", "sessions.json"}  # only about the local folder
SCRATCH = ".pushed"  # holds the downloaded files during the comparison
# If these stayed in the repository, transformers or PEFT would load them with the pushed model or instead of it.
OF_A_MODEL = re.compile(
    r"model.*\.safetensors(\.index\.json)?|adapter_(config\.json|model.*)|generation_config\.json|.*chat_template.*|"
    r"tokenizer.*|(added_tokens|special_tokens_map|vocab)\.json|merges\.txt"
)
OF_A_DATA_SET = ("dataset_infos.json", ".huggingface.yaml")  # datasets reads them as well as the card


def main(argv: list[str]) -> None:
    """Push a folder. Raises Stopped if an upload failed (the last line is the command that finishes the push), and
    ConfigError if the folder cannot be pushed in its present state."""
    parser = commands.parser("data_prep.push", __doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hub-model-id", required=True, metavar="OWNER/NAME", help="of a model or of a data set")
    parser.add_argument("--public", action="store_true", help="make the repository public, if it has to be made")
    parser.add_argument("--checkpoints", action="store_true", help="each checkpoint-N too, as a branch of that name")
    parser.add_argument("--card", type=Path, help="folder with the README.md and stats.json of data_prep.hub.cards")
    parser.add_argument(
        "--delete-stale", action="store_true", help="delete files there that would be loaded with or instead of these"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, change nothing on the Hub")
    parser.add_argument("--check", choices=["model", "dataset"], help="only make sure that such a thing can be pushed")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    private = not arguments.public
    try:
        if arguments.check:
            require_write(Repository(arguments.hub_model_id, arguments.check, private))
            return
        found = parts(arguments.folder, arguments.hub_model_id, private)
        for _, repository in [] if arguments.dry_run else found:
            require_write(repository)
        plans = [one for folder, repository in found for one in prepare(folder, repository, arguments)]
        stale = [f"{path} of {one.repository.id}" for one in plans for path in one.stale]
        if stale and not arguments.delete_stale:
            raise ConfigError(
                f"{', '.join(stale)} would be loaded with or instead of what is pushed. Nothing is deleted unasked and "
                "nothing was pushed. Push to another --hub-model-id, or delete these files: "
                f"{shlex.join(['python', '-m', 'data_prep.push', *argv, '--delete-stale'])}"
            )
        if arguments.dry_run:
            return
        for one in plans:
            send(one)
        if found[0][0] != arguments.folder:  # several models
            write_json(
                arguments.folder / "hub.json", {"id": arguments.hub_model_id, "parts": [one.id for _, one in found]}
            )
    except HubError as error:
        command = shlex.join(["python", "-m", "data_prep.push", *argv])
        raise Stopped(f"{error}\nNothing is lost on this disk. To finish the push:\n{command}") from error


class Plan(NamedTuple):
    """The files that are pushed from one folder to one branch."""

    folder: Path
    repository: Repository
    branch: str
    added: Additions
    stale: list[str]  # would be loaded with or instead of these; deleted on request


def prepare(folder: Path, repository: Repository, arguments: argparse.Namespace) -> Iterator[Plan]:
    """Make and check all files of a model or data set and its checkpoints, and find what a push would change. The Hub
    is only read. Raises ConfigError for rows that do not load as the card says."""
    shutil.rmtree(folder / SCRATCH, ignore_errors=True)  # of a push that was killed
    (folder / SCRATCH).mkdir()
    with tempfile.TemporaryDirectory() as scratch:  # `datasets` reads brackets in the folder's path as a pattern
        if repository.kind == "model":
            files = model_files(folder) | card_of_model(folder, repository)
        else:
            files = data_files(folder) | card_of_data(folder, arguments.card, Path(scratch))
        yield plan(folder, repository, "main", files, arguments, Path(scratch) / "whole")
    for checkpoint in sorted(folder.glob("checkpoint-*/complete.json")) if arguments.checkpoints else []:
        files = grounded(listed(checkpoint.parent, STATE_FILES, "**/*"))
        yield plan(folder, repository, checkpoint.parent.name, files, arguments, Path(scratch))


def plan(
    folder: Path, repository: Repository, branch: str, files: Files, arguments: argparse.Namespace, scratch: Path
) -> Plan:
    """Find and log what would change on one branch."""
    added, where, new = additions(files), f"{repository.id}, branch {branch}", "new"
    try:
        there = files_of(repository, branch)
    except HubError as error:
        if not arguments.dry_run:
            raise
        log.warning("%s: what is there and would be replaced is not known: %s", where, error)
        there, new = {}, "to push"
    if there is None and not arguments.dry_run:
        raise HubError(f"{repository.id} does not exist any more (404)")
    there = there or {}
    others = sorted(there.keys() - files.keys() - {".gitattributes"})
    if repository.kind == "model":
        stale = stale_of_model(files, others)
    else:
        stale = stale_of_data(folder, files, others, scratch)
    changed = [path for path in files if path in there and not same(added[path], there[path])]
    for what, paths in (
        (new, [path for path in files if path not in there]),
        ("replaced", changed),
        ("deleted" if arguments.delete_stale else "in the way", stale),
        ("kept, and not loaded", [path for path in others if path not in stale]),
    ):
        if paths:
            log.info("%s: %s: %s", where, what, ", ".join(paths))
    return Plan(folder, repository, branch, added, stale)


def send(one: Plan) -> None:
    """Push a plan, verify the upload, and record the repository in hub.json."""
    folder, repository, branch, added, stale = one
    if branch != "main":
        push(repository, added, f"{folder.name}, {branch}", branch, stale)
        return
    asked = [part for part in ("", "adapter") if is_model(folder / part)] if repository.kind == "model" else []
    if asked and (reason := too_large(folder)):
        log.info("%s is compared by its checksums, and not asked a question: %s", repository.id, reason)
        asked = []
    said = {part: answer(folder / part) for part in asked}
    sha = push(repository, added, f"{folder.name}, with its card", delete=stale)
    with tempfile.TemporaryDirectory(dir=folder / SCRATCH) as scratch:
        back = read_back(repository, sha, added, Path(scratch)) if asked else folder
        if said != {part: answer(back / part) for part in said}:
            raise HubError(f"{repository.id} at {sha}: the downloaded model answers differently from the one on disk")
    write_json(folder / "hub.json", {"id": repository.id, "kind": repository.kind, "revision": sha})
    log.info("%s is on the Hub as %s, revision %s", folder, repository.id, sha)


# Contents of a folder


def is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()


def parts(folder: Path, hub_model_id: str, private: bool) -> list[tuple[Path, Repository]]:
    """The contents of a folder, each with its repository: one model, several (under separate names), or a data set."""
    if not folder.is_dir():
        why = "a file; name the folder of a run" if folder.is_file() else "there is no such folder"
        raise ConfigError(f"{folder}: {why}{advice(folder)}")
    if (folder / "begun.json").exists() and not (folder / "run.json").exists():
        raise ConfigError(f"{folder} is not finished (no run.json); run its stage to the end first")
    if is_model(folder):
        return [(folder, Repository(hub_model_id, "model", private))]
    models = [path.parent for path in sorted(folder.glob("*/config.json")) if not path.parent.name.startswith("check")]
    if models:
        return [(path, Repository(f"{hub_model_id}-{path.name}", "model", private)) for path in models]
    if not list(folder.glob("*.parquet")) and not (folder / "results.json").is_file():
        raise ConfigError(f"{folder} holds no model (config.json), no data set (*.parquet) and no report")
    return [(folder, Repository(hub_model_id, "dataset", private))]


def listed(folder: Path, endings: tuple[str, ...], within: str = "*") -> Files:
    """The files of a folder with these endings, by their path in it."""
    found = [path for path in sorted(folder.glob(within)) if path.suffix in endings and path.is_file()]
    return {str(path.relative_to(folder)): path for path in found if path.name not in OURS}


def model_files(folder: Path) -> Files:
    """The weights, tokenizer, chat template, configs, log and record of a model, and its adapter if it has one."""
    files = listed(folder, MODEL_FILES) | listed(folder, MODEL_FILES, "adapter/*")
    if "run.json" not in files and (folder.parent / "run.json").is_file():
        files["run.json"] = folder.parent / "run.json"
    return grounded(files)


def grounded(files: Files) -> Files:
    return files | {name: on_the_hub(path) for name, path in files.items() if name.endswith("adapter_config.json")}


def on_the_hub(path: Path) -> bytes:
    """An adapter's config with the Hub id and revision of its base. Raises ConfigError if the base has none."""
    config = json.loads(path.read_text(encoding="utf-8"))
    base = config["base_model_name_or_path"]
    if there := pushed(base):
        config |= {"base_model_name_or_path": there["id"], "revision": there["revision"]}
    elif not config.get("revision"):
        raise ConfigError(f"{path} has no `revision`; write the commit of {base} that the adapter was trained on")
    return json.dumps(config, indent=2).encode()


def card_of_model(folder: Path, repository: Repository) -> Files:
    from data_prep.hub import run_cards

    run = folder if (folder / "run.json").is_file() else folder.parent
    picture = run_cards.curves(folder)
    card = run_cards.model_card(folder, run, repository.id).encode()
    return {"README.md": card} | ({"curves.png": picture} if picture else {})


def data_files(folder: Path) -> Files:
    """The Parquet files and records of a data set; for a report, also the generations of the evaluations beside it."""
    files = listed(folder, DATA_FILES)
    if not list(folder.glob("*.parquet")):
        for path in sorted(folder.parent.glob("evaluate_*/generations.parquet")):
            if (path.parent / "run.json").is_file():
                files[f"{path.parent.name.removeprefix('evaluate_')}.parquet"] = path
    return files


def card_of_data(folder: Path, card: Path | None, scratch: Path) -> Files:
    """README.md (``card``, or made here), and stats.json if the rows follow the contract."""
    from data_prep.hub import cards, run_cards
    from data_prep.rows import COLUMNS, configurations

    import pyarrow.parquet as pq

    files = data_files(folder)
    paths = [path for name, path in files.items() if name.endswith(".parquet")]
    if card is None and paths and all(COLUMNS.keys() <= set(pq.read_schema(path).names) for path in paths):
        card = scratch
        cards.build(cards.Card(output_dir="", data=str(folder), title=cards.title(folder)), card, files=paths)
    if card is not None:
        if not (card / "README.md").is_file():
            raise ConfigError(f"--card {card} holds no README.md; run python -m data_prep.hub.cards first")
        return {name: (card / name).read_bytes() for name in ("README.md", "stats.json") if (card / name).is_file()}
    return {"README.md": run_cards.record_card(folder, files, configurations(files)).encode()}


def stale_of_model(files: Files, others: Iterable[str]) -> list[str]:
    """The other files of the repository that would be loaded with a model's files or instead of them."""
    folders = {Path(path).parent for path in files}
    return [path for path in others if Path(path).parent in folders and OF_A_MODEL.fullmatch(Path(path).name)]


def stale_of_data(folder: Path, files: Files, others: list[str], whole: Path) -> list[str]:
    """The other files of the repository that would be loaded with a data set's files. `datasets` finds them in the
    folder `whole`, which has an empty file for each of them.

    Then the rows are loaded without these. Raises ConfigError if the card has other configurations than the files, or
    if a loaded row differs from the local one.
    """
    from data_prep.rows import CHUNK, configurations, stream

    from datasets import get_dataset_config_names, load_dataset, load_dataset_builder
    from datasets.exceptions import DatasetsError

    stale = [path for path in others if path in OF_A_DATA_SET]
    for path, content in {**dict.fromkeys(set(others) - set(stale), b""), **files}.items():
        (whole / path).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            (whole / path).write_bytes(content)
        else:
            (whole / path).symlink_to(content.resolve())
    groups, cache, name = configurations(files), str(whole.with_name("cache")), ""
    try:
        if groups and sorted(found := get_dataset_config_names(str(whole))) != sorted(groups):
            raise ConfigError(f"it names {', '.join(found)}, and the files make {', '.join(groups)}")
        for name in groups:
            loaded = load_dataset_builder(str(whole), name, cache_dir=cache).config.data_files
            paths = {os.path.relpath(path, whole.resolve()) for split in loaded.values() for path in split}
            stale += sorted(paths & set(others))
        for path in stale:
            (whole / path).unlink(missing_ok=True)
        for name, parts in groups.items():
            loaded = load_dataset(str(whole), name, split="train", streaming=True, cache_dir=cache)
            there = (row for batch in loaded.with_format("arrow").iter(CHUNK) for row in batch.to_pylist())
            here = stream([files[part] for part in parts])
            for number, (one, other) in enumerate(itertools.zip_longest(there, here)):
                if repr(one) != repr(other):  # as text, because NaN != NaN
                    raise ConfigError(f"row {number} comes back as {one!r:.200}, and is {other!r:.200} here")
    except (DatasetsError, ValueError, TypeError, NotImplementedError, OSError) as error:
        said = " ".join(str(error).split()).rstrip(".")[:600]
        raise ConfigError(
            f"{folder / f'{name}.parquet' if name else folder} does not load as its card says: {said}. Nothing was "
            "pushed. Give each column a type that `datasets` knows, the same in all files, and name them in the card."
        ) from error
    return stale


def too_large(folder: Path) -> str:
    """Why a model is too large to be downloaded and asked a question; "" if there is twice the space that it needs."""
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file():  # an adapter is loaded with its base
        base = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        if Path(base).is_dir():
            weights += sum(path.stat().st_size for path in Path(base).glob("*.safetensors"))
        else:
            there = files_of(Repository(base, "model")) or {}
            weights += sum(file.size for path, file in there.items() if path.endswith(".safetensors"))
    free = {"memory": memory.available(), "disk": shutil.disk_usage(folder).free}
    short = [f"{size / 1e9:.1f} GB of {what}" for what, size in free.items() if size < 2 * weights]
    return f"its weights take {weights / 1e9:.1f} GB, and {' and '.join(short)} are free" if short else ""


def answer(folder: Path) -> Any:
    """A model's answer to one question: its greedy continuation, or its score."""
    from data_prep.hub.run_cards import QUESTION

    import torch
    from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    adapter, place, revision = folder / "adapter_config.json", str(folder), {}
    if adapter.is_file():
        config = json.loads(adapter.read_text(encoding="utf-8"))
        scores = config.get("task_type") == "SEQ_CLS"
        kind = AutoPeftModelForSequenceClassification if scores else AutoPeftModelForCausalLM
        model = kind.from_pretrained(place, **({"num_labels": 1} if scores else {}))
        place, revision = config["base_model_name_or_path"], {"revision": config.get("revision") or "main"}
    elif any(
        "SequenceClassification" in kind for kind in json.loads((folder / "config.json").read_text())["architectures"]
    ):
        model = AutoModelForSequenceClassification.from_pretrained(place)
    else:
        model = AutoModelForCausalLM.from_pretrained(place)
    inputs = AutoTokenizer.from_pretrained(place, **revision)(QUESTION, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        if hasattr(model, "score"):
            return model.eval()(**inputs).logits.tolist()
        return model.eval().generate(**inputs, do_sample=False, max_new_tokens=16).tolist()


if __name__ == "__main__":
    sys.exit(commands.run(main))
