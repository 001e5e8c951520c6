import asyncio
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time

from rewards import AccuracyReward, accuracy_reward, is_correct
from rewards.equality import ALGEBRA
from rewards.workers import MAX_RSS_MB, WorkerPool, WorkersUnavailable, _Worker, pool

import pytest

TOWER = r"\boxed{\dfrac{5^{(5^{(5^{(5^5)})}-4)}-5}{16}}"


@pytest.mark.parametrize(
    "completion, gold",
    [
        ("<think>x</think> <answer> 14 </answer>", "14"),
        ("<think>x</think> <answer> $\\boxed{14}$ </answer>", "14"),
        ("14", "14"),
        ("The answer is 14.", "14"),
        ("**14**", "14"),
        ("**Answer:** 14", "14"),
        ("**Answer**: 14", "14"),
        ("<think>a</think>\n答案是 14 。", "14"),
        ("答：14", "14"),
        ("La respuesta es 14.", "14"),
        ("Die Antwort lautet 14.", "14"),
        ("The final answer is:\n\n$$14$$", "14"),
        ("Final Answer: The final answer is $14$. I hope it is correct.", "14"),
        ("Final Answer: The largest $n$ is 34.", "34"),
        ("So 2 + 12 = 14.", "14"),
        ("There are 3 apples and 11 pears, so 14 in all.", "14"),
        ("The answer is 14, because 2 + 12 is 14.", "14"),
        ("I am sure: the answer is 14!", "14"),
        ("The answer is 14 apples.", "14"),
        ("The answer is (1, 2).", "(1,2)"),
        ("The answer is 3.5.", "3.5"),
        ("The answer is \\(3\\sqrt{2}\\).", "3\\sqrt{2}"),
        ("\\boxed 5", "5"),
        ("\\boxed\\frac12", "\\frac12"),
        ("\\fbox{5}", "5"),
        ("\\boxed{\\boxed{7}}", "7"),
        ("\\boxed{1} and \\boxed{2}", "1,2"),
        (
            "The identity matrix is $ \\begin{pmatrix}1 & 0 \\\\ 0 & 1\\end{pmatrix} $.",
            "\\begin{pmatrix}1&0\\\\0&1\\end{pmatrix}",
        ),
        ("The winner is **Alice**.", "Alice"),
        ("The answer is Alice.", "Alice"),
        ("The answers are 2 and 3.", "2,3"),
        ("The solutions are $x=2$ and $x=3$.", "2,3"),
        ("Yes, because 3 > 2.", "Yes"),
        ("The answer is 14 (not 15).", "14"),
        ("<answer> 3 * 4 = 12 </answer>", "12"),
        ("14", "We find that it is \\boxed{14}."),
        ("14", "some steps\n#### 14"),
        ("<THINK>15?</THINK> <Answer>14</Answer>", "14"),
        ("<think>a</think> The answer is \\boxed{14}. <answer>14</answer>", "14"),
        ("<think>a</think> The answer is <answer>14</answer>", "14"),
        ("<div hidden>\\boxed{15}</div> 14", "14"),
        ("so it is .5", "0.5"),
        ("Answer \\[ \n 9 \n \\]", "9"),
    ],
)
def test_right(completion, gold):
    assert is_correct(completion, gold) is True


