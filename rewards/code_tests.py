"""Reads the tests of a code row in the forms that data sets publish."""

import ast
import base64
import builtins
import json
import keyword
import pickletools
import re
import sys
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rewards.harness import encode

MAX_PRIVATE = 1 << 28  # bytes of LiveCodeBench's private tests after decompression


@dataclass(frozen=True)
class Test:
    """`expected` is what the program prints for `stdin`, or what `call` returns, in the form of `harness.encode`.

    `loose`: the value came from JSON, which has only lists. `wrapped`: the data set often puts a list around the value.
    `script` is Python with assertions. The program defines the functions in `names`, of which `classes` are classes,
    and `entry`, the argument of the script's `check`.
    """

    expected: str = ""
    stdin: str = ""
    call: str | None = None
    loose: bool = False
    wrapped: bool = False
    script: str = ""
    entry: str = ""
    names: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    __test__ = False  # pytest collects classes called Test


def parse_tests(tests: Any) -> tuple[Test, ...]:
    """Read a row's tests in the forms that data sets publish.

    - `{"input": ..., "output": ...}`: stdin and stdout; with `fn_name`, or `"testtype": "functional"`, a call.
    - `{"inputs": [...], "outputs": [...]}`, with `fn_name` or without (APPS, TACO), also under `input_output`.
    - `{"test_list": [...]}`, with `test_setup_code` or `test_imports` (MBPP).
    - `{"test": ..., "entry_point": ...}` (HumanEval).
    - `{"public_test_cases": ..., "private_test_cases": ..., "metadata": ...}` (LiveCodeBench).
    - Python: `assert` lines, `def check(candidate)`, functions called `test...`, `unittest`.
    - A list of these, alone or under `test_cases`. All of these may be JSON text.

    Raises:
        ValueError: A test has another form. Data preparation refuses the row with this message.
    """
    if isinstance(tests, str):
        if not re.match(r"\s*(?:[\[{]|\"(?!\"\"))", tests):
            return _python(tests)
        try:
            tests = json.loads(tests)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"the tests begin like JSON, but cannot be parsed: {error}") from error
        return parse_tests(tests)
    if isinstance(tests, dict):
        return _record(tests)
    if not isinstance(tests, Sequence) or not tests:
        raise ValueError("there are no tests")
    if all(isinstance(one, str) for one in tests):
        return _python("\n".join(tests))
    return tuple(test for one in tests for test in parse_tests(one))


def _record(row: dict) -> tuple[Test, ...]:
    """The tests in the columns of a data set, or a single test."""
    for column in ("test_cases", "input_output"):
        if row.get(column):
            return parse_tests(row[column])
    if "test_list" in row:
        setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or ())
        return _python("\n".join([setup, *row["test_list"]]))
    if "test" in row:
        return _python(_helpers(row) + row["test"], str(row.get("entry_point") or ""))
    if "public_test_cases" in row:
        name = json.loads(row.get("metadata") or "{}").get("func_name")
        public, private = json.loads(row["public_test_cases"] or "[]"), row.get("private_test_cases") or "[]"
        cases = [
            *public,
            *(json.loads(private) if private.lstrip().startswith("[") else json.loads(_unpacked(private))),
        ]
        return tuple(_case(case | {"fn_name": name}) for case in cases) or parse_tests([])
    if "inputs" in row:
        if not all(isinstance(row.get(name), list | tuple) for name in ("inputs", "outputs")):
            raise ValueError("the `inputs` and `outputs` of tests must be lists")
        if len(row["inputs"]) != len(row["outputs"]) or not row["inputs"]:
            raise ValueError(f"the tests have {len(row['inputs'])} inputs and {len(row['outputs'])} outputs")
        pairs = zip(row["inputs"], row["outputs"], strict=True)
        return tuple(
            _case({"input": one, "output": other, "fn_name": row.get("fn_name"), "wrapped": True})
            for one, other in pairs
        )
    return (_case(row),)


