"""The table's Hub sources, streamed by the stock `datasets` from a Hub on loopback: by id, subset and revision."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import Commit, File, Hub, Repo

SCIQ = [
    {"question": f"What is gas {i}?", "correct_answer": "air", "distractor1": "gold", "distractor2": "salt",
     "distractor3": "iron", "support": ""}
    for i in range(20)
]  # fmt: skip
LOGIQA = [{"id": 1, "answer": 1, "text": "All A are B.", "type": "", "question": "So?", "options": ["no", "yes"]}]


def publish(hub: Hub, name: str, revision: str, subsets: dict[str, list[dict]]) -> None:
    """A data set with a folder of Parquet for each subset, at a commit of the given name."""
    configs = [
        {"config_name": subset, "data_files": [{"split": "train", "path": f"{subset}/train-*"}]} for subset in subsets
    ]
    content = {"README.md": f"---\nconfigs: {json.dumps(configs)}\n---\n".encode()}
    for subset, records in subsets.items():
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(records), file)
        content[f"{subset}/train-00000-of-00001.parquet"] = file.getvalue()
    files = {path: File(hub.keep(data), path.endswith(".parquet")) for path, data in content.items()}
    repo = hub.repos.setdefault(("datasets", name), Repo("datasets", name, False, {}, {}))
    repo.commits[revision] = Commit(revision, "data", None, files)
    repo.branches["main"] = revision


def read(name: str, revision: str = "") -> list[dict | str]:
    from data_prep.sources import Rejection, Wanted
    from data_prep.sources import read as read_source

    found = read_source(Wanted(name, revision=revision), traces=False)
    return [f"{one.file} {one.row} {one.reason}" if isinstance(one, Rejection) else one for one in found]


GPQA = {"Question": "Which?", "Correct Answer": "this", "Record ID": "r"}
GPQA |= {f"Incorrect Answer {number}": f"that {number}" for number in (1, 2, 3)}


def read_suite(name: str) -> list[dict]:
    from recipes.tools import suites

    return suites.read(name, local="", seed=0)


def test_a_benchmark_is_read_by_id_and_subset(hub: Hub, client: Callable) -> None:
    publish(hub, "Idavidrein/gpqa", "1" * 40, {"gpqa_diamond": [GPQA] * 2, "gpqa_main": [GPQA] * 3})
    first, second = client(read_suite, "gpqa_diamond")
    assert first == second and ") this\n" in first["question"] + "\n" and first["id"] == "r"
    said = "aime_2025: yentinglin/aime_2025: .* the Hub says: Dataset.*; a local file can be named in .*`local: "
    with pytest.raises(FileNotFoundError, match=said):
        client(read_suite, "aime_2025")


def pinned(name: str) -> tuple[str, str]:
    from data_prep.catalogue import SOURCES

    return SOURCES[name].hub_id, SOURCES[name].revision


@pytest.mark.parametrize(("name", "subsets"), [("sciq", {"default": SCIQ}), ("logiqa2", {"logiqa2": LOGIQA})])
def test_a_source_is_read_at_its_pinned_commit(hub: Hub, client: Callable, name: str, subsets: dict) -> None:
    hub_id, revision = pinned(name)
    publish(hub, hub_id, revision, subsets)
    publish(hub, hub_id, "0" * 40, {subset: records[:1] * 3 for subset, records in subsets.items()})  # newer: not ours
    found = client(read, name)
    assert len(found) == sum(map(len, subsets.values()))
    assert all(row["revision"] == revision and row["source"] == hub_id for row in found)
    assert len(client(read, name, "0" * 40)) == 3


def test_a_record_that_is_refused_is_named_by_its_data_set_and_revision(hub: Hub, client: Callable) -> None:
    publish(hub, pinned("sciq")[0], "1" * 40, {"default": [SCIQ[0], SCIQ[1] | {"distractor1": "air"}]})
    assert client(read, "sciq", "1" * 40)[1].startswith(f"allenai/sciq@{'1' * 40} 1 options: ")


def build(folder: str, revision: str) -> tuple[int, list[str]]:
    import os
    from pathlib import Path

    from data_prep import jobs, sources

    os.chdir(folder)
    settings = {"output_dir": "out/test/sources", "traces": False, "sources": [{"name": "sciq", "revision": revision}]}
    Path("job.yaml").write_text(json.dumps(settings))
    code = jobs.run(sources.Sources, sources.load, sources.build, ["--config", "job.yaml"])
    return code, sorted(path.name for path in Path("out/test/sources").iterdir())


def test_a_corrupt_or_missing_file_of_the_hub_ends_the_job_and_leaves_no_half(
    hub: Hub, client: Callable, tmp_path: Path
) -> None:
    name = pinned("sciq")[0]
    assert client(build, str(tmp_path), "4" * 40) == (1, ["begun.json", "work"])  # no such revision; work: the logs
    publish(hub, name, "2" * 40, {"default": SCIQ})
    commit = hub.repo("datasets", name).commits["2" * 40]
    path = next(path for path in commit.files if path.endswith(".parquet"))
    commit.files[path] = File(hub.keep(b"PAR1 and no more"), True)
    assert client(build, str(tmp_path), "2" * 40) == (1, ["begun.json", "work"])
    publish(hub, name, "3" * 40, {"default": SCIQ})
    code, files = client(build, str(tmp_path), "3" * 40)
    assert (code, files) == (0, ["begun.json", "run.json", "sciq.json", "sciq.parquet", "sciq.quarantine.jsonl"])
