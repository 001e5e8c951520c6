"""Units of measure and counted things: "5 km" is a number and a unit, "5 m" may be a number and a variable."""

import re
from fractions import Fraction
from functools import lru_cache

WRAPPED = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname|ce)\s*\{([^{}]*)\}")
_LENGTH, _AREA, _VOLUME, _MASS, _TIME, _MONEY = "length", "area", "volume", "mass", "time", "money"
UNITS: dict[str, tuple[str, Fraction]] = {
    name: (dimension, Fraction(factor))
    for dimension, table in {
        _LENGTH: "nm 0.000000001|µm μm micrometer 0.000001"
        "|mm millimeter millimetre 0.001|cm centimeter centimetre 厘米 0.01|dm 0.1|m meter metre 米 1"
        "|km kilometer kilometre 千米 1000"
        "|in inch inches 0.0254|ft foot feet 0.3048|yd yard 0.9144|mi mile 1609.344",
        _MASS: "mg 0.001|g gram 克 1|kg kilogram 千克 1000|t ton tonne 1000000|lb pound 453.59237|oz ounce 28.35",
        _TIME: "ms 0.001|s sec second 秒 1|min minute 分钟 60|h hr hour 小时 3600|day 天 86400|week 604800",
        _MONEY: "dollar usd 1|cent 0.01",
        _VOLUME: "ml milliliter millilitre 0.000001|l liter litre 0.001",
        "yuan": "yuan rmb cny 元 1",
        "euro": "euro eur 1",
        "angle": "degree deg 度 1",
        "temperature": "°c celsius 1",
        "fahrenheit": "°f fahrenheit 1",
        "energy": "j joule 1|kj 1000",
        "force": "n newton 1",
        "power": "w watt 1|kw 1000",
        "pressure": "pa pascal 1|kpa 1000|atm 101325",
        "voltage": "v volt 1",
        "current": "a amp ampere 1|ma 0.001",
        "resistance": "ω ohm 1",
        "frequency": "hz hertz 1|khz 1000|mhz 1000000",
        "amount": "mol mole 1",
        "charge": "coulomb 1",
        "kelvin": "kelvin 1",
        "counted": "人 个 只 本 支 条 颗 棵 辆 张 1|point points 1",
    }.items()
    for entry in table.split("|")
    for *names, factor in [entry.split()]
    for name in names
}
POWERS = {(_LENGTH, 2): (_AREA, 1), (_LENGTH, 3): (_VOLUME, 1)}
CURRENCIES = {"$": "dollar", "€": "euro", "£": "sterling", "¥": "yuan"}
LETTER_UNITS = frozenset("mgslhtJNWLVA")
# Counted things are units too: any plural except those that are numbers or operations.
_IRREGULAR = "people children men women feet teeth mice geese sheep fish deer cattle police"
IRREGULAR = frozenset(_IRREGULAR.split())
_NOT_COUNTED = (
    "halves thirds quarters tens dozens scores hundreds thousands millions billions trillions pairs couples twos threes"
    " plus minus times less cos is as this us percents percentages bases squares cubes roots powers"
)
NOT_COUNTED = frozenset(_NOT_COUNTED.split())
# COUNTERS are Chinese measure words. A character of SHARES after one changes the number.
COUNTERS = "个人只本支条颗棵辆张名位岁天次件箱袋瓶页元块角套双班朵头台部艘根枚盒包杯碗层排组题道座户"
SHARES = "的倍半多以左分之"
_FILLERS = "of the per a each square sq cubic total left more in all old 平方 立方"
FILLERS = frozenset(_FILLERS.split())
UNIT_WORD = r"(?:[A-Za-zµμΩ\u4e00-\u9fff]+\.?(?:\^?\{?-?[1-9]\}?)?)"
UNIT = re.compile(
    rf"^(?P<number>.*?[\d.}})!]|.*\\pi)\s*"
    rf"(?P<unit>{UNIT_WORD}(?:\s*(?:/|\*|\bper\b|\s)\s*{UNIT_WORD})*|\^\\circ ?[CF]?)\s*$"
)
COMPOUND = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)(?:,? (?:and )?|$)")


