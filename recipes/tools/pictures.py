"""The report's pictures, drawn by matplotlib: a PNG of each for the README and cards, and SVG for the page.

A picture is a list of panels, each a function that draws on an Axes. The PNG contains all panels. For the page each
panel is a separate SVG, so a narrow screen shows them one below the other. In the SVG every colour of COLOURS is a CSS
variable, so the page can have a light and a dark theme.
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import Any

COLOURS = {  # on white; the page has another set for its dark theme
    "ink": "#1d2329", "muted": "#68717c", "grid": "#dde1e6", "card": "#fefefe",
    "blue": "#2463ab", "orange": "#c76a14", "green": "#2f7f52", "purple": "#7b4da5", "red": "#b53849",
    "teal": "#16808c",
}  # fmt: skip
SERIES = ("blue", "orange", "green", "purple", "red", "teal")
FONT = ["DejaVu Sans"]  # matplotlib includes it; browsers have it or Verdana, which is as wide
STYLE = {
    "font.family": FONT, "font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "report", "axes.spines.top": False,
    "axes.spines.right": False, "axes.edgecolor": COLOURS["muted"], "axes.titlesize": 10, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.titlecolor": COLOURS["ink"], "axes.labelcolor": COLOURS["muted"],
    "xtick.color": COLOURS["muted"], "ytick.color": COLOURS["muted"], "text.color": COLOURS["ink"],
    "axes.grid": True, "grid.color": COLOURS["grid"], "grid.linewidth": 0.6, "axes.axisbelow": True,
    "legend.frameon": False, "legend.fontsize": 8, "lines.linewidth": 1.6, "figure.constrained_layout.use": True,
}  # fmt: skip

Panel = Callable[[Any], None]  # draws on a matplotlib Axes


def draw(path: Path, panels: Sequence[Panel], size: tuple[float, float] = (3.9, 2.5), columns: int = 3) -> list[str]:
    """Writes path.png with all panels, `size` inches each, and returns each panel as SVG for the page."""
    from matplotlib import rc_context  # the import takes a second, and only drawing needs it
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        columns = min(columns, len(panels))
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(size[0] * columns, size[1] * rows))
        places = figure.subplots(rows, columns, squeeze=False).flat
        for panel, axes in zip(panels, places, strict=False):
            panel(axes)
        for axes in places[len(panels) :] if len(panels) < rows * columns else ():
            axes.set_axis_off()
        figure.savefig(path.with_suffix(".png"), dpi=150)
        drawn = []
        for panel in panels:
            figure = Figure(figsize=size)
            panel(figure.subplots())
            content = io.StringIO()
            figure.savefig(content, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
            drawn.append(_for_page(content.getvalue()))
    return drawn


def _for_page(svg: str) -> str:
    """SVG for HTML: without prolog and metadata, with unique ids, and with colours as variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    svg = re.sub(r' id="[a-z][a-z0-9.]*_\d+"', "", svg)
    svg = re.sub(r'width="([\d.]+)pt" height="([\d.]+)pt"', "", svg, count=1)
    for name, colour in COLOURS.items():
        svg = re.sub(colour, f"var(--{name})", svg, flags=re.I)
    return svg


def curves(
    title: str, series: dict[str, Sequence[tuple[float, float]]], total: str = "", unit: str = "", share: bool = False
) -> Panel:
    """Lines over steps from (step, value) points. The line called `total` is in ink. If a line has many points, they
    are faint and their running mean is drawn. A `share` is shown from 0 to 1."""

    def panel(axes: Any) -> None:
        colours = iter(SERIES * 3)
        for name, points in series.items():
            x, y = [step for step, _ in points], [value for _, value in points]
            colour = COLOURS["ink" if name == total else next(colours)]
            width = len(y) // 12 if len(y) > 24 else 0
            if width:
                axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
                y = [sum(near) / len(near) for near in (y[max(0, i - width) : i + width + 1] for i in range(len(y)))]
            axes.plot(x, y, color=colour, label=name, marker="" if len(x) > 12 else "o", markersize=3)
        axes.set_title(title)
        axes.set(xlabel="step", ylabel=unit)
        axes.margins(x=0.02)
        if share:
            axes.set_ylim(-0.03, 1.03)  # whole markers at 0 and 1
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1, nbins=6)
        if len(series) > 1:
            # the padding, in font sizes, is the height of the ticks and "step", for any height of the panel
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, 0), borderaxespad=4, ncols=3)

    return panel


