"""`python -m data_prep.push` against the server: what lies on disk arrives, explains itself, and is not lost."""

import datetime
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from data_prep import rows

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
from hub_server import READER, STRANGER, WRITER, File, Hub


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    folder = tiny.save_run(tmp_path, "mixture", {"total": 40}, seed=0, inputs=[], rows=40)
    rows.write_rows(folder / "train.parquet", tiny.sums(40), sft=True)
    return folder


@pytest.fixture
def sft(tmp_path: Path, mixture: Path, client: Callable) -> Path:
    """A model that was trained on the mixture, from a base that was not pushed."""
    base = tiny.save_run(tmp_path, "base", {"vocab_size": 300}, inputs=[])
    client(tiny.save_model, str(base), 1)
    config = {"dataset": "outputs/t/mixture/train.parquet", "learning_rate": 1e-3, "batch_size": 8, "seed": 42}
    inputs = ["outputs/t/base", "outputs/t/mixture"]
    folder = tiny.save_run(tmp_path, "sft", config, parent="outputs/t/base", inputs=inputs, steps=3)
    client(tiny.save_model, str(folder), 2)
    log = '{"step": 1, "max_steps": 2, "loss": 2.0}\n{"step": 2, "max_steps": 2, "loss": 1.0}\n'
    (folder / "log.jsonl").write_text(log)
    return folder


def load_rows(name: str, streaming: bool) -> list[dict]:
    from datasets import load_dataset

    return list(load_dataset(name, split="train", streaming=streaming))


def test_a_data_set_arrives_with_its_card(hub: Hub, client: Callable, tmp_path: Path, mixture: Path) -> None:
    status, log, waits = client(tiny.run_push, tmp_path, "outputs/t/mixture", "--hub-model-id", "me/mixture")
    assert (status, waits) == (0, []), log
    assert client(load_rows, "me/mixture", False) == client(load_rows, "me/mixture", True) == tiny.sums(40)
    card = hub.files("datasets", "me/mixture")["README.md"].decode()
    assert "license: apache-2.0" in card and "# Mixture" in card
    assert hub.repo("datasets", "me/mixture").private


def test_a_model_arrives_with_its_card(hub: Hub, client: Callable, tmp_path: Path, sft: Path) -> None:
    status, log, waits = client(tiny.run_push, tmp_path, "outputs/t/sft", "--hub-model-id", "me/sft")
    assert (status, waits) == (0, []), log
    assert client(tiny.logits, "me/sft") == client(tiny.logits, str(sft))


def put(hub: Hub, kind: str, name: str, files: dict[str, bytes]) -> None:
    """What somebody else pushed to a repository that is there."""
    repo = hub.repo(kind, name)
    there = {path: File(hub.keep(content), path.endswith(".safetensors")) for path, content in files.items()}
    hub.commit(repo, "main", "theirs", repo.at("main").files | there)
    hub.asked.clear()


def test_a_smaller_data_set_replaces_a_larger_one_and_removes_nothing(
    hub: Hub, client: Callable, tmp_path: Path, mixture: Path
) -> None:
    arguments = ("outputs/t/mixture", "--hub-model-id", "me/smaller")
    whole = mixture / "train.parquet"
    for number in range(2):
        whole.with_name(f"train-{number:05}-of-00002.parquet").write_bytes(whole.read_bytes())
    whole.rename(tmp_path / "kept.parquet")
    assert client(tiny.run_push, tmp_path, *arguments)[0] == 0
    put(hub, "datasets", "me/smaller", {"theirs.parquet": b"theirs", "notes.txt": b"theirs"})
    before = hub.files("datasets", "me/smaller")
    for path in mixture.glob("*.parquet"):
        path.unlink()
    (tmp_path / "kept.parquet").rename(whole)
    status, log, _ = client(tiny.run_push, tmp_path, *arguments)
    assert status == 0, log
    shards = "train-00000-of-00002.parquet, train-00001-of-00002.parquet"
    assert "replaced: README.md, stats.json" in log
    assert f"kept, and not loaded: notes.txt, theirs.parquet, {shards}" in log
    assert client(load_rows, "me/smaller", False) == tiny.sums(40)
    after = hub.files("datasets", "me/smaller")
    assert {path: after[path] for path in before if path.endswith((".parquet", ".txt"))} == {
        path: content for path, content in before.items() if path.endswith((".parquet", ".txt"))
    }


