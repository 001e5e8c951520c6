"""How fast the rewards are, beside TRL's accuracy reward and math-verify called plainly, in one process.

    python -m benchmarks.rewards [--completions 2000] [--skip-trl] [--memory 1000000]

There are 2,000 completions, 16 per prompt, right and wrong, from whole numbers to matrices; a third of them have 4,000
tokens. The benchmark prints completions per second, ratios, every verdict that differs from math-verify's with the
reason, and the speed of the language and format rewards. With `--memory N`, it prints instead the memory of this
process and of its workers while N completions with distinct answers are graded, one in fifty of them by a worker.
"""

import argparse
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from rewards import accuracy_reward, format_reward, language_consistency, language_consistency_reward
from rewards.accuracy import grade
from rewards.answers import normalise
from rewards.equality import EqualityRule, compare

from math_verify import parse, verify

SENTENCES = (
    "We need to find the value of the expression, so let us write it down again and look at it closely.",
    "Wait, that is not quite right, let me check the second term before we go on.",
    r"Substituting $x = \frac{3}{4}$ gives $2x^2 - 5x + 1 = \frac{9}{8} - \frac{15}{4} + 1$, which simplifies.",
    "If we try 7 instead of 5, the sum becomes 12, and the remainder is 3.",
    r"Then \(a_{n+1} = a_n + 2n\), so the sequence grows like a square.",
    "Alternatively, there are 12 ways for the first choice and 11 for the second, which makes 132 in all.",
)
LANGUAGES = {
    "en": " ".join(SENTENCES).replace("$", ""),
    "es": "Primero multiplicamos tres por cuatro y luego sumamos dos. Por lo tanto la respuesta es catorce, pero mejor"
    " comprobamos otra vez el segundo término antes de seguir con la cuenta.",
    "ru": "Сначала мы умножаем три на четыре, а затем прибавляем два к результату. Поэтому ответ четырнадцать, но лучше"
    " ещё раз проверить второе слагаемое, прежде чем продолжать вычисление.",
}
KINDS = {
    "int": 40, "frac": 13, "sqrt": 10, "equation": 8, "set": 8, "decimal": 6, "interval": 6, "poly": 4, "text": 3,
    "matrix": 2, "inequality": 2,
}  # fmt: skip


def problem(kind: str, rng: random.Random) -> tuple[str, list[str], list[str]]:
    """Return (gold, correct spellings, wrong answers)."""
    a, b, c = rng.randint(2, 60), rng.randint(2, 60), rng.randint(2, 9)
    match kind:
        case "int":
            n = rng.randint(-500, 20_000)
            return str(n), [str(n), f"{n:,}", f"{n}.0"], [str(n + c), str(-n - 1), str(n * 2 + 1)]
        case "frac":
            p, q = 2 * a + 1, 2**c
            return (
                rf"\frac{{{p}}}{{{q}}}",
                [rf"\dfrac{{{p}}}{{{q}}}", f"{p}/{q}"],
                [rf"\frac{{{q}}}{{{p}}}", f"{p + 2}/{q}"],
            )
        case "sqrt":
            return (
                rf"{c}\sqrt{{{a * a + 1}}}",
                [rf"{c} \sqrt{{{a * a + 1}}}", rf"\sqrt{{{(a * a + 1) * c * c}}}"],
                [rf"\sqrt{{{a * a + 1}}}", rf"{c + 1}\sqrt{{{a * a + 1}}}"],
            )
        case "equation":
            return f"y = {a}x + {b}", [f"y = {b} + {a}x", f"y={a}x+{b}"], [f"y = {b}x + {a + 61}", f"y = {a}x - {b}"]
        case "set":
            return (
                rf"\{{{a}, {a + c}\}}",
                [rf"\{{{a + c}, {a}\}}", f"{a}, {a + c}"],
                [rf"\{{{a}\}}", rf"\{{{a}, {a + c + 1}\}}"],
            )
        case "decimal":
            return f"{a}.{b:02d}5", [f"{a}.{b:02d}5", f"{a}.{b:02d}50"], [f"{a}.{b:02d}6", f"{a + 1}.{b:02d}5"]
        case "interval":
            return (
                f"[{a}, {a + b})",
                [rf"\left[{a},{a + b}\right)", f"[{a}, {a + b})"],
                [f"({a}, {a + b})", f"[{a}, {a + b}]"],
            )
        case "poly":
            return (
                f"(x+{a})(x-{c})",
                [f"x^2+{a - c}x-{a * c}", f"(x-{c})(x+{a})"],
                [f"x^2-{a * c}", f"(x+{c})(x-{a + 61})"],
            )
        case "text":
            name = rng.choice(("Alice", "Bob", "Carla"))
            return rf"\text{{{name}}}", [rf"\text{{{name}}}"], [r"\text{Dave}", r"\text{Nobody}"]
        case "inequality":  # the fast path leaves these to math-verify
            return (
                f"{c}x - {a} < {b}",
                [f"{c}x < {a + b}", f"{b} > {c}x - {a}"],
                [f"{c}x > {a + b}", f"{c}x < {a + b + 1}"],
            )
        case "matrix":
            cell = rf"{a} & {b} \\ {c} & {a + 1}"
            right = [rf"\begin{{pmatrix}} {cell} \end{{pmatrix}}", rf"\begin{{bmatrix}} {cell} \end{{bmatrix}}"]
            return right[0], right, [rf"\begin{{pmatrix}} {b} & {a} \\ {c} & {a + 1} \end{{pmatrix}}"]
    raise ValueError(kind)


