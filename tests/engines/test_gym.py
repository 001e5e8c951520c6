"""reasoning-gym as a source of rows and as a reward; needs the library (requirements-smol.txt)."""

import json
import re
from collections import Counter
from datetime import date
from decimal import Decimal
from functools import cache, partial
from pathlib import Path

from data_prep import filters, gym, jobs, rows, runs, sources
from data_prep.runs import commands
from recipes import checks
from recipes.tools import check, doctor, suites
from rewards import GymReward, gold_error, is_correct
from rewards.gym import REFUSED, gym_reward
from rewards.workers import pool

import pytest
import yaml
from reasoning_gym.factory import DATASETS

ROOT = Path(__file__).parents[2]
TASKS = sorted(DATASETS.keys() - REFUSED.keys())
# Other right answers of some tasks, which those of another question can be by chance.
CHECKED = ["data_prep.gym", "gym.yaml"]  # as the pipeline checks it before its first step
SEVERAL = {"graph_color", "jugs", "n_queens", "quantum_lock", "time_intervals", "word_ladder"}


@cache
def made(task: str, count: int = 2, **settings) -> list[dict]:
    """Rows of a task as the job makes them."""
    asked = gym.Task(task, settings=gym.settings(gym.Task(task, settings=settings)))
    return gym.drawn(asked, "test", count, 5_000, set(), None, Counter())


def scores(reward: GymReward, found: list[dict], answers: list[str]) -> list[float | None]:
    texts = [f"<think>So it is.</think>\n<answer>{answer}</answer>" for answer in answers]
    columns = {name: [row[name] for row in found] for name in ("answer", "entry", "verifier")}
    return reward(completions=texts, **columns)


def job(folder, tasks: list[dict], *flags: str, **keys) -> int:
    (folder / "gym.yaml").write_text(yaml.safe_dump({"output_dir": "outputs/gym", "tasks": tasks} | keys))
    return jobs.run(gym.Gym, gym.load, gym.build, ["--config", str(folder / "gym.yaml"), *flags], gym.plan)


def test_each_task_takes_its_own_answer_and_not_that_of_another_question() -> None:
    for task in TASKS:
        found = made(task)
        rows.validate(found, task)
        assert {row["verifier"] for row in found} == {"gym"} and {row["license"] for row in found} == {"apache-2.0"}
        own = scores(gym_reward, found, [row["answer"] for row in found])
        assert own == scores(GymReward("library"), found, [row["answer"] for row in found]) == [1.0, 1.0], task
        one, other = (row["answer"] for row in found)
        if one != other and task not in SEVERAL:
            assert max(scores(gym_reward, found, [other, one])) <= 0.05, task


def plain_fraction(gold: str) -> str:
    return "/".join(re.findall(r"\d+", gold))


def in_lines(gold: str) -> str:
    return gold.replace(" ", "\n")


def spread(gold: str) -> str:
    return re.sub(r"\b0\.", ".", gold).replace("\n", " \n\n")


def in_quotes(gold: str) -> str:
    return '["' + gold.replace(" → ", '", "') + '"]'


def changed(text: str, old: str, new: str) -> str:
    return re.sub(old, new, text, count=1)