def bars(title: str, rows: Sequence[tuple[str, Sequence[tuple[float, float | None] | None]]], names: Sequence[str],
         top: float = 1.0) -> Panel:  # fmt: skip
    """Horizontal bars with one group for each row: (label, a (value, standard error) or None for each of `names`)."""
    known = [at for at in range(len(names)) if any(values[at] for _, values in rows)]

    def panel(axes: Any) -> None:
        high = min(0.8 / len(names), 0.5)
        for at in known:
            own = [[other for other in known if values[other]] for _, values in rows]  # a row's bars, around its middle
            places = [row + (has.index(at) - (len(has) - 1) / 2) * high for row, has in enumerate(own) if at in has]
            values = [values[at] for _, values in rows if values[at]]
            errors = [error or 0.0 for _, error in values]
            lengths = [value for value, _ in values]
            whisker = {"ecolor": COLOURS["ink"], "elinewidth": 1, "capsize": 2}
            axes.barh(places, lengths, high * 0.9, color=COLOURS[SERIES[at]], label=names[at],
                      xerr=errors if any(errors) else None, error_kw=whisker)  # fmt: skip
            for place, length, error in zip(places, lengths, errors, strict=True):
                said = f"{length:.2f}" if top == 1 else f"{length:.1f}"
                axes.text(length + error + top * 0.015, place, said, va="center", fontsize=8, color=COLOURS["muted"])
        axes.set_yticks(range(len(rows)), [label for label, _ in rows], color=COLOURS["ink"])
        axes.set(xlim=(0, top * 1.14), ylim=(len(rows) - 0.5, -0.5))
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_title(title, x=0)
        if len(known) > 1:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=len(known))

    return panel


def scores(title: str, steps: Sequence[dict[str, Any]]) -> Panel:
    """A reward model's mean score and the world's rule, from rows of `curves.reward_models` that have both."""

    def panel(axes: Any) -> None:
        x = [row["step"] for row in steps]
        for key, label, colour, line in (
            ("reward_model", "reward model", "blue", "-o"),
            ("rule", "the world's rule", "orange", "--s"),
        ):
            axes.plot(x, [row[key] for row in steps], line, label=label, color=COLOURS[colour], markersize=3)
        axes.set_title(title)
        axes.set(xlabel="step", ylim=(-0.03, 1.03))  # whole markers at 0 and 1
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axes.legend(loc="best")

    return panel


def budgets(title: str, series: Sequence[tuple[str, str, Sequence[tuple[float, float, float]]]], base: float) -> Panel:
    """pass@1 over completion tokens, from (name, colour name, (tokens, pass@1, standard error) points)."""

    def panel(axes: Any) -> None:
        for at, (name, colour, points) in enumerate(series):
            x, y, spread = zip(*points, strict=True)
            line = (":", "-", "--")[at % 3]
            axes.errorbar(x, y, spread, label=name, color=COLOURS[colour], linestyle=line, marker="o", markersize=3,
                          capsize=2)  # fmt: skip
        axes.axhline(base, color=COLOURS["muted"], linewidth=1, label="its base")
        axes.set_title(title)
        axes.set(xlabel="completion tokens with a gradient", xlim=(0, None))
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g}M" if x >= 1e6 else f"{x / 1e3:g}k")
        axes.legend(loc="best", ncols=2)

    return panel


@dataclass(frozen=True)
class Box:
    """One run on the stage map."""

    title: str
    lines: tuple[str, ...]  # one or two short figures
    colour: str
    done: bool = True


