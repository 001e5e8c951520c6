"""How a stage reads its YAML and its command line, strictly and before anything slow is imported, and how it ends.

The command line wins over the YAML: `--seed 3` repeats a run with another seed.
"""

import argparse
import difflib
import errno
import importlib.metadata
import itertools
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
from data_prep import commands, publishing
from data_prep.identity import NUMBER
from data_prep.runs import ConfigError, Stopped, load_config
from recipes import trl_keys
from recipes.config import GENERATION, GRPOConfig, world_size

import yaml

# These arguments allow reading the YAML of a GPU on a machine without one.
WITHOUT_GPU = ("--use_cpu", "true", "--bf16", "false")
FLAGS = ("--debug", "--redo")  # options of a command that are not settings
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


def _fits(value: object, kind: object) -> bool:
    """Whether a YAML value is valid for a field annotated `kind`."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is list or kind is list:
        return isinstance(value, list) and all(_fits(one, inner[0]) for one in value if inner)
    if origin is dict or kind is dict:
        return isinstance(value, dict)
    if kind is float:
        if isinstance(value, str):  # YAML reads 1e-4, without a point, as a string
            return NUMBER.fullmatch(value) is not None
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in (bool, str, type(None)):
        return isinstance(value, kind)
    return True  # the trainer itself checks enums and similar types


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise ConfigError(f"command line: {message}")


def _files(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """(the files of --config and --override, the remaining settings of a command line)."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--override", type=Path)
    return parser.parse_known_args([_underscored(word) for word in argv if word not in FLAGS])


def _underscored(word: str) -> str:
    """Convert `--max-steps=4` to `--max_steps=4`."""
    key, is_whole, value = word.partition("=")
    return f"--{key[2:].replace('-', '_')}{is_whole}{value}" if word.startswith("--") else word


def given(argv: list[str]) -> tuple[str, dict]:
    """(the file of --config, or "command line"; the settings in that file and on the command line)."""
    files, words = _files(argv)
    settings = load_config(files.config, files.override) if files.config else {}
    for at, word in enumerate(words):
        if word.startswith("--"):
            key, is_whole, value = word.removeprefix("--").partition("=")
            values = itertools.takewhile(lambda other: not other.startswith("--"), words[at + 1 :])
            read = [_read(one) for one in ([value] if is_whole else values)]
            if not read:  # a switch
                key, read = (key.removeprefix("no_"), [False]) if key.startswith("no_") else (key, [True])
            settings[key] = read if len(read) > 1 else read[0]
    return str(files.config or "command line"), settings


def _read(word: str) -> Any:
    """A word of the command line, parsed as YAML if possible."""
    try:
        return yaml.safe_load(word)
    except yaml.YAMLError:
        return word


def _require_known(where: str, keys: Iterable[str], known: Iterable[str]) -> None:
    for key in keys:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0)
            raise ConfigError(f"{where}: unknown key '{key}'. The nearest known key is '{near[0]}'.")
        if key in REPLACED:
            raise ConfigError(f"{where}: {key} {REPLACED[key]}.")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def _parser(arguments: type, trainer: type, kinds: dict[str, object]) -> _Parser:
    """A parser with all keys as options. Its help shows keys with our own defaults, and where to find the others."""
    name = trainer.__name__
    parser = _Parser(
        allow_abbrev=False,
        formatter_class=_Formatter,
        usage="%(prog)s --config FILE [--override FILE] [--KEY VALUE ...] [--redo] [--debug]\n"
        f"--override: {commands.OVERRIDE}; --debug: {commands.DEBUG}\n--redo: {commands.REDO}",
        description=f"{sys.modules['__main__'].__doc__}\nEach option is a key of the YAML, too; here it wins.",
        epilog=f"All others are TRL's: https://huggingface.co/docs/trl/v{importlib.metadata.version('trl')}/en/"
        f"{name.removesuffix('Config').lower()}_trainer#trl.{name}",
    )
    usual = commands.defaults(trainer) | commands.defaults(arguments)
    for key, kind in kinds.items():
        hidden = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
        settings = {"default": usual[key], "help": _explained(key, arguments, trainer)} if key in usual else hidden
        parts = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
        one = bool if bool in parts else str if str in parts else parts[0]
        if one is bool:
            parser.add_argument(f"--{key}", type=_truth, nargs="?", const=True, **settings)
            parser.add_argument(f"--no_{key}", dest=key, action="store_false", **hidden)
        elif typing.get_origin(one) is list:
            parser.add_argument(f"--{key}", type=typing.get_args(one)[0], nargs="+", **settings)
        else:
            optional = type(None) in parts and one is not str
            parser.add_argument(f"--{key}", type=_or_none(one) if optional else one, **settings)
    return parser