@pytest.mark.parametrize(
    ("task", "wrong", "right"),
    [
        ("advanced_geometry", ("{}, 7",), ()),
        ("chain_sum", (lambda gold: f"{gold[:-1]},{gold[-1]}",), (lambda gold: f"{int(gold):,}.0",)),
        ("cryptarithm", (lambda gold: f"{gold[0]}=1,{gold}",), (lambda gold: gold.replace("=", " = "),)),
        ("decimal_arithmetic", (lambda gold: str(Decimal(gold) + Decimal("1e-7")),), ("{}0",)),
        ("figlet_font", ("{}y",), (str.lower,)),
        ("fraction_simplification", ("{} or 7", "{}{}"), (lambda gold: gold.strip("$"), plain_fraction)),
        ("game_of_life", (lambda gold: changed(gold, r"\]", ",0]"),), (lambda gold: gold.replace(",", ", "),)),
        ("graph_color", (lambda gold: gold[:-1] + ', "x": 1}', lambda gold: '{"0": 9, ' + gold[1:]), ("{} ",)),
        ("jugs", (lambda gold: gold[:-2] + ' or not"]',), (lambda gold: gold.replace(", ", ","),)),
        ("kakurasu", ("{}\nor", lambda gold: changed(gold, "1", "-1")), ("{}\n", lambda gold: gold.replace(" ", "|"))),
        ("knights_knaves", ("{} {}", "{} Not so."), (str.lower, "So {}", lambda gold: gold.replace(" is a ", " is "))),
        ("letter_jumble", ("{} banana", "{} and"), ()),
        ("number_format", (lambda gold: str(float(gold) + 0.005), "1,{}"), (lambda gold: f"{float(gold):,.6f}",)),
        ("number_sorting", (lambda gold: changed(gold, r"\.(\d)", r".5\1"),), (lambda gold: gold.replace("'", '"'),)),
        ("number_sorting", (), (in_lines,)),
        ("polynomial_equations", ("{}\n{}",), ()),
        ("pool_matrix", (lambda gold: changed(gold, r"^\S+", lambda one: str(float(one[0]) + 0.02)),), (spread,)),
        ("pool_matrix", (in_lines,), ()),
        ("products", (lambda gold: f"{gold[:-1]},{gold[-1]}",), (lambda gold: f"{int(gold):,}.0",)),
        ("quantum_lock", ("{} 7", "{} or D"), (lambda gold: gold.replace("→", "->"), in_quotes)),
        ("rubiks_cube", ("{} 7", "{} 2R", "{} R2'"), ("1. {}",)),
        ("sokoban", ("{} banana", "[{}]", "{} or"), (lambda gold: " ".join(gold),)),
        ("survo", ("{} banana", "{}\n7"), ()),
        ("time_intervals", ("-{}", "{} or 7 days", "{}, 7", "{}:07"), (lambda gold: gold.removeprefix("0"),)),
        ("word_sorting", ("{}, zebra",), (lambda gold: gold.replace(", ", ","),)),
    ],
)
def test_a_right_answer_is_exact_and_has_nothing_beside_it(task: str, wrong: tuple, right: tuple) -> None:
    found = made(task, 4)
    for form, score in [*((form, 0.0) for form in wrong), *((form, 1.0) for form in right)]:
        golds = [row["answer"] for row in found]
        answers = [form.replace("{}", gold) if isinstance(form, str) else form(gold) for gold in golds]
        tried = [one for one, gold in zip(answers, golds, strict=True) if one != gold]
        rows_of = [row for row, one in zip(found, answers, strict=True) if one != row["answer"]]
        assert tried and set(scores(gym_reward, rows_of, tried)) == {score}, (form, tried)


def test_what_is_only_almost_equal_is_wrong() -> None:
    def score(task: str, gold: str, answer: str, settings: dict | None = None, **metadata) -> list[float | None]:
        entry = json.dumps({"task": task, "settings": settings or {}, "metadata": metadata})
        return gym_reward([answer], answer=[gold], entry=[entry])

    aimed = {"numbers": [1, 3, 100_000], "target": 100_000}
    assert score("countdown", "100000 * 1", "100000 / 1 * 3 / 3", numbers=[1, 3, 3, 100_000], target=100_000) == [1.0]
    assert score("countdown", "100000", "100000 + 1/3", **aimed) == [0.0]
    assert score("codeio", '{"a": 1, "b": []}', '{"b":[],"a":1.0}') == [1.0]
    for answer in ('{"a": true, "b": []}', '{"a": 1, "b": {}}', '{"a": 2, "a": 1, "b": []}'):
        assert score("codeio", '{"a": 1, "b": []}', answer) == [0.0]
    six = {"precision": 6}  # the last digit depends on the rounding of steps
    assert score("decimal_arithmetic", "1.23457", "1.23456", six) == [1.0]
    assert score("decimal_arithmetic", "1.23457", "1.23507", six) == [0.0]


def test_what_is_refused_says_why_and_no_other_task_is() -> None:
    assert REFUSED.keys() <= DATASETS.keys()
    for task in REFUSED:
        with pytest.raises(ValueError, match=f"{task} is refused: "):
            gym.settings(gym.Task(task))
    entry = json.loads(made("chain_sum")[0]["entry"])
    for task in ("gsm_symbolic", "rush_hour"):
        assert gym_reward(completions=["1"], answer=["1"], entry=[json.dumps(entry | {"task": task})]) == [None]


@pytest.mark.parametrize(
    "answer", ["nan", "[NaN, NaN, NaN, NaN, NaN, NaN]", "inf", "True", "[]", "{}", "()", ",", ".", "-", "x", "0", ""]
)
def test_no_task_takes_what_is_no_answer(answer: str) -> None:
    found = [row for task in TASKS for row in made(task) if row["answer"].rstrip(".0") != answer.rstrip(".0")]
    found_right = zip(found, scores(gym_reward, found, [answer] * len(found)), strict=True)
    assert [row["task"] for row, right in found_right if right] == []


