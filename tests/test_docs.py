"""README and docs say what is true: links, paths, commands, settings, and the measured figures that docs repeat."""

import argparse
import importlib
import json
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path

from data_prep import runs
from recipes import qlora_proof, sharded
from recipes.commandline import WITHOUT_GPU
from recipes.tools import seeds
from rewards import gym

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", *DOCS]
RESULTS = ROOT / "docs/results.md"
FOLDERS = "recipes|data_prep|rewards|accelerate_configs|tests|benchmarks|docs|.ci"
OWN_PATH = re.compile(rf"(?:{FOLDERS.replace('.', '[.]')})/[\w./-]+")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
UNRUN = re.compile(r"needs (?:a GPU|the Hub)")  # in the remark of a command that no laptop can run

by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
by_doc = pytest.mark.parametrize("page", DOCS, ids=lambda page: page.name)


def blocks(page: Path, *languages: str) -> list[str]:
    found = FENCE.findall(page.read_text(encoding="utf-8"))
    return [body for language, body in found if language in languages]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


# Links and paths


@by_page
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            target = (page.parent / path) if path else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                wrong.append(link)
    assert wrong == []


def anchors(page: Path) -> list[str]:
    """The ids that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@by_page
def test_paths_in_the_text_are_there(page: Path) -> None:
    named = re.findall(r"`([^`\s]+)`", prose(page))
    assert [name for name in named if OWN_PATH.fullmatch(name) and not (ROOT / name).exists()] == []


def test_every_page_is_linked_from_another() -> None:
    linked = set()
    for page in PAGES:
        links = re.findall(r"\]\(([^)\s#]+)[^)\s]*\)", prose(page))
        linked |= {(page.parent / link).resolve() for link in links if "://" not in link} - {page}
    assert [page.name for page in DOCS if page not in linked] == []


# Commands


class Understood(Exception):
    """Thrown where a command has read its arguments and its YAML, to leave it there."""


def commands(page: Path) -> Iterator[str]:
    """Every line of a page's shell blocks, continued lines joined; and what the text has between backticks."""
    for line in re.findall(r"`((?:make|python|accelerate launch)\s[^`]+)`", prose(page)):
        yield " ".join(line.split())
    for block in blocks(page, "bash", "sh", "shell", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.strip().removeprefix("$ ")
            if line and not line.startswith("#"):
                yield line


@pytest.fixture
def reads_only(monkeypatch):
    """Commands stop once they have read what they were told: at the identity of their settings, which all that has
    a YAML asks for before any work, or, without a YAML, after their arguments."""

    def understood(*args, **kwargs):
        raise Understood

    parse_args = argparse.ArgumentParser.parse_args

    def parse_only(self, *args, **kwargs):
        found = parse_args(self, *args, **kwargs)
        if not hasattr(found, "config"):
            raise Understood
        return found

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(runs, "identify", understood)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)

    def run(words: list[str]) -> str | None:
        """What is wrong with a Python command, None where it is understood."""
        monkeypatch.setattr(sys, "argv", words)
        try:
            if words[0].endswith(".py"):
                runpy.run_path(words[0], run_name="__main__")
            else:
                runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        except Understood:
            return None
        except (SystemExit, OSError, ImportError) as error:
            return f"{type(error).__name__}: {error}"
        return "it ran: nothing stopped it"

    return run


def goals() -> dict[str, str]:
    """Makefile: goal -> the module that its recipe runs, if it is one."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    found = re.findall(r"^([a-z0-9]+):.*\n((?:\t.*\n)*)", text, re.M)
    modules = [(goal, re.search(r"python -m (recipes[\w.]+|data_prep[\w.]+)", recipe)) for goal, recipe in found]
    return {goal: module[1] if module else "" for goal, module in modules}


def python_command(words: list[str]) -> list[str] | None:
    """[script or module, its arguments ...] of a command line; None where it is none of ours."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words[:2] == ["accelerate", "launch"]:
        at = next((at for at, word in enumerate(words) if word.endswith(".py")), len(words))
        assert all((ROOT / word).exists() for word in words[2:at] if OWN_PATH.fullmatch(word)), words
        return words[at:] or None
    if words[:1] == ["make"]:
        given = dict(word.split("=", 1) for word in words[1:] if "=" in word)
        asked = [word for word in words[1:] if "=" not in word]
        assert set(asked) <= goals().keys(), f"make {asked}: there is {', '.join(goals())}"
        arguments = shlex.split(given.get("ARGS", ""))
        if "bench" in asked and "NAME" in given:
            return [f"benchmarks.{given['NAME']}", *arguments]
        settings = [word for key in ("scale", "seed") if (v := given.get(key.upper())) for word in (f"--{key}", v)]
        return [goals()[asked[0]], *settings, *arguments] if asked and goals()[asked[0]] else ["make"]
    if words and words[0] in ("python", ".venv/bin/python") and words[1:3] != ["-m", "pip"]:
        return words[2:] if words[1] == "-m" else words[1:]
    return None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@by_page
def test_commands_are_understood(page: Path, reads_only) -> None:
    """Every command, by the very code that it starts, up to where work would begin. tests/recipes/test_stages.py runs
    those on a file that the page itself shows."""
    wrong = []
    shown = re.findall(r"^# ([\w.]+[.](?:py|yaml))\b", "\n".join(blocks(page, "python", "yaml")), re.M)
    for line in commands(page):
        words = python_command(shlex.split(line, comments=True))
        if words and set(words) & set(shown):
            continue
        if words and words[0].endswith(".py") and UNRUN.search(line):
            words = [*words, *WITHOUT_GPU]
        if words is None and not UNRUN.search(line):
            wrong.append(f"{line}: no command of ours; say in a remark that it needs a GPU or the Hub")
        elif words and words[0] == "data_prep.gym" and not gym.installed():
            continue  # tests/engines/test_gym.py runs it
        elif words and words != ["make"] and (fault := reads_only(words)):
            wrong.append(f"{line}: {fault}")
    assert wrong == []