def test_what_a_card_would_load_as_well_stops_a_push(hub: Hub, client: Callable, tmp_path: Path, mixture: Path) -> None:
    arguments = ("outputs/t/mixture", "--hub-model-id", "me/pattern", "--card", "card")
    (tmp_path / "card").mkdir()
    header = "configs:\n- config_name: train\n  data_files:\n  - split: train\n    path: train*.parquet"
    (tmp_path / "card/README.md").write_text(f"---\nlicense: mit\n{header}\n---\n")
    assert client(tiny.run_push, tmp_path, *arguments)[0] == 0
    old = {"train-00000-of-00002.parquet": (mixture / "train.parquet").read_bytes(), "dataset_infos.json": b"{}"}
    put(hub, "datasets", "me/pattern", old)
    status, log, _ = client(tiny.run_push, tmp_path, *arguments)
    assert status == 2 and "train-00000-of-00002.parquet of me/pattern would be loaded" in log
    assert "in the way: dataset_infos.json, train-00000-of-00002.parquet" in log
    assert log.endswith(f"python -m data_prep.push {' '.join(arguments)} --delete-stale\n")
    assert not any(hub.count(place) for place in ("preupload", "upload", "commit"))
    status, log, _ = client(tiny.run_push, tmp_path, *arguments, "--delete-stale")
    assert status == 0 and "deleted: dataset_infos.json, train-00000-of-00002.parquet" in log
    assert not old.keys() & hub.files("datasets", "me/pattern").keys()
    assert client(load_rows, "me/pattern", False) == tiny.sums(40)


def test_files_that_would_be_loaded_instead_of_a_models_stop_its_push(
    hub: Hub, client: Callable, tmp_path: Path
) -> None:
    folder = tiny.save_run(tmp_path, "base", {"vocab_size": 300}, inputs=[])
    client(tiny.save_model, str(folder))
    arguments = ("outputs/t/base", "--hub-model-id", "me/instead")
    assert client(tiny.run_push, tmp_path, *arguments)[0] == 0
    kept = {"value_head.safetensors": b"theirs", "old/model.safetensors": b"theirs", "LICENSE": b"theirs"}
    stale = {"adapter_config.json": b"{}", "model-00001-of-00002.safetensors": b"theirs"}
    put(hub, "models", "me/instead", kept | stale)
    for flags in ((), ("--dry-run",)):
        status, log, _ = client(tiny.run_push, tmp_path, *arguments, *flags)
        assert status == 2 and "model-00001-of-00002.safetensors of me/instead would be loaded" in log, log
        assert "in the way: adapter_config.json, model-00001-of-00002.safetensors" in log
    assert not any(hub.count(place) for place in ("preupload", "upload", "commit"))
    status, log, _ = client(tiny.run_push, tmp_path, *arguments, "--delete-stale")
    assert status == 0, log
    after = hub.files("models", "me/instead")
    assert kept.items() <= after.items() and not stale.keys() & after.keys()
    assert client(tiny.logits, "me/instead") == client(tiny.logits, str(folder))


def leave_free(size: int | None) -> None:
    """How many bytes of memory this process believes to be free."""
    from data_prep import push
    from data_prep.runs import memory

    push.memory = type("", (), {"available": staticmethod(lambda: size)}) if size is not None else memory