def stage_map(path: Path, boxes: dict[str, Box], arrows: Sequence[tuple[str, str]]) -> str:
    """Each run as a box after those that it reads, as SVG and in path.png. `arrows`: (input, reader)."""
    from matplotlib.patches import FancyBboxPatch

    places = arrange(list(boxes), arrows)
    width, height = 1.02, 0.98  # inches of a column and of a lane
    half_x, half_y = width / 2 - 0.08, height / 2 - 0.16
    columns = 1 + max((last for _, last, _ in places.values()), default=0)
    lanes = 1 + max((lane for _, _, lane in places.values()), default=0)

    def panel(axes: Any) -> None:
        axes.set_axis_off()
        axes.set(xlim=(-width / 2, (columns - 0.5) * width), ylim=((lanes - 0.5) * height, -height / 2))
        patches = {}
        for name, box in boxes.items():
            first, last, lane = places[name]
            left, right, y = first * width, last * width, lane * height
            colour = COLOURS[box.colour]
            patches[name] = FancyBboxPatch(
                (left - half_x, y - half_y), right - left + 2 * half_x, 2 * half_y,
                boxstyle="round,pad=0,rounding_size=0.08", facecolor=COLOURS["card"], edgecolor=colour,
                linewidth=1.6 if box.done else 1, linestyle="-" if box.done else (0, (3, 2)),
            )  # fmt: skip
            axes.add_patch(patches[name])
            style = {"ha": "center", "va": "center", "linespacing": 1.05}
            title, middle = wrap(box.title, 11 * (1 + last - first), break_long_words=False), (left + right) / 2
            top = y - 0.145 * (len(title) + len(box.lines)) / 2
            at = top + 0.0725 * len(title), top + 0.145 * len(title) + 0.0725 * len(box.lines)
            axes.text(middle, at[0], "\n".join(title), fontsize=8, weight="bold", color=colour, **style)
            axes.text(middle, at[1], "\n".join(box.lines), fontsize=8, **style)
        for start, end in arrows:
            column, _, lane = places[end]
            arrow = {"arrowstyle": "-|>", "patchA": patches[start], "patchB": patches[end], "shrinkA": 1, "shrinkB": 1,
                     "color": COLOURS["muted"], "linewidth": 1, "mutation_scale": 9}  # fmt: skip
            origin = ((column - 1) * width, places[start][2] * height)
            axes.annotate("", (column * width, lane * height), origin, arrowprops=arrow)

    return draw(path, [panel], (columns * width, lanes * height))[0]


def arrange(names: Sequence[str], arrows: Sequence[tuple[str, str]]) -> dict[str, tuple[int, int, int]]:
    """(first column, last column, lane) of each run, in the order in which they get a place.

    A run begins one column after the last run that it reads, and reaches to the column before the last run that reads
    it, so that every arrow leads to the next column. It gets the free lane that is nearest to what it reads.
    """
    inputs = {name: [start for start, end in arrows if end == name] for name in names}
    columns = dict.fromkeys(names, 0)
    for _ in names:  # as often as the longest path may need
        columns |= {name: max((columns[one] + 1 for one in read), default=0) for name, read in inputs.items()}
    spans = {
        name: (columns[name], max([columns[name], *(columns[end] - 1 for start, end in arrows if start == name)]))
        for name in names
    }
    lanes: dict[str, int] = {}
    for name in names:
        first, last = spans[name]
        taken = {lane for other, lane in lanes.items() if spans[other][0] <= last and first <= spans[other][1]}
        read = [lanes[one] for one in inputs[name] if one in lanes]
        free = (lane for lane in range(-len(names), len(names)) if lane not in taken)
        lanes[name] = min(free, key=lambda lane: (sum(abs(lane - one) for one in read), abs(lane), -lane))
    top = min(lanes.values(), default=0)
    return {name: (*spans[name], lanes[name] - top) for name in names}
