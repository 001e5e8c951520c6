"""Finds the answer that a text states: a value, a text, or the letters of a multiple-choice answer.

A box, `####` or words ("The answer is 14.", "答案是14。") state an answer. It follows the words on the same line, the
next line or in the next display, and ends where its explanation begins. If no answer is stated, it is the last bold
text, the whole text or its last line, or else the last formula or number. A number in a sentence is read with its
words: "negative 4" is -4, while "at least 4", "half of 4" and "4 hundred" are not 4.
"""

import itertools
import re
import unicodedata

from rewards.answers import matching, prepare, strip_markup
from rewards.completion import without_invisible

BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*")
PLACEHOLDER = re.compile(r"[\s.…_?]*|\\[lc]?dots|(?:\\text\{)?(?:your |the |final )*answer\}?", re.I)
# Every statement contains one of these. Searching for them first is ten times as fast as matching STATEMENT everywhere.
OPENING = (
    "answer", "antwort", "####", "答", "结果", "정답", "ответ",
    "respuesta", "risposta", "resposta", "réponse", "reponse",
)  # fmt: skip
STATEMENT = re.compile(
    r"(?:(?<!\bother )(?<!\bwrong )(?<!\banother )(?<!\bincorrect )\banswers?\b"
    r"(?:\s+(?:to|of|for)\s+[^.:=\n]{1,80}?)?\**\s*(?:\bis\b|\bare\b|\bwould be\b|\bshould be\b|[:：=])"
    r"|\b(?:respuesta|risposta|resposta|réponse|reponse)\b[^.:\n]{0,20}?\s*(?:\bes\b|\bè\b|\bé\b|\best\b|:)"
    r"|\bantwort\b[^.:\n]{0,20}?\s*(?:\bist\b|\blautet\b|:)|\bответ\b\s*[:—-]|(?<!#)####(?!#)"
    r"|(?:答案|结果|答え|정답)(?:\s*(?:应该|应当)?\s*(?:是|为|等于|は|은|[:：=]))|(?<![\u4e00-\u9fff])答\s*[:：])"
    r"[*_\s]*[:：]?\s*",
    re.I,
)
# Where a statement ends: a full stop before white space or the end, a Chinese full stop, or a clause that explains it.
END = re.compile(
    r"[。！；]|(?<!\d)(?<!\bMrs)(?<!\bMr)(?<!\bMs)(?<!\bDr)(?<!\bSt)\.(?=\s|$)|(?<=\d)\.(?=\s+\D|\s*$)"
    r"|[,;，]?\s+(?:because|since|as|which|so that|where|by|due to|with|in total|or equivalently|i\.e\.|that is)\s"
    r"|，因为"
    r"|(?<=[\d)}$])[,;，]?\s+\(?(?:(?:and|but)\s+)?(?:not|no|pas|nicht|non)\s"
)
# A display or a fence is read as a formula in the line before it.
DISPLAY = re.compile(
    r"\s{0,40}(?:\\\[|\$\$|\\begin\{(?:equation|align|aligned|gather|gathered|displaymath|math|center)\*?\}"
    r"|(?m:^[ \t]*(?:```|~~~)\w*$))[\s&]{0,40}(?P<inside>[^`~]{1,400}?)\s{0,40}"
    r"(?:\\\]|\$\$|\\end\{(?:equation|align|aligned|gather|gathered|displaymath|math|center)\*?\}"
    r"|(?m:^[ \t]*(?:```|~~~)))"
)
FORMULA = re.compile(
    r"\$\$(.+?)\$\$|(?<![\\\d])\$([^$\n]{1,400}?)\$(?!\d)|\\\[(.{1,2000}?)\\\]|\\\((.{1,400}?)\\\)", re.S
)
BOLD = re.compile(r"\*\*([^*\n]{1,400})\*\*")
# A number with its sign, its fraction, its percent sign and the calculation that leads to it.
ARITHMETIC = re.compile(
    r"[-+]?(?<![A-Za-z_\d.])(?:\d[\d,.\s]*(?:[-+*/^=×÷·()−%!]|\b(?:or|and)\b)?[\s(]*)*(?:\d[\d,]*(?:\.\d+)?|\.\d+)\s*%?"
)
DASH = re.compile(r"(?<![\w.)\]}])[−–—‐‑‒﹣－⁻](?=\s?[\d.$€£¥\\])")
PROSE = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{3,}")
MINUS = re.compile(r"(?:\b(?:negative|minus)|负|(?<![\w.)\]}])-)\s*(?:US)?\\?[$€£¥]?\s*$", re.I)
# Words that change or deny a number: "not 14", "at least 14", "half of 14", "14 is wrong", "14 hundred".
_NEGATION = (
    r"(?:(?:\bnot|n't|n\u2019t|\bnever|\bcannot)(?: (?:be|equal|equal to|simply|just|really|exactly))?"
    r"|\bat (?:least|most)|\b(?:greater|less|more|fewer|larger|smaller|other|rather|bigger|higher|lower) than"
    r"|\bbetween|\bexcept(?: for)?|\b(?:any|every)(?:thing|one|body) but|\ball but|\binstead of|\bunlike|\bneither"
    r"|\bnor|\bexclud\w{1,3}|\beliminat\w{1,3}|\brul\w{1,3} out|\breject\w{0,3}|\b(?:wrong|incorrect|false) \w+ is"
    r"|(?:n't|\bnot) (?:think|believe)\b[^.]{0,40}|\bno longer|\belse than"
    r"|(?:不是|不为|不等于|不可能是|不应该是|并非|至少|至多|最少|最多|大于|小于|超过|不少于|不多于|不超过|低于|高于|除了)"
    r"(?:是|为|等于|有)?)"
)
NEGATED = re.compile(
    rf"(?:{_NEGATION}|\b(?:over|under|above|below|beyond|past|within|nearly|almost|up to|down to|exceeds?|mod(?:ulo)?)"
    r"|\b(?:half|double|twice|thrice|triple)|\b(?:half|third|quarter|square|cube|root|power|factorial|reciprocal|inverse"
    r"|multiple|sum|product|logarithm|opposite|negation|sine|cosine|tangent)s? (?:root )?of(?: the)?"
    r"|\bno|\btimes|\bplus|\bchoose|\bbase|[≠<>≤≥~≈√^_][{]?|\\(?:ne|neq|le|leq|ge|geq|lt|gt|approx|sim)\b)[\s$(]*$",
    re.I,
)
CHANGED = re.compile(
    r"[\s*$]*(?:(?:is|was|would be)(?: not\b|n't\b| (?:\w+ )?(?:wrong|incorrect|false)\b)|是错|不对|不是答案"
    r"|(?:or|and) (?:more|less|fewer|above|below|over|under|higher|lower|up|so)\b|,? ?at (?:most|least)\b|\+(?!\s*\d)"
    r"|(?:less|more|fewer|greater) than\b|(?:degrees? )?below\b|\((?:wrong|incorrect|base)\b"
    r"|in (?:hex|binary|octal)\b|‰"
    r"|(?:倍|的|分之|以上|以下|左右|成|折|百|千|万|亿|不对|是错|或|和|至)"
    r"|(?:choose|times|plus|minus|over|mod|modulo)\b"
    r"|(?:hundred|dozen|score|gross|pair|half|third|quarter|[a-z]{3,8}th)s?\b|(?:halves|squared|cubed|factorial)\b"
    r"|per (?:thousand|cent|mille)\b|(?:st|nd|rd|th)\b|[_^!])",
    re.I,
)
# A formula that is a name instead of a value: n, f(x), \\overline{CD}.
NAMED = re.compile(r"(?:\\(?!pi|sqrt|frac|infty|emptyset|text)[A-Za-z]+|[A-Za-z_{}()\s',|])+")
LEAD = re.compile(r"^(?:(?:so|thus|hence|therefore|then|and|finally|即|所以|因此|故)[,，:：\s]*)+", re.I)
# JOINED separates the parts of an answer; OFFER introduces an alternative.
JOINED = re.compile(r"\b(?:and|or)\b|[,，;、和或与及]", re.I)
OFFER = re.compile(r"\b(?:or|and|to)\b|[或和与]|至", re.I)
VERB = re.compile(r"\b(?:is|are|was|were|equals|becomes|gives|simplifies to)\s|=|[:：]\s|(?:是|为|等于|得到?)\s*", re.I)
FOREIGN = re.compile("[\u0400-\u04ff\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]")
# DOUBT before a statement, or CORRECTED after it, retracts it.
DOUBT = re.compile(
    r"(?:\b(?:not|never|false|wrong|doubt|unlikely|if|cannot)\b|n't|n\u2019t|不认为|并非|如果|假如)[^.。\n]*$", re.I
)
CORRECTED = re.compile(
    r"\b(?:wait|actually|hmm+|oops|sorry|correction|instead|should be)\b|^\W*(?:no|or(?! equivalently))\b"
    r"|不对|不[，,]|错了|应该是|应为",
    re.I,
)
REMARK = re.compile(
    r"(?<=[\d}])\s*\((?!\s*(?:or|wrong|incorrect|base)\b|not really)(?=[^()]*[A-Za-z]{3}|[^()]*\d\s*[×*+])[^()]*\)\s*$"
)
LABEL = re.compile(r"^(?:\\text\{)?\s*[A-Za-z][A-Za-z ]{0,30}[:：]\s*\}?\s*(?=[-+.\d$\\(]|[a-z][-+*/^\d(])(?!.*[=:])")
MARK = re.compile(r"^\s*(?:[>#]+|[-*+](?=\s)|\d+[.)](?=\s+\S))\s*")
AND = re.compile(r"\s*(?:,|，|;|\band\b|\bor\b|和|或|、)+\s*(?:\band\b|\bor\b)?\s*")
LETTERS = "A-J"
OPTION_IS = re.compile(
    r"(?:(?:correct|right|best|final)\s+(?:option|choice)|选项|选择)\s*(?:\bis\b|\bare\b|是|为|应为|[:：])\s*"
    r"([^\n]{1,200})",
    re.I,
)
# A letter that a sentence rules out.
NO_LETTER = re.compile(r"\(?\b(?:rather than|instead of|not|unlike)\s+\(?[A-J]\b\)?", re.I)
DENIED = re.compile(
    r"\W*(?:is|are|was)?\s*(?:not\b|n't|(?:\w+ )?(?:wrong|incorrect|false)\b|do(?:es)?(?:n't| not)|错|不对)", re.I
)
CHOICE = re.compile(
    rf"(?<![A-Za-z])\(?(?P<letter>[{LETTERS}])(?:\)|(?=[.:、，,;\]}}]|\s*$|\s+[-–—]\s|\s+\d"
    r"|\s*(?:,|/|&|and|or|和|或|与|及)(?![A-Za-z])|\s+(?:is|are|may be|could be)\s(?:also |the )*"
    r"(?:right|correct|possible|true|answer)|\s*(?:选项)?(?:正确|です|입니다)))"
)