def test_a_model_that_does_not_fit_twice_is_compared_by_checksums_alone(
    hub: Hub, client: Callable, tmp_path: Path
) -> None:
    folder = tiny.save_run(tmp_path, "base", {"vocab_size": 300}, inputs=[])
    client(tiny.save_model, str(folder))
    client(leave_free, 2 * (folder / "model.safetensors").stat().st_size - 1)
    try:
        status, log, _ = client(tiny.run_push, tmp_path, "outputs/t/base", "--hub-model-id", "me/large")
    finally:
        client(leave_free, None)
    assert status == 0 and "not asked a question: its weights take 0.0 GB, and 0.0 GB of memory are free" in log
    assert not any(hub.count(place) for place in ("head", "resolve", "download"))
    assert hub.files("models", "me/large")["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_a_dry_run_says_what_would_be_done_and_changes_nothing(
    hub: Hub, client: Callable, tmp_path: Path, mixture: Path
) -> None:
    arguments = ("outputs/t/mixture", "--hub-model-id", "me/dry")
    status, log, _ = client(tiny.run_push, tmp_path, *arguments, "--dry-run")
    assert status == 0 and "me/dry, branch main: new: run.json, train.parquet, README.md, stats.json" in log, log
    assert ("datasets", "me/dry") not in hub.repos
    assert client(tiny.run_push, tmp_path, *arguments)[0] == 0
    rows.write_rows(mixture / "train.parquet", tiny.sums(39), sft=True)
    before = hub.repo("datasets", "me/dry").branches.copy()
    status, log, _ = client(tiny.run_push, tmp_path, *arguments, "--dry-run")
    assert status == 0 and "replaced: train.parquet, README.md, stats.json" in log
    assert hub.repo("datasets", "me/dry").branches == before


def point_at(endpoint: str) -> None:
    from huggingface_hub import constants

    constants.ENDPOINT = endpoint


def test_without_a_network_it_says_so_at_once(hub: Hub, client: Callable, tmp_path: Path, mixture: Path) -> None:
    client(point_at, "http://127.0.0.1:9")
    try:
        for flags, expected in (((), 2), (("--check", "dataset"), 2), (("--dry-run",), 0)):
            status, log, waits = client(
                tiny.run_push, tmp_path, "outputs/t/mixture", "--hub-model-id", "me/offline", *flags
            )
            assert (status, waits) == (expected, [1, 2]), log
            assert "http://127.0.0.1:9 cannot be reached, ConnectError" in log
        assert "what is there and would be replaced is not known" in log and "to push: run.json, train.parquet" in log
    finally:
        client(point_at, hub.url)


def test_lists_structs_and_dates_come_back_as_they_were(
    hub: Hub, client: Callable, tmp_path: Path, mixture: Path
) -> None:
    more = {"tests": [["a"], []], "on": datetime.date(2026, 1, 2), "none": None, "share": float("inf")}
    more["at"] = datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.UTC)
    more["votes"] = [{"by": "x", "counts": {"yes": [1, 2], "on": more["on"]}}]
    written = [row | more | {"license": " MIT "} for row in tiny.sums(5)]
    rows.write_parquet(mixture / "train.parquet", written)
    status, log, _ = client(tiny.run_push, tmp_path, "outputs/t/mixture", "--hub-model-id", "me/nested")
    assert status == 0, log
    assert client(load_rows, "me/nested", False) == client(load_rows, "me/nested", True) == written
    assert "license: mit\n" in hub.files("datasets", "me/nested")["README.md"].decode()


def test_other_records_may_list_their_licences_in_a_folder_of_any_name(
    hub: Hub, client: Callable, tmp_path: Path
) -> None:
    folder = tiny.save_run(tmp_path, "own [1]", {}, inputs=[])
    rows.write_parquet(folder / "train.parquet", [{"text": "a", "license": ["MIT", "cc-by-4.0"]}])
    status, log, _ = client(tiny.run_push, tmp_path, "outputs/t/own [1]", "--hub-model-id", "me/own")
    assert status == 0, log
    card = hub.files("datasets", "me/own")["README.md"].decode()
    assert "license: other\nlicense_name: as-listed-in-this-card" in card and "MIT, cc-by-4.0" in card


