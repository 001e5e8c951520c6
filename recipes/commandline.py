"""How a stage reads its YAML and its command line, strictly and before anything slow is imported, and how it ends.

The command line wins over the YAML: `--seed 3` repeats a run with another seed.
"""

import argparse
import errno
import importlib.metadata
import json
import logging
import os
import re
import sys
import time
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import rewards
from data_prep.runs import Stopped, commands, publishing
from data_prep.runs.configs import ConfigError, load_config, require_known, typed
from recipes import trl_keys
from recipes.config import GENERATION, GRPOConfig, world_size

import yaml

# These arguments allow reading the YAML of a GPU on a machine without one.
WITHOUT_GPU = ("--use_cpu", "true", "--bf16", "false")
FLAGS, FILES = ("debug", "redo"), ("config", "override")  # options of a command that are not settings
SHORT, DECIMAL = re.compile(r"-(?!inf|nan)[A-Za-z_]", re.I), re.compile(r"[+-]?\d+")
TRUTHS = dict.fromkeys(("yes", "y", "true", "t", "1"), True) | dict.fromkeys(("no", "n", "false", "f", "0"), False)
ENGINE_SEQUENCES = 4096  # TRL's `max_num_batched_tokens` of a colocated engine, which limits vLLM's sequences
NO_SPACE = r"No space left|os error 28|file write failed"
# Entries of TRL's `generation_kwargs` that would silently override a key.
GENERATION_KEYS = {key: key for key in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")}
GENERATION_KEYS |= dict.fromkeys(("max_new_tokens", "max_tokens", "max_length"), "max_completion_length")
# Keys of TRL that our own keys replace.
REPLACED = {
    "gradient_accumulation_steps": "follows from the batch of a step; leave it out",
    "use_vllm": f"is part of `generation`; write generation: {', '.join(GENERATION[:-1])} or {GENERATION[-1]}",
    "vllm_mode": f"is part of `generation`; write generation: {', '.join(GENERATION[:-1])} or {GENERATION[-1]}",
}


def _split(argv: list[str]) -> tuple[dict[str, Path], dict[str, list[str]]]:
    """(the files of --config and --override; the words after each other key) of a stage's command line."""
    words: dict[str, list[str]] = {"": []}
    for word in argv:
        if word.startswith("--"):
            key, has_value, value = word[2:].partition("=")
            words.pop(key := key.replace("-", "_"), None)  # of a repeated key the last one counts
            words[key] = [value] if has_value else []
        elif SHORT.match(word):
            raise ConfigError(f"command line: unrecognized arguments: {word}")
        else:
            words[next(reversed(words))].append(word)
    strange = [word for key in ("", *FLAGS) for word in words.pop(key, [])]
    files = {}
    for key in [key for key in FILES if key in words]:
        path, *more = words.pop(key) or [""]
        if not path:
            raise ConfigError(f"command line: --{key} names no file")
        strange += more
        files[key] = Path(path)
    if strange:
        raise ConfigError(f"command line: unrecognized arguments: {' '.join(strange)}")
    return files, words


def given(argv: list[str]) -> tuple[str, dict]:
    """(the file of --config, or "command line"; the settings in that file and on the command line)."""
    where, config, words = _sources(argv)
    return where, config | _said(words)


def _sources(argv: list[str]) -> tuple[str, dict[str, Any], dict[str, list[str]]]:
    """(the file of --config, or "command line"; the settings in that file; the words after each key)."""
    files, words = _split(argv)
    config = load_config(files["config"], files.get("override")) if "config" in files else {}
    return str(files.get("config", "command line")), config, words


def _said(words: dict[str, list[str]]) -> dict[str, Any]:
    """The settings of a command line, without their types."""
    settings = {}
    for key, said in words.items():
        read = [_read(word) for word in said]
        if not read:  # a switch
            key, read = (key.removeprefix("no_"), [False]) if key.startswith("no_") else (key, [True])
        settings[key] = read if len(read) > 1 else read[0]
    return settings


def _read(word: str) -> Any:
    """A word of the command line, parsed as YAML if possible. A whole number is decimal, also with leading zeros."""
    try:
        return int(word) if DECIMAL.fullmatch(word) else yaml.safe_load(word)
    except yaml.YAMLError:
        return word


def _value(words: list[str], hint: object, where: str) -> Any:
    """The value that the words after a key have in a field with this type hint. Raises ConfigError if there is none."""
    options = _options(hint)
    item = next((typing.get_args(one)[0] for one in options if typing.get_origin(one) is list), None)
    if item and words and (len(words) > 1 or str not in options):
        return [_value([word], item, where) for word in words]
    if len(words) != 1:
        raise ConfigError(f"{where} has {len(words)} values; write one")
    word = words[0]
    if bool in options and word.lower() in TRUTHS:
        return TRUTHS[word.lower()]
    if str in options:
        return word
    if type(None) in options and word.lower() in ("none", "null"):
        return None
    read = _read(word)
    return typed(word if read is None else read, hint, where)  # nothing, as in `--seed=`, is no value


def _options(hint: object) -> tuple:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def _help(arguments: type, trainer: type, kinds: dict[str, object]) -> str:
    """The help of a stage: the keys with our own defaults, and where the others are explained."""
    name = trainer.__name__
    parser = argparse.ArgumentParser(
        formatter_class=_Formatter,
        usage="%(prog)s --config FILE [--override FILE] [--KEY VALUE ...] [--redo] [--debug]\n"
        f"--override: {commands.OVERRIDE}; --debug: {commands.DEBUG}\n--redo: {commands.REDO}",
        description=f"{sys.modules['__main__'].__doc__}\nEach option is a key of the YAML, too; here it wins.",
        epilog=f"All others are TRL's: https://huggingface.co/docs/trl/v{importlib.metadata.version('trl')}/en/"
        f"{name.removesuffix('Config').lower()}_trainer#trl.{name}",
    )
    for key, value in (commands.defaults(trainer) | commands.defaults(arguments)).items():
        many = any(typing.get_origin(one) is list for one in _options(kinds[key]))
        values = "+" if many else "?" if bool in _options(kinds[key]) else None
        parser.add_argument(f"--{key}", default=value, nargs=values, help=_explained(key, arguments, trainer))
    return parser.format_help()


def _kinds(one: type) -> dict[str, object]:
    """The type of each key of a dataclass."""
    hints = typing.get_type_hints(one, include_extras=True)
    return {field.name: hints[field.name] for field in fields(one)}


def _explained(key: str, arguments: type, trainer: type) -> str:
    """Our help for a key, or else TRL's."""
    fields = (getattr(one, "__dataclass_fields__", {}).get(key) for one in (*arguments.__mro__, *trainer.__mro__))
    ours = next((one.metadata["help"] for one in fields if one and one.metadata), None)
    theirs = trl_keys.read(trainer.__name__)
    return ours or (theirs[key].help if key in theirs else " ")


def _require_known(where: str, keys: Iterable[str], known: Iterable[str]) -> None:
    require_known(where, keys, known)
    if replaced := [key for key in keys if key in REPLACED]:
        raise ConfigError(f"{where}: {replaced[0]} {REPLACED[replaced[0]]}.")


def read(arguments: type, trainer: type, argv: list[str] | None = None) -> tuple[Any, dict[str, Any], str]:
    """The part of `parse` without TRL: (the stage's arguments, the trainer's settings, the file they are from)."""
    argv = sys.argv[1:] if argv is None else argv
    theirs = {key: one.kind for key, one in trl_keys.read(trainer.__name__).items()}
    kinds = _kinds(arguments) | theirs | _kinds(trainer)
    if {"-h", "--help"} & {*argv}:
        sys.stdout.write(_help(arguments, trainer, kinds))
        raise SystemExit(0)
    where, config, words = _sources(argv)
    said = config | _said(words)
    publishing.read(said, where)
    _require_known(where, config, kinds)
    settings = commands.defaults(trainer) | commands.defaults(arguments)
    settings |= {key: typed(value, kinds[key], f"{where}: `{key}`") for key, value in config.items()}
    for key, values in words.items():
        if key.startswith("no_") and bool in _options(kinds.get(key[3:])) and not values:
            key, values = key[3:], ["false"]
        _require_known("command line", [key], kinds)
        switch = ["true"] if bool in _options(kinds[key]) else []
        settings[key] = _value(values or switch, kinds[key], f"command line: `{key}`")
    try:
        args = arguments(**{key: settings.pop(key) for key in _kinds(arguments)})
        ours = trainer(**{key: settings[key] for key in _kinds(trainer)})
        for name in getattr(args, "reward_funcs", []):
            if getattr(getattr(rewards, name, None), "whole_groups", False):
                ours.require_whole_groups(name)
        if isinstance(ours, GRPOConfig):
            _require_one_bound(ours, said)
        if getattr(ours, "generation", "") == "vllm_colocate":
            _require_engine(args.max_prompt_length, ours, settings)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    return args, settings, where


def _require_one_bound(config: GRPOConfig, said: dict) -> None:
    """Raises ConfigError if two keys limit the length of a run or of a completion."""
    if "num_train_epochs" in said and config.max_steps > 0:
        raise ConfigError(
            f"num_train_epochs would not count beside max_steps: {config.max_steps}. Leave it out, and write max_steps,"
            f" in each of which {config.prompts_per_step} prompts are asked."
        )
    for key in said.get("generation_kwargs") or ():
        if key in GENERATION_KEYS:
            raise ConfigError(
                f"generation_kwargs: {key} would win over {GENERATION_KEYS[key]}; write that key instead."
            )


def _require_engine(prompt: int | None, config: GRPOConfig, settings: dict) -> None:
    """Raises ConfigError for settings that vLLM would refuse after loading the weights, or that silently truncate."""
    room, completion = settings.get("vllm_max_model_length"), config.max_completion_length or 0
    if room and room < (prompt or 0) + completion:
        raise ConfigError(
            f"vllm_max_model_length is {room} tokens, but max_prompt_length {prompt or 0} and max_completion_length "
            f"{completion} make {(prompt or 0) + completion}; write that, or shorter ones."
        )
    at_once = config.generation_batch_size // world_size() * settings.get("vllm_tensor_parallel_size", 1)
    if at_once > ENGINE_SEQUENCES:
        raise ConfigError(
            f"generation_batch_size {config.generation_batch_size} gives each engine {at_once} completions at once; "
            f"beside training vLLM takes {ENGINE_SEQUENCES}. Write a smaller one, or generation: vllm_server."
        )


def parse(arguments: type, trainer: type, argv: list[str] | None = None) -> tuple:
    """Read `--config FILE` and the command line: (the stage's arguments, the trainer's settings with all of TRL's).

    Raises ConfigError for a missing file, an unknown key, or a wrong type or batch in less than a second, and for
    settings that TRL refuses. A stage imports slow libraries after this, so errors other than TRL's appear at once.
    """
    args, settings, where = read(arguments, trainer, argv)
    for key in ("model_name_or_path", "dataset"):
        if not getattr(args, key, key):
            named = f"--config recipes/configs/cpu/{Path(sys.argv[0]).stem}.yaml"
            raise ConfigError(f"{where}: {key} is missing. Name a YAML that has it, as {named}; or write --{key}.")
    from recipes import trl_configs  # imports TRL

    whole = getattr(trl_configs, trainer.__name__)
    for one in fields(whole):
        choices = one.metadata.get("choices")
        if choices and settings.get(one.name) not in (None, *choices):
            raise ConfigError(f"{where}: {one.name} is {settings[one.name]!r}; write one of {', '.join(choices)}.")
    try:
        return args, whole(**settings)
    except ValueError as error:
        if "use_cpu" in str(error):  # the libraries' message is about precision
            error = "no GPU is visible; train on one, or write `use_cpu: true` and `bf16: false`"
        raise ConfigError(f"{where}: {error}") from None


def launch(stage: Callable[..., None], arguments: type, trainer: type) -> None:
    """Run a stage's `main` with what `parse` reads into its classes of settings, and end the process like every command
    (`data_prep.runs.commands`)."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    def main(_: list[str]) -> None:
        try:
            stage(*parse(arguments, trainer))
        except Exception as error:
            _leave_for_launcher(error)
            if isinstance(error, RuntimeError) and "to be installed" in str(error):  # transformers' wording
                raise ImportError(str(error)) from error
            # torch and safetensors raise their own exceptions for a full disk, with the reason only in the message.
            if getattr(error, "errno", None) != errno.ENOSPC and not re.search(NO_SPACE, str(error)):
                raise
            raise Stopped(
                f"the disk is full ({error}). Free some space and run the same command again: "
                "training resumes from its last checkpoint."
            ) from error

    if status := commands.run(main):
        raise SystemExit(status)


def _leave_for_launcher(error: Exception) -> None:
    """Write the error to the file that torchrun, used by `accelerate launch`, shows at the end of its report."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        more = {"py_callstack": f"error: {error}", "timestamp": int(time.time())}
        told = {"message": {"message": f"error: {error}", "extraInfo": more}}
        Path(path).write_text(json.dumps(told), encoding="utf-8")
