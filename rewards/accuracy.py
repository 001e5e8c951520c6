r"""Accuracy: is the answer of a completion right (DeepSeek-R1, Methods, Eq. 4).

What counts as the answer: in the part that `rewards.parse` gives (the `<answer>` body, else what follows the
reasoning), every answer that is stated, by `\boxed{...}` or in words ("The answer is 14.", "答案是14。"), has to be the
gold one, and so has what is stated beside it, outside of the reasoning: who states two different answers has given
none. Where none is stated, the last bold text, formula or number counts. Equality is decided in `rewards.equality`.
"""

import itertools
import re
import unicodedata
from dataclasses import dataclass, field
from typing import Any, Literal

from rewards.completion import parse, prompt_text, text_of, without_invisible
from rewards.equality import Judge, Policy, matching, prepare, strip_markup

BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*")
STATEMENT = re.compile(
    r"(?:(?:\b(?:the|so|thus|hence|therefore|my|our|final|correct|right)\s+)*\banswers?\b"
    r"(?:\s+(?:to|of|for)\s+[^.:=\n]{1,80}?)?\s*(?:\bis\b|\bare\b|\bwould be\b|\bshould be\b|[:：=])"
    r"|\b(?:respuesta|risposta|resposta|réponse|reponse)\b[^.:\n]{0,20}?\s*(?:\bes\b|\bè\b|\bé\b|\best\b|:)"
    r"|\bantwort\b[^.:\n]{0,20}?\s*(?:\bist\b|\blautet\b|:)|\bответ\b\s*[:—-]"
    r"|(?:答案|结果|答え|정답)(?:\s*(?:应该|应当)?\s*(?:是|为|等于|は|은|[:：=]))|(?<![\u4e00-\u9fff])答\s*[:：])"
    r"[*_\s]*[:：]?\s*",
    re.I,
)
# Where a statement ends: a full stop before white space or the end, a Chinese full stop, or a clause that explains it.
END = re.compile(
    r"[。！；]|(?<!\d)\.(?=\s|$)|(?<=\d)\.(?=\s+\D|\s*$)"
    r"|[,;，]?\s+(?:because|since|as|which|so that|where|by|due to)\s|，因为"
)
FORMULA = re.compile(
    r"\$\$(.+?)\$\$|(?<![\\\d])\$([^$\n]{1,400}?)\$(?!\d)|\\\[(.{1,2000}?)\\\]|\\\((.{1,400}?)\\\)", re.S
)
BOLD = re.compile(r"\*\*([^*\n]{1,400})\*\*")
# A number with what belongs to it: its sign, fraction, unit of percent, and a calculation that leads up to it.
ARITHMETIC = re.compile(
    r"[-+−]?(?<![A-Za-z_\d.])(?:\d[\d,.\s]*(?:[-+*/^=×÷·()−%!]|\b(?:or|and)\b)?[\s(]*)*(?:\d[\d,]*(?:\.\d+)?|\.\d+)\s*%?"
)
PROSE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{3,}")
# What turns a number into no answer: "not 14", "cannot be 14", "at least 14", "14 is wrong".
_NEGATION = (
    r"(?:(?:\bnot|n't|n\u2019t|\bnever|\bcannot)(?: (?:be|equal|equal to|simply|just|really|exactly))?"
    r"|\bat (?:least|most)|\b(?:greater|less|more|fewer|larger|smaller|other|rather) than|\bbetween|\bexcept(?: for)?"
    r"|\b(?:any|every)(?:thing|one|body) but|\binstead of|\bunlike"
    r"|不是|不等于|不可能是|并非|至少|至多|大于|小于|超过|除了)"
)
NEGATED = re.compile(_NEGATION + r"\s*$", re.I)
NO_CHOICE = re.compile(rf"(?:{_NEGATION}|\bneither\b[^.]{{0,20}}\bnor)\W*(?:option|choice|answer)?\W*$", re.I)
DENIED = re.compile(
    r"[\s*$]*(?:(?:is|was|would be)(?: not\b|n't\b| (?:\w+ )?(?:wrong|incorrect|false)\b)|是错|不对|不是答案)", re.I
)
REMARK = re.compile(r"(?<=[\d}])\s*\([A-Za-z]{3,}[^()]*\)\s*$")
AND = re.compile(r"\s*(?:,|，|;|\band\b|\bor\b|和|或|、)+\s*(?:\band\b|\bor\b)?\s*")
LETTERS = "A-J"
MAX_READ = 20_000  # characters of an answer that are looked at, from its end
CHOICE = re.compile(
    rf"(?<![A-Za-z])\(?(?P<letter>[{LETTERS}])(?:\)|(?=[.:、，,;\]}}]|\s*$|\s*(?:,|/|&|and|or|和|或|与|及)(?![A-Za-z])))"
)
GOLD_LETTERS = re.compile(rf"[{LETTERS}]+|[(\s]*[{LETTERS}][).\s]*(?:(?:,|\s)\s*\(?[{LETTERS}][).\s]*)*", re.I)