@pytest.mark.parametrize("kind", ["a type that datasets does not know", "another type in another file"])
def test_rows_that_nobody_could_load_are_not_pushed(
    hub: Hub, client: Callable, tmp_path: Path, mixture: Path, kind: str
) -> None:
    table = pa.Table.from_pylist(tiny.sums(5))
    if kind.startswith("another"):
        (mixture / "train.parquet").unlink()
        columns = [pa.nulls(5), pa.array(["x"] * 5)]
        for number, column in enumerate(columns):
            pq.write_table(table.append_column("x", column), mixture / f"train-{number:05}-of-00002.parquet")
    else:
        column = pa.array([[("a", 1)]] * 5, pa.map_(pa.string(), pa.int64()))
        pq.write_table(table.append_column("x", column), mixture / "train.parquet")
    status, log, _ = client(tiny.run_push, tmp_path, "outputs/t/mixture", "--hub-model-id", "me/unloadable")
    assert status == 2 and "outputs/t/mixture/train.parquet does not load as its card says" in log, log
    assert not any(hub.count(place) for place in ("preupload", "upload", "commit"))


PLACES = (
    "create", "auth_check", "info", "tree", "validate", "preupload", "batch", "upload", "verify", "commit", "head",
    "resolve", "download",
)  # fmt: skip
FINAL = (401, 403, 404)
FAULTS = (*FINAL, 408, 409, 412, 429, 500, 503, "cut", "lost", "slow")


def wait_for_answers(seconds: float) -> None:
    """How long this process' client waits for one, where it downloads."""
    from huggingface_hub import constants

    constants.HF_HUB_ETAG_TIMEOUT = constants.HF_HUB_DOWNLOAD_TIMEOUT = seconds


@pytest.fixture
def impatient(client: Callable, request: pytest.FixtureRequest) -> Iterator[None]:
    """Where answers are slow, they come later than the client waits for one of a download."""
    if request.node.callspec.params["fault"] == "slow":
        client(wait_for_answers, 0.4)
    yield
    client(wait_for_answers, 10)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_in_each_place(
    hub: Hub, client: Callable, impatient: None, tmp_path: Path, mixture: Path, fault: str | int
) -> None:
    """One that may pass is waited for; one that will not ends the push with what finishes it; nothing is lost. Only a
    model is downloaded again, to be asked a question."""
    model = tiny.save_run(tmp_path, "base", {"vocab_size": 300}, inputs=[])
    client(tiny.save_model, str(model))
    for place in PLACES:
        where, name = f"{fault} in {place}", f"me/{place}-{fault}"
        kind, made = ("models", model) if place in ("head", "resolve", "download") else ("datasets", mixture)
        folder = str(made.relative_to(tmp_path))
        hub.fail(place, fault)
        status, log, waits = client(tiny.run_push, tmp_path, folder, "--hub-model-id", name)
        assert hub.faults == [], f"{where}: never met"
        if fault in FINAL:
            assert status == (2 if place in ("create", "auth_check") else 1), f"{where}: {log}"
            assert (str(fault) in log or "404" in log) and waits == [], where
            if status == 1:
                command = f"python -m data_prep.push {folder} --hub-model-id {name}"
                assert log.splitlines()[-1] == command, where
            status, log, waits = client(tiny.run_push, tmp_path, folder, "--hub-model-id", name)
        assert status == 0, f"{where}: {log}"
        for path in (*made.glob("*.parquet"), *made.glob("*.safetensors")):
            assert hub.files(kind, name)[path.name] == path.read_bytes(), where
        assert len(hub.repo(kind, name).commits) == 2, where
        if fault == 429 and place not in ("head", "create"):  # which the client asks again at once
            assert max(waits, default=0) >= 7, where