def statements(answer: str, is_text: bool = False) -> list[str]:
    r"""The distinct answers that a text states; [] if its last box never closes.

    Several boxes are the parts of one answer, as in math-verify; placeholder boxes do not count. Unless the gold answer
    `is_text`, a statement in prose ("the answer is the largest n, 34") is reduced to its value. A statement without a
    value is ignored if there is another one.
    """
    answer = flat(answer)
    boxes: list[str] = []
    at = 0
    while match := BOX.search(answer, at):
        at = match.end()
        if answer[at : at + 1] == "{":
            end = matching(answer, at)
            if end is None:
                return []
            content, at = answer[at + 1 : end].strip(), end + 1
        else:
            content = re.match(r"\S?[^\s$.,;。，]*", answer[at:]).group()
            at += len(content)
        boxes.append(_in_place(content, answer[: match.start()], answer[at:]))
    boxes = [box for box in boxes if not PLACEHOLDER.fullmatch(box)] or boxes
    found = [", ".join(dict.fromkeys(boxes))] if boxes else []
    heads, void = statement_heads(answer), False
    for head, following in itertools.zip_longest(heads, heads[1:]):
        if DOUBT.search(answer[: head.start()].rsplit("\n", 1)[-1][-60:]):
            void = True
            continue
        lines = answer[head.end() : following.start() if following else None].split("\n")[:6]
        value = next((line for line in lines if re.search(r"[\w\\]", line)), "")
        if box := BOX.search(value):
            value = re.sub(r"[\s$,.:;(*]+(?:\b(?:or|and))?[\s$(]*$", "", value[: box.start()])
            if not re.search(r"\d", value) or value.endswith("=") or _reading(value.strip("$ ")) is None:
                continue
        below = value is not lines[0] or "\n" in head.group()
        value = MARK.sub("", value) if below else value
        value = value if value.count("**") % 2 == 0 else value.replace("**", "")
        if not value:
            continue
        sentence = _sentence(value)
        if is_text:
            found.append(sentence)
            continue
        if _reading(sentence) is None:
            is_heading = head.group().lstrip().startswith("#")
            if is_heading or (found and re.search(r"[^\W\d_]{3}", re.split(r"[\d\\$]", sentence)[0])):
                continue  # a heading, or talk about the answer beside one that is given
        found.append(_said(sentence) or sentence)
        rest = value[len(sentence) :]
        others = [_said(_sentence(rest[again.end() :])) for again in CORRECTED.finditer(rest[:200])]
        found += filter(None, others)
    if void and not found:
        return ["?"]
    found = [strip_markup(one) for one in found]
    found = list(dict.fromkeys(one if is_text else strip_markup(LABEL.sub("", one)) for one in found))
    if len(found) > 1 and not is_text:
        found = [one for one in found if re.search(r"[\d\\]|^\W*[A-Za-z]\W*$", one)] or found
    return found


