"""The keys of any YAML that push a finished run to the Hub.

The push is the command `python -m data_prep.push` in a separate process. Runs that are not pushed therefore import
nothing for it, and a failed push leaves the run on disk finished.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_prep.runs import configs
from data_prep.runs.configs import ConfigError
from data_prep.runs.identity import PUBLISHING

REFUSED = {
    "hub_token": "the token comes from the environment variable HF_TOKEN alone",
    "hub_always_push": "a run is pushed when it is finished",
    "hub_revision": "a model goes to the branch main, a checkpoint to one of its own name",
    "log_completions_hub_repo": "completions lie in `completions/` of the run; push that folder as a data set",
}


@dataclass(frozen=True)
class Publishing:
    """`hub_private_repo`: None means true. `hub_strategy`: all_checkpoints also pushes the kept checkpoints."""

    push_to_hub: bool = False
    hub_model_id: str | None = None
    hub_private_repo: bool | None = None
    hub_strategy: Literal["end", "all_checkpoints"] = "end"

    def check(
        self, kind: Literal["model", "dataset"], suffixes: tuple[str, ...] = ("",), base: str | None = None
    ) -> None:
        """End the process with exit status 2 if a push is not possible: no token, no write access, no Hub. Raises
        ConfigError if an adapter's `base` is not on the Hub."""
        if self.push_to_hub and base:
            pushed(base)
        for suffix in suffixes if self.push_to_hub else ():
            command = [*self._command(f"{self.hub_model_id}{suffix}"), "--check", kind, "."]
            if code := subprocess.run([sys.executable, *command]).returncode:
                raise SystemExit(2 if code > 0 else 1)

    def publish(self, output_dir: Path) -> int:
        """Push a finished run that was not pushed yet, and return an exit status. If the push fails, the last line of
        the output is the command that finishes it."""
        if not pending(output_dir, self):
            return 0
        command = [*self._command(self.hub_model_id), str(output_dir)]
        if self.hub_strategy == "all_checkpoints":
            command.append("--checkpoints")
        code = subprocess.run([sys.executable, *command]).returncode
        if code < 0:
            sys.stderr.write(f"error: the push was killed. To finish it:\n{shlex.join(['python', *command])}\n")
        return 1 if code else 0

    def _command(self, name: str | None) -> list[str]:
        public = ["--public"] if self.hub_private_repo is False else []
        return ["-m", "data_prep.push", "--hub-model-id", str(name), *public]


def read(config: Mapping[str, Any], where: str) -> Publishing:
    """Read the publishing keys of a YAML. Raises ConfigError for a wrong value, a missing name, and keys that push in
    another way."""
    if refused := next((key for key in REFUSED if config.get(key)), None):
        raise ConfigError(f"{where}: remove the key `{refused}`: {REFUSED[refused]}")
    found = configs.settings(Publishing, {key: config[key] for key in PUBLISHING if key in config}, where)
    if found.push_to_hub and not found.hub_model_id:
        raise ConfigError(f"{where}: push_to_hub needs a name; write `hub_model_id: owner/name`")
    return found


def pushed(base: str) -> dict[str, str] | None:
    """The hub.json of the folder of an adapter's base, or None for a Hub id. Raises ConfigError for a folder that was
    not pushed."""
    record = Path(base) / "hub.json"
    if not Path(base).is_dir():
        return None
    if not record.is_file():
        raise ConfigError(
            f"{base}, an adapter's base, is not on the Hub, so nobody could load the adapter. Push it first: "
            f"python -m data_prep.push {base} --hub-model-id OWNER/NAME"
        )
    return json.loads(record.read_text(encoding="utf-8"))


def pending(output_dir: Path, publishing: Publishing) -> bool:
    """Whether a finished run still has to be pushed: its hub.json is missing or names another repository."""
    record = Path(output_dir) / "hub.json"
    known = json.loads(record.read_text(encoding="utf-8"))["id"] if record.is_file() else None
    return publishing.push_to_hub and known != publishing.hub_model_id