BRANCH = ("info", "tree", "refs", "commits", "branch", "preupload", "batch", "upload", "verify", "commit")


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_while_a_checkpoint_goes_to_its_branch(
    hub: Hub, client: Callable, impatient: None, tmp_path: Path, mixture: Path, fault: str | int
) -> None:
    name, state = f"me/branches-{fault}", tmp_path / "checkpoint"
    assert client(tiny.run_push, tmp_path, "outputs/t/mixture", "--hub-model-id", name, "--check", "model")[0] == 0
    state.mkdir()
    for number, place in enumerate(BRANCH):
        where = f"{fault} in {place}"
        (state / "optimizer.pt").write_bytes(bytes([number]) * 100)  # anew: what the Hub has is not uploaded again
        (state / "trainer_state.json").write_text(json.dumps({"global_step": number}))
        hub.fail(place, fault)
        said, waits = client(tiny.push_branch, state, name, f"checkpoint-{number}")
        assert hub.faults == [], f"{where}: never met"
        if fault in FINAL:
            assert (str(fault) in said or "404" in said) and waits == [], where
            said, waits = client(tiny.push_branch, state, name, f"checkpoint-{number}")
        assert said == "", where
        there = hub.files("models", name, f"checkpoint-{number}")
        assert {path: there[path] for path in ("optimizer.pt", "trainer_state.json")} == {
            path.name: path.read_bytes() for path in state.iterdir()
        }, where
    assert hub.repo("models", name).branches.keys() == {"main", *(f"checkpoint-{n}" for n in range(len(BRANCH)))}
    assert len(hub.repo("models", name).commits) == 1 + len(BRANCH)  # its first, and one a branch


@pytest.mark.parametrize(
    ("token", "name", "said"),
    [
        (None, "me/x", "HF_TOKEN is not set"),
        ("hf_wrong", "me/x", "does not know the token"),
        (READER, "me/x", "may not do this"),
        (STRANGER, "me/x", "may not do this"),
        (WRITER, "x", "write `hub_model_id: owner/name`"),
    ],
)
@pytest.mark.parametrize("check", [(), ("--check", "dataset")])
def test_without_write_access_nothing_begins(
    hub: Hub, client: Callable, tmp_path: Path, mixture: Path, token: str | None, name: str, said: str, check: tuple
) -> None:
    status, log, waits = client(
        tiny.run_push, tmp_path, "outputs/t/mixture", "--hub-model-id", name, *check, token=token
    )
    assert (status, waits) == (2, [])
    assert said in log and log.startswith("error: ") and log.count("\n") == 1
    assert not any(hub.count(place) for place in ("preupload", "upload", "commit"))
    assert ("datasets", name) not in hub.repos


def test_what_is_not_finished_is_not_pushed(hub: Hub, client: Callable, tmp_path: Path, mixture: Path) -> None:
    (mixture / "run.json").rename(mixture / "begun.json")
    status, log, _ = client(tiny.run_push, tmp_path, "outputs/t/mixture", "--hub-model-id", "me/unfinished")
    assert (status, hub.asked) == (2, [])
    assert "is not finished" in log


def test_a_file_is_no_folder_that_could_be_pushed(client: Callable, tmp_path: Path) -> None:
    (tmp_path / "my_rows.parquet").touch()
    status, log, _ = client(tiny.run_push, tmp_path, "my_rows.parquet", "--hub-model-id", "me/rows")
    assert (status, log) == (2, "error: my_rows.parquet: a file; name the folder of a run\n")


@pytest.mark.slow
def test_it_waits_longer_and_longer_and_then_says_how_to_go_on(
    hub: Hub, client: Callable, tmp_path: Path, mixture: Path
) -> None:
    arguments = ("outputs/t/mixture", "--hub-model-id", "me/tried")
    for _ in range(10):
        hub.fail("commit", 503)
    status, log, waits = client(tiny.run_push, tmp_path, *arguments)
    assert (status, hub.faults) == (1, [])
    assert waits == [1, 2, 4, 8, 16, 32, 64, 120, 120]
    assert log.splitlines()[-1] == f"python -m data_prep.push {' '.join(arguments)}"
    assert client(tiny.run_push, tmp_path, *arguments)[0] == 0
    assert (hub.count("upload"), len(hub.repo("datasets", "me/tried").commits)) == (1, 2)
    assert client(tiny.run_push, tmp_path, *arguments)[0] == 0  # and once more, for nothing
    assert (hub.count("upload"), len(hub.repo("datasets", "me/tried").commits)) == (1, 2)


