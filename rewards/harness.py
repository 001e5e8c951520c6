"""Runs in the sandbox with a program: it makes the calls of the tests and writes each result as a JSON line."""

import builtins
import json
import os
import sys
import types


def encode(value):
    """The value as [type, content], with only strings and lists inside, and sets and dictionaries in a fixed order."""
    if value is None or isinstance(value, str):
        return ["none" if value is None else "str", value]
    if hasattr(value, "item") and not hasattr(value, "__len__"):
        value = value.item()  # a numpy scalar
    if isinstance(value, (bool, int)):
        return ["bool" if isinstance(value, bool) else "int", hex(value)]
    if isinstance(value, float):
        return ["float", value.hex()]
    if isinstance(value, dict):
        return ["dict", sorted(([encode(key), encode(item)] for key, item in value.items()), key=json.dumps)]
    if isinstance(value, (set, frozenset)):
        return ["set", sorted(map(encode, value), key=json.dumps)]
    if isinstance(value, (list, tuple)):
        return ["list" if isinstance(value, list) else "tuple", [encode(item) for item in value]]
    if type(value).__name__ in ITERABLE:  # iterable, but not equal to a list
        return ["iterable", [encode(item) for _, item in zip(range(MOST), value, strict=False)]]
    return [type(value).__name__, None if not isinstance(value, (bytes, complex)) else repr(value)]


ITERABLE = ("generator", "map", "filter", "zip", "range", "deque", "dict_keys", "dict_values", "ndarray")
MOST = 100_000  # items of an iterable that are read
# Names that programs for LeetCode and similar sites use without an import.
PRELUDE = (
    "from typing import *\nfrom collections import *\nfrom functools import *\nfrom itertools import *\n"
    "from heapq import *\nfrom bisect import *\nfrom math import *\ndel pow\nimport bisect, collections, copy,"
    " functools, heapq, itertools, math, operator, random, re, string, sys\n"
)


class Names(dict):
    """Resolves a name in a test's call: a global of the program, or a method of its class Solution."""

    def __init__(self, own):
        self.own = own

    def __missing__(self, name):
        if name in self.own:
            return self.own[name]
        if hasattr(self.own.get("Solution"), name):
            return getattr(self.own["Solution"](), name)
        raise KeyError(name)


def main(program, calls, raised=False):
    """Run the program with its output discarded, then each call. A call that fails writes `null`, or with `raised` the
    names of the exception's class and its ancestors and the message."""
    results = os.fdopen(os.dup(1), "w")
    os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
    sys.setrecursionlimit(20_000)
    module = types.ModuleType("program")  # skips a main guard, which has no input here
    sys.modules["program"] = module
    names = module.__dict__
    exec(PRELUDE, names)
    before = dict(names)
    exec(compile(program, "program.py", "exec"), names)  # this is the sandbox
    own = {name: value for name, value in names.items() if name not in before or before[name] is not value}
    for call in calls:
        try:
            line = json.dumps(encode(eval(call, {"__builtins__": builtins}, Names(own))))  # a test's own call
        except Exception as error:  # noqa: BLE001 (whatever the program raises is a failed test)
            kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
            line = json.dumps(["raised", kinds, str(error)[:1000]]) if raised else "null"
        results.write(line + "\n")
        results.flush()
    sys.stdout.flush()
