"""The mixture: Table 5 to the row at full size, in proportion at any other, short where short, never padded."""

from data_prep import mixture, rows

import pytest
from hypothesis import given
from hypothesis import strategies as st


def test_full_size_is_the_papers_table():
    assert mixture.quotas(804_745) == mixture.TABLE_5
    assert sum(count for domain, count in mixture.TABLE_5.items() if domain != "general") == 626_933


@given(st.integers(1, 2_000_000))
def test_quotas_sum_to_the_total_and_are_within_one_row(total):
    quotas = mixture.quotas(total)
    assert sum(quotas.values()) == total
    assert all(abs(quotas[d] - count * total / 804_745) < 1 for d, count in mixture.TABLE_5.items())


def sft(row, domain, count):
    return [rows.sft_row(row(id=f"{domain}-{i}", domain=domain), 0, f"text {i}", "model") for i in range(count)]


def test_shortfalls_are_reported_and_not_padded(run_job, row, tmp_path):
    rows.write_rows(tmp_path / "a.parquet", sft(row, "math", 100) + sft(row, "code", 3), sft=True)
    rows.write_rows(tmp_path / "b.parquet", sft(row, "general", 50), sft=True)
    values = {"sources": ["a.parquet", "b.parquet"], "total": 100}
    record = run_job(mixture, mixture.Mixture, values)
    assert record["domains"] == {
        "math": {"quota": 49, "available": 100, "rows": 49, "shortfall": 0},
        "code": {"quota": 26, "available": 3, "rows": 3, "shortfall": 23},
        "stem": {"quota": 1, "available": 0, "rows": 0, "shortfall": 1},
        "logic": {"quota": 2, "available": 0, "rows": 0, "shortfall": 2},
        "general": {"quota": 22, "available": 50, "rows": 22, "shortfall": 0},
    }
    mixed = rows.load_rows("out/test/mixture/train.parquet", sft=True)
    assert len(mixed) == record["rows"] == 74
    assert [row["domain"] for row in mixed[:49]] != ["math"] * 49  # shuffled


def test_an_id_in_two_sources_is_an_error(row, tmp_path):
    rows.write_rows(tmp_path / "a.parquet", sft(row, "math", 2), sft=True)
    config = mixture.Mixture("out", [str(tmp_path / "a.parquet")] * 2, 10)
    with pytest.raises(ValueError, match="'math-0-0' is also row 0's"):
        mixture.load(config)