def statements(answer: str, is_text: bool = False) -> list[str]:
    r"""The answers that a text states, without repetition; [] where its last box never closes.

    Several boxes are one answer of several parts, as math-verify has it. Unless the gold answer `is_text`, a statement
    in prose ("the answer is the largest n, 34") is reduced to its formula or number.
    """
    boxes: list[str] = []
    at = 0
    while match := BOX.search(answer, at):
        at = match.end()
        if answer[at : at + 1] == "{":
            end = matching(answer, at)
            if end is None:
                return []
            boxes.append(answer[at + 1 : end].strip())
            at = end
        else:
            boxes.append(re.match(r"\S?[^\s$.,;。，]*", answer[at:]).group())
    found = [", ".join(dict.fromkeys(boxes))] if boxes else []
    heads = list(STATEMENT.finditer(answer))
    for head, following in itertools.zip_longest(heads, heads[1:]):
        value = answer[head.end() : following.start() if following else None].split("\n", 1)[0]
        if value.strip(" *_") and not BOX.search(value):
            sentence = _sentence(value)
            found.append(sentence if is_text else unstated(sentence, False) or sentence)
    return list(dict.fromkeys(map(strip_markup, found)))


def _sentence(text: str) -> str:
    """A statement up to its end; a formula in dollars is kept whole."""
    if match := re.match(r"[*\s]*(?:\$\$?.+?\$\$?|\\\(.+?\\\)|\\\[.+?\\\])", text):
        rest = END.split(text[match.end() :], maxsplit=1)[0]
        return match.group() + (rest if re.match(r"\s*(?:,|and\b|or\b|和|或|\\text|[A-Za-z%°]+\s*$)", rest) else "")
    return REMARK.sub("", re.sub(r"(?<=[\d})])!+\s*$", "", END.split(text, maxsplit=1)[0]))


def unstated(answer: str, is_text: bool) -> str | None:
    """What is meant as the answer where none is stated: one reading, so that nobody can give two.

    The last bold text, the whole text, its last line: the first of them that reads as an answer; else the last formula
    or number in it. For a gold answer that `is_text`, every text does.
    """

    def reads(text: str) -> bool:
        if len(text) > 300:
            return False
        formula = FORMULA.fullmatch(text.strip()) or (
            "\\" in text and not PROSE.search(text) and re.search(r"\w", text)
        )
        return bool(is_text or formula or prepare(text).tree is not None)

    answer = answer[-4_000:]
    bold = [text for text in BOLD.findall(answer) if not text.rstrip().endswith((":", "："))]
    last = answer.rstrip().rsplit("\n", 1)[-1]
    for text in (*bold[-1:], answer, last):
        if reads(text):
            return strip_markup(END.split(text, maxsplit=1)[0] if is_text else text)
    formulas = list(FORMULA.finditer(answer))
    end = answer.rstrip()[-300:] if len(last) > 300 else last
    numbers = list(ARITHMETIC.finditer(end))
    if formulas and (not numbers or len(answer.rstrip()) - len(end) + numbers[-1].start() < formulas[-1].end()):
        parts = [formulas[-1]]
        for before in reversed(formulas[:-1]):  # "$2$ and $3$" is one answer of two parts
            if not AND.fullmatch(answer[before.end() : parts[0].start()]):
                break
            parts.insert(0, before)
        return ", ".join("".join(filter(None, part.groups())) for part in parts)
    if not numbers or NEGATED.search(end[: numbers[-1].start()]) or DENIED.match(end, numbers[-1].end()):
        return None
    return numbers[-1].group().strip()