def test_killed_in_the_middle_it_uploads_nothing_twice(
    hub: Hub, client: Callable, tmp_path: Path, mixture: Path, environment: dict[str, str]
) -> None:
    for number in range(4):
        shard = [row | {"id": f"{number}-{row['id']}"} for row in tiny.sums(50)]
        rows.write_rows(mixture / f"shards-{number:05}-of-00004.parquet", shard, sft=True)
    hub.fail("upload", "stuck", after=2)
    arguments = ("outputs/t/mixture", "--hub-model-id", "me/killed")
    process = subprocess.Popen([sys.executable, "-m", "data_prep.push", *arguments], cwd=tmp_path, env=environment)
    end = time.monotonic() + 120
    while len(getattr(hub.repos.get(("datasets", "me/killed")), "stored", ())) < 4:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(hub.repo("datasets", "me/killed").commits) == 1
    assert client(tiny.run_push, tmp_path, *arguments)[0] == 0
    uploads = [what for place, what in hub.asked if place == "upload"]
    assert (len(uploads), len(set(uploads))) == (6, 5)  # the one that was cut off, again
    card = hub.files("datasets", "me/killed")["README.md"].decode()
    assert len(re.findall(r"- config_name: ", card)) == 2


def test_a_file_with_the_token_stays_here(hub: Hub, client: Callable, tmp_path: Path, mixture: Path) -> None:
    (mixture / "notes.json").write_text(json.dumps({"settings": {"token": WRITER}}))
    status, log, _ = client(tiny.run_push, tmp_path, "outputs/t/mixture", "--hub-model-id", "me/secret")
    assert status == 1 and "contains the token of HF_TOKEN" in log and WRITER not in log
    assert list(hub.files("datasets", "me/secret")) == [".gitattributes"]


def card_of(name: str) -> dict:
    """The header of a model's card, as huggingface_hub reads it, and its evaluations."""
    from huggingface_hub import ModelCard

    data = ModelCard.load(name).data
    found = [(one.metric_type, one.metric_value, one.metric_args) for one in data.eval_results or []]
    return data.to_dict() | {"evaluations": found}


def run_snippet(name: str) -> str:
    """Run every Python block of a model's card; returns what it printed."""
    import contextlib
    import io

    from huggingface_hub import ModelCard

    blocks = re.findall(r"```python\n(.*?)```", ModelCard.load(name).text, re.S)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        for block in blocks:
            exec(block, {})
    return printed.getvalue()


