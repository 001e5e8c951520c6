"""Code rewards: whether the program of a completion passes its row's tests.

The expected output or value never enters the program's sandbox. Only the input or the call goes in, and the result is
compared outside: by this process if the test is a value, or in a second sandbox if the test is Python.
"""

import ast
import base64
import builtins
import hashlib
import json
import keyword
import logging
import math
import pickletools
import re
import sys
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from textwrap import dedent
from typing import Any, Literal

from rewards.completion import parse, texts_of
from rewards.sandbox import LocalSandbox, Outcome, PistonSandbox, Provider, SandboxRefused, SandboxUnavailable
from rewards.settings import Positive, Seconds, check

logger = logging.getLogger(__name__)

FENCE = re.compile(
    r"(?:^|(?<=>))[ \t>]*(```|~~~)[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t>]*\1[ \t]*(?=$|<)|\Z)", re.S | re.M
)
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
HARNESS, TESTER = (Path(__file__).with_name(name) for name in ("harness.py", "tester.py"))
TOLERANCE = 1e-6
MAX_LATE = 3  # runs of a program that may time out; its remaining tests then fail without being run
MAX_CALLS, ROUNDS = 5_000, 16  # limits of a Python test: calls, and rounds in which it asks for more calls
MAX_PARSED = 50_000  # characters; this process does not parse longer blocks
HELD = "\u0001held"  # placeholder of a block while the answer is searched
NOT_STARTED = "not started"
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
            raise ValueError(f"tests are neither JSON nor Python that asserts: {error}") from error
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
            raise ValueError("tests have `inputs` or `outputs` that are no lists")
        if len(row["inputs"]) != len(row["outputs"]) or not row["inputs"]:
            raise ValueError(f"tests have {len(row['inputs'])} inputs and {len(row['outputs'])} outputs")
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
            raise ValueError(f"private tests are longer than {MAX_PRIVATE:,} bytes")
        found = []
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name in ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"):
                found.append(argument)
            elif opcode.name not in ("PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "STOP"):
                raise ValueError(f"private tests hold a pickle with {opcode.name}; only one JSON text is read")
    except zlib.error as error:
        raise ValueError(f"private tests are no deflated text: {error}") from error
    if len(found) != 1:
        raise ValueError(f"private tests hold {len(found)} texts; only one JSON text is read")
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
            f"a test of a call needs a function's name and a list of arguments, not {name!r} and {given!r}"
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
            raise ValueError("tests are asynchronous, which the sandbox does not run")
        found = [_assertion(statement) for statement in tree.body]
        if found and not entry:
            return tuple(found)
    except _NoValueError:
        pass
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError(f"tests are no Python: {error}") from error
    names = _asked(tree)
    standing = sorted(name for name in names if name in sys.stdlib_module_names or name in ("np", "numpy"))
    imports = "".join(f"import {'numpy as np' if name == 'np' else name}\n" for name in standing)
    names -= set(standing)
    called = re.findall(r"^check\((\w+)\)\s*$", text, re.M)
    if "check" in re.findall(r"^def (\w+)\(", text, re.M) and not (entry or called):
        raise ValueError("tests define `check` and do not say of which function; write `entry_point` beside `test`")
    if not (names or entry):
        raise ValueError("tests call nothing of the program")
    classes, kept = _classes(tree, names)
    if kept:
        raise ValueError(f"tests keep an object of the program's class {kept}; only plain values leave its sandbox")
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


class _NoValueError(ValueError):
    """A statement that is not `assert call == literal`."""


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


def _assertion(statement: ast.stmt) -> Test:
    """The test in `assert f(literals) == literal`, whose literal stays outside. Raises _NoValueError for others."""
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
    raise _NoValueError


def _encoded(value: Any) -> str:
    from rewards.harness import encode

    return json.dumps(encode(value))


def wanted(tests: Sequence[Test]) -> frozenset[str]:
    """The names that a program has to define for its tests; none for stdin tests."""
    calls = {match[0] for test in tests if test.call and (match := re.match(r"\w+", test.call))}
    return frozenset(calls | {name for test in tests for name in (*test.names, test.entry) if name})


def program_of(completion: str, names: frozenset[str] = frozenset()) -> str | None:
    """The program in a completion's answer: a fenced block of Python, or the whole answer if it has none.

    Of several blocks, it is the last one that parses and defines one of `names` or a class Solution. Without names it
    is the last one that parses and holds more than literals, so an example of input or output is not taken.
    """
    blocks: list[str] = []

    def keep(fence: re.Match) -> str:
        blocks.append(fence.group())
        return f"{fence.group(1)}\n{HELD}{len(blocks) - 1}.\n{fence.group(1)}\n"

    answer = parse(FENCE.sub(keep, completion)).answer  # inside a fence, tags are code
    if answer is None:
        return None
    held = [FENCE.match(blocks[int(number)]) for number in re.findall(rf"{HELD}(\d+)\.", answer)]
    found = [
        dedent(re.sub(r"(?m)^[ \t]*> ?", "", body) if body.lstrip().startswith(">") else body)
        for _, tag, body in map(re.Match.groups, held)
        if tag.lower() in ("", "py", "python", "python3")
    ]
    program = next((block for block in reversed(found) if _is_program(block, names)), None)
    return (program or (found[-1] if found else answer)).strip("\n") + "\n"


def _is_program(block: str, names: frozenset[str]) -> bool:
    if len(block) > MAX_PARSED:
        return True
    try:
        body = ast.parse(block).body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    if not names:
        return not all(isinstance(one, ast.Expr) and not list(_calls(one)) for one in body)
    defined = {getattr(one, "name", "") for one in body}
    defined |= {
        target.id for one in body if isinstance(one, ast.Assign) for target in one.targets if hasattr(target, "id")
    }
    return bool(defined & (names | {"Solution"}))


def _calls(node: ast.AST) -> list[ast.Call]:
    return [one for one in ast.walk(node) if isinstance(one, ast.Call)]


def same_output(expected: str, printed: str, tolerance: float = TOLERANCE) -> bool:
    """Whether the output is as expected, compared line by line and word by word, decimals within `tolerance`."""
    lines = [[line.split() for line in text.rstrip().split("\n")] for text in (expected, printed)]
    return [len(line) for line in lines[0]] == [len(line) for line in lines[1]] and all(
        _same_word(one, other, tolerance)
        for left, right in zip(*lines, strict=True)
        for one, other in zip(left, right, strict=True)
    )


def _same_word(expected: str, printed: str, tolerance: float) -> bool:
    if expected == printed:
        return True
    if not (NUMBER.fullmatch(expected) and NUMBER.fullmatch(printed)) or not re.search("[.eE]", expected):
        return False
    return math.isclose(float(expected), float(printed), rel_tol=tolerance, abs_tol=tolerance * 1e-3)


def _same_value(expected: Any, given: Any, tolerance: float, loose: bool = False) -> bool:
    """Compare two values in the form of `harness.encode`, like Python's == except for floats.

    An expected integer matches only itself, also as a float: 2.0 equals 2, but 1000000500.0 does not equal 1000000007.
    An expected float matches numbers within the relative `tolerance`. With `loose`, a tuple equals a list.
    """
    if not (isinstance(given, list) and len(given) == 2 and isinstance(given[0], str)):
        return False
    numbers = ("int", "float", "bool")
    if expected[0] in numbers and given[0] in numbers:
        one, other = (
            float.fromhex(value[1]) if value[0] == "float" else int(str(value[1]), 16) for value in (expected, given)
        )
        close = expected[0] == "float" and math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance * 1e-3)
        return one == other or close
    lists = ("list", "tuple")
    if expected[0] != given[0] and not (loose and expected[0] in lists and given[0] in lists):
        return False
    if not isinstance(expected[1], list):
        return expected[1] == given[1]
    if not isinstance(given[1], list) or len(expected[1]) != len(given[1]):
        return False
    pairs = zip(expected[1], given[1], strict=True)
    if expected[0] == "dict":
        return all(_same_value(x, y, tolerance, loose) for one, other in pairs for x, y in zip(one, other, strict=True))
    return all(_same_value(one, other, tolerance, loose) for one, other in pairs)