def split_unit(text: str, letter_units: bool) -> tuple[str, tuple[Fraction, tuple] | None]:
    """Split "5 km" into ("5", (1000, (("length", 1),))); without a unit, return (text, None).

    A single letter is a unit only in `\\text{}` or with `letter_units`. Otherwise it is a variable.
    """
    if match := re.match(r"^(-?)\s*(?:US\s*(?:\\?\$)?|\\\$|([$€£¥]))\s*(?=[\d.])", text):
        return match[1] + text[match.end() :], parse_unit(CURRENCIES[match[2] or "$"])
    plain = WRAPPED.sub(lambda match: " " + match.group(1) + " ", text)
    plain = re.sub(r"(?<=\d)\s+\(([A-Za-z ]+)\)$", r" \1", re.sub(r"\s+(?=\^)", "", re.sub(r"\s+", " ", plain)).strip())
    parts = [(Fraction(number), parse_unit(name)) for number, name in COMPOUND.findall(plain)]
    known = all(name.lower().removesuffix("s") in UNITS for _, name in COMPOUND.findall(plain))
    if len(parts) > 1 and known and not COMPOUND.sub("", plain) and len({unit[1] for _, unit in parts}) == 1:
        value = sum(number * unit[0] for number, unit in parts)  # 1 hour 30 minutes
        return str(value), (Fraction(1), parts[0][1][1])
    match = UNIT.match(plain)
    if not match or not re.search(r"\d|\\pi", match["number"]):
        return text, None
    unit = match["unit"].strip()
    if unit.startswith("^"):
        return match["number"], parse_unit({"": "degree", "C": "°c", "F": "°f"}[unit.replace(r"^\circ", "").strip()])
    names = re.findall(r"[^\W\d_]+", unit)
    wrapped = any(match.end() >= len(text) - 4 for match in WRAPPED.finditer(text))
    certain = wrapped or "/" in unit or "*" in unit or any(len(name) > 1 or not name.isascii() for name in names)
    if len(names) > 5 or not all(map(_is_unit, names)) or not (certain or letter_units):
        return text, None
    if not certain and not LETTER_UNITS.issuperset(names):
        return text, None
    return match["number"].strip(), parse_unit(unit)


def _is_unit(name: str) -> bool:
    """Whether a word after a number is a unit: one of `UNITS`, or the plural of a counted thing."""
    if name in LETTER_UNITS or name in FILLERS or name in ("mph", "kph", "kmph"):
        return True
    name = name.lower()
    if len(name) > 1 and (name in UNITS or name.removesuffix("s") in UNITS or name in IRREGULAR):
        return True
    counted = rf"[a-z]{{3,}}(?<!th)(?<!s)s|[{COUNTERS}](?![{SHARES}])\w{{0,4}}"
    return name not in NOT_COUNTED and bool(re.fullmatch(counted, name))


@lru_cache(maxsize=4096)
def parse_unit(text: str) -> tuple[Fraction, tuple] | None:
    """(factor to the base unit, ((dimension, power), ...)) of "km/h", "cm^2", "square meters", "apples"."""
    factor, dimensions, sign, next_power = Fraction(1), {}, 1, 1
    text = re.sub(r"\b(?:mph|kph|kmph)\b", lambda name: "mile/hour" if name.group() == "mph" else "km/hour", text)
    for token in re.findall(r"/|\bper\b|°?[^\W\d_]+\.?(?:\^?\{?-?[1-9]\}?)?", text):
        if token in ("/", "per"):
            sign = -1
            continue
        name, power = re.match(r"(°?[^\W\d_]+)\.?\^?\{?(-?[1-9])?", token).groups()
        name = name if name == "L" else name.lower()
        if name in ("square", "sq", "cubic", "平方", "立方"):
            next_power = 3 if name in ("cubic", "立方") else 2
            continue
        if name in ("of", "the"):
            continue
        known = UNITS.get(name.lower()) or UNITS.get(name.lower().removesuffix("s"))
        dimension, scale = known or (name.lower().removesuffix("s"), Fraction(1))
        exponent = int(power or 1) * next_power * sign
        next_power = 1
        dimensions[dimension] = dimensions.get(dimension, 0) + exponent
        factor *= scale**exponent
    if not dimensions:
        return None
    for (dimension, power), (name, one) in POWERS.items():
        if dimensions.get(dimension) == power:
            dimensions[name] = dimensions.get(name, 0) + one
            del dimensions[dimension]
    return factor, tuple(sorted((name, power) for name, power in dimensions.items() if power))
