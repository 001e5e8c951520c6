"""The report's page over runs that are written here by hand, some of them unfinished, with models that say hostile
things; and in a real browser."""

import json
import re
import shutil
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

from data_prep import prompts, runs
from data_prep.rows import write_parquet
from data_prep.runs import commands
from recipes.tools import folders, page, pictures, report
from recipes.tools import runs as runs_of

import browser
import pytest

HOSTILE = (
    "</script><script>window.ran = 1</script><img src=x onerror='window.ran = 2'><!--<script> &lt;b&gt; {completions}"
)
WALKTHROUGH = [
    "<think> 2 + 3 = 5, 5 * 4 = 20 </think> <answer> 20 </answer>",
    "<think> 3 * 4 = 12, 2 + 12 = 14 </think> <answer> 14 </answer>",
    "14",
    "<think> ...some gibberish reasoning... </think> <answer> 7 </answer>",
]
FUNNEL = {"seen": 1600, "dropped": {"incorrect": 1200, "mixed_language": 0}, "kept": 400}
PAIR = {"dropped": {"id": "b", "prompt": HOSTILE}, "kept": {"id": "a", "prompt": "What is 2 + 2?"}}
FUNNEL["near_duplicates"] = {"largest_cluster": 1234, "examples": [PAIR]}


def write_rl(folder: Path, steps: int, max_steps: int, said: str = HOSTILE, size: int = 16) -> None:
    """What a stage leaves until `steps`: each step a Chinese group and an English one, every fourth answer right."""
    runs.begin(folder, runs.identify(Path(__file__), {}))
    (folder / "completions").mkdir()
    rows = []
    for step in range(1, steps + 1):
        row = {"step": step, "max_steps": max_steps, "reward": step / steps, "kl": 0.01, "entropy": 0.5}
        row |= {"completions/mean_length": 30.0, "frac_reward_zero_std": 0.25, "loss": 0.0}
        parts = {"accuracy_reward": step / steps, "code_reward": None, "format_reward": 1.0}
        rows.append(row | {f"rewards/{name}/mean": value for name, value in parts.items()})
        records = []
        for number in range(size):
            question = f"计算 {step} + 1。" if step % 2 else f"What is {step} + 1?"
            right = float(number % 4 == 0)
            text = f"<think> {said} so {step} + 1 </think> <answer> {step + number % 4} </answer>"
            scores = {"accuracy_reward": right, "code_reward": None, "format_reward": 1.0, "advantage": right - 0.25}
            records.append({"step": step, "prompt": prompts.r1_zero(question), "completion": text, **scores})
        write_parquet(folder / "completions" / f"completions_{step:05d}.parquet", records)
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_evaluation(scale: Path, name: str, answer: str, group: list[str]) -> None:
    folder = scale / f"evaluate_{name}"
    runs.begin(folder, runs.identify(Path(__file__), {}))
    usual = {"sample": 0, "language": "en", "correct": True, "reasoning_consistency": 1.0}
    usual |= {"helpful_score": None, "safe": None}
    usual |= {"answer": "3", "question": f"Which one? {HOSTILE}", "completion": f"<think>{HOSTILE}</think> 3"}
    records = [usual | {"set": "reasoning", "id": f"p{number}"} for number in range(8)]
    records.append(usual | {"set": "walkthrough", "id": "walkthrough", "completion": answer})
    group = [
        {"set": "walkthrough_group", "id": "walkthrough", "sample": i, "completion": t} for i, t in enumerate(group)
    ]
    write_parquet(folder / "generations.parquet", records + [usual | one for one in group])
    known = {"pass@1": 0.75, "pass@1_stderr": 0.01, "n_problems": 8, "k": 1, "walkthrough": answer}
    known |= {"cons@16": 0.9, "cons@16_stderr": 0.02} if name == "r1_zero" else {}
    (folder / "results.json").write_text(json.dumps(known))
    runs.finish(folder, seed=5, parent=str(scale / name), config={"style": "r1_zero"})