def _in_place(content: str, before: str, after: str) -> str:
    """The content of a box in its context. A "-" before it or a base after it is included. In a root, with a power or
    after "at least", the box has another value, and "?" is returned."""
    before, after = before.rsplit("\n", 1)[-1][-80:], after[:80]
    if base := re.match(r"_\{?\d{1,2}\}?", after):
        return content + base.group()
    if before.endswith("-") and not before.endswith(("--", " -")):
        return f"-{content}"
    about = re.search(r"(?:≈|~|\\approx|\\sim)\s*\$?$", before)
    inside = re.search(r"(?:\\sqrt(?:\[\w+\])?|\\[dt]?frac\{[^{}]*\}|\^|\d)\{?$", before)
    if inside or (NEGATED.search(before) and not about) or (CHANGED.match(after) and after.lstrip("$* ")[:1] != "!"):
        return "?"
    return "?" if re.match(r"\s*(?:\\pi|\\sqrt|[+*/]\s*\d|\d)|\$?\s*(?:[mb]illion|thousand)\b", after) else content


def statement_heads(answer: str) -> list[re.Match]:
    """Matches of the words that open a statement, in text order."""
    lowered = answer.lower()
    lowered = lowered if len(lowered) == len(answer) else answer
    places = {match.start() for word in OPENING if word in lowered for match in re.finditer(word, lowered)}
    return list(filter(None, (STATEMENT.match(answer, at) for at in sorted(places))))


