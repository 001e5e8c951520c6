"""Code rewards: does the program that a completion gives do what its tests ask for.

What a program is expected to print or return never enters the sandbox: the input or the call goes in, and this process
compares what comes out.
"""

import ast
import json
import logging
import math
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from rewards.completion import parse, texts_of
from rewards.sandbox import LocalSandbox, PistonSandbox, Provider, SandboxUnavailable

logger = logging.getLogger(__name__)

FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```[ \t]*$|\Z)", re.S | re.M)
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
HARNESS = Path(__file__).with_name("harness.py")
TOLERANCE = 1e-6
MAX_LATE = 3  # runs of a program that may reach the time limit; its other tests then count as failed, unrun


@dataclass(frozen=True)
class Test:
    """`expected` is what the program prints for `stdin`, or, in the form of `harness.encode`, what `call` gives."""

    expected: str
    stdin: str = ""
    call: str | None = None
    __test__ = False  # for pytest, which collects what is called Test


def parse_tests(tests: Any) -> tuple[Test, ...]:
    """Read a row's tests.

    Forms: `{"input": ..., "output": ...}` (stdin and stdout), the same with `fn_name` (a call), a text of
    `assert call == literal` lines; a list of these, alone or under `test_cases`, or `{"inputs": [...], "outputs":
    [...]}`; all of it possibly as JSON text.

    Raises:
        ValueError: a test of another form. Data preparation refuses the row with this message.
    """
    if isinstance(tests, str):
        if not re.match(r"\s*[\[{\"]", tests):
            return tuple(map(_assertion, _statements(tests))) or parse_tests([])
        try:
            tests = json.loads(tests)
        except json.JSONDecodeError as error:
            raise ValueError(f"tests are neither JSON nor `assert` lines: {error}") from error
        return parse_tests(tests)
    if isinstance(tests, dict) and "test_cases" in tests:
        return parse_tests(tests["test_cases"])
    if isinstance(tests, dict) and "inputs" in tests:
        name = tests.get("fn_name")
        pairs = zip(tests["inputs"], tests["outputs"], strict=True)
        return tuple(_case({"input": one, "output": other, "fn_name": name}) for one, other in pairs)
    if isinstance(tests, dict):
        return (_case(tests),)
    if not isinstance(tests, Sequence) or not tests:
        raise ValueError("there are no tests")
    return tuple(test for one in tests for test in (parse_tests(one) if isinstance(one, str) else (_case(one),)))


def _case(case: dict) -> Test:
    if "input" not in case or "output" not in case:
        raise ValueError(f"a test needs `input` and `output`; this one has {', '.join(sorted(case)) or 'nothing'}")
    given, expected, name = case["input"], case["output"], case.get("fn_name")
    if not name:
        if not isinstance(given, str) or not isinstance(expected, str):
            raise ValueError("`input` and `output` of a stdin test must be text")
        return Test(expected, given)
    if not str(name).isidentifier() or not isinstance(given, list):
        raise ValueError(
            f"a test of a call needs a function's name and a list of arguments, not {name!r} and {given!r}"
        )
    return Test(_encoded(expected), call=f"{name}({', '.join(map(repr, given))})")


def _statements(text: str) -> list[ast.stmt]:
    try:
        return ast.parse(text).body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"tests are no Python: {error}") from error


def _assertion(statement: ast.stmt) -> Test:
    test = statement.test if isinstance(statement, ast.Assert) else None
    if not isinstance(test, ast.Compare) or len(test.ops) != 1 or not isinstance(test.ops[0], ast.Eq):
        raise ValueError(f"a test must be `assert call == literal`, not `{ast.unparse(statement)[:100]}`")
    for call, literal in ((test.left, test.comparators[0]), (test.comparators[0], test.left)):
        try:
            expected = ast.literal_eval(literal)
        except (ValueError, TypeError):
            continue
        if any(isinstance(node, ast.Call) for node in ast.walk(call)):
            return Test(_encoded(expected), call=ast.unparse(call))
    raise ValueError(f"a test must compare a call with a literal, not `{ast.unparse(statement)[:100]}`")


def _encoded(value: Any) -> str:
    from rewards.harness import encode

    return json.dumps(encode(value))


def program_of(completion: str) -> str | None:
    """The program of a completion: the last fenced block of Python in its answer, else all of the answer."""
    answer = parse(completion).answer
    if answer is None:
        return None
    blocks = [body for tag, body in FENCE.findall(answer) if tag.lower() in ("", "py", "python", "python3")]
    return (blocks[-1] if blocks else answer).strip("\n") + "\n"


def same_output(expected: str, printed: str, tolerance: float = TOLERANCE) -> bool:
    """Whether a program printed what was expected: line by line, word by word; numbers with a point to `tolerance`."""
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


def _same_value(expected: Any, given: Any, tolerance: float) -> bool:
    """Compare two values in the form of `harness.encode`, as Python's == does but for floats."""
    if not (isinstance(given, list) and len(given) == 2 and isinstance(given[0], str)):
        return False
    numbers = ("int", "float", "bool")
    if expected[0] in numbers and given[0] in numbers:
        if "float" not in (expected[0], given[0]):
            return int(expected[1], 16) == int(str(given[1]), 16)
        one, other = (
            float.fromhex(value[1]) if value[0] == "float" else float(int(value[1], 16)) for value in (expected, given)
        )
        return one == other or math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance * 1e-3)
    if expected[0] != given[0]:
        return False
    if not isinstance(expected[1], list):
        return expected[1] == given[1]
    if not isinstance(given[1], list) or len(expected[1]) != len(given[1]):
        return False
    if expected[0] == "dict":
        return all(
            _same_value(one[0], other[0], tolerance) and _same_value(one[1], other[1], tolerance)
            for one, other in zip(expected[1], given[1], strict=True)
        )
    return all(_same_value(one, other, tolerance) for one, other in zip(expected[1], given[1], strict=True))


@lru_cache(maxsize=16_384)
def share_passed(provider: Provider, program: str, tests: tuple[Test, ...], all_or_nothing: bool = True) -> float:
    """Share of the tests that a program passes; with `all_or_nothing` 1.0 or 0.0, and the first failure ends it.

    Raises:
        SandboxUnavailable: it could not be run.
    """
    passed = 0
    calls = [test for test in tests if test.call is not None]
    if calls:
        # the calls of a program share a process, as the asserts of a test file do
        source = f"CALLS = {[test.call for test in calls]!r}\nPROGRAM = {program!r}\n" + HARNESS.read_text(
            encoding="utf-8"
        )
        run = provider.run(source + "\nmain(PROGRAM, CALLS)\n", "")
        passed = sum(_same_call(test, line) for test, line in zip(calls, run.stdout.split("\n"), strict=False))
        if all_or_nothing and passed < len(calls):
            return 0.0
    late = 0
    for test in tests:
        if test.call is None and late < MAX_LATE:
            run = provider.run(program, test.stdin)
            right = run.exit_code == 0 and run.stopped is None and same_output(test.expected, run.stdout)
            passed += right
            late += run.stopped == "time"
            if all_or_nothing and not right:
                return 0.0
    return passed / len(tests)


def _same_call(test: Test, line: str) -> bool:
    try:
        return _same_value(json.loads(test.expected), json.loads(line), TOLERANCE)
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, RecursionError):
        return False


def prints(completion: str, expected: str, provider: Provider | None = None) -> bool:
    """Whether the program of a completion prints what is expected.

    Raises:
        SandboxUnavailable: the program could not be run.
    """
    program = program_of(completion)
    return program is not None and share_passed(provider or LocalSandbox(), program, (Test(expected),)) == 1.0


@dataclass(frozen=True)
class CodeReward:
    """1.0 for a program that passes all of its row's tests, else 0.0; with `mode` "share" the share that it passes.

    The tests stand in the column `tests` (or `verification_info`), in a form that `parse_tests` reads; without it the
    column `answer` is what the program prints. None for rows whose `verifier` is not "code" or whose tests cannot be
    read, and, for all completions of a prompt, where the sandbox was out of service.

    Args:
        seconds: wall-clock limit of a run.
        piston_url: a Piston server that runs the programs; else the embedded sandbox does.
        workers: programs run at once.
        provider: any other place to run programs.

    Metrics: `code/outage`, `code/tests_unusable`: shares of the rows.

    Raises:
        SandboxRefused: this machine cannot shut a program in; the message names what it lacks.
    """

    mode: Literal["all", "share"] = "all"
    seconds: float = 6.0
    piston_url: str = ""
    workers: int = 2
    provider: Provider | None = None
    __name__ = "code_reward"

    def __post_init__(self) -> None:
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
        cases: dict[int, tuple[Test, ...] | None] = {}
        for row in rows:
            try:
                cases[row] = (
                    parse_tests(given[row]) if given and given[row] else (Test(answer[row]),) if answer else None
                )
            except ValueError as error:
                logger.warning("code_reward: row left out: %s", error)
                cases[row] = None
        texts = texts_of(completions, prompts)
        with ThreadPoolExecutor(self.workers) as executor:
            scores = dict(zip(rows, executor.map(lambda row: self._score(texts[row], cases[row]), rows), strict=True))
        keys = {row: str(prompts[row]) if prompts else str(cases[row]) for row in rows}
        out = {keys[row] for row in rows if scores[row] is None and cases[row]}
        if log_metric is not None and rows:
            log_metric("code/outage", sum(keys[row] in out for row in rows) / len(rows))
            log_metric("code/tests_unusable", sum(cases[row] is None for row in rows) / len(rows))
        return [scores[row] if row in scores and keys[row] not in out else None for row in range(len(completions))]

    def _score(self, completion: str, tests: tuple[Test, ...] | None) -> float | None:
        program = program_of(completion)
        if tests is None:
            return None
        if program is None:
            return 0.0
        try:
            return share_passed(self.provider, program, tests, self.mode == "all")
        except SandboxUnavailable as error:
            logger.warning("code_reward: the sandbox is out of service: %s", error)
            return None


code_reward = CodeReward()
