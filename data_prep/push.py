"""Push what lies on disk to the Hub: `python -m data_prep.push FOLDER --hub-model-id OWNER/NAME`.

FOLDER is a finished run of a stage, a data job or an evaluation, the report of a scale, a model, or an adapter. With
its files goes a card that explains it, which is the last word on README.md. Then all of it is read back: checksums, the
rows of a data set, what a model says to one question. The same command finishes a push that failed or was killed.
"""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from data_prep import commands
from data_prep.hub import Files, HubError, Repository, push, read_back, require_write
from data_prep.publishing import pushed
from data_prep.runs import ConfigError, Stopped, write_json

log = logging.getLogger("data_prep.push")
MODEL_FILES = (".safetensors", ".json", ".jsonl", ".jinja", ".txt", ".model", ".py")
STATE_FILES = (*MODEL_FILES, ".pt", ".pth")  # what a checkpoint needs to be trained on; never training_args.bin
DATA_FILES = (".parquet", ".json", ".jsonl", ".png", ".svg", ".html")
OURS = {"begun.json", "hub.json", "sessions.json"}  # about this disk
SCRATCH = ".pushed"  # what is read back, while it is compared


def main(argv: list[str]) -> None:
    """Raises Stopped where the Hub did not take it (the last line finishes the push), ConfigError where it cannot be
    pushed as it is."""
    parser = commands.parser("data_prep.push", __doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hub-model-id", required=True, metavar="OWNER/NAME", help="of a model or of a data set")
    parser.add_argument("--public", action="store_true", help="make the repository public, if it has to be made")
    parser.add_argument("--checkpoints", action="store_true", help="each checkpoint-N too, as a branch of that name")
    parser.add_argument("--card", type=Path, help="folder with the README.md and stats.json of data_prep.cards")
    parser.add_argument("--check", choices=["model", "dataset"], help="only make sure that such a thing can be pushed")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    private = not arguments.public
    try:
        if arguments.check:
            require_write(Repository(arguments.hub_model_id, arguments.check, private))
            return
        found = parts(arguments.folder, arguments.hub_model_id, private)
        for _, repository in found:
            require_write(repository)
        for folder, repository in found:
            send(folder, repository, arguments)
        if found[0][0] != arguments.folder:  # several models
            write_json(
                arguments.folder / "hub.json", {"id": arguments.hub_model_id, "parts": [one.id for _, one in found]}
            )
    except HubError as error:
        command = shlex.join(["python", "-m", "data_prep.push", *argv])
        raise Stopped(f"{error}\nNothing is lost on this disk. To finish the push:\n{command}") from error


def send(folder: Path, repository: Repository, arguments: argparse.Namespace) -> None:
    """Push one model or data set with its card, read it back, note in hub.json where it went."""
    shutil.rmtree(folder / SCRATCH, ignore_errors=True)  # of a push that was killed
    (folder / SCRATCH).mkdir()
    with tempfile.TemporaryDirectory(dir=folder / SCRATCH) as scratch:
        if repository.kind == "model":
            files = model_files(folder) | card_of_model(folder, repository)
            said = {part: answer(folder / part) for part in ("", "adapter") if is_model(folder / part)}
        else:
            files = data_files(folder) | card_of_data(folder, arguments.card, Path(scratch))
        sha = push(repository, files, f"{folder.name}, with its card")
        back = read_back(repository, sha, files, Path(scratch) / "hub")
        if repository.kind == "dataset":
            compare_rows(back, files, Path(scratch) / "rows")
        elif said != {part: answer(back / part) for part in said}:
            raise HubError(f"{repository.id} at {sha}: the model that came back answers otherwise than the one here")
    for checkpoint in sorted(folder.glob("checkpoint-*/complete.json")) if arguments.checkpoints else []:
        state = grounded(listed(checkpoint.parent, STATE_FILES, "**/*"))
        push(repository, state, f"{folder.name}, {checkpoint.parent.name}", branch=checkpoint.parent.name)
    write_json(folder / "hub.json", {"id": repository.id, "kind": repository.kind, "revision": sha})
    log.info("%s is on the Hub as %s, revision %s", folder, repository.id, sha)


# What lies in a folder


def is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()


def parts(folder: Path, hub_model_id: str, private: bool) -> list[tuple[Path, Repository]]:
    """What a folder holds, and where each goes: one model, several (each to a name of its own), or a data set."""
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
    """The files of a folder that go, by their path in it."""
    found = [path for path in sorted(folder.glob(within)) if path.suffix in endings and path.is_file()]
    return {str(path.relative_to(folder)): path for path in found if path.name not in OURS}


def model_files(folder: Path) -> Files:
    """Weights, tokenizer, chat template, configs, log and record of a model, and its adapter where it has one."""
    files = listed(folder, MODEL_FILES) | listed(folder, MODEL_FILES, "adapter/*")
    if "run.json" not in files and (folder.parent / "run.json").is_file():
        files["run.json"] = folder.parent / "run.json"
    return grounded(files)


def grounded(files: Files) -> Files:
    return files | {name: on_the_hub(path) for name, path in files.items() if name.endswith("adapter_config.json")}


def on_the_hub(path: Path) -> bytes:
    """An adapter's config that names its base by Hub id and revision. Raises ConfigError where that is nowhere."""
    config = json.loads(path.read_text(encoding="utf-8"))
    base = config["base_model_name_or_path"]
    if there := pushed(base):
        config |= {"base_model_name_or_path": there["id"], "revision": there["revision"]}
    elif not config.get("revision"):
        raise ConfigError(f"{path}: no `revision` of {base}; write the commit of it that the adapter was trained on")
    return json.dumps(config, indent=2).encode()


def card_of_model(folder: Path, repository: Repository) -> Files:
    from data_prep import cards

    run = folder if (folder / "run.json").is_file() else folder.parent
    picture = cards.curves(folder)
    card = cards.model_card(folder, run, repository.id).encode()
    return {"README.md": card} | ({"curves.png": picture} if picture else {})


def data_files(folder: Path) -> Files:
    """The Parquet files and records of a data set; of a report, the generations of the evaluations beside it too."""
    files = listed(folder, DATA_FILES)
    if not list(folder.glob("*.parquet")):
        for path in sorted(folder.parent.glob("evaluate_*/generations.parquet")):
            if (path.parent / "run.json").is_file():
                files[f"{path.parent.name.removeprefix('evaluate_')}.parquet"] = path
    return files


def card_of_data(folder: Path, card: Path | None, scratch: Path) -> Files:
    """README.md, and stats.json where the rows are those of the contract: given, or made here."""
    from data_prep import cards
    from data_prep.rows import COLUMNS, configurations

    import pyarrow.parquet as pq

    files = data_files(folder)
    paths = [path for name, path in files.items() if name.endswith(".parquet")]
    if card is None and paths and all(COLUMNS.keys() <= set(pq.read_schema(path).names) for path in paths):
        card = scratch
        cards.build(cards.Card(output_dir="", data=str(folder), title=cards.title(folder)), card, files=paths)
    if card is not None:
        if not (card / "README.md").is_file():
            raise ConfigError(f"--card {card}: holds no README.md; run python -m data_prep.cards first")
        return {name: (card / name).read_bytes() for name in ("README.md", "stats.json") if (card / name).is_file()}
    return {"README.md": cards.record_card(folder, files, configurations(files)).encode()}


def compare_rows(back: Path, files: Files, cache: Path) -> None:
    """Raises HubError where a configuration, loaded as its card says, has other rows than the files here."""
    from data_prep.rows import configurations

    from datasets import get_dataset_config_names, load_dataset

    groups = configurations(files)
    if groups and sorted(get_dataset_config_names(str(back))) != sorted(groups):
        raise HubError(f"{back.name}: its configurations are not {', '.join(groups)}")
    for name, names in groups.items():
        there = load_dataset(str(back), name, split="train", cache_dir=str(cache))
        here = load_dataset(
            "parquet", data_files=[str(files[part]) for part in names], split="train", cache_dir=str(cache)
        )
        if there.features != here.features or not there.data.table.equals(here.data.table):
            raise HubError(f"{name}: {len(there):,} rows came back, {len(here):,} lie here, and they are not the same")


def answer(folder: Path) -> Any:
    """What a model says to one question: its greedy continuation, or its score."""
    from data_prep.cards import QUESTION

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