def share_passed(provider: Provider, program: str, tests: tuple[Test, ...], all_or_nothing: bool = True) -> float:
    """Share of the tests that a program passes. With `all_or_nothing` it is 1.0 or 0.0, and the first failure ends it.

    Verdicts are cached by a hash unless a time limit affected them.

    Raises:
        SandboxUnavailable: The program could not be run.
    """
    key = hashlib.sha256(repr((provider, program, _digest(tests), all_or_nothing)).encode("utf-8", "replace")).digest()
    if (known := VERDICTS.get(key)) is not None:
        return known
    share, late = _share_passed(provider, program, tests, all_or_nothing)
    if not late:
        VERDICTS.put(key, share)
    return share


class _Verdicts:
    """A cache of the latest verdicts by hash, with a few hundred bytes each."""

    def __init__(self, most: int) -> None:
        self.most, self.kept, self.lock = most, OrderedDict(), threading.Lock()

    def get(self, key: bytes) -> float | None:
        return self.kept.get(key)

    def put(self, key: bytes, share: float) -> None:
        with self.lock:
            self.kept[key] = share
            while len(self.kept) > self.most:
                self.kept.popitem(last=False)


VERDICTS = _Verdicts(100_000)


@lru_cache(maxsize=64)
def _digest(tests: tuple[Test, ...]) -> str:
    return hashlib.sha256(repr(tests).encode("utf-8", "replace")).hexdigest()


