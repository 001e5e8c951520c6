"""Duplicates: exact ones whatever their case, spacing and width; near ones by MinHash; the first always stays."""

import random

from data_prep import dedup, mixture, rows

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

WORDS = [f"word{number}" for number in range(500)]


@given(st.lists(st.integers(0, 9)))
def test_occurrence_counts_the_equal_ones_before(values):
    expected = [values[:at].count(value) for at, value in enumerate(values)]
    assert dedup.occurrence(np.array(values, np.uint64)).tolist() == expected


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is 2 + 3?", " what  IS\n2 + 3?", True),
        ("What is ２ + ３?", "What is 2 + 3?", True),
        ("What is 2 + 3?", "What is 2 * 3?", False),
        ("What is 2 + 3?", "What is 23?", False),
    ],
)
def test_prompts_are_compared_without_case_spacing_and_width(row, one, other, same):
    assert (dedup.prompt_hash(row(prompt=one)) == dedup.prompt_hash(row(prompt=other))) == same


@pytest.mark.slow
def test_a_file_of_the_shape_of_dapo_17k_comes_out_as_its_prompts(tmp_path):
    rng = random.Random(0)
    prompts = [f"{' '.join(rng.choices(WORDS, k=20))} {number}" for number in range(17_398)]
    codes = np.random.default_rng(0).permutation(np.arange(1_791_700) % 17_398)
    column = pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), prompts)
    pq.write_table(pa.table({"prompt": column}), tmp_path / "dapo.parquet")
    hashes = [
        dedup.prompt_hash({"prompt": prompt})
        for batch in pq.ParquetFile(tmp_path / "dapo.parquet").iter_batches()
        for prompt in batch["prompt"].to_pylist()
    ]
    assert len(hashes) == 1_791_700
    assert (dedup.occurrence(np.array(hashes, np.uint64)) == 0).sum() == 17_398


def near(tmp_path, prompts, threshold):
    cut = len(prompts) // 2
    files = [tmp_path / "0.npy", tmp_path / "1.npy"]
    for file, part in zip(files, (prompts[:cut], prompts[cut:]), strict=True):
        np.save(file, dedup.signatures(part))
    return dedup.near_repeats(files, np.arange(len(prompts)), threshold)


def test_near_duplicates_are_found_and_others_are_not(tmp_path):
    rng = random.Random(0)
    texts = [rng.choices(WORDS, k=120) for _ in range(400)]
    changed = [[*words] for words in texts[:100]]
    for words in changed:
        words[rng.randrange(10, 110)] = "other"  # five of 116 runs of five words: Jaccard 0.91
    found = near(tmp_path, [" ".join(words) for words in [*texts, *changed]], 0.8)
    assert (found[:400].sum(), found[400:].sum()) == (0, 100)


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("What is 2 + 3 * 4 then?", "what is  2+3*4 then", True),
        ("What is 2 + 3 * 4 then?", "What is 2 * 3 + 4 then?", False),
        ("Hi", "Ho", False),
        ("?", "!", False),
    ],
)
def test_operators_are_words(tmp_path, one, other, alike):
    assert near(tmp_path, [one, other], 0.8).tolist() == [False, alike]


def test_the_mixture_keeps_the_first_of_near_duplicates_with_all_its_rows(run_job, row, tmp_path):
    rng = random.Random(0)
    prompt = " ".join(rng.choices(WORDS, k=100))
    prompts = [prompt, prompt, f"{prompt} please", f"{prompt} please", "What is 2 + 2?"]
    found = [
        rows.sft_row(row(id=f"q{number}", question=text, prompt=text), 0, f"answer {number}", "model")
        for number, text in enumerate(prompts)
    ]
    rows.write_rows(tmp_path / "a.parquet", found, sft=True)
    record = run_job(mixture, mixture.Mixture, {"sources": ["a.parquet"], "total": 10, "near_duplicates": 0.8})
    made = rows.load_rows("out/test/mixture/train.parquet", sft=True)
    assert sorted(row["id"] for row in made) == ["q0-0", "q1-0", "q4-0"]
    assert record["funnel"]["dropped"]["near_duplicate"] == 2
