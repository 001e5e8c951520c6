"""Reuses a base that was trained once in later runs with the same settings."""

import shutil
from pathlib import Path

from data_prep import runs
from recipes.training import Run


def made_with(run: Run) -> dict:
    """The settings of this run, and of its corpus if one of our jobs wrote it. Seeds are left out, because the corpus
    of any seed is free of held-out data."""
    folder = Path(run.args.dataset).parent
    corpus = runs.read(folder).get("config", {}) if (folder / "run.json").is_file() else {}
    settings = corpus | run.identity.settings
    return {key: value for key, value in settings.items() if key not in ("seed", "output_dir", "checkpoint")}


def take(run: Run) -> None:
    """Use the checkpoint that `checkpoint` names for this run. Raises ConfigError if other settings made it."""
    folder = runs.ROOT / run.args.checkpoint
    record, now = runs.read(folder), made_with(run)
    then = record["made_with"]
    if differ := sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key)):
        raise runs.ConfigError(
            f"checkpoint: {run.args.checkpoint} was made with another {', '.join(differ)}; write `checkpoint: null`, "
            "which trains a base of your own"
        )
    run.take()
    shutil.copytree(
        folder,
        run.output_dir,
        ignore=shutil.ignore_patterns("run.json", "begun.json", "checkpoint-*"),
        dirs_exist_ok=True,
    )
    run.models.append("")
    run.figures |= {key: record[key] for key in ("parameters", "steps", "completion_tokens_trained")}
    run.finish()