def _share_passed(
    provider: Provider, program: str, tests: tuple[Test, ...], all_or_nothing: bool
) -> tuple[float, bool]:
    """(share of the tests that passed, whether a time limit affected it)."""
    passed = late = 0
    end = time.monotonic() + MAX_LATE * getattr(provider, "seconds", 6.0)  # for all tests of a program
    calls = [test for test in tests if test.call is not None]
    if calls:  # all calls run in one process, like the asserts of a test file
        run = _called(provider, program, [test.call for test in calls])
        late += run.stopped == "time"
        passed = sum(_same_call(test, line) for test, line in zip(calls, run.stdout.split("\n"), strict=False))
        if all_or_nothing and passed < len(calls):
            return 0.0, bool(late)
    for test in tests:
        if test.call is not None:
            continue
        if late >= MAX_LATE or time.monotonic() > end:
            return (0.0 if all_or_nothing else passed / len(tests)), True
        if test.script:
            right, slow = _script_passed(provider, program, test)
        else:
            run = provider.run(program, test.stdin)
            right = run.exit_code == 0 and run.stopped is None and same_output(test.expected, run.stdout)
            slow = run.stopped == "time"
        passed, late = passed + right, late + slow
        if all_or_nothing and not right:
            return 0.0, bool(late)
    return passed / len(tests), bool(late)


def _called(provider: Provider, program: str, calls: list[str], raised: bool = False) -> Outcome:
    """Run a program and calls of its functions. Each call writes one line."""
    source = f"CALLS = {calls!r}\nPROGRAM = {program!r}\n{HARNESS.read_text(encoding='utf-8')}"
    return provider.run(f"{source}\nmain(PROGRAM, CALLS, {raised})\n", "")


def _same_call(test: Test, line: str) -> bool:
    try:
        wanted, given = json.loads(test.expected), json.loads(line)
        if test.wrapped and wanted[0] == "list" and len(wanted[1]) == 1:  # [3] stands for 3
            return any(_same_value(one, given, TOLERANCE, test.loose) for one in (wanted, wanted[1][0]))
        return _same_value(wanted, given, TOLERANCE, test.loose)
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, RecursionError):
        return False


def _script_passed(provider: Provider, program: str, test: Test) -> tuple[bool, bool]:
    """(whether a program passes tests in Python, whether a time limit affected it).

    The program runs the calls of the tests in its sandbox. The tests run on the results in another sandbox. If a result
    leads to a new call, the program runs again.
    """
    calls = _foreseen(provider, test)
    for _ in range(ROUNDS):
        run = _called(provider, program, calls, raised=True)
        lines = [*map(_line, run.stdout.split("\n")), *[None] * len(calls)]
        answers = list(zip(calls, lines, strict=False))
        try:
            said, slow = _tested(provider, test, answers)
        except RecursionError:  # the answer is nested too deeply for JSON
            return False, False
        late = slow or run.stopped == "time"
        if "passed" in said or late:
            return said.get("passed") is True and not late, late
        calls = said.get("calls", [])
        if not 0 < len(calls) <= MAX_CALLS:
            break
    return False, False


@lru_cache(maxsize=1_024)
def _foreseen(provider: Provider, test: Test) -> list[str]:
    """The calls of a test that do not depend on an answer. Raises ValueError if the test cannot run."""
    said, _ = _tested(provider, test, None)
    if said.get("unusable") or not said.get("calls"):
        raise ValueError(f"tests cannot be run: {said.get('unusable') or said.get('why')}")
    return said.get("calls", [])[:MAX_CALLS]


def _tested(provider: Provider, test: Test, answers: list | None) -> tuple[dict, bool]:
    answered = None if answers is None else json.dumps(answers)
    arguments = ", ".join(map(repr, (test.script, test.entry, test.names, test.classes, answered)))
    run = provider.run(f"{TESTER.read_text(encoding='utf-8')}\nmain({arguments})\n", "")
    said = _line(run.stdout.split("\n")[0])
    return said if isinstance(said, dict) else {}, run.stopped == "time"


