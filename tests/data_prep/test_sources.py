"""Sources: a small file in each one's schema becomes rows; what is broken is refused by file, row and reason."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import rewards
from data_prep import mixture, rows, sources
from data_prep.catalogue import SOURCES
from data_prep.sources import Rejection, Sources, Wanted

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

THOUGHT = "<think>\nI add 1 and 1, which gives 2.\n</think>\n\nThe answer is \\boxed{2}."
SUM = "What is 1 + 1?"
MESSAGES = [{"content": SUM, "role": "user"}, {"content": THOUGHT, "role": "assistant"}]
CONVERSATION = [{"from": "human", "value": SUM}, {"from": "gpt", "value": THOUGHT}]
OPENR1 = {
    "problem": SUM, "solution": "2", "answer": "2", "problem_type": "Algebra", "question_type": "math-word-problem",
    "source": "olympiads", "uuid": "u1", "is_reasoning_complete": [False, True], "generations": ["<think>a", THOUGHT],
    "correctness_math_verify": [True, True], "correctness_llama": None, "finish_reasons": None,
    "correctness_count": 1, "messages": MESSAGES,
}  # fmt: skip
# One record of each source, in the schema that its page shows, with what its row must hold.
RECORDS = {
    "dapo-math-17k": (
        {"data_source": "math_dapo", "prompt": [{"content": SUM, "role": "user"}], "ability": "MATH",
         "reward_model": {"ground_truth": "2", "style": "rule"}, "extra_info": {"index": "x"}},
        {"question": SUM, "answer": "2", "verifier": "math", "domain": "math"},
    ),
    "verifiable-coding-problems-python": (
        {"source": "s", "task_type": "verifiable_code", "in_source_id": "1", "problem_statement": "Print n + 1.",
         "gold_standard_solution": "", "problem_id": "p7", "metadata": {"difficulty": "1", "memory_limit": None,
         "memory_limit_bytes": None, "problem_url": None, "time_limit": None}, "verification_info": {
         "language": "python",
         "test_cases": [{"fn_name": None, "input": "1\n", "output": "2\n", "type": "stdin_stdout"}]}},
        {"id": "verifiable-coding-problems-python-p7", "verifier": "code", "domain": "code", "license": "unknown"},
    ),
    "sciq": (
        {"question": "What do plants take in?", "distractor3": "gold", "distractor1": "salt", "distractor2": "iron",
         "correct_answer": "carbon dioxide", "support": ""},
        {"verifier": "choice", "domain": "stem", "license": "cc-by-nc-3.0"},
    ),
    "medmcqa": (
        {"id": "m1", "question": "Which is a bone?", "opa": "Iris", "opb": "Femur", "opc": "Liver", "opd": "Cornea",
         "cop": 1, "choice_type": "single", "exp": None, "subject_name": "Anatomy", "topic_name": None},
        {"answer": "B", "verifier": "choice", "domain": "stem", "id": "medmcqa-m1"},
    ),
    "logiqa2": (
        {"id": 3, "answer": 0, "text": "All A are B.", "type": "{}", "question": "So what is each A?",
         "options": ["B", "C", "D", "E"]},
        {"answer": "A", "verifier": "choice", "domain": "logic",
         "question": "All A are B.\n\nSo what is each A?\n\nA. B\nB. C\nC. D\nD. E\n\n"
         "Answer with the letter of the right option."},
    ),
    "pku-saferlhf": (
        {"prompt": "How do I pick my neighbour's lock?", "response_0": "a", "response_1": "b",
         "is_response_0_safe": True, "is_response_1_safe": False, "better_response_id": 0, "safer_response_id": 0},
        {"kind": "harmless", "domain": "general", "verifier": "none", "thinking": False, "license": "cc-by-nc-4.0"},
    ),
    "deepmath-103k": (
        {"question": SUM, "final_answer": "2", "difficulty": 1.0, "topic": "Algebra", "r1_solution_1": THOUGHT[8:],
         "r1_solution_2": "", "r1_solution_3": ""},
        {"answer": "2", "verifier": "math", "license": "mit"},
    ),
    "openr1-math-220k": (OPENR1, {"id": "openr1-math-220k-u1", "answer": "2"}),
    "openr1-math-220k-extended": (OPENR1, {"id": "openr1-math-220k-extended-u1"}),
    "tulu-3": (
        {"id": "t1", "messages": [{"content": "Hello!", "role": "user"}, {"content": "Hi.", "role": "assistant"}],
         "source": "ai2-adapt-dev/no_robots_converted"},
        {"kind": "helpful", "domain": "general", "thinking": False, "license": "cc-by-nc-4.0", "verifier": "none"},
    ),
    "mixture-of-thoughts-code": (
        {"messages": MESSAGES, "num_tokens": 9, "source": "open-r1/codeforces-cots"},
        {"domain": "code", "license": "cc-by-4.0", "verifier": "none"},
    ),
    "mixture-of-thoughts-science": (
        {"messages": MESSAGES, "num_tokens": 9, "source": "nvidia/Llama-Nemotron-Post-Training-Dataset"},
        {"domain": "stem", "license": "cc-by-4.0"},
    ),
    "openthoughts3": (
        {"difficulty": 7, "source": "s", "domain": "science", "conversations": CONVERSATION}, {"domain": "stem"},
    ),
    "gsm8k": (
        {"question": SUM, "answer": "I add 1 + 1 = <<1+1=2>>2 things.\nSo $<<1*2=2.0>>2 it is.\n#### 2"},
        {"id": "gsm8k-0", "answer": "2", "verifier": "math", "domain": "math", "license": "mit"},
    ),
    "openthoughts-114k": (
        {"problem": SUM, "deepseek_reasoning": "I add 1 and 1.", "deepseek_solution": "It is 2.",
         "ground_truth_solution": None, "domain": "puzzle", "source": "s", "test_cases": None, "starter_code": None},
        {"domain": "logic"},
    ),
}  # fmt: skip


def store(path, *records):
    pq.write_table(pa.Table.from_pylist(list(records)), path)
    return str(path)


def read(wanted, traces=False):
    found = list(sources.read(wanted, traces))
    return [one for one in found if not isinstance(one, Rejection)], [
        one for one in found if isinstance(one, Rejection)
    ]


def test_there_is_a_record_for_each_source_and_a_page_for_each_schema():
    assert RECORDS.keys() == SOURCES.keys()
    assert len({source.hub_id for source in SOURCES.values()}) >= 8
    assert all(source.page.startswith("https://") for source in SOURCES.values())
    assert all(len(source.revision) in (0, 40) for source in SOURCES.values())


@pytest.mark.parametrize("name", SOURCES)
def test_a_record_in_the_schema_of_its_page_becomes_a_row(name, tmp_path):
    record, expected = RECORDS[name]
    (row,), refused = read(Wanted(name, store(tmp_path / "a.parquet", record)))
    assert refused == []
    assert rows.fault(row) is None
    assert {column: row[column] for column in expected} == expected
    assert row["source"] == SOURCES[name].hub_id
    if row["verifier"] == "choice":
        text = dict(line.split(". ", 1) for line in row["question"].splitlines() if line[1:3] == ". ")[row["answer"]]
        assert text in ("carbon dioxide", "Femur", "B")


@pytest.mark.parametrize("name", [name for name, source in SOURCES.items() if source.trace])
def test_a_trace_is_in_our_form(name, tmp_path):
    (row,), refused = read(Wanted(name, store(tmp_path / "a.parquet", RECORDS[name][0])), traces=True)
    assert refused == []
    assert rows.fault(row, sft=True) is None
    assert rewards.is_well_formed(row["completion"], "think", row["thinking"])
    assert row["verified_by"] == ("rule" if row["verifier"] == "math" else "")
    assert row["generator"]


def test_solutions_that_people_wrote_are_traces_of_theirs(tmp_path):
    (row,), _ = read(Wanted("gsm8k", store(tmp_path / "a.parquet", RECORDS["gsm8k"][0])), traces=True)
    assert row["completion"] == "<think>I add 1 + 1 = 2 things.\nSo $2 it is.</think>\nThe answer is 2."
    assert row["generator"].startswith("people")
    plain, _ = read(Wanted("gsm8k", store(tmp_path / "b.parquet", {"question": SUM, "answer": "x=2\n#### 2"})), True)
    assert plain[0]["completion"] == "<think>x=2</think>\nThe answer is 2."  # some have no marks
    lost, _ = read(
        Wanted("gsm8k", store(tmp_path / "c.parquet", {"question": SUM, "answer": "So -2.\n#### -2."})), True
    )
    assert (lost[0]["answer"], lost[0]["completion"]) == ("-2", "<think>So -2.</think>\nThe answer is -2.")


def test_ones_own_messages_are_rows_where_they_are_one_question_and_one_answer(run_job, tmp_path, row):
    bare = {key: value for key, value in row().items() if key not in ("question", "prompt")}
    told = {"content": "Be brief.", "role": "system"}
    kinds = [{"messages": MESSAGES}, {"conversations": CONVERSATION}]
    kinds += [{"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}]
    kinds += [{"messages": [told, *MESSAGES]}, {"messages": MESSAGES * 2}, {"prompt": [told, MESSAGES[0]]}]
    kinds += [{"prompt": SUM, "completion": THOUGHT, "system": "Be brief."}, {"messages": []}]
    asked = {"role": "user", "content": [{"type": "text", "text": SUM}], "thinking": None}
    kinds += [{"messages": [asked, {"role": "assistant", "content": "It gives 2.", "thinking": "I add them."}]}]
    kinds += [{"conversations": [turn | {"role": None, "content": None} for turn in CONVERSATION]}]
    kinds += [{"messages": [asked | {"content": [{"type": "image", "url": "x"}]}, MESSAGES[1]]}]
    lines = [json.dumps(bare | kind | {"id": f"q{at}", "answer": "2"}) for at, kind in enumerate(kinds)]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    values = {"sources": [{"name": "rows", "local": str(tmp_path / "mine.jsonl")}]}
    record = run_job(sources, Sources, values)["sources"]["rows-mine"]
    assert record == {"rows": 5, "refused": 6, "reasons": {"system": 3, "turns": 3}}
    kept = rows.load_rows(tmp_path / "out/test/sources/rows-mine.parquet", sft=True)
    assert {(one["question"], one["prompt"]) for one in kept} == {(SUM, SUM)}
    assert all("gives 2." in one["completion"] for one in kept)
    assert kept[3]["completion"] == "<think>I add them.</think>It gives 2."


def test_a_hub_data_set_is_streamed_at_its_revision(monkeypatch):
    import datasets

    asked = []

    def load(*arguments, **options):
        asked.append((arguments, options))
        return [RECORDS["sciq"][0]]

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(read(Wanted("sciq"))[0]) == len(read(Wanted("logiqa2", revision="r"))[1]) == 1
    assert asked == [
        (("allenai/sciq", None), {"split": "train", "revision": SOURCES["sciq"].revision, "streaming": True}),
        (("baber/logiqa2", "logiqa2"), {"split": "train", "revision": "r", "streaming": True}),
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats(allow_nan=True) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["content", "role", "value"]), inner),
    max_leaves=5,
)


def broken(value, draw):
    """The value with something in it, at any depth, replaced by any JSON."""
    if isinstance(value, dict) and value and draw(st.booleans()):
        name = draw(st.sampled_from(sorted(value)))
        return value | {name: broken(value[name], draw)}
    if isinstance(value, list) and value and draw(st.booleans()):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], broken(value[at], draw), *value[at + 1 :]]
    return draw(JSON)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_record_whatever_it_holds_ends_the_reading(data):
    name = data.draw(st.sampled_from(sorted(SOURCES)))
    record, good = RECORDS[name][0], RECORDS[name][0]
    column = data.draw(st.sampled_from(sorted(record)))
    stream = [record | {column: broken(record[column], data.draw)}, good]
    traces = SOURCES[name].trace is not None and data.draw(st.booleans())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.load_dataset", lambda *arguments, **options: stream)
        found = list(sources.read(Wanted(name), traces))
    assert len(found) == 2
    assert all(isinstance(one, Rejection) or rows.fault(one, traces) is None for one in found)
    assert not isinstance(found[1], Rejection) or found[1].reason.startswith("duplicate id")


def changed(name, **changes):
    return RECORDS[name][0] | changes


@pytest.mark.parametrize(
    ("name", "record", "reason"),
    [
        ("deepmath-103k", changed("deepmath-103k", final_answer=""), "gold: the gold answer is empty"),
        ("deepmath-103k", changed("deepmath-103k", final_answer="x^2+"), "gold: the gold answer cannot be parsed"),
        ("deepmath-103k", changed("deepmath-103k", final_answer=None), "contract: column 'answer': None is NoneType"),
        ("deepmath-103k", changed("deepmath-103k", question=None), "contract: the question is NoneType"),
        ("deepmath-103k", {"question": SUM}, "schema: KeyError: 'final_answer'"),
        ("deepmath-103k", changed("deepmath-103k", question="Combien font un et un, mes amis ?"),
         "contract: column 'language': 'fr' is not one of en, zh"),
        ("dapo-math-17k", changed("dapo-math-17k", prompt=[]), "turns: []"),
        ("dapo-math-17k", changed("dapo-math-17k", prompt=[{"content": "Be brief.", "role": "system"}, *MESSAGES[:1]]),
         "system: "),
        ("dapo-math-17k", changed("dapo-math-17k", prompt=MESSAGES + MESSAGES[:1]), "turns: ['user', 'assistant', 'us"),
        ("gsm8k", {"question": SUM, "answer": "It is 2."}, "gold: `answer` has no ####"),
        ("dapo-math-17k", changed("dapo-math-17k", reward_model=None), "schema: TypeError"),
        ("verifiable-coding-problems-python",
         changed("verifiable-coding-problems-python", verification_info={"language": "cpp", "test_cases": []}),
         "program: in 'cpp'"),
        ("verifiable-coding-problems-python",
         changed("verifiable-coding-problems-python", verification_info={"language": "python", "test_cases": []}),
         "tests: there are no tests"),
        ("verifiable-coding-problems-python",
         changed("verifiable-coding-problems-python", verification_info={"language": "python", "test_cases": [None]}),
         "tests: "),
        ("medmcqa", changed("medmcqa", cop=-1), "gold: `cop` is -1"),
        ("medmcqa", changed("medmcqa", opa="Femur"), "options: "),
        ("logiqa2", changed("logiqa2", answer=4), "gold: `answer` is 4"),
        ("openr1-math-220k", changed("openr1-math-220k", question_type="proof"), "proof: "),
        ("tulu-3", changed("tulu-3", source="ai2-adapt-dev/personahub_code_v2"), "part: personahub_code"),
        ("tulu-3", changed("tulu-3", messages=MESSAGES * 2), "turns: ['user', 'assistant', 'user', 'assistant']"),
        ("tulu-3", changed("tulu-3", messages=MESSAGES[::-1]), "turns: ['assistant', 'user']"),
        ("mixture-of-thoughts-code", changed("mixture-of-thoughts-code", messages=[
            {"content": "Be brief.", "role": "system"}, *MESSAGES]), "system: "),
        ("openthoughts3", changed("openthoughts3", conversations=[{"from": "system", "value": "Be brief."},
            *CONVERSATION]), "system: "),
        ("openthoughts3", changed("openthoughts3", conversations=CONVERSATION[::-1]), "turns: ['assistant', 'user']"),
        ("openthoughts3", changed("openthoughts3", domain="cooking"), "domain: 'cooking' is not one of"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_with_its_reason(name, record, reason, tmp_path):
    path = store(tmp_path / "a.parquet", record)
    kept, refused = read(Wanted(name, path))
    assert kept == []
    assert [(one.file, one.row) for one in refused] == [(path, 0)]
    assert refused[0].reason.startswith(reason)


@pytest.mark.parametrize(
    ("name", "record", "reason"),
    [
        ("deepmath-103k", changed("deepmath-103k", final_answer="3"), "trace: it does not answer '3'"),
        ("deepmath-103k", changed("deepmath-103k", r1_solution_1="It is 2."), "trace: not one reasoning"),
        ("openr1-math-220k", changed("openr1-math-220k", correctness_math_verify=[True, False]), "trace: no gen"),
        ("gsm8k", {"question": SUM, "answer": "1 + 1 = <<1+1=3>>3\n#### 2"}, "trace: its steps do not come to '2'"),
        ("gsm8k", {"question": SUM, "answer": "#### 2"}, "trace: its steps"),
        ("openthoughts-114k", changed("openthoughts-114k", deepseek_solution=""), "trace: not one reasoning"),
        ("openthoughts-114k", changed("openthoughts-114k", deepseek_reasoning="a</think>b"), "trace: not one"),
        ("openthoughts3", changed("openthoughts3", conversations=[
            CONVERSATION[0], {"from": "gpt", "value": "Before. " + THOUGHT}]), "trace: not one"),
    ],
)  # fmt: skip
def test_a_trace_that_is_wrong_or_in_no_form_is_refused(name, record, reason, tmp_path):
    kept, refused = read(Wanted(name, store(tmp_path / "a.parquet", record)), traces=True)
    assert kept == []
    assert refused[0].reason.startswith(reason)
    assert len(read(Wanted(name, str(tmp_path / "a.parquet")))[0]) == 1  # as a prompt it is good


def test_broken_files_cost_only_what_cannot_be_read(tmp_path, row):
    good = [row(id=f"q{i}") for i in range(3)]
    lines = [json.dumps(one) for one in good]
    (tmp_path / "a.jsonl").write_text("\n".join([lines[0], lines[1][:40], "[1]", "", lines[2], lines[0]]) + "\n\xff\n")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 but no more")
    pq.write_table(
        pa.Table.from_pylist([row(id=f"p{i}", answer=str(i)) for i in range(40)]), tmp_path / "c.parquet",
        row_group_size=10, compression="none", use_dictionary=False, write_page_checksum=True,
    )  # fmt: skip
    content = bytearray((tmp_path / "c.parquet").read_bytes())
    at = content.index(b"p15")
    content[at : at + 3] = b"\xff\xff\xff"
    (tmp_path / "c.parquet").write_bytes(content)
    (tmp_path / "ignored.txt").write_text("no data")
    kept, refused = read(Wanted("rows", str(tmp_path)))
    assert [one["id"] for one in kept] == ["q0", "q2", *(f"p{i}" for i in range(40) if not 10 <= i < 20)]
    places = [(Path(one.file).name, one.row, one.reason.partition(":")[0]) for one in refused]
    assert places == [
        ("a.jsonl", 1, "unreadable"),
        ("a.jsonl", 2, "unreadable"),
        ("a.jsonl", 3, "unreadable"),
        ("a.jsonl", 5, "duplicate id"),
        ("a.jsonl", 6, "unreadable"),
        ("b.parquet", 0, "unreadable"),
        ("c.parquet", 10, "unreadable"),
    ]
    assert refused[-1].reason.startswith("unreadable: not readable to 19 (")


@pytest.mark.parametrize(
    "line",
    [b"[" * 100_000, b'{"id": "\\uD800"}', b'{"id": "\xed\xa0\x80"}', b'{"id": ' + b"9" * 5000 + b"}"],
    ids=["deep", "half a pair, escaped", "half a pair", "a long number"],
)
def test_a_line_that_no_reader_could_take_costs_only_itself(line, tmp_path, row):
    smile = row(id="q1", question="Is 😀 worth 14?")
    (tmp_path / "a.jsonl").write_bytes(line + b"\n" + json.dumps(smile).encode() + b"\n")
    kept, refused = read(Wanted("rows", str(tmp_path / "a.jsonl")))
    assert [one["question"] for one in kept] == [smile["question"]]
    assert [(one.row, one.reason.partition(":")[0]) for one in refused] == [(0, "unreadable")]


def test_own_rows_keep_their_tests_and_completions(tmp_path, row):
    tests = [{"input": "1", "output": "2"}]
    written = row(verifier="code", domain="code", answer="", tests=tests, completion="<think>a b</think>\n```1```")
    (tmp_path / "a.jsonl").write_text(json.dumps(written))
    ((prompt,), _), ((trace,), _) = (
        read(Wanted("rows", str(tmp_path / "a.jsonl")), traces) for traces in (False, True)
    )
    assert json.loads(prompt["tests"]) == tests
    assert trace["completion"] == written["completion"]


def test_the_job_writes_rows_a_quarantine_and_counts(run_job, tmp_path, row):
    bad = changed("deepmath-103k", final_answer="")
    path = store(tmp_path / "deep.parquet", *[RECORDS["deepmath-103k"][0]] * 3, bad)
    other = store(tmp_path / "thoughts.parquet", RECORDS["openthoughts-114k"][0])
    values = {"sources": [{"name": "deepmath-103k", "local": path}, {"name": "openthoughts-114k", "local": other}]}
    record = run_job(sources, Sources, values)
    folder = tmp_path / "out/test/sources"
    assert record["rows"] == 4
    assert record["sources"]["deepmath-103k"] == {"rows": 3, "refused": 1, "reasons": {"gold": 1}}
    line = json.loads((folder / "deepmath-103k.quarantine.jsonl").read_text())
    assert line == {"file": path, "row": 3, "reason": "gold: the gold answer is empty"}
    kept = rows.load_rows(folder / "deepmath-103k.parquet", sft=True)
    assert Counter(one["license"] for one in kept) == {"mit": 3}
    before = {file: file.stat().st_mtime_ns for file in folder.glob("deepmath-103k.*")}
    (folder / "run.json").unlink()
    (folder / "openthoughts-114k.json").unlink()  # as after a kill in the second source
    assert run_job(sources, Sources, values)["rows"] == 4
    assert {file: file.stat().st_mtime_ns for file in folder.glob("deepmath-103k.*")} == before


def test_a_source_without_a_usable_record_ends_the_job(run_job, tmp_path, caplog, capsys):
    store(tmp_path / "a.parquet", {"other": 1})
    with pytest.raises(AssertionError):
        run_job(
            sources, Sources, {"sources": [{"name": "sciq", "local": str(tmp_path / "a.parquet")}], "traces": False}
        )
    assert f"sciq: no record gives a row. {tmp_path}/a.parquet, record 0: schema: " in caplog.messages[-1]
    assert "Traceback" not in capsys.readouterr().err
    assert "NoRowsError" in Path("out/test/sources/work/logs/task_00000.log").read_text()


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ([], "`sources` is empty; write `- name: ...`"),
        ([{"name": "sciqq"}], "source 'sciqq' is not known; write rows or one of"),
        ([{"name": "rows"}], "has no `local`"),
        ([{"name": "sciq"}], "sciq has no traces"),
        ([{"name": "tulu-3"}, {"name": "tulu-3", "limit": 3}], "tulu-3 is listed twice"),
        ([{"name": "tulu-3", "local": "nowhere"}], "nowhere: no such file or folder; a Hub id is owner/name"),
    ],
)
def test_wrong_sources_are_named_before_any_work(run_job, capsys, wanted, told):
    with pytest.raises(SystemExit):
        run_job(sources, Sources, {"sources": wanted})
    assert told in capsys.readouterr().err
    assert not Path("out").exists()


def test_open_traces_alone_fill_every_domain_of_table_5(run_job, tmp_path):
    wanted = []
    for name, source in SOURCES.items():
        if source.trace:
            text = json.dumps(RECORDS[name][0]).replace('"u1"', '"u@"').replace('"t1"', '"t@"')
            text = text.replace(SUM, f"{SUM} ({name} @)").replace("Hello!", "Hello @!")
            records = [json.loads(text.replace("@", str(i))) for i in range(40)]
            wanted.append({"name": name, "local": store(tmp_path / f"{name}.parquet", *records), "limit": 30})
    run_job(sources, Sources, {"sources": wanted, "output_dir": "outputs/full/sources"})
    files = [f"outputs/full/sources/{one['name']}.parquet" for one in wanted]
    record = run_job(mixture, mixture.Mixture, {"sources": files, "total": 100, "output_dir": "outputs/full/mixture"})
    assert {domain for domain, count in record["domains"].items() if count["rows"]} == set(mixture.TABLE_5)
    kept = rows.load_rows("outputs/full/mixture/train.parquet", sft=True)
    assert all(rewards.is_well_formed(row["completion"], "think", row["thinking"]) for row in kept)
    assert all(row["license"] and row["source"] and row["generator"] for row in kept)
    values = {"sources": files, "total": 100, "output_dir": "outputs/full/free", "exclude_non_commercial": True}
    run_job(mixture, mixture.Mixture, values)
    free = rows.load_rows("outputs/full/free/train.parquet", sft=True)
    assert not all(rows.commercial(row["license"]) for row in kept)
    assert all(rows.commercial(row["license"]) for row in free)


def test_commercial_use_is_read_from_the_licence():
    licences = {source.license for source in SOURCES.values()}
    assert {one for one in licences if rows.commercial(one)} == {"apache-2.0", "mit", "cc-by-sa-4.0", "odc-by"}
    assert not rows.commercial("")
    assert not rows.commercial("cc-by-nc-sa-4.0")


@pytest.mark.slow
def test_killed_in_a_source_the_same_command_ends_with_the_same_bytes(tmp_path):
    """Whatever stands in the folder under its own name is whole; what was being written is written again."""
    names = ("deepmath-103k", "openthoughts-114k", "tulu-3")
    for name in names:
        if name == "tulu-3":
            records = [RECORDS[name][0] | {"id": f"t{i}"} for i in range(3000)]
        else:
            records = [RECORDS[name][0]] * 3000
        store(tmp_path / f"{name}.parquet", *records)
    wanted = [{"name": name, "local": f"../{name}.parquet"} for name in names]
    (tmp_path / "job.yaml").write_text(json.dumps({"output_dir": "out/test/job", "sources": wanted}))
    command = [sys.executable, "-m", "data_prep.sources", "--config", "../job.yaml"]
    folders = [tmp_path / name for name in ("killed", "whole")]
    for folder in folders:
        folder.mkdir()
    killed = subprocess.Popen(command, cwd=folders[0], stderr=subprocess.DEVNULL)
    while not (folders[0] / "out/test/job/deepmath-103k.json").exists():
        assert killed.poll() is None
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (folders[0] / "out/test/job/tulu-3.json").exists()
    for folder in folders:
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    made = [{path.name: path.read_bytes() for path in (folder / "out/test/job").glob("*-*.*")} for folder in folders]
    assert made[0] == made[1]
    assert len(made[0]) == 9