@pytest.fixture(scope="module")
def scale(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """R1-Zero is done and measured, Dev2 was cut off while it wrote, Dev3 has just begun, the rest is not there."""
    folder = tmp_path_factory.mktemp("page") / "outputs" / "cpu-moe"
    write_rl(folder / "r1_zero", 30, 30)
    runs.finish(folder / "r1_zero", parent="outputs/cpu-moe/base", config={"reward_weights": [1.0, 1.0, 0.1]})
    write_evaluation(folder, "r1_zero", WALKTHROUGH[1], WALKTHROUGH)
    write_evaluation(folder, "base", HOSTILE, [HOSTILE] * 4)
    write_evaluation(folder, "student_distilled", "14", [])
    rows = [{"tokens": 1000 * at, "pass@1": 0.1 * at, "pass@1_stderr": None} for at in (1, 2)]
    (folder / "bench").mkdir()
    found = {"distillation": {"1e-3": rows}, "rl": {"1e-4": rows}, "student_base": 0.1}
    (folder / "bench" / "distillation.json").write_text(json.dumps(found))
    runs.finish(folder / "cold_start", rows=400, ways={"direct": {"sampled": FUNNEL}})
    write_rl(folder / "reasoning_rl", 3, 50)
    for path in (folder / "reasoning_rl" / "log.jsonl", *(folder / "reasoning_rl" / "completions").glob("*3.parquet")):
        path.write_bytes(path.read_bytes()[:-20])
    runs.begin(folder / "sft_stage_2", runs.identify(Path(__file__), {}))
    (folder / "all_scenarios_rl" / "completions").mkdir(parents=True)
    configs = shutil.copytree(runs.ROOT / "recipes/configs/cpu-moe", folder.parent / "configs")
    new = {"script": "recipes/distill.py", "output_dir": "outputs/cpu-moe/final_polish"}
    new |= {"model_name_or_path": "outputs/cpu-moe/all_scenarios_rl", "dataset": "outputs/cpu-moe/world/rows.parquet"}
    (configs / "final_polish.yaml").write_text(json.dumps(new))
    with (configs / "evaluate.yaml").open("a") as file:
        file.write("  polished: {path: outputs/cpu-moe/final_polish, style: think}\n")
    assert report.main(["--scale", str(folder), "--configs", str(configs)]) == 0
    return folder


@pytest.fixture(scope="module")
def html(scale: Path) -> str:
    return (scale / "report" / "index.html").read_text(encoding="utf-8")


def said(html: str) -> str:
    """What can be read on the page, without its script and pictures."""
    shown = re.sub(r"<(script|style|svg)\b.*?</\1>", "", html, flags=re.S)
    return re.sub(r"\s+(?=[;.,])", "", re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", shown))))


def completions(html: str) -> list[dict]:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)[1])


def test_the_page_is_one_file_and_there_is_a_png_of_each_picture(scale: Path, html: str) -> None:
    places: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda _, attributes: places.extend(v for k, v in attributes if re.search("src|href", k))
    parser.feed(html)
    assert places and all(place.startswith("#") for place in places)
    assert not re.search(r"url\((?!#)|@import", html)
    drawn = {path.name for path in (scale / "report").glob("*.png")}
    assert drawn == {f"{name}.png" for name in ("stages", "checkpoints", "r1_zero", "reasoning_rl", "distillation")}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (scale / "report").glob("*.png"))
    assert not set(pictures.COLOURS.values()) & set(re.findall("#[0-9a-f]{6}", html.partition("</style>")[2]))


def test_the_walkthroughs_group_is_worked_out(html: str) -> None:
    text = said(html)
    assert "accuracy 0 + format 1 = 1; advantage (1 − 1.25) / (0.5 + 0.0001) = -0.500" in text
    assert "accuracy 1 + format 1 = 2; advantage (2 − 1.25) / (0.5 + 0.0001) = +1.500" in text
    assert "accuracy 1 + format 0 = 1; advantage" in text
    assert "mean (1 + 2 + 1 + 1) / 4 = 1.25; spread (standard deviation) 0.5." in text
    assert "All are alike, so this group teaches nothing." in text  # base's


def test_it_says_what_is_there_and_what_is_not_yet(html: str) -> None:
    text = said(html)
    assert "DeepSeek-R1 at the scale cpu-moe" in text
    assert "Not finished: Dev2: RL, Dev3: SFT." in text
    assert "R1-Zero 30 steps; reward 0.033 at step 1, 1.000 at step 30." in text
    assert "2 of 50 steps" in text  # the third was being written
    assert "cold-start data: direct: sampled seen 1,600 − incorrect 1,200 kept 400" in text
    assert "1,234 prompts make up the largest cluster of near duplicates dropped since this one stays" in text
    assert "R1: RL Nothing is logged yet." in text
    assert "Reward models Nothing of it is there yet." in text
    # a stage that the paper does not have
    assert '<b class="green">final polish</b>' in html and "final polish from R1: RL" in text and "polished" in html