def chosen(answer: str) -> set[str]:
    """The letters that a multiple-choice answer gives; none where it says which letter is wrong."""
    answer = unicodedata.normalize("NFKC", without_invisible(answer))
    stated = statements(answer) or [answer]
    letters: set[str] = set()
    for text in stated:
        text = re.sub(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", text)
        text = re.sub(r"^\W*(?:option|choice|answer|选项|选择|选)\s*[:：]?", "", text, flags=re.I).strip("$*_` \n")
        if re.fullmatch(rf"\(?[{LETTERS.lower()}]\)?", text):
            text = text.upper()
        matches = list(CHOICE.finditer(text))
        if matches and NO_CHOICE.search(text[: matches[0].start()]):
            return set()
        found = [match["letter"] for match in matches]
        if re.fullmatch(rf"[{LETTERS}]+", text):
            found = list(text)
        if not found and stated == [answer]:
            found = re.findall(
                rf"\b(?:option|choice|choose)\s+\(?([{LETTERS}])\b|选\s*(?:择|项)?\s*([{LETTERS}])", answer
            )
            found = ["".join(pair) for pair in found][-1:]
        letters |= set(found)
    return letters


def gold_of(text: str) -> str:
    r"""The answer in a gold column: of a worked solution its last box or what follows `####`, else all of it."""
    if BOX.search(text):
        found = statements(text)
        return found[0] if found else ""
    return text.rsplit("####", 1)[-1].strip()


def gold_error(answer: str, verifier: str = "math") -> str | None:
    """Why a gold answer cannot be used (for data preparation, which refuses the row), None where it can."""
    if verifier == "choice":
        return None if GOLD_LETTERS.fullmatch(answer) else f"the gold answer {answer!r} is not a letter from A to J"
    gold = gold_of(answer)
    return _JUDGE.gold_error(gold)


def is_correct(completion: str, answer: str, verifier: str = "math", question: str = "") -> bool | None:
    """Whether a completion answers its row rightly.

    None for a row that no rule can grade: verifier "judge" or "none", or a gold answer that cannot be used.

    Raises:
        SandboxUnavailable: verifier "code", and no program can be run.
    """
    if verifier == "code":
        from rewards.code import prints

        return prints(completion, answer)
    if verifier not in ("math", "choice"):
        return None
    return grade([completion], [answer], [verifier], _JUDGE)[0]


def grade(
    texts: list[str], golds: list[str], verifiers: list[str], judge: Judge, prefilled: bool = False
) -> list[bool | None]:
    """`is_correct` for many completions; equal answers to equal golds are verified once."""
    usable: dict[tuple[str, str], str | None] = {}
    for key in dict.fromkeys(zip(golds, verifiers, strict=True)):
        usable[key] = judge.gold_error(gold_of(key[0])) if key[1] == "math" else gold_error(*key)
    candidates: list[list[tuple[str, str]]] = [[] for _ in texts]
    results: list[bool | None] = [None] * len(texts)
    for row, (text, gold, verifier) in enumerate(zip(texts, golds, verifiers, strict=True)):
        if usable[gold, verifier] is not None:
            continue
        parts = parse(text, prefilled=prefilled)
        answer, shown = ((part or "")[-MAX_READ:] for part in (parts.answer, parts.shown))
        if verifier == "choice":
            beside = chosen(shown) if answer and answer != shown and statements(shown) else set()
            results[row] = chosen(answer) | beside == set(re.findall(f"[{LETTERS}]", gold.upper()))
            continue
        results[row] = False
        is_text = prepare(gold_of(gold)).words is not None
        stated = statements(answer, is_text)
        boxed = bool(BOX.search(answer))
        if not stated and not boxed and answer:
            stated = [unstated(answer, is_text) or ""]
        if answer != shown and any(stated):
            stated += statements(shown, is_text) or [""] * bool(BOX.search(shown))
        if all(stated):
            candidates[row] = [(gold_of(gold), value) for value in stated]
    decided = judge.decide(pair for pairs in candidates for pair in pairs)
    for row, pairs in enumerate(candidates):
        if pairs:
            results[row] = all(decided[pair] for pair in pairs)
    return results


_JUDGE = Judge()


@dataclass(frozen=True)
class AccuracyReward:
    """1.0 for a completion whose answer is the gold one, else 0.0.

    The gold answer stands in the column `answer` or, where a row has none there, `solution`: as an answer, or as a
    worked solution with a box.
    None for rows that a rule of this reward cannot grade: another kind than `reasoning`, another verifier than "math"
    and "choice", or a gold answer that cannot be used; never because of the completion.

    Args:
        percent, decimals: see `rewards.equality.Policy`.
        prefilled: the prompts end in `<think>`; seen by itself for prompts that are strings.

    Metrics: `accuracy/gold_unusable`, share of the rows; `accuracy/timeouts`, answers not decided in time.
    """

    percent: Literal["loose", "strict"] = "loose"
    decimals: int | None = 6
    prefilled: bool = False
    _judge: Judge | None = field(default=None, init=False, repr=False, compare=False)
    __name__ = "accuracy_reward"

    def __post_init__(self) -> None:
        policy = Policy(self.percent, self.decimals)
        object.__setattr__(self, "_judge", _JUDGE if policy == Policy() else Judge(policy))

    def __reduce__(self) -> tuple:
        return type(self), (self.percent, self.decimals, self.prefilled)

    def __call__(
        self,
        completions: list,
        prompts: list | None = None,
        solution: list | None = None,
        answer: list | None = None,
        verifier: list | None = None,
        kind: list | None = None,
        log_extra: Any = None,
        log_metric: Any = None,
        **columns: Any,
    ) -> list[float | None]:
        if answer is None and solution is None:
            raise ValueError("accuracy_reward: the data set needs a column `answer` or `solution` with the gold answer")
        blank = [None] * len(completions)
        columns_of_gold = zip(answer or blank, solution or blank, strict=True)
        golds = [str(next((gold for gold in golds if gold not in (None, "")), "")) for golds in columns_of_gold]
        rewards: list[float | None] = [None] * len(completions)
        rows = [
            row
            for row in range(len(completions))
            if (kind is None or kind[row] == "reasoning") and (verifier is None or verifier[row] in ("math", "choice"))
        ]
        texts = [text_of(completions[row]) for row in rows]
        rules = [verifier[row] if verifier else _rule(golds[row]) for row in rows]
        opened = self.prefilled or bool(rows and prompts and prompt_text(prompts[rows[0]]).rstrip().endswith("<think>"))
        before = self._judge.timeouts
        graded = grade(texts, [golds[row] for row in rows], rules, self._judge, opened)
        for row, right in zip(rows, graded, strict=True):
            rewards[row] = None if right is None else float(right)
        if log_extra is not None:
            log_extra("answer_found", [parse(text_of(completion)).answer or "" for completion in completions])
        if log_metric is not None and rows:
            log_metric("accuracy/gold_unusable", sum(right is None for right in graded) / len(rows))
            log_metric("accuracy/timeouts", float(self._judge.timeouts - before))
        return rewards


def _rule(gold: str) -> str:
    return "choice" if re.fullmatch(rf"\(?[{LETTERS}]\)?", gold.strip()) else "math"


accuracy_reward = AccuracyReward()
