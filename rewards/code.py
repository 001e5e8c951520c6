"""Code rewards: whether the program of a completion passes its row's tests.

The expected output or value never enters the program's sandbox. Only the input or the call goes in, and the result is
compared outside: by this process if the test is a value, or in a second sandbox if the test is Python.
"""

import ast
import hashlib
import json
import logging
import math
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from textwrap import dedent
from typing import Any, Literal

from rewards.code_tests import Test, parse_tests, wanted
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
MAX_VERDICTS = 100_000  # a verdict takes a few hundred bytes
VERDICTS: dict[bytes, float] = {}  # by a hash of the program, its tests and the provider


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


def same_output(expected: str, printed: str) -> bool:
    """Whether the output is as expected, compared line by line and word by word, decimals within `TOLERANCE`."""
    lines = [[line.split() for line in text.rstrip().split("\n")] for text in (expected, printed)]
    return [len(line) for line in lines[0]] == [len(line) for line in lines[1]] and all(
        _same_word(one, other)
        for left, right in zip(*lines, strict=True)
        for one, other in zip(left, right, strict=True)
    )


def _same_word(expected: str, printed: str) -> bool:
    if expected == printed:
        return True
    if not (NUMBER.fullmatch(expected) and NUMBER.fullmatch(printed)) or not re.search("[.eE]", expected):
        return False
    return _close(float(expected), float(printed))


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE * 1e-3)


def _same_value(expected: Any, given: Any, loose: bool) -> bool:
    """Compare two values in the form of `harness.encode`, like Python's == except for floats.

    An expected integer matches only itself, also as a float: 2.0 equals 2, but 1000000500.0 does not equal 1000000007.
    An expected float matches numbers within the relative `TOLERANCE`. With `loose`, a tuple equals a list.
    """
    if not (isinstance(given, list) and len(given) == 2 and isinstance(given[0], str)):
        return False
    numbers = ("int", "float", "bool")
    if expected[0] in numbers and given[0] in numbers:
        one, other = (
            float.fromhex(value[1]) if value[0] == "float" else int(str(value[1]), 16) for value in (expected, given)
        )
        return one == other or (expected[0] == "float" and _close(one, other))
    lists = ("list", "tuple")
    if expected[0] != given[0] and not (loose and expected[0] in lists and given[0] in lists):
        return False
    if not isinstance(expected[1], list):
        return expected[1] == given[1]
    if not isinstance(given[1], list) or len(expected[1]) != len(given[1]):
        return False
    pairs = zip(expected[1], given[1], strict=True)
    if expected[0] == "dict":
        return all(_same_value(x, y, loose) for one, other in pairs for x, y in zip(one, other, strict=True))
    return all(_same_value(one, other, loose) for one, other in pairs)


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
        if len(VERDICTS) >= MAX_VERDICTS:
            VERDICTS.clear()
        VERDICTS[key] = share
    return share


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
            return any(_same_value(one, given, test.loose) for one in (wanted, wanted[1][0]))
        return _same_value(wanted, given, test.loose)
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


def prints(completion: str, expected: str) -> bool:
    """Whether the program of a completion prints the expected text. Raises SandboxUnavailable like `passes`."""
    return passes(completion, (Test(expected),)) == 1.0


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
            raise ValueError("code_reward: the data set needs a column `tests`, or `answer` with the expected output")
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
            logger.warning("code_reward: a row gets no reward because its tests cannot be used: %s", error)
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
            logger.warning(
                "code_reward: a completion that cannot be graded gets 0: %s: %s",
                type(error).__name__,
                error,
            )
            return 0.0


code_reward = CodeReward()