# Settings and figures


def settings(page: Path, head: str) -> Iterator[tuple[str, dict]]:
    """(what the first line of a YAML block names after `head`, the block)."""
    for block in blocks(page, "yaml"):
        if match := re.match(rf"# {head} (\S+)\n", block):
            yield match[1], yaml.safe_load(block)


def part_of(part: object, whole: object) -> bool:
    """Whether a block says nothing that a YAML does not."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and part_of(value, whole[key]) for key, value in part.items())
    return part == whole


@by_doc
def test_settings_are_those_of_the_yaml_that_a_block_names(page: Path) -> None:
    for name, said in settings(page, "from"):
        found = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
        assert part_of(said, found), f"{name} says { ({key: found.get(key) for key in said}) }"


@by_doc
def test_defaults_are_those_of_the_class_that_a_block_names(page: Path) -> None:
    for name, said in settings(page, "defaults of"):
        module, _, kind = name.rpartition(".")
        found = {
            field.name: field.default if field.default_factory is MISSING else field.default_factory()
            for field in fields(getattr(importlib.import_module(module), kind))
        }
        assert said == {key: found.get(key, "no such field") for key in said}, name


def tables(page: Path) -> Iterator[tuple[list[str], list[list[str]]]]:
    """(header, rows) of each table."""
    for table in re.findall(r"(?:^\|.*\|\n)+", prose(page), re.M):
        header, _, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
        yield header, rows


@by_doc
def test_measured_figures_are_those_of_the_results(page: Path) -> None:
    """A table whose first column has the name of one of the tables in docs/results.md repeats its cells."""
    for header, rows in tables(page):
        if header[0] in (measured := results()):
            for row in rows:
                found = measured[header[0]][row[0]]
                assert row == [found[name] for name in header], f"{row[0]}: copy the figures of {RESULTS.name}"


def results() -> dict[str, dict[str, dict[str, str]]]:
    """Cells by table, row and column."""
    measured = {
        header[0]: {row[0]: dict(zip(header, row, strict=True)) for row in rows}
        for header, rows in tables(RESULTS)
        if header[0] in ("checkpoint", "the paper's effect")
    }
    assert len(measured) == 2
    return measured


def test_the_readmes_first_table_is_an_excerpt_of_the_results() -> None:
    names = {"base": "base", "R1-Zero": "r1_zero", "R1": "r1", "student by RL": "student_rl"}
    names |= {"Dev1: SFT": "cold_start_sft", "Dev2: RL": "reasoning_rl", "Dev3: SFT": "sft_stage_2"}
    names |= {"distilled student": "student_distilled"}
    columns = {"pass@1": "pass@1", "right format": "format", "one language": "language", "safe answers": "safe"}
    (_, *heads), rows = next(tables(README))
    for title, *cells in rows:
        found = [results()["checkpoint"][names[head]][columns[title]].split(" ")[0] for head in heads]
        assert cells == found, title


def test_cis_bounds_are_those_of_the_runs_in_the_results() -> None:
    """The mean less four standard deviations, over the runs from the given bases and those with bases of their own."""
    (effects,) = [rows for header, rows in tables(RESULTS) if header[0] == "the paper's effect"]
    pooled = []
    for name, aim, _, given, shown, others in effects:
        own, _, their = others.partition(", ")
        sizes = [int(re.search(r"of (\d+)", one)[1]) for one in (shown, their)]
        groups = [(size, *map(float, one.split(" ± "))) for size, one in zip(sizes, (given, own), strict=True)]
        mean = sum(size * one for size, one, _ in groups) / sum(sizes)
        squares = sum((size - 1) * sd**2 + size * (one - mean) ** 2 for size, one, sd in groups)
        pooled.append(
            {"name": name, "aim": aim, "mean": mean, "sd": (squares / (sum(sizes) - 1)) ** 0.5, "lowest": mean}
        )
    assert json.loads((ROOT / ".ci/thresholds.json").read_text(encoding="utf-8")) == seeds.bounds(pooled)


# How weights are spread


def test_the_matrix_says_what_two_processes_ran() -> None:
    """Each cell is found among the cases of `make engines`, or is refused for the reason that the code gives."""
    cells = runpy.run_path(str(ROOT / "tests/engines/cells.py"))
    ran = {(case.config, case.column) for case in cells["CASES"]}
    text = (ROOT / "docs/scales.md").read_text(encoding="utf-8")
    table = re.search(r"^\| \| all weights .*\n\|[-|]+\n((?:\|.*\n)+)", text, re.M)
    columns = [name.strip() for name in table[0].splitlines()[0].split("|")[2:-1]]
    assert columns == list(cells["COLUMNS"])
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in table[1].splitlines()]
    assert [name for name, *_ in rows] == [*cells["ROWS"], "FSDP 1"]
    for name, *said in rows:
        for column, cell in zip(cells["COLUMNS"].values(), said, strict=True):
            configs = {config for config in cells["ROWS"].get(name, ()) if (config, column) in ran}
            if "refused" in cell:
                assert not configs and cell == ("refused (2)" if name == "FSDP 1" else "refused (1)")
            else:
                named = re.findall(r"accelerate_configs/(\w+)\.yaml", cell)
                assert cell.startswith("run") and configs >= set(named or cells["ROWS"][name][:1]), (name, column)
    lines = " ".join(text.split())
    for number, reason in ((1, qlora_proof.NOT_SHARDED), (2, sharded.FSDP_1)):
        assert f"{number}. {reason}." in lines
    assert "expected" not in table[0]