@pytest.mark.slow
def test_a_models_card_says_where_it_comes_from_and_what_it_can_do(
    hub: Hub, client: Callable, tmp_path: Path, sft: Path
) -> None:
    closed = [row | {"license": "cc-by-nc-4.0", "source": "somebody/closed"} for row in tiny.sums(40)]
    rows.write_rows(tmp_path / "outputs/t/mixture/train.parquet", closed[:30] + tiny.sums(40)[30:], sft=True)
    settings = {"path": "outputs/t/sft", "checkpoint": "sft", "world": "outputs/t/world", "temperature": 0.6}
    evaluation = tiny.save_run(tmp_path, "evaluate_sft", settings, inputs=[])
    figures = {"pass@1": 0.5, "pass@1_stderr": 0.02, "format_rate": 0.9, "n_problems": 500, "k": 4}
    (evaluation / "results.json").write_text(json.dumps(figures))
    for stage, name in (("mixture", "me/card-data"), ("base", "me/card-base"), ("sft", "me/card")):
        assert client(tiny.run_push, tmp_path, f"outputs/t/{stage}", "--hub-model-id", name)[0] == 0
    found = client(card_of, "me/card")
    assert (found["base_model"], found["datasets"]) == ("me/card-base", ["me/card-data"])
    assert (found["license"], found["license_name"]) == ("other", "as-listed-in-this-card")
    assert found["language"] == ["en", "zh"]
    arguments = {"problems": 500, "samples_a_problem": 4, "temperature": 0.6}
    assert found["evaluations"] == [
        ("pass@1", 0.5, {"standard_error": 0.02} | arguments),
        ("format_rate", 0.9, arguments),
    ]
    text = hub.files("models", "me/card")["README.md"].decode()
    base = hub.repo("models", "me/card-base").branches["main"]
    assert f"[me/card-base](https://huggingface.co/me/card-base) at revision `{base}`" in text
    assert "cc-by-nc-4.0 | no, or not known | 30 rows of somebody/closed" in text
    assert "| pass@1 | 0.5000 | ± 0.0200 |" in text
    assert "| learning_rate | 0.001 |" in text
    assert hub.files("models", "me/card")["curves.png"].startswith(b"\x89PNG")
    assert client(run_snippet, "me/card").strip()

    # From the Hub on: the base is known by its id, the revision that the run noted, and the licence of its card.
    config = {"reward_funcs": ["accuracy_reward"], "reward_weights": [0.5], "completion_style": "r1_zero"}
    rl = tiny.save_run(tmp_path, "rl", config, parent="me/card", parent_revision="abc", inputs=[])
    client(tiny.save_model, str(rl), 3)
    assert client(tiny.run_push, tmp_path, "outputs/t/rl", "--hub-model-id", "me/card-rl", "--public")[0] == 0
    assert not hub.repo("models", "me/card-rl").private
    text = hub.files("models", "me/card-rl")["README.md"].decode()
    assert "[me/card](https://huggingface.co/me/card) at revision `abc`" in text
    assert "| base `me/card` | other | no, or not known | as its card says |" in text
    assert "| accuracy_reward | 0.5 | {} |" in text and "A conversation between User and Assistant" in text
    assert client(run_snippet, "me/card-rl").strip()


def save_scorer(folder: str) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tiny.save_model(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)


def test_reward_models_go_each_to_a_name_of_its_own(hub: Hub, client: Callable, tmp_path: Path) -> None:
    folder = tiny.save_run(tmp_path, "reward_models", {"learning_rate": 1e-5}, inputs=[])
    for name in ("helpfulness", "harmlessness"):
        client(save_scorer, str(folder / name))
    assert client(tiny.run_push, tmp_path, "outputs/t/reward_models", "--hub-model-id", "me/rm")[0] == 0
    assert {name for kind, name in hub.repos if name.startswith("me/rm")} == {"me/rm-helpfulness", "me/rm-harmlessness"}
    assert client(card_of, "me/rm-helpfulness")["pipeline_tag"] == "text-classification"
    assert float(client(run_snippet, "me/rm-harmlessness"))


def load_config(name: str, config: str) -> list[dict]:
    from datasets import load_dataset

    return list(load_dataset(name, config, split="train"))


def test_a_report_takes_the_generations_of_all_evaluations_with_it(hub: Hub, client: Callable, tmp_path: Path) -> None:
    said = {name: [{"id": "1", "completion": f"{name} says 5"}] for name in ("base", "r1")}
    for name, records in said.items():
        evaluation = tiny.save_run(tmp_path, f"evaluate_{name}", {"path": f"outputs/t/{name}"}, inputs=[])
        rows.write_parquet(evaluation / "generations.parquet", records)
    report = tmp_path / "outputs/t/report"
    report.mkdir()
    figures = {"pass@1": 0.5, "pass@1_stderr": 0.02, "n_problems": 500, "k": 4}
    (report / "results.json").write_text(json.dumps({"checkpoints": {"base": figures, "r1": figures}}))
    (report / "index.html").write_text("<!doctype html>")
    assert client(tiny.run_push, tmp_path, "outputs/t/report", "--hub-model-id", "me/report")[0] == 0
    assert hub.files("datasets", "me/report")["index.html"] == b"<!doctype html>"
    for name, records in said.items():
        assert client(load_config, "me/report", name) == records
    assert "| pass@1 | 0.5000 | ± 0.0200 |" in hub.files("datasets", "me/report")["README.md"].decode()