def make(count: int, seed: int = 0) -> tuple[list[str], list[str], list[bool]]:
    """Return (completions, golds, whether each is correct)."""
    rng = random.Random(seed)
    completions, golds, labels = [], [], []
    for kind in rng.choices(list(KINDS), list(KINDS.values()), k=count // 16):
        gold, right, wrong = problem(kind, rng)
        for _ in range(16):
            is_right = rng.random() < 0.5
            answer = rng.choice(right if is_right else wrong)
            length = rng.choice((300, 2_000, 16_000))  # characters; 16,000 are about 4,000 tokens
            reasoning = ""
            while len(reasoning) < length:
                reasoning += rng.choice(SENTENCES) + " "
            tail = rng.choice((rf"<answer> $\boxed{{{answer}}}$ </answer>", rf"The answer is $\boxed{{{answer}}}$."))
            completions.append(f"<think> {reasoning}</think> {tail}")
            golds.append(f"${gold}$")
            labels.append(is_right)
    return completions, golds, labels


def plain(completions: list[str], golds: list[str]) -> list[float]:
    """Rewards by math-verify, called as in its README."""
    return [float(verify(parse(gold), parse(text))) for text, gold in zip(completions, golds, strict=True)]


def timed(name: str, run: Callable[[], list], count: int) -> tuple[list, float]:
    start = time.perf_counter()
    result = run()
    speed = count / (time.perf_counter() - start)
    print(f"{name:<44}{speed:>10.0f} /s")
    return result, speed


def memory(count: int) -> None:
    """Print the resident megabytes of this process and its largest worker, ten times in `count` distinct answers."""
    rng = random.Random(0)
    for start in range(0, count, 10_000):
        numbers = range(start, start + 10_000)
        answers = [
            rf"$\gcd({n}, a) + {n}$" if n % 50 == 0 else rf"$\frac{{{n}}}{{7}} + \sqrt{{{n % 97 + 2}}}$"
            for n in numbers
        ]
        golds = [r"\gcd(a, b)" if n % 50 == 0 else r"\frac{1}{7} + \sqrt{3}" for n in numbers]
        texts = [
            f"<think> {rng.choice(SENTENCES)} {n} </think> {answer}" for n, answer in zip(numbers, answers, strict=True)
        ]
        accuracy_reward(completions=texts, answer=golds)
        language_consistency_reward(completions=texts, language=["en"] * len(texts))
        done = start + 10_000
        if done == 10_000 or done % (count // 10) == 0:
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            workers = max(map(resident, children), default=0)
            print(f"{done:>10,} completions: {resident('self')} MB here, {workers} MB in a worker", flush=True)


def resident(pid: str) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


def main() -> None:
    arguments = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    arguments.add_argument("--completions", type=int, default=2000)
    arguments.add_argument("--skip-trl", action="store_true")
    arguments.add_argument("--memory", type=int, default=0, metavar="N", help="watch the memory over N completions")
    options = arguments.parse_args()
    if options.memory:
        return memory(options.memory)
    completions, golds, labels = make(options.completions)
    count = len(completions)
    grade(["1"], [r"\gcd(a, b)"], ["math"], EqualityRule())  # workers are started once in a run, not once a batch
    plain(completions[:2], golds[:2])
    ours, speed = timed(
        "rewards.accuracy_reward", lambda: accuracy_reward(completions=completions, answer=golds), count
    )
    theirs, base = timed("math-verify, plainly", lambda: plain(completions, golds), count)
    if not options.skip_trl:
        from trl.rewards import accuracy_reward as trl_accuracy_reward

        messages = [[{"role": "assistant", "content": text}] for text in completions]
        timed("trl.rewards.accuracy_reward", lambda: trl_accuracy_reward(messages, golds), count)
    print(f"ratio to math-verify, plainly: {speed / base:.1f}")
    for name, verdicts in (("ours", ours), ("math-verify", theirs)):
        wrong = Counter((label, bool(verdict)) for label, verdict in zip(labels, verdicts, strict=True))
        print(f"{name}: {wrong[True, False]} right ones refused, {wrong[False, True]} wrong ones paid, of {count}")
    for text, gold, one, other, label in zip(completions, golds, ours, theirs, labels, strict=True):
        if one != other:
            tail = text.rsplit("</think>", 1)[1]
            print(f"  differs: gold {gold}, answer {tail.strip()!r}: ours {one}, theirs {other}, truth {float(label)}")
    decided = Counter(
        compare(gold, text.rsplit(r"\boxed{", 1)[1].rsplit("}", 1)[0])
        for text, gold in zip(completions, golds, strict=True)
    )
    print("fast path:", dict(decided))
    for language, sentence in LANGUAGES.items():
        language_consistency(sentence, language)  # loads the model of py3langid
        words = sentence.split()
        texts = [" ".join(random.Random(seed).choices(words, k=1000)) for seed in range(200)]
        timed(
            f"language, 1,000 words, {language}",
            lambda texts=texts, language=language: [language_consistency(text, language) for text in texts],
            len(texts),
        )
    long = "<think>" + "ab " * 133_000 + "</think><answer>1</answer>"
    start = time.perf_counter()
    format_reward(completions=[long])
    print(f"format, {len(long):,} characters: {(time.perf_counter() - start) * 1000:.1f} ms")
    normalise.cache_clear()


if __name__ == "__main__":
    main()
