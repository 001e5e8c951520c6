import base64
import json
import os
import pickle
import time
import zlib

from rewards import CodeReward, PistonSandbox, is_correct, parse_tests
from rewards.code import program_of, same_output, share_passed, wanted
from rewards.sandbox import LocalSandbox, Outcome, SandboxRefused, SandboxUnavailable

import pytest
from loopback import serving

SANDBOX = LocalSandbox(seconds=5)


@pytest.fixture(scope="module", autouse=True)
def sandbox():
    try:
        SANDBOX.run("")
    except SandboxRefused as refusal:
        pytest.skip(str(refusal))


@pytest.mark.parametrize(
    "completion, program",
    [
        ("<think>x</think> <answer> print(14) </answer>", "print(14)"),
        ("<think>x</think>\n```python\nprint(14)\n```", "print(14)"),
        ("```\nprint(14)\n```", "print(14)"),
        ("```py\nprint(1)\n```\nor better\n```python3\nprint(14)\n```\ndone", "print(14)"),
        ("<think>```python\nprint(1)\n```</think> ```python\nprint(14)\n```", None),
        ("<think>```python\nprint(1)\n```", None),
        ("```python\nprint(14)", "print(14)"),
        ("```python\nprint(14)\n```\nExample:\n```\n3\n1 2 3\n```\nOutput:\n```\n6\n```", "print(14)"),
        ("1. So:\n   ```python\n   print(14)\n   ```", "print(14)"),
        ("~~~python\nprint(14)\n~~~", "print(14)"),
        ("<think>x</think> <answer> ```python\nprint(14)\n``` </answer>", "print(14)"),
        ("> ```python\n> print(14)\n> ```", "print(14)"),
        ("```python\nprint(14)\n```\n```python\nprint(14\n```", "print(14)"),
    ],
)
def test_the_program_is_the_last_block_of_the_answer(completion, program):
    found = program_of(completion)
    assert found == (None if program is None else program + "\n") or (program is None and "print(1)" not in found)


def test_of_several_programs_the_last_that_defines_what_is_called():
    blocks = ["def f(x): return x", "def f(x): return 2 * x", "print(f(3))"]
    completion = "\n".join(f"```python\n{block}\n```" for block in blocks)
    assert program_of(completion, wanted(parse_tests("assert f(1) == 2"))) == blocks[1] + "\n"
    assert program_of(completion) == blocks[2] + "\n"


@pytest.mark.parametrize(
    "expected, printed, same",
    [
        ("14", "14\n", True),
        ("YES\nNO\nYES", "YES", False),
        ("YES", "YES\nNO", False),
        ("a b\n", "a  b  \n\n", True),
        ("1.0", "1.0000001", True),
        ("0.333333", "0.3333333333", True),
        ("1", "1.0", False),
        ("12", "13", False),
        ("0.5", "0.51", False),
        ("", "", True),
        ("a", "A", False),
    ],
)
def test_output_is_compared_as_a_whole(expected, printed, same):
    assert same_output(expected, printed) is same


def test_rows_of_the_toy_world():
    reward = CodeReward(provider=SANDBOX)
    completions = ["<think>a</think> <answer> print(2+3*4) </answer>", "<think>a</think>\n```python\nprint(14)\n```"]
    completions += ["print(15)", "print(1/0)", "14", "", "print('14'"]
    rows = {"answer": ["14"] * 7, "verifier": ["code"] * 7}
    assert reward(completions=completions, **rows) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert reward(completions=["print(14)"], answer=["14"], verifier=["math"]) == [None]
    assert is_correct("print(14)", "14", "code") is True


def private(value) -> str:
    """As LiveCodeBench publishes its private tests: pickled, deflated, in base64."""
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


