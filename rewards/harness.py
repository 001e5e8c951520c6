"""Goes into the sandbox with a program: makes the calls of its tests and writes what each gives as a JSON line."""

import json
import os
import sys


def encode(value):
    """[type, value] with only text and lists inside, sets and dictionaries in a fixed order."""
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
    return [type(value).__name__, None if not isinstance(value, (bytes, complex)) else repr(value)]


# What programs of LeetCode and its like use without importing it.
PRELUDE = (
    "from typing import *\nfrom collections import *\nfrom functools import *\nfrom itertools import *\n"
    "from heapq import *\nfrom bisect import *\nfrom math import *\nimport bisect, collections, copy, functools, heapq,"
    " itertools, math, operator, random, re, string, sys\n"
)


class Names(dict):
    """What a test's call means by a name: the program's, or a method of its class Solution."""

    def __init__(self, names):
        self.names = names

    def __missing__(self, name):
        if name not in self.names and hasattr(self.names.get("Solution"), name):
            return getattr(self.names["Solution"](), name)
        return self.names[name]


def main(program, calls, raised=False):
    """Run the program with its output thrown away, then each call; one that fails or is no value gives `null`, or with
    `raised` the name of what it raised."""
    results = os.fdopen(os.dup(1), "w")
    os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
    names = {"__name__": "program"}  # a main guard has nothing to read
    exec(PRELUDE, names)
    exec(compile(program, "program.py", "exec"), names)  # this is the sandbox
    for call in calls:
        try:
            line = json.dumps(encode(eval(call, names, Names(names))))  # a test's own call
        except Exception as error:  # noqa: BLE001 (whatever the program raises is a failed test)
            line = json.dumps(["raised", type(error).__name__]) if raised else "null"
        results.write(line + "\n")
        results.flush()
    sys.stdout.flush()