@pytest.mark.parametrize(
    "completion, gold",
    [
        ("<think>\\boxed{14}</think> The answer is 15.", "14"),
        ("<think>The answer is 14", "14"),
        ("<think>14</think>", "14"),
        ("<think><answer>14</answer></think> <answer>15</answer>", "14"),
        ("<answer>15</answer> <answer>14</answer>", "14"),
        ("<think>a</think> \\boxed{5} </think> \\boxed{6}", "6"),
        ("<think>a</think> 5 <think> \\boxed{6}", "6"),
        ("\\boxed{5} hmm no, \\boxed{6", "5"),
        ("\\boxed{5} and \\boxed{6}", "5"),
        ("\\boxed{6} and \\boxed{5}", "5"),
        ("\\boxed{5, 6}", "5"),
        ("\\boxed{14} The answer is 15.", "14"),
        ("The answer is 13. Wait, the answer is 14.", "14"),
        ("The answer is 13 or 14.", "14"),
        ("either 13 or 14", "14"),
        ("**13**\n14", "14"),
        ("The answer is not 14.", "14"),
        ("The answer isn't 14", "14"),
        ("<!-- \\boxed{14} --> 15", "14"),
        ("1 2 3 14", "14"),
        ("So 4 = 5", "5"),
        ("The answer is 2 + 3 * 4.", "14"),
        ("What is 2 + 3 * 4?", "14"),
        ("The answer is Alice or Bob.", "Alice"),
        ("", "14"),
        ("   ", "14"),
        ("</think>", "14"),
        ("The answer is at least 14", "14"),
        ("The answer is between 13 and 14", "14"),
        ("It is $13$ or $14$", "14"),
        ("14? 15? 16?", "14"),
        ("14\n\n15", "14"),
        ("Yes and no", "Yes"),
        ("Alice, Bob, Carla", "Alice"),
        ("not Alice", "Alice"),
        ("open('/tmp/x', 'w').close()", "5"),
        ("<THINK>14", "14"),
        ("<think >14", "14"),
        ("<th\u200bink>14", "14"),
        ("<think>a</think><Answer>15</Answer> 14", "14"),
        ("<think>a</think>15</think>14", "14"),
        ("<think>a</think>15<think>b</think>14", "14"),
        ("<think>a</think></think>15</think>14", "14"),
        ("<answer>15</answer> <think>a</think> 14", "14"),
        ("\\boxed{15}<answer>14</answer>", "14"),
        ("<think>a</think> \\boxed{15 <answer>14</answer>", "14"),
        ("<think>a</think> The answer is 15. <answer>14</answer>", "14"),
        ("The answer is 15. <think>a</think> 14", "14"),
        ("<answer>15<answer>14</answer></answer>", "14"),
        ("<div hidden>\\boxed{14}</div> 15", "14"),
        ("<p style='display: none'>\\boxed{14}</p> 15", "14"),
        ("\\begin{comment}\\boxed{14}\\end{comment} 15", "14"),
        ("\\iffalse \\boxed{14} \\fi 15", "14"),
        ("% \\boxed{14}\n15", "14"),
        ("~~\\boxed{14}~~ 15", "14"),
        ("\\phantom{\\boxed{14}} 15", "14"),
        ("\\boxed{14 + 0}", "14"),
        ("\\boxed{0 \\cdot 5 + 14}", "14"),
        ("\\boxed{-(-14)}", "14"),
        ("anything but 14", "14"),
        ("It cannot be 14", "14"),
        ("14 is wrong", "14"),
        ("so it is .5", "5"),
        ("AZYUK2A", "2"),
    ],
)
def test_wrong(completion, gold):
    assert is_correct(completion, gold) is False


CHOICE_RIGHT = [
    "B", "B.", "(B)", "b", "**B**", "$B$", "B) 14", "B. A dog", "B: Paris", "Option B", "\\boxed{B}", "选B", "答案：B",
    "\\boxed{\\text{(B)}}", "The answer is B.", "答案是B。", "The answer is **B**.", "The correct answer is (B).",
    "The answer is B) A dog", "The answer is B, because A is wrong.", "I choose option B because A is wrong.",
    "<think>A?</think> <answer> B </answer>", "Ｂ", "（B）", "B\u200b",
]  # fmt: skip
CHOICE_WRONG = [
    "", "A", "C", "A or B", "A, B", "(A)(B)", "A B C D", "ABCD", "<think>B</think> A", "The answer is 14.",
    "The answer is A. The answer is B.", "A dog", "\\boxed{A} \\boxed{B}", "<think>B", "not B", "The answer is not B.",
    "neither A nor B", "anything but B",
    "<answer>B</answer> The answer is A.", "<THINK>B", "<!-- B --> A", "B. C.",
]  # fmt: skip


@pytest.mark.parametrize("completion", CHOICE_RIGHT)
def test_right_choice(completion):
    assert is_correct(completion, "B", "choice") is True
    assert accuracy_reward(completions=[completion], answer=["B"]) == [1.0]


@pytest.mark.parametrize("completion", CHOICE_WRONG)
def test_wrong_choice(completion):
    assert is_correct(completion, "B", "choice") is False


def test_a_choice_of_several_letters_is_a_set():
    assert is_correct("A and C", "A, C", "choice") and is_correct("\\boxed{C, A}", "AC", "choice")
    assert not is_correct("A", "A, C", "choice")


def test_none_is_for_reasons_of_the_prompt_only():
    logged = {}
    rewards = accuracy_reward(
        completions=["14", "", "<think>", "14", "14", "x"],
        answer=["14", "14", "14", "1/0", "14", "14"],
        verifier=["math", "math", "math", "math", "code", "math"],
        kind=["reasoning"] * 5 + ["helpful"],
        log_metric=logged.__setitem__,
    )
    assert rewards == [1.0, 0.0, 0.0, None, None, None]
    assert logged == {"accuracy/gold_unusable": 0.25, "accuracy/timeouts": 0.0}


