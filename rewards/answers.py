"""Reads an answer once for comparison: its unit, and a tree if it is a formula or words if it is text."""

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from rewards.completion import without_invisible
from rewards.expression import FUNCTIONS, SHORT_WORDS, Node, Unreadable, read
from rewards.units import WRAPPED, split_unit

SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ", "0123456789+-()n")
SPELLINGS = {
    "-": "−–—‐‑", "*": "×·⋅∙•∗✕", "/": "÷∕⁄", "'": "′’", ".": "。٫", ",": "、", r"\sqrt ": "√", r"\pm ": "±",
    r"\mp ": "∓", r"\pi ": "π", r"\infty ": "∞", r"\le ": "≤⩽", r"\ge ": "≥⩾", r"\ne ": "≠", r"\in ": "∈",
    r"\cup ": "∪", r"\cap ": "∩", r"\emptyset ": "∅", r"^\circ ": "°", r"\approx ": "≈", r"\sum ": "∑",
    r"\int ": "∫", r"\prod ": "∏", r"\mathbb{R}": "ℝ", r"\mathbb{Z}": "ℤ", r"\alpha ": "α", r"\beta ": "β",
    r"\gamma ": "γ", r"\theta ": "θ", r"\lambda ": "λ", r"\phi ": "φ", r"\omega ": "ω", r"\mu ": "μ",
}  # fmt: skip
SYMBOLS = {symbol: spelling for spelling, symbols in SPELLINGS.items() for symbol in symbols}
REPLACEMENTS = [
    (re.compile(pattern), value)
    for pattern, value in (
        (r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|nolimits)(?![A-Za-z])\.?", ""),
        (r"\\(?:bf|it|sf|tt|rm|tiny|small|normalsize|[lL]arge|LARGE|[hH]uge|bold|mathversion)(?![A-Za-z{])", ""),
        (r"\\(?:boldsymbol|bm|pmb|mathsf|mathtt|mathcal|underline|emph|(?:text)?color ?\{\w+\}) ?(?=\{)", ""),
        (r"\\color ?\{\w+\}|\\(?:checkmark|newline|blacksquare|square|qed)(?![A-Za-z])|✓|■", ""),
        (r"\\operatorname\*? ?\{(\w+)\}", r"\\\1 "),
        (r"(?<![A-Za-z\\])infinity(?![A-Za-z])", r"\\infty "),
        (r"(?:\\(?:text|mathrm) ?\{ ?)?(?:the )?empty set(?: ?\})?", r"\\emptyset "),
        (r"\\colon(?![A-Za-z])", ":"),
        (r"\\(?:text|mathrm) ?\{ ?[或和与及] ?\}|[或和与及]", " or "),
        (r"(?<=\d)!=", "! ="),
        (r"(?<=\d) ?x ?(?=10 ?\^)", "*"),
        (r"(?<![\d.])(\d{1,3})((?:\.\d{3}){2,})(?![\d.])", lambda whole: whole[1] + whole[2].replace(".", "")),
        (r"(?<![A-Za-z])C_\{?(\d+)\}?\^\{?(\d+)\}?", r"\\binom{\1}{\2}"),
        (r"(?<=\d) ?\\mu (?=[mgslLAF](?![A-Za-z]))", " μ"),
        (r"\\(?:text|mathrm|textbf|mbox|rm)\{\s*(and|or)\s*\}", r" \1 "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"[\[(]?\s*\\begin\{array\}\{[lcr| ]*\}", r"\\begin{pmatrix}"),
        (r"\\end\{array\}\s*[\])]?", r"\\end{pmatrix}"),
        (r"\\(?:leqslant|leq|lte)(?![A-Za-z])", r"\\le "),
        (r"\\(?:geqslant|geq|gte)(?![A-Za-z])", r"\\ge "),
        (r"\\neq(?![A-Za-z])", r"\\ne "),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\(?:lbrace|\{)", r"\\{"),
        (r"\\(?:rbrace|\})", r"\\}"),
        (r"\\(?:cdot|times|ast)(?![A-Za-z])", "*"),
        (r"\\div(?![A-Za-z])", "/"),
        (r",\s*\\!\s*", ","),
        (r"\\mathbb\s*([A-Z])", r"\\mathbb{\1}"),
        (r"\\(?:thinspace|quad|qquad|enspace|hfill)(?![A-Za-z])|(?<!\\)\\[,!;: ]|~", " "),
        (r"\{,\}", ","),
        (r"\^\{?\\(?:circ|degree)\}?|\\degree", r"^\\circ "),
        (r"\\%|(?<=[\d}])\s*(?:\\text\{\s*)?(?:percent(?:age)?|pct)\b(?:\s*\})?", "%"),
        (r"\\(?:varphi)(?![A-Za-z])", r"\\phi "),
        (r"\\(?:varnothing)(?![A-Za-z])", r"\\emptyset "),
        (r"\*\*(?=\S)", "^"),
        (r"(?<=\d) ?(?:e|E) ?([+-]?\d{1,4})(?![\d.A-Za-z])", r"*10^{\1}"),
        *(
            (rf"(?<=\d) ?(?:{word})(?![A-Za-z])", rf"*10^{{{n}}}")
            for n, word in ((3, "thousand|千(?!米|克|瓦)"), (4, "万"), (6, "million"), (8, "亿"), (9, "billion"))
        ),
        (r"\\dot ?\{?(\d)\}?(\d*)\\dot ?\{?(\d)\}?", r"\\overline{\1\2\3}"),
        (r"(?<=\d)[ _](?=\d{3}(?:[ _]\d{3})*(?:[^\d/]|$))", ""),
        (r"(?<![\d.])(\d+) (\d+)/(\d+)(?![\d.])", r"\1\\frac{\2}{\3}"),
    )
]
BOUND = re.compile(
    r"^(?:\\\{)?(?P<body>.+?)\s*(?:,|;|\\mid|\||:|\bwhere\b|\bfor\b|\bwith\b|\()\s*(?P<name>[a-z])\s*\\in\s*"
    r"(?:\\math(?:bb|bf|rm)\s*\{?)?(?P<set>[ZNRQ])\}?(?:\^?\{?[+*]\}?)?\s*(?:\\\}|\))?$"
)
MEMBER = re.compile(r"^[A-Za-z](?:_\{?\w\}?)?\s*\\in\s*(?=[(\[\\])(?!\\math)")
FUNCTION = re.compile(r"^\s*(?P<name>[A-Za-z])\s*\(\s*(?P<argument>[a-z])\s*\)\s*=\s*(?P<body>[^=]+)$")
ARTICLES = frozenset(("a", "an", "the"))
NOTATIONS = [  # a set builder, a point with its name, rows of a matrix, a column
    (re.compile(r"^\\\{ ?([a-z]) ?(?:\\mid|\||:) ?(?=[^|]*\1)([^|]+)\\\}$"), r"\2"),
    (re.compile(r"^[A-Z](?=\([^()a-z]*,[^()a-z]*\)$)"), ""),
    (re.compile(r"^\[ ?\[.{1,200}\] ?\]$"), lambda rows: _matrix(re.split(r"\] ?, ?\[", rows.group().strip("[] ")))),
    (
        re.compile(r"^[(\[]([^()\[\]]{1,200})[)\]] ?\^ ?\{?(?:T|\\top|\\intercal)\}?$"),
        lambda row: _matrix(row[1].split(",")),
    ),
]
BASED = re.compile(r"([0-9A-Fa-f]+)\s*(?:_|(?:in )?base )\s*\{?\s*\(?([0-9]{1,2}|[a-z]+)\)?\s*\}?")
BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9"}


@dataclass(frozen=True)
class Answer:
    """An answer that is prepared for comparison."""

    text: str
    words: tuple[str, ...] | None
    """The words if the answer is text instead of a formula."""
    tree: Node | None
    other_tree: Node | None
    """The other reading of a comma between digits: it separates two numbers, as in [59,113), or is a decimal comma."""
    unit: tuple[Fraction, tuple] | None
    """(factor, dimensions) of an unambiguous unit."""
    bound: str = ""
    """The set over which a bound variable (renamed to k) runs."""


@lru_cache(maxsize=8_192)
def prepare(text: str, letter_units: bool = False) -> Answer:
    """Read an answer once. With `letter_units`, the m of "5 m" is read as metres."""
    normal = normalise(re.sub(r"(?i)\b([ap])\.\s?m\b\.?", r"\1m", strip_markup(text)))
    bound = ""
    if (match := BOUND.match(normal)) and "=" not in match["body"][1:2]:
        bound = match["set"]
        normal = re.sub(rf"(?<![A-Za-z\\]){match['name']}(?![A-Za-z])", "k", match["body"]).strip()
    if match := FUNCTION.match(normal):
        body = re.sub(rf"(?<![A-Za-z\\]){match['argument']}(?![A-Za-z])", "x", match["body"])
        normal = f"{match['name']}(x) = {body}"
    normal = MEMBER.sub("", normal)
    for pattern, rewrite in NOTATIONS:
        normal = pattern.sub(rewrite, normal)
    based = BASED.fullmatch(WRAPPED.sub(r"\1", normal))
    if based and (base := BASES.get(based[2], based[2])) != "10":
        return Answer(normal, (based[1].upper(), "base", base), None, None, None)
    normal = based[1] if based else normal
    normal, unit = split_unit(normal, letter_units)
    words = _words(normal)
    tree = as_tree(normal) if words is None else None
    other = None
    if re.fullmatch(r"-?\d+,\d+", normal) and not re.fullmatch(r"-?[1-9]\d{0,2},\d{3}", normal):
        other = as_tree(normal.replace(",", "."))
    elif words is None and re.search(r"\d,\d{3}(?!\d)", normal) and ",0" not in normal:
        other = as_tree(normal, False)
    return Answer(normal, words, tree or other, other, unit, bound)


@lru_cache(maxsize=8_192)
def normalise(text: str) -> str:
    """The text in a uniform spelling, without dollar signs and other math delimiters."""
    text = without_invisible(text)
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ]+", lambda run: "^{" + run.group().translate(SUPERSCRIPTS) + "}", text)
    text = re.sub("[¼-¾⅐-⅞]", lambda one: _vulgar(one.group()), text)
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
        text = "".join(
            str(unicodedata.decimal(letter)) if letter.isdecimal() else SYMBOLS.get(letter, letter) for letter in text
        )
    text = re.sub(r"\\\[|\\\]|\\\(|\\\)|(?<!\\)\$", " ", text)
    if "\\begin" not in text:
        text = re.sub(r"\\\\(?=[A-Za-z{}])", r"\\", text)  # one level of escaping too many
    for pattern, value in REPLACEMENTS:
        text = pattern.sub(value, text)
    return re.sub(r"\s+", " ", text).strip()


def _vulgar(symbol: str) -> str:
    above, below = unicodedata.normalize("NFKC", symbol).split("⁄")
    return rf"\frac{{{above}}}{{{below}}}"


def _matrix(rows: list[str]) -> str:
    cells = r" \\ ".join(row.replace(",", "&") for row in rows)
    return rf"\begin{{pmatrix}}{cells}\end{{pmatrix}}"


def strip_markup(text: str) -> str:
    """Remove the markup around an answer: bold, math delimiters, one `\\boxed`, a final full stop."""
    for _ in range(0 if text.isalnum() else 6):
        before = text
        text = text.strip().strip('`"“”').strip()
        for left, right in (("**", "**"), ("__", "__"), ("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
            inner = text[len(left) : -len(right)]
            if text.startswith(left) and text.endswith(right) and len(text) > len(left + right) and left not in inner:
                text = inner.strip()
        if (
            text.startswith((r"\boxed{", r"\fbox{"))
            and text.endswith("}")
            and matching(text, text.index("{")) == len(text) - 1
        ):
            text = text[text.index("{") + 1 : -1]
        text = re.sub(r"(?<!\\)[.,;。，；]$", "", text) if not text.endswith("...") else text
        if text == before:
            break
    return text


def matching(text: str, opening: int) -> int | None:
    """Index of the brace that closes the one at `opening`, or None."""
    depth = 0
    for match in re.finditer(r"\\.|[{}]", text[opening:], re.S):
        depth += {"{": 1, "}": -1}.get(match.group(), 0)
        if depth == 0:
            return opening + match.start()
    return None


def _words(text: str) -> tuple[str, ...] | None:
    """The words of a text answer ("Alice", "3:30 PM", "Tuesday 4 May"), or None for a formula."""
    plain = WRAPPED.sub(lambda match: " " + match.group(1) + " ", text)
    letters = re.findall(r"(?<![A-Za-z\\])[^\W\d_]{2,}", re.sub(r"\\[A-Za-z]+", " ", plain))
    formula = FUNCTIONS.keys() | {"and", "or", "pi", "sqrt", "abs", "pmatrix", "bmatrix", "matrix", "cm"}
    real = [
        word
        for word in letters
        if word.lower() not in formula and (len(word) > 2 or not re.fullmatch(r"[a-z]{2}", word) or word in SHORT_WORDS)
    ]
    if not real or re.search(
        r"\\(?:frac|sqrt|begin|sum|int|lim|binom|le|ge|in|cup|mathbb|angle|overline|triangle)|[=<>^]", plain
    ):
        return None
    if "\\" in WRAPPED.sub("", text).replace("\\ ", ""):
        return None
    tokens = re.findall(r"\d+(?:[.,]\d+)*|[^\W\d_]+|[-+*/^%]", plain.casefold().replace("'", ""))
    kept = tuple(token for token in tokens if token not in ARTICLES and token != "-")
    return kept or None


def as_tree(text: str, thousands: bool = True) -> Node | None:
    """The tree of a formula, or None if `rewards.expression` cannot read the text."""
    try:
        return read(text.strip(), thousands)
    except Unreadable:
        return None
