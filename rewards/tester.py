"""Goes into a sandbox of its own with a row's tests: runs them on answers that the program gave in another one.

A test's calls of the program are answered from a list; only plain values come across, so that no `__eq__`, no patched
builtin and no exit of the program reaches what is asserted. Where a call has no answer yet, the tests are run again to
collect all that they ask: then an unknown answer passes for anything, and a failed assertion does not end a test.
"""

import ast
import json
import os
import random
import sys
import unittest


class _Asked(BaseException):
    """A call that has no answer yet."""


class _Anything:
    """An answer that is not known yet: it compares and computes as if it were right."""

    def _same(self, *_, **__):
        return self

    def _true(self, *_):
        return True

    __call__ = __getattr__ = __getitem__ = __abs__ = __neg__ = __round__ = _same
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __mod__ = __pow__ = (
        _same
    )
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __contains__ = __bool__ = _true
    __hash__ = object.__hash__

    def __iter__(self):
        return iter(())

    def __len__(self):
        return 0

    __int__ = __index__ = __len__

    def __float__(self):
        return 0.0


class _Opaque:
    """A value of a type that does not come across: it is equal to nothing."""


def decode(value):
    """The value that `harness.encode` wrote."""
    kind, content = value
    if kind in ("none", "str"):
        return content
    if kind in ("int", "bool"):
        return int(content, 16) if kind == "int" else bool(int(content, 16))
    if kind == "float":
        return float.fromhex(content)
    if kind == "dict":
        return {decode(key): decode(item) for key, item in content}
    if kind in ("list", "tuple", "set"):
        return {"list": list, "tuple": tuple, "set": set}[kind](map(decode, content))
    return _Opaque()


def _plain(value):
    """A value as text that Python reads back. Raises TypeError for what is none."""
    if value is None or isinstance(value, (bool, int, str, bytes)):
        return repr(value)
    if isinstance(value, float):
        return f"float.fromhex({value.hex()!r})"
    if isinstance(value, complex):
        return repr(value)
    if type(value) in (list, tuple, set, frozenset, dict):
        if isinstance(value, dict):
            return "{" + ", ".join(f"{_plain(key)}: {_plain(item)}" for key, item in value.items()) + "}"
        inside = ", ".join(map(_plain, sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value))
        if isinstance(value, (list, tuple)):
            return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"
        return f"{type(value).__name__}([{inside}])"
    raise TypeError(f"a {type(value).__name__} cannot be handed to the program")


class _Program:
    """A name of the program: a function, or a class whose methods are called at once, as in Solution().f(1)."""

    def __init__(self, path, calls, answers, is_function=False):
        self._path, self._calls, self._answers, self._is_function = path, calls, answers, is_function

    def __getattr__(self, name):
        return _Program(f"{self._path}.{name}", self._calls, self._answers)

    def __call__(self, *given, **named):
        words = [*map(_plain, given), *(f"{name}={_plain(value)}" for name, value in named.items())]
        text = f"{self._path}({', '.join(words)})"
        if self._path.rpartition(".")[2][:1].isupper() and not self._is_function:
            return _Program(text, self._calls, self._answers)
        self._calls.append(text)
        waiting = self._answers.get(text)
        if not waiting:
            if self._answers["strict"]:
                raise _Asked
            return _Anything()
        line = waiting.pop(0)
        if line is None:
            raise _Failed("the program gave no value")
        if line[0] == "raised":
            kind = getattr(__import__("builtins"), str(line[1]), None)
            raise kind if isinstance(kind, type) and issubclass(kind, Exception) else _Failed(str(line[1]))
        return decode(line)


class _Failed(Exception):
    """The program raised what no builtin exception stands for, or gave nothing."""


class _Forgiving(ast.NodeTransformer):
    """While calls are collected, a failed assertion does not end a test."""

    def visit_Assert(self, node):
        body = [ast.Expr(node.test)]
        handler = ast.ExceptHandler(ast.Name("Exception", ast.Load()), None, [ast.Pass()])
        return ast.fix_missing_locations(ast.copy_location(ast.Try(body, [handler], [], []), node))


def attempt(script, entry, names, answers, strict):
    """Run the tests once -> (calls that they made, {"passed": ...} or {} where one had no answer)."""
    random.seed(0)
    calls, waiting = [], {"strict": strict}
    for call, line in answers:
        waiting.setdefault(call, []).append(line)
    known = {name: _Program(name, calls, waiting) for name in names}
    scope = known | {"__name__": "tests"}
    tree = ast.parse(script)
    if not strict:
        tree = _Forgiving().visit(tree)
    try:
        exec(compile(tree, "tests.py", "exec"), scope)  # this is a sandbox
        if entry:
            scope["check"](_Program(entry, calls, waiting, is_function=True))
        for test in [value for name, value in scope.items() if name.startswith("test") and callable(value)]:
            test()
        cases = [one for one in scope.values() if isinstance(one, type) and issubclass(one, unittest.TestCase)]
        for case in cases:
            for name in unittest.defaultTestLoader.getTestCaseNames(case):
                case(name).debug()
    except _Asked:
        return calls, {}
    except (Exception, SystemExit) as error:  # noqa: BLE001 (whatever a test raises is a failed test)
        return calls, {"passed": False, "why": f"{type(error).__name__}: {error}"[:300]}
    return calls, {"passed": True}


def main(script, entry, names, answers):
    """Run the tests on [(call, answer), ...]; write {"passed": ...}, or {"calls": [...]} with all that they ask."""
    results = os.fdopen(os.dup(1), "w")
    os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
    _, said = attempt(script, entry, names, answers, True) if answers is not None else ([], {})
    if not said:
        for name in dir(unittest.TestCase):
            if name.startswith("assert") and "Raises" not in name and "Warns" not in name:
                setattr(unittest.TestCase, name, lambda *_, **__: None)
        calls, said = attempt(script, entry, names, answers or [], False)
        said = {"calls": calls, "why": said.get("why")}
    results.write(json.dumps(said) + "\n")
    results.flush()
    sys.stdout.flush()