def test_trl_s_signature_for_strings_and_messages():
    columns = {"prompts": ["p"] * 2, "completion_ids": [[1]] * 2, "trainer_state": None, "log_extra": lambda *_: None}
    assert accuracy_reward(completions=["14", "15"], solution=["14", "14"], **columns) == [1.0, 0.0]
    messages = [[{"role": "assistant", "content": text}] for text in ("14", "15")]
    columns["prompts"] = [[{"role": "user", "content": "p"}]] * 2
    assert accuracy_reward(completions=messages, answer=["14", "14"], **columns) == [1.0, 0.0]
    with pytest.raises(ValueError, match="`answer` or `solution`"):
        accuracy_reward(completions=["14"])


def test_a_prefilled_tag_in_the_prompt_is_seen():
    columns = {"answer": ["14"], "prompts": ["2 + 3 * 4 = ? <think>\n"]}
    assert accuracy_reward(completions=["so \\boxed{14}"], **columns) == [0.0]
    assert accuracy_reward(completions=["so </think> 14"], **columns) == [1.0]


def test_it_can_be_pickled_with_its_settings():
    reward = pickle.loads(pickle.dumps(AccuracyReward(percent="strict", decimals=3)))
    assert (reward.percent, reward.decimals, reward.__name__) == ("strict", 3, "accuracy_reward")


@pytest.mark.slow
def test_the_worst_answer_known_costs_a_group_one_limit():
    grade_once = {"completions": ["\\boxed{1}"] * 16, "answer": [r"\gcd(a, b)"] * 16}
    accuracy_reward(**grade_once)  # the workers are running
    killed = pool(ALGEBRA).killed
    assert accuracy_reward(completions=[TOWER] * 16, answer=[r"\gcd(a, b)"] * 16) == [0.0] * 16
    assert accuracy_reward(completions=[TOWER] * 16, answer=["14"] * 16) == [0.0] * 16
    assert pool(ALGEBRA).killed - killed <= 2  # one for each group at most, not one for each completion


HANGS = [
    r"9^{9^{9^{9}}}", r"10^{10^{10}}", r"10^{10^{10}}!", r"\binom{10^7}{5 \cdot 10^6}", r"(100!)!", r"7^{77777777}",
    r"\sum_{k=1}^{1000000} \frac{1}{k}", "(x+y+z+1)^{200}", "(" * 200 + "1" + ")" * 200, "+".join("x" * 400),
]  # fmt: skip


@pytest.mark.slow
def test_no_answer_holds_a_batch_up():
    start = time.perf_counter()
    answers = [rf"\boxed{{{answer}}}" for answer in HANGS for _ in range(2)]
    assert accuracy_reward(completions=answers, answer=["x^2+1"] * len(answers)) == [0.0] * len(answers)
    assert time.perf_counter() - start < 300  # any one of them without its limit takes hours
    assert accuracy_reward(completions=["1 + x^2"], answer=["x^2+1"]) == [1.0]


LONG = [
    "\\boxed{" * 5000 + "1" + "}" * 5000, "\\boxed{1} " * 5000, "\\[" * 100_000, "answer to " * 20_000, "$" * 100_000,
    "**" * 100_000, "<think>" * 50_000, "</think>" * 50_000, "<answer>" * 50_000, "1 " * 100_000, "1,000" * 40_000,
    "A, " * 50_000, "<!--" * 50_000, "#### " * 50_000,
    "\\iffalse" * 40_000, "<b hidden " * 30_000, "~~a" * 100_000, "\\phantom{" * 30_000, "%\n" * 150_000,
    "<\u200b" * 150_000, "not " * 80_000, "\\phantom{" + "{a}" * 100_000,
    "\\boxed{" + "1" * 9_000 + " a" * 5_000 + "}", "The answer is " + "1 " * 5_000 + "a " * 4_000,
]  # fmt: skip


@pytest.mark.parametrize("text", LONG, ids=range(len(LONG)))
def test_long_completions_cost_little(text):
    start = time.process_time()
    accuracy_reward(completions=[text], answer=["14"])
    is_correct(text, "B", "choice")
    assert time.process_time() - start < 30  # tenfold room: what is quadratic takes minutes


SLOW_GOLD, SLOW_ANSWER = r"\gcd(a, b)", r"\boxed{\gcd(b, a)}"


def _grade_in_worker(_: int) -> list:
    return accuracy_reward(completions=["14", SLOW_ANSWER], answer=["14", SLOW_GOLD])