CASES = [{"input": "[1, 2]\n3", "output": "6", "testtype": "functional"}]
PRIVATE = private(json.dumps(CASES)), private(os.system)
ADD = "class Solution:\n    def add(self, xs: List[int], y): return sum(xs) + y"
CHECK = "def check(candidate):\n    for n in range(9):\n        assert abs(candidate(n) - n / 3) < 1e-9\n"
RAISES = "try:\n    f(1)\n    assert False\nexcept ValueError:\n    pass"
CASE = "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(f(1), 2)"
ROUND_TRIP = "import random\ndef check(candidate):\n    for _ in range(9):\n        text = random.choice('ab') * 3\n"
ROUND_TRIP += "        assert candidate(pack(text)) == text\n"
PACK = "def pack(text): return text[::-1] + 'x'\ndef unpack(text): return text[-2::-1]"
EVIL = "class E:\n    __eq__ = __lt__ = __gt__ = lambda *_: True\n    __abs__ = __sub__ = lambda self, *_: self\n"
# As data sets publish them, with right programs, wrong ones, and attacks.
FORMS = [
    ({"input_output": json.dumps({"fn_name": "add", "inputs": [[[1, 2], 3]], "outputs": [6]})}, ADD, 1.0),
    ({"fn_name": "add", "inputs": [[[1, 2], 3]], "outputs": [[6]]}, ADD, 1.0),
    ({"fn_name": "f", "inputs": [[1]], "outputs": [[1, 2]]}, "def f(x): return (1, 2)", 1.0),
    ({"fn_name": "f", "inputs": [[1]], "outputs": [[1, 2]]}, "def f(x): return (1, 3)", 0.0),
    ({"fn_name": "f", "inputs": [[4]], "outputs": [2]}, "def f(x): return isqrt(x)", 1.0),
    ({"fn_name": "f", "inputs": [[4]], "outputs": [4]}, "def f(x): return x\nif __name__ == '__main__': input()", 1.0),
    ({"test_list": ["assert f(1) == 2", "assert f(2) != 2"], "test_setup_code": ""}, "def f(x): return x + 1", 1.0),
    ({"test_list": ["assert math.isclose(f(1), 1/3)"], "test_imports": ["import math"]}, "def f(x): return x / 3", 1.0),
    ({"test": CHECK, "entry_point": "third"}, "def third(x): return x / 3", 1.0),
    ({"test": CHECK, "entry_point": "third"}, "def third(x): return x / 3 if x < 8 else 0", 0.0),
    ({"test": CHECK, "entry_point": "Third"}, "def Third(x): return x / 3", 1.0),
    ({"test": ROUND_TRIP, "entry_point": "unpack"}, PACK, 1.0),
    ({"test": ROUND_TRIP, "entry_point": "unpack"}, PACK.replace("-2::", "::"), 0.0),
    ({"public_test_cases": json.dumps(CASES), "private_test_cases": PRIVATE[0], "metadata": '{"func_name": "add"}'},
     ADD, 1.0),
    ({"public_test_cases": json.dumps([{"input": "3", "output": "6", "testtype": "stdin"}]), "metadata": "{}"},
     "print(2 * int(input()))", 1.0),
    ("assert f(1)", "def f(x): return x > 0", 1.0),
    ("assert f(1) is True", "def f(x): return 1", 0.0),
    ("assert 2 in f(1)", "def f(x): return {x, 2}", 1.0),
    ("def test_f():\n    assert f(1) == g(2)", "f = abs\ndef g(x): return 1", 1.0),
    ("assert Solution().f(1) == 2", "class Solution:\n    def f(self, x): return x + 1", 1.0),
    (RAISES, "def f(x): raise ValueError", 1.0),
    (RAISES, "def f(x): raise KeyError", 0.0),
    (CASE, "def f(x): return 2", 1.0),
    (CASE, "def f(x): return 3", 0.0),
    *(
        (tests, attack, 0.0)
        for tests in ({"test": CHECK, "entry_point": "f"}, "assert f(1) > 2", CASE)
        for attack in (
            f"{EVIL}def f(x): return E()",
            "import os\nos._exit(0)",
            "raise SystemExit(0)",
            "def f(x): raise SystemExit(0)",
            "import unittest\nunittest.TestCase.assertEqual = lambda *_: 0\ndef f(x): return 1",
            "import builtins\nbuiltins.abs = builtins.isinstance = lambda *_: 0\ndef f(x): return 1",
            "import sys\nsys.settrace(lambda *_: None)\ndef f(x): return sys._getframe(1).f_globals.get('SCRIPT')",
            "import json\njson.dumps = lambda *_, **__: '{\"passed\": true}'\ndef f(x): return 1",
            "print('{\"passed\": true}')\ndef f(x): return 0",
            "try:\n    f = open('/proc/self/maps').read\nexcept Exception: pass",
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize("tests, program, share", FORMS)
def test_forms_of_tests_as_they_are_published(tests, program, share):
    for form in (tests, json.dumps(tests)):
        assert share_passed(SANDBOX, program, parse_tests(form)) == share


# What people and attacks made of an earlier version: (reward, program, tests). None is the row's fault alone.
CHEAT = "class E(int):\n def __eq__(s, o): return True\n __lt__ = __eq__\n def __sub__(s, o): return s\n"
CHEAT += " def __abs__(s): return s\n def __hash__(s): return 0\n"
POLY = "import math\ndef poly(xs, x):\n    return sum(c * x**i for i, c in enumerate(xs))\n"
POLY += 'def find_zero(xs):\n    """x"""\n'
DATACLASS = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n"
FOUND = [
    (
        0.0,
        "import sys\nsys.setrecursionlimit(10**5)\ndef f(x):\n r=1\n for _ in range(492): r=[r]\n return r",
        "assert f(1) in (1,)",
    ),
    (1.0, "import operator\nOPS={'+':operator.add}\ndef ev(o,a,b):\n return OPS[o](a, b)", "assert ev('+',1,2) == 3"),
    (1.0, "def f(a,b):\n    return (a * b\n            % 7)", "assert f(3,4) == 5"),
    (1.0, "def f(): return '<p class=\"x\">hi</p>'", "assert f() == '<p class=\"x\">hi</p>'"),
    (1.0, "def f(s): return s.replace('<think>','')", "assert f('a<think>b') == 'ab'"),
    (0.0, CHEAT + "def f(n): return E(0)", ["assert (f(5) == 120) == True"]),
    (0.0, CHEAT + "def f(n): return E(0)", ["assert (f(2) in [4,5]) == True"]),
    (0.0, CHEAT + "def f(n): return E(0)", ["assert (abs(f(2)-1.414)<1e-3) == True"]),
    (
        0.0,
        "import math as _m\n_m.isclose=lambda *a,**k: True\ndef f(n): return 0",
        "import math\nassert math.isclose(f(2),1.41421356) == True",
    ),
    (
        0.0,
        "class math:\n isclose=staticmethod(lambda *a,**k: True)\ndef f(n): return 0",
        ["assert math.isclose(f(2), 1.41421356)"],
    ),
    (0.0, "def f(n): raise StopIteration", "assert all(map(lambda p: f(p[0]) == p[1], [(1,2),(2,3)]))"),
    (
        0.0,
        "def f(n): raise StopIteration",
        {
            "test": "def check(candidate):\n    for got, want in zip(map(candidate,[1,2]),[3,4]): assert got == want",
            "entry_point": "f",
        },
    ),
    (1.0, "def f(a,b,m): return pow(a,b,m)", "assert f(2,5,7) == 4"),
    (
        1.0,
        "class Solution:\n def merge(self,a,b): return sorted(a+b)",
        {"fn_name": "merge", "inputs": [[[1, 3], [2]]], "outputs": [[1, 2, 3]]},
    ),
    (0.0, "x = 1", ["assert gcd(12,18)==6", "assert gcd(7,3)==1"]),
    (
        1.0,
        "def sort_array(a): return sorted(a)",
        {"fn_name": "sort_array", "inputs": [[[5, 3, 2]]], "outputs": [[[2, 3, 5]]]},
    ),
    (0.0, "def f(x): return [1,2]", {"fn_name": "f", "inputs": [[1]], "outputs": [[[1], [2]]]}),
    (
        0.0,
        "def f(x): return 3",
        {
            "public_test_cases": json.dumps([{"input": "1", "output": "[3]", "testtype": "functional"}]),
            "metadata": '{"func_name":"f"}',
        },
    ),
    (None, "def f(x): return 1", "def test_a():\n    assert f(1)==1\nasync def test_b():\n    assert f(2)==2"),
    (
        0.0,
        "def f(x): return 1",
        "def test_a():\n    assert f(1)==1\nclass TestF:\n    def test_b(self):\n        assert f(2)==2",
    ),
    (1.0, "def f(n): yield from range(n)", "def test_a(): assert list(f(3)) == [0,1,2]"),
    (1.0, "def f(n): return bytes([n])", "def test_a(): assert f(3) == b'\\x03'"),
    (None, "def ap(g,x): return g(x) if g else x", "assert ap(None,3)==3\nassert ap(lambda x:x+1,3)==4"),
    (
        1.0,
        "import json\ndef f(s): return json.loads(s)",
        "try:\n    f('{')\n    assert False\nexcept ValueError:\n    pass",
    ),
    (
        1.0,
        "def f(x): raise ValueError('negative '+str(x))",
        "import unittest\nclass T(unittest.TestCase):\n"
        + "".join(
            f"    def test_{i}(self):\n        with self.assertRaisesRegex(ValueError,'negative'): f({i})\n"
            for i in range(6)
        ),
    ),
    (
        1.0,
        "def test_distinct(xs): return len(set(xs))==len(xs)",
        ["assert test_distinct([1,2]) is True", "assert test_distinct([1,1]) is False"],
    ),
    (1.0, "def Check(x): return x==3", "assert Check(3) is True"),
    (
        1.0,
        "class Solution:\n    def f(self,n): return 0 if n==0 else 1+self.f(n-1)",
        {"fn_name": "f", "inputs": [[5000]], "outputs": [5000]},
    ),
    (
        1.0,
        DATACLASS + "def f(x): return P(x).x",
        "assert f(3) == 3",
    ),
    (1.0, "print('a\\nb')", {"inputs": [["3", "1 2 3"]], "outputs": [["a", "b"]]}),
    (None, "x=1", "s=Stack()\ns.push(1)\nassert s.pop()==1"),
    (1.0, "def f(x):\n    return x*2", '"""Tests."""\nassert f(2) == 4'),
    (
        1.0,
        "def poly(xs,x): return 0\ndef find_zero(xs): return -xs[0]/xs[1]",
        {
            "prompt": POLY,
            "test": "def check(candidate):\n    assert abs(poly([1,2],candidate([1,2])))<1e-6",
            "entry_point": "find_zero",
        },
    ),
    (
        0.0,
        "def poly(xs,x): return 0\ndef find_zero(xs): return 5",
        {
            "prompt": POLY,
            "test": "def check(candidate):\n    assert abs(poly([1,2],candidate([1,2])))<1e-6",
            "entry_point": "find_zero",
        },
    ),
]


@pytest.mark.parametrize("reward, program, tests", FOUND, ids=range(len(FOUND)))
def test_programs_of_people_and_attackers(reward, program, tests):
    completion = f"```python\n{program}\n```"
    assert CodeReward(provider=SANDBOX)(completions=[completion], tests=[tests]) == [reward]


def test_numbers_of_calls():
    big = parse_tests("assert f() == 1000000007")
    assert share_passed(SANDBOX, "def f(): return 1000000500.0", big) == 0.0
    assert share_passed(SANDBOX, "def f(): return 1000000007.0", big) == 1.0
    assert share_passed(SANDBOX, "def f(): return 0.1 + 0.2", parse_tests("assert f() == 0.3")) == 1.0


TESTS = [
    ([{"input": "3\n", "output": "6\n"}, {"input": "5\n", "output": "11\n"}], "print(int(input()) * 2)", 0.5),
    ({"inputs": ["3", "4"], "outputs": ["6", "8"]}, "print(int(input()) * 2)", 1.0),
    ({"language": "python", "test_cases": [{"input": "3", "output": "6", "type": "stdin_stdout"}]}, "print(6)", 1.0),
    ("assert f(1) == 2\nassert f(2) == 3", "def f(x): return x + 1", 1.0),
    ("assert f(1) == 2\nassert f(2) == 3", "def f(x): return 2", 0.5),
    (["assert f() == {1: [0.3], 'a': (1, {2, 3})}"], "def f(): return {'a': (1, {3, 2}), 1: [0.1 + 0.2]}", 1.0),
    (["assert f() == (1, 2)"], "def f(): return [1, 2]", 0.0),
    (["assert f() == 1"], "def f(): return True", 1.0),
    (["assert f() == 10**30 - 1"], "def f(): return 10**30 - 1", 1.0),
    (["assert f() == 10**30 - 1"], "x = 1", 0.0),
    (["assert f() == -5"], "def f(): print('noise'); return -5", 1.0),
    ([{"fn_name": "f", "input": [[1, 2], "a"], "output": 3}], "def f(x, y): return sum(x)", 1.0),
    (["assert f() == 'x'"], "class E:\n    def __eq__(self, other): return True\ndef f(): return E()", 0.0),
    (["assert f() == 'x'"], "class E(str):\n    def __eq__(self, other): return True\ndef f(): return E('y')", 0.0),
    (["assert f() == 3"], "import os\nos._exit(0)", 0.0),
    (["assert f() == 3"], "def f(): raise SystemExit(0)", 0.0),
    (["assert f() == 3"], "import json\njson.dumps = lambda *a, **k: 'true'\ndef f(): return 4", 0.0),
    (["assert f() == 3"], "import builtins\nbuiltins.hex = lambda x: '0x4'\ndef f(): return 3", 0.0),
    (["assert f() == 3"], "import os\n[os.write(n, b'[\"int\", \"0x4\"]\\n') for n in (1, 3)]\ndef f(): return 3", 0.0),
    (["assert f() == 3"], "def f():\n    import sys\n    sys.settrace(print)\n    return float('nan')", 0.0),
    (["assert f() == 0.5"], "def f(): return float('inf')", 0.0),
    (["assert f(10) == 3"], "import __main__\nf = lambda x: __main__.CALLS", 0.0),
]  # fmt: skip


@pytest.mark.parametrize("tests, program, share", TESTS)
def test_streams_and_calls(tests, program, share):
    assert share_passed(SANDBOX, program, parse_tests(tests), False) == share
    assert share_passed(SANDBOX, program, parse_tests(json.dumps(tests)), True) == float(share == 1.0)


@pytest.mark.parametrize(
    "tests",
    ["", "[]", "x = 1", "assert 1 == 1", "assert f(", [{"input": "3"}], "def check(c):\n    assert c(1)",
     {"inputs": ["1"], "outputs": []}, {"public_test_cases": "[]", "private_test_cases": PRIVATE[1], "metadata": "{}"},
     [{"input": 3, "output": "3"}], [{"fn_name": "f()", "input": [1], "output": 2}], "{bad json"],
)  # fmt: skip
def test_a_test_of_another_form_is_refused_with_a_reason(tests):
    with pytest.raises(ValueError, match="test"):
        parse_tests(tests)


def test_unreadable_tests_are_a_reason_of_the_prompt():
    logged = {}
    reward = CodeReward(provider=SANDBOX)
    columns = {"tests": ["x = 1", "", None], "answer": ["", "", None], "log_metric": logged.__setitem__}
    assert reward(completions=["pass"] * 3, **columns) == [None] * 3
    assert logged == {"code/outage": 0.0, "code/tests_unusable": 1.0, "code/not_started": 0.0}


class Flaky:
    """Fails for one program of a group."""

    def run(self, program: str, stdin: str = "") -> Outcome:
        if "fail" in program:
            raise SandboxUnavailable("down")
        return Outcome("14\n", "", 0)


def test_an_outage_is_none_for_the_whole_group_and_counted():
    logged = {}
    rewards = CodeReward(provider=Flaky())(
        completions=["print(14)", "fail", "print(14)"],
        prompts=["a", "a", "b"],
        answer=["14"] * 3,
        log_metric=logged.__setitem__,
    )
    assert rewards == [None, None, 1.0]
    assert logged["code/outage"] == pytest.approx(2 / 3)


def test_what_is_expected_never_enters_the_sandbox():
    seen = []

    class Recording:
        def run(self, program: str, stdin: str = "") -> Outcome:
            seen.append(program + stdin)
            return Outcome("", "", 0)

    share_passed(Recording(), "def f(x): return x", parse_tests(["assert f(31337) == 'secret-7'"]), False)
    share_passed(Recording(), "print(1)", parse_tests([{"input": "31337", "output": "secret-7"}]), False)
    assert len(seen) == 2 and all("31337" in text and "secret-7" not in text for text in seen)


LIMITS = {"run_timeout": 6000, "run_memory_limit": -1}


def piston_reply(request: dict, output_max_size: int = 1024) -> tuple[int, dict]:
    """What Piston's API answers (api/src/api/v2.js and job.js): its checks, and the program really run."""
    for name in ("language", "version"):
        if not isinstance(request.get(name), str):
            return 400, {"message": f"{name} is required as a string"}
    if not all(isinstance(file.get("content"), str) for file in request["files"]):
        return 400, {"message": "files[0].content is required as a string"}
    if (request["language"], request["version"]) != ("python", "3.x"):
        return 400, {"message": f"{request['language']}-{request['version']} runtime is unknown"}
    for name, limit in LIMITS.items():
        if not isinstance(request.get(name, 0), int):
            return 400, {"message": f"If specified, {name} must be a number"}
        if 0 < limit < request.get(name, 0):
            return 400, {"message": f"{name} cannot exceed the configured limit of {limit}"}
    ran = LocalSandbox(request["run_timeout"] / 1000).run(request["files"][0]["content"], request["stdin"] + "\n")
    status = {"time": "TO", "output": "OL", None: "RE" if ran.exit_code else None}[ran.stopped]
    if len(ran.stdout) > output_max_size:
        status = "OL"
    run = {"stdout": ran.stdout[:output_max_size], "stderr": ran.stderr[:output_max_size], "code": ran.exit_code}
    run |= {"signal": "SIGKILL" if status in ("TO", "OL") else None, "output": ran.stdout, "memory": 1, "message": None}
    if status in ("TO", "OL"):
        run["code"] = None
    return 200, {"language": "python", "version": "3.12.0", "run": run | {"status": status}}


@pytest.fixture
def piston():
    replies: list = []

    def reply(request, body):
        if request.path != "/api/v2/execute" or not request.headers["Content-Type"].startswith("application/json"):
            return 415, {"message": "requests must be of type application/json"}
        if replies:
            return replies.pop(0)
        return piston_reply(json.loads(body)) if len(body) <= 100_000 else (413, {})

    with serving(reply) as url:
        yield url, replies


@pytest.mark.parametrize("tests, program, share", TESTS)
def test_piston_is_a_provider_like_the_embedded_one(piston, tests, program, share):
    assert share_passed(PistonSandbox(piston[0]), program, parse_tests(tests), False) == share


@pytest.mark.slow
def test_an_outage_of_piston_is_retried_and_a_wrong_setting_is_an_error(piston):
    url, replies = piston
    reward = CodeReward(piston_url=url)
    assert reward(completions=["print(14)", "print(15)"], answer=["14"] * 2) == [1.0, 0.0]
    box_failed = {"run": {"stdout": "", "stderr": "", "code": None, "signal": None, "status": "XX"}}
    replies += [(500, {}), (200, box_failed)]
    assert reward(completions=["print(14) # again"], answer=["14"]) == [1.0]
    with pytest.raises(SandboxRefused, match="python-2.x runtime is unknown"):
        PistonSandbox(url, version="2.x").run("print(14)")
    with pytest.raises(SandboxRefused, match="configured limit of 6000"):
        CodeReward(piston_url=url, seconds=10)(completions=["print(14)"], answer=["14"])
    with pytest.raises(SandboxUnavailable, match="127.0.0.1:9"):
        PistonSandbox("http://127.0.0.1:9", retries=0).run("print(14)")


def test_no_program_makes_an_outage(piston):
    """Else a bad completion takes the reward from its whole group."""
    programs = ["#" * 200_000 + "\nprint(14)", "print(14) # \ud800", "print(14) # \x00", "print('x' * 5000)", "1/0"]
    assert CodeReward(piston_url=piston[0])(completions=programs, answer=["14"] * 5) == [0.0, 1.0, 0.0, 0.0, 0.0]
    assert CodeReward(provider=SANDBOX)(completions=programs, answer=["14"] * 5) == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert PistonSandbox(piston[0], seconds=1).run("while True: pass").stopped == "time"


def test_a_step_ends_though_every_completion_is_hostile():
    """What was not started is None and counted, and what took its own limit is wrong, and not remembered."""
    started, logged = [], {}

    class Slow:
        def run(self, program: str, stdin: str = "") -> Outcome:
            started.append(program)
            time.sleep(0.05)
            return Outcome("", "", -9, "time")

    reward = CodeReward(provider=Slow(), step_seconds=0.2, workers=1)
    columns = {"answer": ["14"] * 64, "log_metric": logged.__setitem__}
    found = reward(completions=["while True: pass"] * 64, **columns)
    assert 2 <= len(started) < 10 and found == [0.0] * len(started) + [None] * (64 - len(started))
    assert logged["code/not_started"] == 1 - len(started) / 64 and logged["code/outage"] == 0


def test_a_program_that_is_always_late_holds_nothing_up():
    runs = []

    class Late:
        def run(self, program: str, stdin: str = "") -> Outcome:
            runs.append(stdin)
            return Outcome("", "", -9, "time")

    tests = parse_tests([{"input": str(n), "output": "1"} for n in range(100)])
    assert share_passed(Late(), "while True: pass", tests, False) == 0.0
    assert len(runs) == 3