def flat(text: str) -> str:
    """The text with each display moved into the line before it, and "-" for every dash that is a minus sign."""
    if any(mark in text for mark in ("\\[", "$$", "\\begin", "```", "~~~")):
        text = DISPLAY.sub(r" \\(\g<inside>\\) ", text)
    return text if text.isascii() else DASH.sub("-", text)


def _sentence(text: str) -> str:
    """The text up to the end of the statement. A delimited formula is kept whole."""
    if match := re.match(r"[*\s]*(?:\$\$?(?:\\.|[^$\\])+\$\$?|\\\(.+?\\\)|\\\[.+?\\\])", text):
        rest = END.split(text[match.end() - 1 :], maxsplit=1)[0][1:]
        return match.group() + (rest if re.match(r"\s*(?:,|and\b|or\b|和|或|\\text|[A-Za-z%°]+\s*$)", rest) else "")
    return REMARK.sub("", re.sub(r"(?<=[\d})])!+\s*$", "", END.split(text, maxsplit=1)[0]))


def _reading(text: str) -> str | None:
    """The text without its label and remark if it can be read as an answer, else None."""
    if len(text) > 300 or len(PROSE.findall(text)) > 6:  # no unit has more words
        return None
    text = LEAD.sub("", REMARK.sub("", LABEL.sub("", strip_markup(text))))
    outside = FORMULA.sub(" ", text)
    is_formula = outside != text and not JOINED.sub("", outside).strip(" ,.;*$")
    is_formula |= "\\" in text and outside == text and not PROSE.search(text) and not FOREIGN.search(text)
    answer = prepare(text)
    if is_formula and re.search(r"\w", text) or answer.tree is not None or "base" in (answer.words or ()):
        return text
    return None


def _said(text: str) -> str | None:
    """The value that a sentence gives: the sentence itself, its bold part, the part after "is", or else a number (the
    one that it begins with, or the last). None if the words around the value change it, or if there are two values."""
    if (reading := _reading(text)) is not None:
        return reading
    if bold := BOLD.findall(text):
        return _reading(bold[-1])
    masked = FORMULA.sub(lambda formula: formula.group().replace("=", " "), text)
    for verb in VERB.finditer(masked):
        if not NEGATED.search(text[: verb.end()][-80:]) and (reading := _reading(text[verb.end() :])) is not None:
            return reading
    every = list(FORMULA.finditer(text))
    inside = [match.span() for match in every]
    formulas = [match for match in every if not NAMED.fullmatch("".join(filter(None, match.groups())))]
    numbers = [
        match for match in ARITHMETIC.finditer(text) if not any(start <= match.start() < end for start, end in inside)
    ]
    found = sorted((*formulas, *numbers), key=re.Match.start)
    if not found:
        return None
    parts = [found[-1]]
    if parts[0] in formulas:  # "$2$ and $3$" is one answer of two parts
        for other in formulas[: formulas.index(parts[0])][::-1]:
            if not AND.fullmatch(text[other.end() : parts[0].start()]):
                break
            parts.insert(0, other)
    elif len(found) > 1 and not re.search(r"\w", text[: found[0].start()]):
        between = text[found[0].end() : found[1].start()]
        if OFFER.search(between) or not (PROSE.search(between) or FOREIGN.search(between)):
            return None
    before, after = text[: parts[0].start()], text[parts[-1].end() :]
    if NEGATED.search(before[-80:]) or CHANGED.match(after):
        return None
    value = ", ".join("".join(filter(None, part.groups())) or part.group().strip() for part in parts)
    return f"-{value}" if MINUS.search(before[-20:]) and value[0] not in "-+" else value


