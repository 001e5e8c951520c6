"""Language consistency: the share of target-language words in the reasoning (DeepSeek-R1, Methods, Eq. 7).

A word is a Chinese or Japanese character, or a run of letters of any other script. Formulas, code, URLs, tags, digits,
single-letter variables and function names do not count: "因为 x=2，所以 f(x)=sin x" is pure Chinese.
"""

import re
import unicodedata
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from rewards.completion import parse, prompt_text, texts_of, without_invisible

# Each script with the languages written in it. If there are several, py3langid decides for each sentence.
SCRIPTS = {
    "han": (r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f", ("zh", "ja")),
    "kana": (r"\u3040-\u30fa\u30fc-\u30ff", ("ja",)),
    "hangul": (r"\u1100-\u11ff\u3130-\u318f\uac00-\ud7af", ("ko",)),
    "latin": (
        r"A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff\u0300-\u036f",
        ("en", "es", "fr", "de", "pt", "it", "nl", "pl", "tr", "vi", "id", "sv", "cs", "ro"),
    ),
    "cyrillic": (r"\u0400-\u052f", ("ru", "uk", "bg", "sr")),
    "arabic": (r"\u0620-\u065f\u066e-\u06d3\u06fa-\u06ff\u0750-\u077f", ("ar", "fa", "ur")),
    "devanagari": (r"\u0900-\u0963\u0970-\u097f", ("hi", "mr", "ne")),
    "greek": (r"\u0370-\u03ff\u1f00-\u1fff", ("el",)),
    "hebrew": (r"\u0590-\u05ff", ("he",)),
    "thai": (r"\u0e00-\u0e4f", ("th",)),
    "bengali": (r"\u0980-\u09e5\u09f0-\u09ff", ("bn",)),
    "tamil": (r"\u0b80-\u0be5\u0bf0-\u0bff", ("ta",)),
    "other": (r"^\W\d_", ()),  # words of unknown languages, which are never in the target language
}
LANGUAGES = tuple(dict.fromkeys(language for _, languages in SCRIPTS.values() for language in languages))

FENCE = re.compile(r"(?:```|~~~)[^\n`]{0,40}(?:\n|\Z)(.*?)(?:```|~~~|\Z)", re.S)
CODE = re.compile(r"[][(){}=<>;_#\"'\\]|^\s*[\w.]+\s*$|:\s*$")  # in a line of code instead of a sentence
NO_WORDS = re.compile(
    r"`[^`\n]{0,400}`"  # code
    r"|\$\$.{0,2000}?\$\$|\$(?!\s)[^$\n]{1,400}?(?<!\s)\$(?!\d)|\\\[.{0,2000}?\\\]|\\\(.{0,400}?\\\)"  # formulas
    r"|\\begin\{(\w{1,20}\*?)\}.{0,2000}?\\end\{\1\}|\\[A-Za-z]+"
    r"|(?:https?://|www\.)[^\s\u3000-\u9fff\uff00-\uffef]+|(?<![\w.+-])[\w.+-]+@[\w-]+\.[\w.]+"
    r"|</?[A-Za-z][^<>\n]{0,80}>",
    re.S,
)
# A run of letters that touches a digit, an underscore or an opening bracket (x1, max_len, f(x), print(...)) is a name.
TOKEN = re.compile(
    f"(?P<han>[{SCRIPTS['han'][0]}])|(?P<kana>[{SCRIPTS['kana'][0]}])|"
    + "|".join(
        rf"(?P<{script}>[{letters}]+(?:['\u2019-][{letters}]+)*)"
        for script, (letters, _) in SCRIPTS.items()
        if script not in ("han", "kana")
    )
)
LATIN = re.compile(rf"[{SCRIPTS['latin'][0]}]+(?:['\u2019-][{SCRIPTS['latin'][0]}]+)*")
NOT_LATIN = re.compile(rf"[^\W\d_{SCRIPTS['latin'][0]}]")
# Also names: the points of a figure (AB, ABCD), and letters next to an equals sign or a power (E = mc^2).
NAME = re.compile(
    r"(?<![A-Za-z0-9_.])(?:[A-Za-z]*[0-9_]\w*|[A-Za-z_][\w.]*\()"
    r"|(?<![A-Za-z])(?:[A-Z]{2,4}(?![A-Za-z])|[A-Za-z]{1,4}(?=[=^])|(?<=[=^])[A-Za-z]{1,4}(?![A-Za-z]))",
    re.A,
)
LETTERS = re.compile(r"[A-Za-z]{2,}")
SENTENCE = re.compile(r"[.!?;:\n\u3002\uff01\uff1f\uff1b\uff1a\u0964\u061f]+")
_MATH_NAMES = (
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp sqrt lim mod max min gcd lcm det dim ker"
    " deg arg sup inf sgn abs rad cm mm km kg mg ml hz"
)
MATH_NAMES = frozenset(_MATH_NAMES.split())
_ENGLISH = (
    "the of and to in is that it for as with was are be this by on at from or have an they which one were all we when"
    " there can has more if no out so what up about into them then these some would other than its now first two three"
    " find add multiply answer number equals therefore because since let us need get gives each how many after before"
    " next total sum product minus plus times divide subtract must should will not but also only our where think"
)
ENGLISH = frozenset(_ENGLISH.split())
# A sentence is read in windows, so a change of language within it is found. Another language has to beat the target by
# this log-probability. A test checks that pure text of 3 to 15 words in six languages loses nothing.
WINDOW, SHORT = 8, 3
MARGIN, SHORT_MARGIN = 4.0, 8.0
MAX_BYTES = 400  # of a window; longer ones are not natural language


@lru_cache(maxsize=8_192)
def language_consistency(text: str, language: str) -> float:
    """Share of the words of a text that are in `language` (an id such as "en" or "zh"); 1.0 if it has no words.

    Raises:
        ValueError: The language id is not in `LANGUAGES`.
    """
    target, words = count_words(text, language)
    return target / words if words else 1.0


def count_words(text: str, language: str) -> tuple[int, int]:
    """(words in `language`, all words) of a text."""
    if language not in LANGUAGES:
        raise ValueError(f"language {language!r} is not known; write one of {', '.join(LANGUAGES)}")
    target = total = 0
    windows: dict[tuple[str, ...], list[list[str]]] = {}
    short: dict[tuple[str, ...], list[str]] = {}  # short sentences are read together
    for sentence in SENTENCE.split(_plain(text)):
        words = _words(sentence)
        total += sum(map(len, words.values()))
        for script, found in words.items():
            languages = ("ja",) if script == "han" and "kana" in words else SCRIPTS[script][1]
            if language in languages:
                if script == "han" or len(languages) == 1:
                    target += len(found)
                elif len(found) < SHORT:
                    short.setdefault(languages, []).extend(found)
                else:
                    windows.setdefault(languages, []).extend(_windows(found))
    for languages, found in short.items():
        windows.setdefault(languages, []).extend(_windows(found))
    return target + sum(_written_in(found, language, languages) for languages, found in windows.items()), total


def _plain(text: str) -> str:
    """The text without non-words. Full-width and ornamental letters are converted to plain ones."""
    if not text.isascii():
        text = without_invisible(unicodedata.normalize("NFKC", text))
    text = NO_WORDS.sub(_foreign, FENCE.sub(_prose, text))
    return NAME.sub(lambda name: " ".join(parts) if len(parts := LETTERS.findall(name[0])) > 3 else " ", text)


def _prose(fence: re.Match) -> str:
    """The lines of a fence that are sentences, and the non-Latin letters of its code lines."""
    return "\n".join(_foreign(line) if CODE.search(line) else line for line in fence[1].split("\n"))


def _foreign(found: re.Match | str) -> str:
    """The letters of other scripts in a formula or code, which are words there."""
    text = found if isinstance(found, str) else found[0]
    if text[0] == "`" and text.count(" ") > 2 and not CODE.search(text[1:-1]):
        return text[1:-1]  # a sentence formatted as code
    return " " if text.isascii() or "://" in text or "@" in text else "".join(NOT_LATIN.findall(text)) or " "


def _words(sentence: str) -> dict[str, list[str]]:
    """The words of a sentence by script."""
    if not NOT_LATIN.search(sentence):
        found = {"latin": LATIN.findall(sentence)}
    else:
        found = {}
        for match in TOKEN.finditer(sentence):
            found.setdefault(match.lastgroup or "", []).append(match.group())
    found = {
        script: words
        if script in ("han", "kana")
        else [word for word in words if len(word) > 1 and word.lower() not in MATH_NAMES]
        for script, words in found.items()
    }
    return {script: words for script, words in found.items() if words}


def _windows(words: list[str]) -> list[list[str]]:
    """The words of one sentence and script in runs of `WINDOW`. A short remainder is added to the last run."""
    lowered = [word.lower() for word in words]
    starts = range(0, max(1, len(words) - SHORT), WINDOW)
    return [lowered[start : start + WINDOW if start != starts[-1] else None] for start in starts]


def _written_in(windows: list[list[str]], language: str, languages: tuple[str, ...]) -> int:
    """Number of words in windows of `language`, excluding windows in another language of the script."""
    unclear = [
        window
        for window in windows
        if len(window) >= SHORT
        and not (language == "en" and sum(map(ENGLISH.__contains__, window)) >= 0.45 * len(window))
    ]
    others = sum(
        len(window)
        for window, behind in zip(unclear, _behind(list(map(" ".join, unclear)), language, languages), strict=True)
        if behind >= (MARGIN if len(window) >= WINDOW else SHORT_MARGIN)
    )
    return sum(map(len, windows)) - others


def _behind(texts: list[str], language: str, languages: tuple[str, ...]) -> list[float]:
    """The log-probability by which the likeliest other language beats `language`, for each of the texts."""
    if not texts:
        return []
    import numpy

    names, weights, start, moves, rows, output = _tables(languages)
    encoded = [text.encode("utf-8", "surrogatepass")[:MAX_BYTES] for text in texts]
    width = max(map(len, encoded))
    letters = numpy.frombuffer(b"".join(one.ljust(width, b"\0") for one in encoded), numpy.uint8)
    letters = letters.reshape(len(texts), width)
    # py3langid's automaton reads all texts in parallel. It finds features[i, j] at byte j of text i, or -1.
    features = numpy.empty(letters.shape, numpy.int64)
    state = numpy.zeros(len(texts), numpy.int64)
    for place in range(width):
        state = moves[rows[state] + letters[:, place]]
        features[:, place] = output[state]
    found = (features >= 0) & (numpy.arange(width) < numpy.array([[len(one)] for one in encoded]))
    keys, counts = numpy.unique(
        (features + numpy.arange(len(texts))[:, None] * len(weights))[found], return_counts=True
    )
    scores = numpy.tile(start, (len(texts), 1))
    if len(keys):
        weighted = numpy.log1p(counts, dtype=numpy.float32)[:, None] * weights[keys % len(weights)]
        present, first = numpy.unique(keys // len(weights), return_index=True)
        scores[present] += numpy.add.reduceat(weighted, first)
    own = numpy.array(names) == language
    return (scores[:, ~own].max(axis=1) - scores[:, own].max(axis=1)).tolist()


@cache
def _tables(languages: tuple[str, ...]) -> tuple:
    """(classes, weights, prior, and the automaton's tables) of py3langid's model for some languages."""
    import numpy

    model = _identifier(languages)
    automaton = (numpy.asarray(table, numpy.int64) for table in (model.tk_nextmove, model._rowbase, model.tk_output))
    return model.nb_classes, numpy.asarray(model.nb_ptc, numpy.float32), model.nb_pc, *automaton


@cache
def _identifier(languages: tuple[str, ...]) -> Any:
    from py3langid.langid import _load_identifier  # takes 0.2 s; needed only if the script does not decide

    identifier = _load_identifier()
    identifier.set_languages(list(languages))
    return identifier


@lru_cache(maxsize=16_384)
def detect_language(text: str) -> str:
    """The language of a question, from its script or else from py3langid. It is English if there are no words."""
    words = _words(_plain(text))
    words.pop("other", None)
    if not words:
        return "en"
    if "kana" in words and "han" in words:
        words["kana"] += words.pop("han")
    script = max(words, key=lambda script: len(words[script]))
    languages = SCRIPTS[script][1]
    if script == "han" or len(languages) == 1:
        return languages[0]
    lowered = [word.lower() for word in words[script]]
    if script == "latin" and sum(word in ENGLISH for word in lowered) >= 0.3 * len(lowered):
        return "en"
    scores = dict(_identifier(languages).rank(" ".join(lowered)))
    best = max(scores, key=lambda language: scores[language])
    return best if len(lowered) >= SHORT or script != "latin" else "en"


@dataclass(frozen=True)
class LanguageConsistencyReward:
    """Returns Num(words in the target language) / Num(words) of the reasoning (Eq. 7). Reasoning without words, such as
    "3 * 4 = 12", gets 1.0, and empty reasoning gets 0.0.

    The target is the column `language`, else the language of the column `question`, else that of the prompt. If a row
    has no reasoning (`thinking` False), the whole text is read.

    Metrics: `language/no_words`, the share of completions whose reasoning has no word; `language/summary`, the mean
    consistency of the summaries that have words.
    """

    __name__ = "language_consistency_reward"

    def __call__(
        self,
        completions: list,
        prompts: list | None = None,
        language: list | None = None,
        question: list | None = None,
        log_metric: Any = None,
        **columns: Any,
    ) -> list[float]:
        rewards, without, summaries = [], 0, []
        for row, completion in enumerate(texts_of(completions, prompts)):
            target = language[row] if language else None
            if not target:
                target = detect_language(question[row] if question else prompt_text(prompts[row] if prompts else ""))
            parts = parse(completion)
            right, words = count_words(parts.summary if parts.reasoning is None else parts.reasoning, target)
            rewards.append(right / words if words else float(parts.reasoning != ""))
            without += not words
            right, words = count_words(parts.summary, target)
            if words:
                summaries.append(right / words)
        if log_metric is not None and completions:
            log_metric("language/no_words", without / len(completions))
            if summaries:
                log_metric("language/summary", sum(summaries) / len(summaries))
        return rewards


language_consistency_reward = LanguageConsistencyReward()