def _unpacked(text: str) -> str:
    """The JSON text that LiveCodeBench has pickled, deflated and encoded in base64. Nothing is unpickled.

    Raises ValueError if the pickle holds anything but one string.
    """
    try:
        inflate = zlib.decompressobj()
        pickled = inflate.decompress(base64.b64decode(text), MAX_PRIVATE)
        if inflate.unconsumed_tail:
            raise ValueError(f"the private tests are longer than {MAX_PRIVATE:,} bytes")
        found = []
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name in ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"):
                found.append(argument)
            elif opcode.name not in ("PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "STOP"):
                raise ValueError(f"the private tests are a pickle with {opcode.name}; only a pickled text is read")
    except zlib.error as error:
        raise ValueError(f"the private tests cannot be decompressed: {error}") from error
    if len(found) != 1:
        raise ValueError(f"the private tests hold {len(found)} texts instead of one")
    return found[0]


def _case(case: dict) -> Test:
    if "input" not in case or "output" not in case:
        raise ValueError(f"a test needs `input` and `output`; this one has {', '.join(sorted(case)) or 'nothing'}")
    given, expected, name = case["input"], case["output"], case.get("fn_name")
    functional = case.get("testtype") == "functional"
    if not name or (not functional and "testtype" in case):
        given, expected = (
            "\n".join(map(str, side)) if isinstance(side, list) else side for side in (given, expected)
        )  # one line an item
        if not isinstance(given, str) or not isinstance(expected, str):
            raise ValueError("`input` and `output` of a stdin test must be text")
        return Test(expected, given)
    if functional and isinstance(given, str):  # one argument a line
        given, expected = [json.loads(line) for line in given.split("\n") if line.strip()], json.loads(expected)
    name = str(name).removeprefix("Solution.")
    if not name.isidentifier() or keyword.iskeyword(name) or not isinstance(given, list):
        raise ValueError(
            f"a test that calls a function needs its name and a list of arguments, not {name!r} and {given!r}"
        )
    return Test(
        _encoded(expected), call=f"{name}({', '.join(map(repr, given))})", loose=True, wrapped=bool(case.get("wrapped"))
    )


def _helpers(row: dict) -> str:
    """The definitions in a HumanEval prompt beside the requested function, such as `poly` for `find_zero`."""
    try:
        body = ast.parse(row.get("prompt") or "").body
    except SyntaxError:
        body = ast.parse(row["prompt"] + "    pass\n").body
    kept = [one for one in body if getattr(one, "name", "") != row.get("entry_point")]
    return "".join(f"{ast.unparse(one)}\n" for one in kept)


def _python(text: str, entry: str = "") -> tuple[Test, ...]:
    """Tests written in Python: values if every line is `assert call == literal`, else a script."""
    try:
        tree = ast.parse(text)
        if any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in ast.walk(tree)):
            raise ValueError("the tests are asynchronous; the sandbox cannot run them")
        values = [_assertion(statement) for statement in tree.body]
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"the tests are not valid Python: {error}") from error
    if values and all(values) and not entry:
        return tuple(values)
    names = _asked(tree)
    standing = sorted(name for name in names if name in sys.stdlib_module_names or name in ("np", "numpy"))
    imports = "".join(f"import {'numpy as np' if name == 'np' else name}\n" for name in standing)
    names -= set(standing)
    called = re.findall(r"^check\((\w+)\)\s*$", text, re.M)
    if "check" in re.findall(r"^def (\w+)\(", text, re.M) and not (entry or called):
        raise ValueError(
            "the tests define `check`, but do not name the function to check; write `entry_point` beside `test`"
        )
    if not (names or entry):
        raise ValueError("the tests do not call the program")
    classes, kept = _classes(tree, names)
    if kept:
        raise ValueError(f"the tests keep an object of the program's class {kept}; only plain values leave its sandbox")
    script = imports + text
    return (Test(script=script, entry="" if called else entry, names=tuple(sorted(names)), classes=tuple(classes)),)


def _classes(tree: ast.AST, names: set[str]) -> tuple[list[str], str]:
    """(classes that are created and called at once, as in Solution().f(1); a class whose object is kept, or "")."""
    made = {}
    for node in ast.walk(tree):
        for part in ast.iter_child_nodes(node):
            if isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id in names:
                made.setdefault(part.func.id, []).append(node)
    classes = [name for name, above in made.items() if any(isinstance(node, ast.Attribute) for node in above)]
    targets = {
        target.id: node.value.func.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and isinstance(node.value.func, ast.Name)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    used = {
        node.value.id for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    kept = next(
        (name for target, name in targets.items() if target in used and name in names and name[0].isupper()), ""
    )
    return sorted(classes), kept


def _asked(tree: ast.AST) -> set[str]:
    """The names that the tests read but do not define. The program has to define them."""
    read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    made = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            made.add(node.name)
        elif isinstance(node, ast.arg):
            made.add(node.arg)
        elif isinstance(node, ast.alias):
            made.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.ExceptHandler) and node.name:
            made.add(node.name)
    return read - made - set(dir(builtins)) - {"__name__"}


def _assertion(statement: ast.stmt) -> Test | None:
    """The test in `assert f(literals) == literal`, whose literal stays outside; None for other statements."""
    test = statement.test if isinstance(statement, ast.Assert) else None
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
        for call, literal in ((test.left, test.comparators[0]), (test.comparators[0], test.left)):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id not in dir(builtins):
                try:
                    for one in (*call.args, *(word.value for word in call.keywords)):
                        ast.literal_eval(one)
                    return Test(_encoded(ast.literal_eval(literal)), call=ast.unparse(call))
                except (ValueError, TypeError, SyntaxError):
                    continue
    return None


def _encoded(value: Any) -> str:
    return json.dumps(encode(value))


def wanted(tests: Sequence[Test]) -> frozenset[str]:
    """The names that a program has to define for its tests; none for stdin tests."""
    calls = {match[0] for test in tests if test.call and (match := re.match(r"\w+", test.call))}
    return frozenset(calls | {name for test in tests for name in (*test.names, test.entry) if name})