def _kinds(one: type) -> dict[str, object]:
    """The type of each key of a dataclass."""
    hints = typing.get_type_hints(one)
    return {field.name: hints[field.name] for field in fields(one)}


def _explained(key: str, arguments: type, trainer: type) -> str:
    """Our help for a key, or else TRL's."""
    fields = (getattr(one, "__dataclass_fields__", {}).get(key) for one in (*arguments.__mro__, *trainer.__mro__))
    ours = next((one.metadata["help"] for one in fields if one and one.metadata), None)
    theirs = trl_keys.read(trainer.__name__)
    return ours or (theirs[key].help if key in theirs else " ")


def _or_none(kind: type) -> Callable[[str], Any]:
    def read(word: str) -> Any:
        return None if word.lower() in ("none", "null") else kind(word)

    read.__name__ = getattr(kind, "__name__", str(kind))  # argparse names it in errors
    return read


def _truth(word: str) -> bool:
    if word.lower() not in ("yes", "true", "t", "y", "1", "no", "false", "f", "n", "0"):
        raise argparse.ArgumentTypeError(f"{word!r} is neither true nor false")
    return word.lower() in ("yes", "true", "t", "y", "1")


def read(arguments: type, trainer: type, argv: list[str] | None = None) -> tuple[Any, dict[str, Any], str]:
    """The part of `parse` without TRL: (the stage's arguments, the trainer's settings, the file they are from)."""
    argv = sys.argv[1:] if argv is None else argv
    where, said = given(argv)
    publishing.read(said, where)
    files, words = _files(argv)
    config = load_config(files.config, files.override) if files.config else {}
    theirs = {key: one.kind for key, one in trl_keys.read(trainer.__name__).items()}
    kinds = _kinds(arguments) | theirs | _kinds(trainer)
    _require_known(where, config, kinds)
    for key, value in config.items():
        if not _fits(value, kinds[key]):
            kind = getattr(kinds[key], "__name__", "") if isinstance(kinds[key], type) else str(kinds[key])
            raise ConfigError(f"{where}: '{key}' is {value!r}, but it must be of type {kind}.")
    parser = _parser(arguments, trainer, kinds)
    parser.set_defaults(**config)
    found, rest = parser.parse_known_args(words)
    settings = vars(found)
    strange = [word[2:].partition("=")[0] for word in rest if word.startswith("--")]
    _require_known("command line", [*strange, *settings], kinds)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
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


def launch(stage: Callable[..., None], *settings: type) -> None:
    """Run a stage's `main` with what `parse` reads into its classes of settings, and end the process like every command
    (`data_prep.commands`)."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")

    def main(_: list[str]) -> None:
        try:
            stage(*(parse(*settings) if settings else ()))
        except Exception as error:
            _leave_for_launcher(error)
            if isinstance(error, RuntimeError) and "to be installed" in str(error):  # transformers' wording
                raise ImportError(str(error)) from error
            # torch and safetensors raise their own exceptions for a full disk, with the reason only in the message.
            if getattr(error, "errno", None) != errno.ENOSPC and not re.search(NO_SPACE, str(error)):
                raise
            raise Stopped(
                f"the disk is full ({error}). Free some space and run the same command again: "
                "training goes on from its last checkpoint."
            ) from error

    if status := commands.run(main):
        raise SystemExit(status)


def _leave_for_launcher(error: Exception) -> None:
    """Write the error to the file that torchrun, used by `accelerate launch`, shows at the end of its report."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        more = {"py_callstack": f"error: {error}", "timestamp": int(time.time())}
        told = {"message": {"message": f"error: {error}", "extraInfo": more}}
        Path(path).write_text(json.dumps(told), encoding="utf-8")