def test_completions_keep_what_they_can_be_filtered_by(html: str) -> None:
    found = completions(html)
    trained = [one for one in found if one["stage"] == "r1_zero"]
    assert {one["step"] for one in trained} == set(range(1, 31))
    chosen = next(one for one in trained if one["step"] == 3 and one["right"])
    assert chosen["question"] == "计算 3 + 1。"
    assert (chosen["language"], chosen["scores"]) == ("zh", {"accuracy": 1.0, "format": 1.0})
    assert (chosen["reward"], chosen["advantage"]) == (1.1, 0.75)  # format weighs a tenth in this run
    assert chosen["reasoning"] == f"<think> {HOSTILE} so 3 + 1 </think>"
    assert chosen["text"] == " <answer> 3 </answer>"
    assert {one["step"] for one in found if one["stage"] == "reasoning_rl"} == {1, 2}  # the third is half a file
    assert sum(one["stage"] == "evaluate_base" for one in found) == 8


def test_completions_without_a_log_are_a_page(tmp_path: Path) -> None:
    """As a stage leaves it that was cut off before its first checkpoint, and has just begun again."""
    write_rl(tmp_path / "scale" / "r1_zero", 2, 30)
    (tmp_path / "scale" / "r1_zero" / "log.jsonl").write_text("")
    assert report.main(["--scale", str(tmp_path / "scale")]) == 0
    built = (tmp_path / "scale" / "report" / "index.html").read_text(encoding="utf-8")
    assert "R1-Zero Nothing is logged yet." in said(built)


def test_every_kind_of_prompt_of_a_step_comes_to_be_shown(tmp_path: Path) -> None:
    for step in (1, 2):
        said = [("What is 1 + 2?", "accuracy_reward"), ("Hello!", "helpfulness_reward")]
        shared = {"step": step, "completion": "3", "advantage": 0.0}
        records = [
            shared | {"prompt": [{"role": "user", "content": asked}], name: 1.0}
            for asked, name in said
            for _ in range(16)
        ]
        write_parquet(tmp_path / "r1" / "completions" / f"completions_{step:05d}.parquet", records)
    names = [name for _, name in said]
    (tmp_path / "r1" / "log.jsonl").write_text(json.dumps({f"rewards/{name}/mean": 1.0 for name in names}) + "\n")
    shown = folders.choose([folders.read_run(tmp_path / "r1")], [])
    assert [one["question"] for one in shown] == ["What is 1 + 2?"] * 16 + ["Hello!"] * 16
    assert [shown[at]["right"] for at in (0, 16)] == [True, None]


@pytest.mark.slow
def test_a_long_run_of_long_completions_stays_within_its_limits(tmp_path: Path) -> None:
    write_rl(tmp_path / "full" / "r1_zero", 130, 1000, said="wait, " * 700)
    assert report.main(["--scale", str(tmp_path / "full")]) == 0
    path = tmp_path / "full" / "report" / "index.html"
    assert path.stat().st_size <= page.MOST_BYTES
    found = completions(path.read_text(encoding="utf-8"))
    assert 1900 < len(found) <= 2000
    assert (found[0]["step"], found[-1]["step"]) == (1, 130)
    assert "characters left out" in found[0]["reasoning"]