def unstated(answer: str, is_text: bool) -> str | None:
    """The answer of a text that states none. There is one reading, so a completion cannot give two answers.

    It is the first of these that can be read as an answer: the last bold text, the whole text, the last line. Else it
    is the last formula or number. If the gold answer `is_text`, any text can be read as an answer.
    """
    answer = flat(answer[-4_000:])
    bold = [text for text in BOLD.findall(answer) if not text.rstrip().endswith((":", "："))]
    last = answer.rstrip().rsplit("\n", 1)[-1]
    for text in (*bold[-1:], *([] if is_text else [answer]), last):
        if is_text and len(text) <= 300:
            return strip_markup(END.split(text, maxsplit=1)[0])
        if (reading := _reading(text)) is not None:
            return strip_markup(reading)
    end = last if len(last) <= 300 else last[-300:]
    if (value := _said(end)) is not None:
        return strip_markup(value)
    formulas = [] if ARITHMETIC.search(end) else list(FORMULA.finditer(answer))
    return "".join(filter(None, formulas[-1].groups())) if formulas else None


def chosen(answer: str) -> set[str]:
    """The letters that a multiple-choice answer gives; none if it only rules a letter out or offers two."""
    answer = flat(unicodedata.normalize("NFKC", without_invisible(answer)))[-4_000:]
    stated = statements(answer, is_text=True)
    stated += [END.split(found[1], maxsplit=1)[0] for found in OPTION_IS.finditer(answer)] if not stated else []
    if not stated:
        bold = [text for text in BOLD.findall(answer) if _letters(text)]
        last = answer.rstrip().rsplit("\n", 1)[-1]
        stated = bold[-1:] or [last if _letters(last) else answer]
    return set().union(*map(_letters, stated))


def _letters(text: str) -> set[str]:
    """The letters that one statement gives."""
    text = re.sub(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\(?:quad|[ ,;])|[*_`~'\"“”]|^\s*\$|\$\s*$", " ", text)
    text = re.sub(r"^\W*(?:option|choice|answer|选项|选择|选)\s*[:：]?", "", text.strip(), flags=re.I).strip("$ \n")
    if re.fullmatch(rf"\(?[{LETTERS.lower()}]\)?", text):
        text = text.upper()
    if re.fullmatch(rf"[{LETTERS}](?:\W*(?:and|和|与|及)?\W*[{LETTERS}])*\W*", text):
        return set(re.findall(f"[{LETTERS}]", text))
    text = re.split(r",?\s+(?:because|since)\s", re.sub(NO_LETTER, " ", text))[0]
    first = re.match(
        rf"\(?([{LETTERS}])\s*(?:[).:：]|(?=\s[(\\$])|(?=\s*(?:选项)?(?:正确|です|입니다)))(.*)", text, re.S
    )
    if first and not DENIED.match(first[2]) and not re.match(rf"\W*(?:or|and|,|和|或)?\W*[{LETTERS}]\b", first[2]):
        return {first[1]}
    if re.search(r"\\[A-Za-z]", text):
        return set()  # a formula
    found = set()
    for clause in re.split(r"[;；。]|\.\s|,\s(?=(?:so|but|and)\s)|(?<![Aa]ll )(?<!thing )(?<!any )\bbut\b", text):
        letters = [match["letter"] for match in CHOICE.finditer(clause)]
        letters += re.findall(rf"\b(?:option|choice|choose)\s+\(?([{LETTERS}])\b", clause) if not letters else []
        if len(set(letters)) > 1 and re.search(r"\bor\b|或", clause):
            return set()
        if letters and not re.search(rf"{_NEGATION}|\\neg|¬|\b(?:wrong|incorrect|false)\b|\bno\b", clause, re.I):
            found |= set(letters)
    return found
