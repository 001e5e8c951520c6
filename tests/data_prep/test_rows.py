"""Rows: what breaks the contract is named with file, row and column; files are whole or not there, same bytes."""

from data_prep import hub, rows

import httpx2
import pytest


def test_round_trip_keeps_columns_in_order_and_bytes_equal(tmp_path, row):
    written = [row(id=f"q{i}", expression="2 + 3 * 4", language=language) for i, language in enumerate(("en", "zh"))]
    shuffled = [dict(reversed(record.items())) for record in written]
    rows.write_rows(tmp_path / "a.parquet", shuffled)
    rows.write_rows(tmp_path / "b.parquet", shuffled)
    loaded = rows.load_rows(tmp_path / "a.parquet")
    assert loaded == written
    assert list(loaded[0]) == [*rows.COLUMNS, "expression"]
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


@pytest.mark.parametrize(
    ("changes", "column", "told"),
    [
        ({"kind": "maths"}, "kind", "reasoning, helpful, harmless"),
        ({"thinking": 1}, "thinking", "must be bool"),
        ({"answer": None}, "answer", "must be str"),
        ({"question": ""}, "question", "empty"),
        ({"entry": {"task": "gcd"}}, "entry", "is dict, must be text"),
        ({"task": ["gcd"]}, "task", "is list, must be text"),
        ({"entry": {"task": "chain_sum"}}, "entry", "is dict, must be text"),
    ],
)
def test_a_broken_row_is_named(row, changes, column, told):
    with pytest.raises(ValueError, match=rf"train\.parquet, row 1, column '{column}'.*{told}"):
        rows.validate([row(id="first"), row() | changes], "train.parquet")


def test_a_missing_column_and_a_repeated_id_are_named(row):
    without = row()
    del without["license"]
    with pytest.raises(ValueError, match=r"row 0, column 'license': missing"):
        rows.validate([without], "x")
    with pytest.raises(ValueError, match=r"row 1, column 'id': row 0 has 'q0', too"):
        rows.validate([row(), row()], "x")
    with pytest.raises(ValueError, match=r"column 'completion': missing"):
        rows.validate([row()], "x", sft=True)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("prompt", [{"role": "user", "content": "Hi"}]),
        ("completion", [{"role": "assistant", "content": "Hi"}]),
        ("system", "Be brief."),
        ("messages", []),
    ],
)
def test_a_chat_is_no_row_and_the_error_says_what_makes_one_of_it(row, column, value):
    chat = row(completion="<think>x</think>y") | {column: value}
    if column == "messages":
        del chat["prompt"]
    with pytest.raises(ValueError, match=rf"x, row 0, column '{column}': .*one question and one answer.*source `rows`"):
        rows.validate([chat], "x", sft=True)


def test_half_a_file_is_named_and_never_read(tmp_path, row):
    path = tmp_path / "train.parquet"
    rows.write_rows(path, [row()])
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"train\.parquet: not a readable Parquet file"):
        rows.load_rows(path)
    with pytest.raises(FileNotFoundError, match=r"other\.parquet: no such file"):
        rows.load_rows(tmp_path / "other.parquet")


def test_a_failed_write_leaves_the_old_file(tmp_path, row, monkeypatch):
    path = tmp_path / "train.parquet"
    rows.write_rows(path, [row()])
    before = path.read_bytes()

    def full(table, file, **options):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rows.pq, "write_table", full)
    with pytest.raises(OSError, match="No space left"):
        rows.write_rows(path, [row(id="other")])
    assert path.read_bytes() == before


def test_no_rows_are_an_error(tmp_path):
    with pytest.raises(rows.NoRowsError, match="no rows to write"):
        rows.write_rows(tmp_path / "train.parquet", [])


def test_a_hub_dataset_is_checked_like_a_file(row, monkeypatch):
    import datasets

    asked = []

    def load(name, split):
        asked.append((name, split))
        return datasets.Dataset.from_list([row(), row(id="q1", kind="maths")])

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(ValueError, match="someone/rows, row 1, column 'kind'"):
        rows.load_rows("someone/rows", split="test")
    assert asked == [("someone/rows", "test")]
    with pytest.raises(FileNotFoundError, match="not a Parquet file; write the path"):
        rows.load_rows("outputs/cpu/world")


def test_where_the_hub_is_silent_its_cache_is_read_and_nobody_is_asked_again(monkeypatch):
    asked = []

    def silent(self, id, **told):
        asked.append(id)
        raise httpx2.ConnectError("no route")

    def lacks():
        raise OSError("a page of advice")

    monkeypatch.setattr(hub, "silent", [])
    monkeypatch.setattr(hub.HfApi, "repo_info", silent)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    assert hub.find("someone/model", lambda: hub.constants.HF_HUB_OFFLINE) is True
    with pytest.raises(FileNotFoundError) as ended:
        hub.find("someone/rows", lacks, "dataset")
    assert str(ended.value) == (
        "someone/rows: there is no such file or folder here, and the Hub could not be reached (no route), nor has its "
        "cache a copy; a local file can be named in its place"
    )
    assert asked == ["someone/model"]