def test_it_works_in_threads_and_under_asyncio_and_leaves_no_signal_handler():
    before = signal.getsignal(signal.SIGALRM)
    expected = _grade_in_worker(0)
    results: list = []
    threads = [threading.Thread(target=lambda: results.append(_grade_in_worker(0))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    async def grade():
        return await asyncio.gather(*(asyncio.to_thread(_grade_in_worker, i) for i in range(3)))

    assert [*results, *asyncio.run(grade())] == [expected] * 7
    assert signal.getsignal(signal.SIGALRM) is before


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_it_works_in_other_processes(method):
    expected = _grade_in_worker(0)
    with multiprocessing.get_context(method).Pool(2) as processes:
        assert processes.map(_grade_in_worker, range(4)) == [expected] * 4


@pytest.mark.slow
def test_it_works_under_accelerate_launch_with_two_processes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from accelerate import PartialState\n"
        "from rewards import accuracy_reward\n"
        "state = PartialState(cpu=True)\n"
        f"completions, golds = ['14', r'{SLOW_ANSWER}', r'{TOWER}'], ['14', r'{SLOW_GOLD}', r'{SLOW_GOLD}']\n"
        "grades = accuracy_reward(completions=completions, answer=golds)\n"
        "print(f'process {state.process_index} of {state.num_processes}: {grades}', flush=True)\n"
    )
    # `--multi_gpu` is accelerate's word for processes of one machine; `PartialState(cpu=True)` needs no GPU
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    run = subprocess.run([*launch, str(script)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    printed = run.stdout
    for process in range(2):
        assert f"process {process} of 2: [1.0, 1.0, 0.0]" in printed


@pytest.mark.slow
def test_memory_stays_flat():
    def grade(start):
        answers = [rf"$\frac{{{n}}}{{7}} + \sqrt{{{n % 97 + 2}}}$" for n in range(start, start + 10_000)]
        accuracy_reward(completions=answers, answer=[r"\frac{1}{7} + \sqrt{3}"] * 10_000)
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

    after_first = grade(0)
    assert grade(10_000) < after_first + 15 and grade(20_000) < after_first + 15


@pytest.mark.slow
def test_workers_die_with_a_parent_that_is_killed():
    program = (
        "import os, time; from rewards.workers import pool\n"
        "p = pool('rewards.algebra:verify_pair'); p.map([['x', 'x'], ['y', 'y']])\n"
        "print(*[w.process.pid for w in p._pool], flush=True); p.map([['x', '7^{77777777}!']] * 2)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    workers = list(map(int, parent.stdout.readline().split()))
    time.sleep(0.5)  # both are at work
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert workers
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(_is_running(worker) for worker in workers):
        time.sleep(0.2)
    assert not any(_is_running(worker) for worker in workers)


def _is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_late_task_is_killed_and_the_others_are_done():
    workers = WorkerPool("time:sleep", workers=2, seconds=0.7)
    start = time.perf_counter()
    results = workers.map([0.01, 600, 0.01, 0.01])
    assert [in_time for in_time, _ in results] == [True, False, True, True]
    assert workers.killed == 1
    assert time.perf_counter() - start < 300
    workers.close()


def test_a_call_that_breaks_off_leaves_no_results_to_the_next():
    """A Ctrl-C in the middle, or here a task that cannot be sent."""
    workers = WorkerPool("builtins:len", workers=1)
    with pytest.raises(TypeError):
        workers.map(["four", object()])
    assert workers.map(["a", "of", "six"]) == [(True, 1), (True, 2), (True, 3)]
    workers.close()


def test_an_interrupted_call_leaves_no_results_to_the_next(monkeypatch):
    workers, receive = WorkerPool("builtins:abs", workers=1), _Worker.receive

    def interrupted(worker):
        if worker.task == 1:
            raise KeyboardInterrupt
        return receive(worker)

    with monkeypatch.context() as patch:
        patch.setattr(_Worker, "receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            workers.map([-1, -2, -3])
    assert workers.map([-4]) == [(True, 4)]
    workers.close()


def test_a_worker_of_a_large_process_is_kept():
    """The kernel counts a parent's peak as the peak of what it starts, so a trainer's workers look as large as it."""
    ballast = b"x" * ((MAX_RSS_MB + 100) << 20)
    workers = WorkerPool("builtins:eval", workers=1)
    pids = {pid for _, pid in workers.map(["__import__('os').getpid()"] * 5)}
    workers.close()
    assert len(ballast) and len(pids) == 1


def test_workers_that_cannot_start_are_an_error_and_not_a_wrong_answer():
    with pytest.raises(WorkersUnavailable, match="no_such_module"):
        WorkerPool("no_such_module:f").map([1])


def test_the_pool_of_a_process_is_one():
    assert pool("rewards.algebra:verify_pair") is pool("rewards.algebra:verify_pair")
    assert os.getpid() == pool("rewards.algebra:verify_pair")._pid
