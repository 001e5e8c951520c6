r"""The accuracy reward on answers that others wrote: GSM8K's model solutions, and the gold answers of MATH-500.

    python -m benchmarks.answers --gsm8k gsm8k_model_solutions.jsonl --math math_500.jsonl [--cases cases.jsonl]

The files are `example_model_solutions.jsonl` of https://github.com/openai/grade-school-math and the 500 problems of
https://huggingface.co/datasets/HuggingFaceH4/MATH-500. Each solution is graded unchanged and with its answer rewritten
into other forms. Each gold answer of MATH-500 is graded in the same forms and in other spellings. The benchmark prints
correct answers with reward 0, wrong answers with reward 1, the share of pairs that reached math-verify, and the speed
compared with it. `--cases`: lines of {"gold": ..., "completion": ..., "right_value": ...}.
"""

import argparse
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rewards import plain
from rewards import is_correct
from rewards.accuracy import grade
from rewards.equality import EqualityRule

FORMS = {
    "box": "{body}\nThe answer is $\\boxed{{{answer}}}$.",
    "box alone": "{body}\n\n\\boxed{{{answer}}}",
    "display": "{body}\nThe answer is:\n\\[\n{answer}\n\\]",
    "display of a box": "{body}\nThus, the answer is\n\n$$\n\\boxed{{{answer}}}\n$$",
    "bold": "{body}\n\n**{answer}**",
    "bold statement": "{body}\n**Final answer:** {answer}",
    "last line": "{body}\n{answer}",
    "####": "{body}\n#### {answer}",
    "#### and a remark": "{body}\n#### {answer}\n\nI hope this helps!",
    "R1-Zero": "<think> {body} </think> <answer> {answer} </answer>",
    "R1": "<think>{body}</think>\nThe answer is {answer}.",
    "R1, box": "<think>{body}</think>\n**Answer:** $\\boxed{{{answer}}}$",
}
SPELLINGS = {
    "as it is": lambda gold: gold,
    "spaces": lambda gold: re.sub(r"(?<=[=+(])|(?=[=+)])|(?<=,)(?!\d{3}|\\)", " ", gold),
    r"\dfrac": lambda gold: re.sub(r"\\frac(?![A-Za-z])", r"\\dfrac", gold),
    "style": lambda gold: rf"\displaystyle {gold}",
    "delimiters": lambda gold: re.sub(r"(?<!\\left)(?<!\\right)([()])", r"\\big\1", gold),
}
WORKED = re.compile(r"<<[^<>]*>>")  # GSM8K's calculator annotations


def gsm8k(path: Path) -> Iterator[tuple[str, str, str, bool]]:
    """Yield (form, gold, completion, whether it is correct)."""
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        gold = row["ground_truth"].rsplit("A: ", 1)[1].strip()
        for name, made in row.items():
            if name in ("question", "ground_truth"):
                continue
            yield "as it stands", gold, made["solution"], made["is_correct"]
            body, found, answer = WORKED.sub("", made["solution"]).rpartition("A: ")
            if found:
                for form, text in FORMS.items():
                    yield form, gold, text.format(body=body.strip(), answer=answer.strip()), made["is_correct"]


def math_500(path: Path) -> Iterator[tuple[str, str, str, bool]]:
    """Yield the same for each gold answer, which is always correct, in each form and spelling."""
    for line in path.read_text(encoding="utf-8").splitlines():
        gold = json.loads(line)["answer"]
        for form, text in FORMS.items():
            for spelling, spell in SPELLINGS.items():
                yield f"{form}, {spelling}", gold, text.format(body="We work it out.", answer=spell(gold)), True


def measure(name: str, rows: list[tuple[str, str, str, bool]], show: int) -> None:
    judge = EqualityRule()
    start = time.perf_counter()
    found = grade([row[2] for row in rows], [row[1] for row in rows], ["math"] * len(rows), judge)
    seconds = time.perf_counter() - start
    refused, paid, total = Counter(), Counter(), Counter()
    for (form, gold, text, right), verdict in zip(rows, found, strict=True):
        total[form] += 1
        refused[form] += right and not verdict
        paid[form] += bool(verdict) and not right
        if right != bool(verdict) and show > 0:
            show -= 1
            print(f"  {'refused' if right else 'paid'} ({form}), gold {gold!r}: {text[-160:]!r}")
    print(f"{name}: {sum(row[3] for row in rows):,} right, {sum(not row[3] for row in rows):,} wrong, {seconds:.1f} s")
    for form in total:
        if refused[form] or paid[form]:
            print(f"  {form}: {refused[form]} of {total[form]} right ones refused, {paid[form]} wrong ones paid")
    print(f"  in all {refused.total()} refused, {paid.total()} paid")
    asked = len(judge._known)
    print(f"  reached math-verify: {asked} of {len({(row[1], row[2]) for row in rows}):,} pairs")
    sample = rows[:: max(1, len(rows) // 500)]
    texts, golds = [row[2] for row in sample], [f"${row[1]}$" for row in sample]
    plain(texts[:2], golds[:2])
    start = time.perf_counter()
    plain(texts, golds)
    theirs = (time.perf_counter() - start) / len(sample)
    print(f"  speed: {len(rows) / seconds:,.0f} a second, {theirs * len(rows) / seconds:.0f} times math-verify's")


def main() -> None:
    arguments = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.split("\n")[0])
    arguments.add_argument("--gsm8k", type=Path, metavar="FILE")
    arguments.add_argument("--math", type=Path, metavar="FILE")
    arguments.add_argument("--cases", type=Path, metavar="FILE")
    arguments.add_argument("--show", type=int, default=10, metavar="N", help="print N verdicts that are wrong")
    options = arguments.parse_args()
    if not (options.gsm8k or options.math or options.cases):
        print("nothing to measure: write --gsm8k, --math or --cases, and a file (see --help)")
    if options.gsm8k:
        measure("GSM8K", list(gsm8k(options.gsm8k)), options.show)
    if options.math:
        measure("MATH-500", list(math_500(options.math)), options.show)
    if options.cases:
        rows = [json.loads(line) for line in options.cases.read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if row["kind"].split()[0] in ("accuracy", "choice")]
        wrong = []
        for row in rows:
            found = is_correct(row["completion"], row["gold"], "choice" if row["kind"].startswith("choice") else "math")
            if bool(found) != bool(row["right_value"]):
                wrong.append((found, row))
        for found, row in wrong[: options.show]:
            print(f"  {found}, gold {row['gold']!r}: {row['completion'][-110:]!r} ({row['kind']})")
        paid = sum(bool(found) for found, _ in wrong)
        print(f"cases: {len(rows) - len(wrong)} of {len(rows)} right, {paid} wrong ones paid")


if __name__ == "__main__":
    main()