def test_what_cannot_be_drawn_is_an_error_and_the_results_stay(scale: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no ink")

    results = scale / "report" / "results.json"
    results.unlink()
    monkeypatch.setattr(pictures, "stage_map", fail)
    with pytest.raises(RuntimeError, match="no ink"):
        report.main(["--scale", str(scale)])
    assert json.loads(results.read_text())["checkpoints"]["r1_zero"]["pass@1"] == 0.75


def test_a_scale_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for main, words in ((report.main, ["--scale"]), (runs_of.main, [])):
        with pytest.raises(SystemExit) as ended:
            commands.run(main, [*words, str(tmp_path / "none")])
        assert ended.value.code == 2
        assert re.search("none (is not there|holds no runs): run `make r1 SCALE=none` first", capsys.readouterr().err)


# In a browser


@pytest.fixture(scope="module")
def chrome() -> Iterator[browser.Chromium]:
    with browser.chromium() as started:
        yield started


def test_no_model_gets_a_script_to_run_nor_anything_loaded(chrome: browser.Chromium, scale: Path) -> None:
    url = (scale / "report" / "index.html").as_uri()
    shown = chrome.open(url)
    shown.click("#more")
    assert shown.evaluate("document.querySelectorAll('#list article').length") == 40
    assert shown.evaluate("window.ran === undefined")
    assert shown.evaluate("document.images.length") == 0
    assert shown.evaluate("document.scripts.length") == 2
    assert HOSTILE in shown.text("#list article")
    assert HOSTILE in shown.text("#question")
    assert (shown.errors, shown.dialogs, shown.requests) == ([], [], [url])
    shown.evaluate("document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = 3'}))")
    assert shown.evaluate("window.ran === undefined")  # the page's policy would stop it, too


def test_the_filters_choose_what_is_shown(chrome: browser.Chromium, scale: Path) -> None:
    shown = chrome.open((scale / "report" / "index.html").as_uri())

    def chosen(**filters: str) -> tuple[str, str]:
        """(the count's first word, the first completion's head) after typing into the named fields."""
        shown.click("button[type=reset]")
        shown.wait_for("[...new FormData(document.querySelector('form')).values()].every(value => !value)")
        for name, value in filters.items():
            shown.evaluate(f"document.querySelector('form').elements['{name}'].focus()")
            shown.type(value)
        shown.wait_for("document.getElementById('count').textContent")
        return shown.text("#count").split()[0], shown.text("#list article div")

    assert chosen() == ("536", chosen()[1])
    assert chosen(first="3", last="3") == (
        "16",
        "r1_zero\nstep 3\nzh\nright\naccuracy 1\nformat 1\nreward 1.1\nadvantage +0.750",
    )
    assert chosen(least="1.05")[0] == "128"  # the right ones of both trainings: R1-Zero's weigh format less
    assert chosen(words="what is 12 +")[0] == "16"
    for name, value, count in (("stage", "evaluate_base", 8), ("right", "false", 384), ("language", "zh", 256)):
        shown.go((scale / "report" / "index.html").as_uri())
        shown.evaluate(f"location.hash = 'completions?{name}={value}'")
        shown.wait_for(f"document.getElementById('count').textContent.startsWith('{count} of ')")
    fold = "#list article details"
    shown.click(f"{fold} summary")
    assert not shown.evaluate(f"document.querySelector('{fold}').open")


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_and_follows_the_dark(chrome: browser.Chromium, scale: Path, dark: bool) -> None:
    shown = chrome.open((scale / "report" / "index.html").as_uri(), width=390, height=844, dark=dark)
    assert shown.evaluate("document.documentElement.scrollWidth") == 390
    assert shown.evaluate("document.querySelector('.narrow').offsetWidth > 300")
    for element in ("body", "figure svg text"):
        style = f"getComputedStyle(document.querySelector('{element}'))"
        paper, ink = (
            sum(map(int, re.findall(r"\d+", shown.evaluate(colour))[:3]))
            for colour in (
                "getComputedStyle(document.body).backgroundColor",
                f"{style}.fill" if "svg" in element else f"{style}.color",
            )
        )
        assert (ink > paper) == dark
        assert abs(ink - paper) > 250


def test_tables_fit_a_laptop_and_the_map_can_be_read_on_a_phone(chrome: browser.Chromium, scale: Path) -> None:
    shown = chrome.open((scale / "report" / "index.html").as_uri())
    cell = "'0.875 <small>± 0.012</small>'"  # as where all is measured
    shown.evaluate(
        f"document.querySelectorAll('#checkpoints td:not(:first-child)').forEach(one => one.innerHTML = {cell})"
    )
    tables = "[...document.querySelectorAll('.scroll')]"
    assert shown.evaluate(f"{tables}.every(one => one.scrollWidth <= one.clientWidth)")
    shown.resize(390, 844)
    letters = "[...document.querySelectorAll('.narrow *')].map(one => parseFloat(getComputedStyle(one).fontSize))"
    assert shown.evaluate(f"Math.min(...{letters})") > 12