def _line(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def passes(
    completion: str, tests: tuple[Test, ...], provider: Provider | None = None, all_or_nothing: bool = True
) -> float:
    """`share_passed` of a completion's program; 0.0 if it has none.

    Raises:
        SandboxUnavailable: The program could not be run.
    """
    program = program_of(completion, wanted(tests))
    return 0.0 if program is None else share_passed(provider or LocalSandbox(), program, tests, all_or_nothing)


def prints(completion: str, expected: str, provider: Provider | None = None) -> bool:
    """Whether the program of a completion prints the expected text. Raises SandboxUnavailable like `passes`."""
    return passes(completion, (Test(expected),), provider) == 1.0


@dataclass(frozen=True)
class CodeReward:
    """Returns 1.0 if a program passes all of its row's tests, else 0.0; with `mode` "share", the share passed.

    The tests are in the column `tests` (or `verification_info`), in a form that `parse_tests` reads. Without tests the
    program has to print the column `answer`. A row gets None if its `verifier` is not "code" or its tests cannot be
    read. If the sandbox was out of service, all completions of that prompt get None.

    Args:
        seconds: Wall-clock limit of a run.
        step_seconds: Seconds of a call after which no completion is started. Those not started get None and are
            counted. Those already started may run to their own limits.
        piston_url: URL of a Piston server that runs the programs. By default the embedded sandbox runs them.
        workers: Number of programs that run at once.
        provider: Another provider that runs programs.

    Metrics: `code/outage`, `code/tests_unusable`, `code/not_started`: shares of the rows.

    Raises:
        SandboxRefused: This machine cannot isolate a program. The message names what is missing.
    """

    mode: Literal["all", "share"] = "all"
    seconds: Seconds = 6.0
    step_seconds: Seconds = 60.0
    piston_url: str = ""
    workers: Positive = 2
    provider: Provider | None = None
    __name__ = "code_reward"

    def __post_init__(self) -> None:
        check(self)
        if self.provider is None:
            provider = PistonSandbox(self.piston_url, self.seconds) if self.piston_url else LocalSandbox(self.seconds)
            object.__setattr__(self, "provider", provider)

    def __call__(
        self,
        completions: list,
        prompts: list | None = None,
        tests: list | None = None,
        verification_info: list | None = None,
        answer: list | None = None,
        verifier: list | None = None,
        log_metric: Any = None,
        **columns: Any,
    ) -> list[float | None]:
        given = tests if tests is not None else verification_info
        if given is None and answer is None:
            raise ValueError("code_reward: the data set needs a column `tests`, or `answer` with what is to be printed")
        rows = [row for row in range(len(completions)) if verifier is None or verifier[row] == "code"]
        read: dict[Any, tuple[Test, ...] | None] = {}  # the rows of a group share their tests
        cases: dict[int, tuple[Test, ...] | None] = {}
        for row in rows:
            found, printed = given[row] if given else None, answer[row] if answer else None
            key = id(found) if found is not None and not isinstance(found, str) else repr((found, printed))
            if key not in read:
                read[key] = self._tests(found, printed)
            cases[row] = read[key]
        texts, end = texts_of(completions, prompts), time.monotonic() + self.step_seconds

        def score(row: int) -> float | None | str:
            if cases[row] is None:
                return None
            return self._score(texts[row], cases[row]) if time.monotonic() < end else NOT_STARTED

        with ThreadPoolExecutor(self.workers) as executor:
            scores = dict(zip(rows, executor.map(score, rows), strict=True))
        late = {row for row in rows if scores[row] == NOT_STARTED}
        scores |= dict.fromkeys(late)
        keys = {row: str(prompts[row]) if prompts else str(cases[row]) for row in rows}
        out = {keys[row] for row in rows if scores[row] is None and cases[row] and row not in late}
        if log_metric is not None and rows:
            log_metric("code/outage", sum(keys[row] in out for row in rows) / len(rows))
            log_metric("code/tests_unusable", sum(cases[row] is None for row in rows) / len(rows))
            log_metric("code/not_started", len(late) / len(rows))
        return [scores[row] if row in scores and keys[row] not in out else None for row in range(len(completions))]

    def _tests(self, tests: Any, printed: Any) -> tuple[Test, ...] | None:
        """A row's tests, or a test for the text to print; None if it has neither or its tests cannot be read or run."""
        try:
            if not tests:
                return (Test(str(printed)),) if printed not in (None, "") else None
            found = parse_tests(tests)
            for test in found:
                if test.script:
                    _foreseen(self.provider, test)
            return found
        except SandboxUnavailable:
            return found  # `_score` reports the outage for each completion
        except SandboxRefused:
            raise
        except Exception as error:  # noqa: BLE001 (no row ends training)
            logger.warning("code_reward: row left out: %s", error)
            return None

    def _score(self, completion: str, tests: tuple[Test, ...]) -> float | None:
        try:
            return passes(completion, tests, self.provider, self.mode == "all")
        except SandboxUnavailable as error:
            logger.warning("code_reward: the sandbox is out of service: %s", error)
            return None
        except SandboxRefused:
            raise
        except Exception as error:  # noqa: BLE001 (no completion ends training)
            logger.warning("code_reward: a completion could not be judged: %s: %s", type(error).__name__, error)
            return 0.0


code_reward = CodeReward()