HOSTILE = [
    "__import__('pathlib').Path('made').touch()", "[x for x in [open('made', 'w')]]", "(lambda: open('made', 'w'))()",
    "x.__class__.__base__.__subclasses__()", "N('open(chr(109))')", "S(open)", "9**9**9**9", "((9**99)**99)**99",
    "1e999999999", "0x" + "f" * 10_000 + "<<0xffffffffff", "1" * 100_000, "[" * 15_000, "-" * 15_000 + "1",
    "{" * 9_000 + "}" * 9_000, "R99999999999", "Move disk 1 from Peg 99999999999 to Peg 1", "\x00\u2028" * 100,
]  # fmt: skip


def test_a_hostile_answer_is_no_more_than_wrong(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    pool("rewards.gym_worker:score").close()  # so that the workers run in that folder
    found = [made(task)[0] for task in TASKS]
    for answer in HOSTILE:
        assert max(scores(gym_reward, found, [answer] * len(found))) == 0.0, answer[:40]
    assert list(tmp_path.iterdir()) == []


def test_a_row_of_somebody_else_cannot_run_a_program() -> None:
    entry = {"task": "bitwise_arithmetic", "settings": {}, "metadata": {"problem": "__import__('os').getpid()"}}
    assert gym_reward(completions=["1"], answer=["1"], entry=[json.dumps(entry)]) == [0.0]
    for entry in (
        "",
        "[]",
        "{}",
        None,
        {"task": "chain_sum"},
        [1],
        "no JSON",
        json.dumps({"task": "nothing", "settings": {}, "metadata": {}}),
    ):
        assert gym_reward(completions=["1"], answer=["1"], entry=[entry], verifier=["gym"]) == [None]
        assert is_correct("1", "1", "gym", entry) is None and "`entry`" in gold_error("1", "gym", entry)
    assert "gold answer 1 is not text" in gold_error(1, "gym", "{}") and is_correct("1", 1, "gym", "{}") is None
    assert gold_error("A=1", "gym", made("cryptarithm")[0]["entry"])


def test_credit_is_all_or_nothing_unless_the_library_is_asked() -> None:
    row = made("mini_sudoku")[0]
    grid = row["answer"]
    wrong = grid[:-1] + str(int(grid[-1]) % 4 + 1)
    assert scores(gym_reward, [row], [wrong]) == [0.0]
    assert 0.5 < scores(GymReward(credit="library"), [row], [wrong])[0] < 1.0
    row = made("color_cube_rotation")[0]
    assert scores(GymReward(credit="library"), [row] * 2, ["puce", ""]) == [0.01, 0.0]
    row = made("spell_backward", min_word_len=9, max_word_len=9)[0]  # nine ninths are more than 1
    assert scores(gym_reward, [row], [row["answer"] + "q"]) == [0.0]


def test_the_rules_of_rows_know_the_verifier() -> None:
    row, other = made("mini_sudoku")
    right, wrong = (f"<think>So.</think>\n<answer>{one['answer']}</answer>" for one in (row, other))
    assert is_correct(right, row["answer"], "gym", entry=row["entry"]) is True
    assert [filters.is_right(row, text) for text in (right, wrong)] == [True, False]
    sft = rows.sft_row(row, 0, right, "someone")
    assert filters.incorrect(filters.Candidate(sft, right), filters.Thresholds()) is None
    assert filters.incorrect(filters.Candidate(sft, wrong), filters.Thresholds()) is not None
    assert gym_reward(completions=[right], answer=["1"], entry=[""], verifier=["math"]) == [None]
    assert not any(one.stops for one in checks.rows.of_questions([row] * 3, [gym_reward]))
    found = str(list(checks.rows.of_questions([row] * 3, [])))
    assert "only GymReward grades" in found and "Add GymReward to `reward_funcs`" in found


def test_the_doctor_names_the_reward_of_the_rows_and_notes_partial_credit(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert job(tmp_path, [{"name": "color_cube_rotation", "train": 60}]) == 0
    given = {"output_dir": "outputs/s/r1_zero", "dataset": "outputs/gym/train.parquet"}
    given |= {"model_name_or_path": str(ROOT / "recipes/configs/cpu/base")}
    stage = runs.load_config(ROOT / "recipes/configs/cpu/r1_zero.yaml") | given
    library = {"reward_funcs": ["GymReward", "format_reward"], "reward_kwargs": {"GymReward": {"credit": "library"}}}
    (tmp_path / "s").mkdir()
    for more, said in (({}, "Add GymReward to `reward_funcs`"), (library, "Write credit: all, unless you want that")):
        (tmp_path / "s/r1_zero.yaml").write_text(json.dumps(stage | more), encoding="utf-8")
        assert doctor.main(["--scale", "./s"]) == 1
        found = capsys.readouterr().out
        assert said in found and "Write gold answers" not in found and "accuracy_reward" not in found


def test_the_job_writes_splits_that_share_no_question(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    few = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}  # few questions: splits would meet
    tasks = [
        {"name": "chain_sum", "train": 40, "validation": 10, "test": 10, "settings": few},
        {"name": "chain_sum", "train": 5, "level": 1},
        {"name": "graph_color", "train": 2},
    ]
    assert job(tmp_path, tasks) == 0
    assert "chain_sum: 40 rows for train, 10 rows for validation, 10 rows for test\n" in caplog.text
    assert "graph_color: 2 rows for train\n" in caplog.text and "evaluation" not in caplog.text
    found = {split: rows.load_rows(f"outputs/gym/{split}.parquet") for split in gym.SPLITS}
    assert {split: len(one) for split, one in found.items()} == {"test": 10, "validation": 10, "train": 47}
    questions = [row["question"] for one in found.values() for row in one]
    assert len(set(questions)) == len(questions) == 67
    record = runs.read("outputs/gym")
    assert record["tasks"][0]["repeated"] > 0 and record["rows_by_split"]["train"] == 47
    # a prompt set takes the rows with what their rule reads
    source = sources.Wanted("rows", local="outputs/gym/train.parquet")
    read = list(sources.read(source, traces=False))
    assert [row["entry"] for row in read] == [row["entry"] for row in found["train"]]
    held = suites.read("held", "outputs/gym/test.parquet", 0)
    assert [row["entry"] for row in held] == [row["entry"] for row in found["test"]]
    assert read[0]["task"] == "chain_sum"


def test_training_rows_share_nothing_with_an_evaluation_set(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert job(tmp_path, [{"name": "aiw", "train": 12}]) == 0
    first = rows.load_rows("outputs/gym/train.parquet")[0]
    rows.write_parquet("held.parquet", [{"id": "x", "question": first["question"]}])
    held = {"held": {"path": "held.parquet", "columns": ["question"]}}
    assert job(tmp_path, [{"name": "aiw", "train": 12}], "--redo", decontamination={"sets": held}) == 0
    assert first["question"] not in [row["question"] for row in rows.load_rows("outputs/gym/train.parquet")]
    assert runs.read("outputs/gym")["tasks"][0]["contaminated"] > 0


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"name": "chain_sums"}, "did you mean `chain_sum`?"),
        ({"name": "chain_sum", "settings": {"max_term": 3}}, "unknown setting `max_term`; did you mean `max_terms`?"),
        ({"name": "chain_sum", "settings": {"seed": 3}}, "unknown setting `seed`"),
        ({"name": "chain_sum", "settings": {"min_terms": 9, "max_terms": 3}}, "the task refuses the settings"),
        ({"name": "chain_sum", "settings": {"max_terms": "four"}}, "`max_terms` is 'four'; write a value like "),
        ({"name": "chain_sum", "settings": {"max_terms": 4.5}}, "`max_terms` is 4.5; write a value like "),
        ({"name": "chain_sum", "settings": {"max_terms": True}}, "`max_terms` is True; write a value like "),
        ({"name": "basic_arithmetic", "settings": {"whitespace": "none"}}, "`whitespace` is 'none'; write a value "),
        ({"name": "aiw", "settings": {"male_names": "Ed"}}, "`male_names` is 'Ed'; write a value like ["),
        ({"name": "time_intervals", "settings": {"min_date": date(2000, 1, 1)}}, "date is not JSON serializable"),
        ({"name": "chain_sum", "settings": {1: 2}}, "unknown setting `1`; write one of "),
        ({"name": "chain_sum", "level": 99}, "`level` is 99; write 0 to "),
        ({"name": "gsm_symbolic"}, "GSM8K's test"),
        ({"name": "chain_sum", "train": 0}, "chain_sum has no rows; write `train: 100`"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(task: dict, message: str, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for run in (partial(job, tmp_path, [{"train": 3} | task]), partial(commands.run, check.main, CHECKED)):
        with pytest.raises(SystemExit) as ended:
            run()
        assert ended.value.code == 2 and message in capsys.readouterr().err


def test_a_question_that_takes_too_long_is_refused_before_any_work(monkeypatch) -> None:
    monkeypatch.setattr(pool("data_prep.gym:draw", gym.SECONDS), "seconds", 3.0)
    with pytest.raises(ValueError, match="chain_sum: the task refuses .* it makes no question in .*; write smaller"):
        gym.settings(gym.Task("chain_sum", settings={"max_digits": 10**7}))
