"""Reliable checkpoints: they are complete or deleted, and are saved only at steps that training can resume exactly.

A folder `checkpoint-N` is complete if it contains `complete.json`, which is written last. TRL resumes exactly only at
the start of a rollout (its buffer of completions is not saved), and the mean in a log row is exact only from the start
of a log interval. A save at any other step is moved to the next step at which both start.
"""

import json
import logging
import os
import shutil
from pathlib import Path

from transformers import TrainerCallback

logger = logging.getLogger(__name__)
MARKER = "complete.json"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def complete(output_dir: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted((path.parent for path in Path(output_dir).glob(f"checkpoint-*/{MARKER}")), key=step_of)


def latest(output_dir: Path) -> Path | None:
    """Delete checkpoints that a killed run left incomplete, and return the newest complete one."""
    found = complete(output_dir)
    for path in Path(output_dir).glob("checkpoint-*"):
        if path not in found:
            logger.info("%s was not written to its end, and is deleted", path)
            shutil.rmtree(path)
    return found[-1] if found else None


def mark_complete(checkpoint: Path, keep: int | None, **record) -> None:
    """Sync every file of the checkpoint to disk, write the marker with `record`, and delete older checkpoints."""
    for path in [*checkpoint.rglob("*"), checkpoint]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    partial = checkpoint / f".{MARKER}"
    with partial.open("w", encoding="utf-8") as file:
        json.dump({"step": step_of(checkpoint)} | record, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(checkpoint / MARKER)
    for old in complete(checkpoint.parent)[:-keep] if keep else []:
        (old / MARKER).unlink()  # first, so a kill here leaves no folder that looks complete
        shutil.rmtree(old)


def record_of(checkpoint: Path) -> dict:
    return json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))


class ExactSaves(TrainerCallback):
    """Moves a save to the next step that training can resume exactly, and logs this once.

    The last step is not saved, because the finished model follows and transformers would resume one step too far.
    """

    def __init__(self, interval: int):
        self.interval, self.waiting, self.said = interval, False, False

    def on_epoch_end(self, args, state, control, **kwargs):
        """Does the same for `save_strategy: epoch`. A delayed save has already been requested at the step before."""
        return self.on_step_end(args, state, control, **kwargs) if control.should_save else control

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_training_stop:
            control.should_save = False
        elif control.should_save or self.waiting:
            exact = state.global_step % self.interval == 0
            if not exact and not self.said:
                logger.info(
                    "save_steps %s: step %d cannot be resumed exactly (amid a rollout or a log row); saved at the "
                    "next multiple of %d instead",
                    *(args.save_steps, state.global_step, self.interval),
                )
                self.said = True
            control.should_save, self.waiting = exact, not exact
        return control
