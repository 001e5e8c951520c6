"""Reads the keys of TRL's configs from the source of TRL and transformers, because importing them takes seconds.

`tests/recipes/test_settings.py` compares the result with TRL's dataclasses.
"""

import ast
import builtins
import functools
import importlib.util
from pathlib import Path
from typing import Any, Literal, NamedTuple

SHARED = ("transformers/training_args.py", "trl/trainer/base_config.py")


class Key(NamedTuple):
    kind: object  # the type; a class of these libraries is Any
    help: str  # the first sentence of its help


class _Names(dict):
    def __missing__(self, name: str) -> object:
        return Any


@functools.cache
def read(config: str) -> dict[str, Key]:
    """The keys of TRL's class `config`, in its order."""
    found = {}
    for name in (*SHARED, f"trl/trainer/{config.removesuffix('Config').lower()}_config.py"):
        package, _, path = name.partition("/")
        source = Path(importlib.util.find_spec(package).submodule_search_locations[0], path)  # nothing is imported
        for node in ast.walk(ast.parse(source.read_bytes())):
            if isinstance(node, ast.ClassDef) and node.name in ("TrainingArguments", "_BaseConfig", config):
                found |= {one.target.id: _key(one) for one in node.body if isinstance(one, ast.AnnAssign)}
    return {name: key for name, key in found.items() if not name.startswith("_")}


def _key(node: ast.AnnAssign) -> Key:
    kind = eval(ast.unparse(node.annotation), {}, _Names(vars(builtins), Any=Any, Literal=Literal))
    metadata = next(word.value for word in node.value.keywords if word.arg == "metadata")
    pairs = zip(metadata.keys, metadata.values, strict=True)
    return Key(kind, next(text.value.split(". ")[0] for name, text in pairs if name.value == "help"))
