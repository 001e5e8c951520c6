"""Duplicates: exact ones whatever their case, spacing and width; near ones by MinHash; the first always stays."""

import random
from pathlib import Path

from data_prep import dedup, mixture, rows, shards

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


def similarities(prompts):
    found = dedup.signatures(prompts)
    return (found[:, None] == found).mean(axis=2)


def test_near_duplicates_are_found_and_others_are_not(tmp_path):
    rng = random.Random(0)
    texts = [rng.choices(WORDS, k=120) for _ in range(400)]
    changed = [[*words] for words in texts[:100]]
    for words in changed:
        words[rng.randrange(10, 110)] = "other"  # five of 116 runs of five words: Jaccard 0.91
    found = near(tmp_path, [" ".join(words) for words in [*texts, *changed]], 0.8)
    assert found.tolist() == [-1] * 400 + list(range(100))


@pytest.mark.parametrize("step", [1, 2, 4, 8])
def test_a_prompt_goes_only_if_it_is_near_one_that_stays(tmp_path, step):
    """26 prompts, each some words further on, in an order of their own: what is likeness by steps is none of ends."""
    words = random.Random(step).choices(WORDS, k=60 + 26 * step)
    prompts = [" ".join(words[at : at + 60]) for at in range(0, 26 * step, step)]
    random.Random(0).shuffle(prompts)
    found, near_pairs = near(tmp_path, prompts, 0.7), similarities(prompts) >= 0.7
    stay = np.flatnonzero(found < 0)
    assert all(
        found[found[at]] < 0 and found[at] < at and near_pairs[at, found[at]] for at in np.flatnonzero(found >= 0)
    )
    assert not (near_pairs[np.ix_(stay, stay)] & ~np.eye(len(stay), dtype=bool)).any()
    assert 1 < len(stay) < 26 or step == 8


def test_a_template_hides_no_near_duplicate(tmp_path):
    """Half of each prompt is the same in all, so that they have many bands in common."""
    rng = random.Random(0)
    template = rng.choices(WORDS, k=80)
    texts = [[*template, *rng.choices(WORDS, k=80)] for _ in range(400)]
    again = [[*words[:150], "other", *words[151:]] for words in texts[:50]]
    found = near(tmp_path, [" ".join(words) for words in [*texts, *again]], 0.8)
    assert found.tolist() == [-1] * 400 + list(range(50))


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
    assert near(tmp_path, [one, other], 0.8).tolist() == [-1, 0 if alike else -1]


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
    shown = {"largest_cluster": 2, "examples": [{"dropped": {"id": "q2-0", "prompt": prompts[2][:300]}}]}
    shown["examples"][0]["kept"] = {"id": "q0-0", "prompt": prompt[:300]}
    assert record["funnel"]["near_duplicates"] == shown


def test_tasks_and_their_number_change_no_near_duplicate(run_job, row, tmp_path, monkeypatch):
    """A chain over three files, of which one is in two parts, read in many row groups by one task or by five."""
    monkeypatch.setattr(shards, "RUN_BYTES", 2_000)
    words = random.Random(0).choices(WORDS, k=60 + 60 * 4)
    prompts = [" ".join(words[at : at + 60]) for at in range(0, 240, 4)]
    found = [
        rows.sft_row(row(id=f"q{at}", question=text), 0, f"answer {at}", "model") for at, text in enumerate(prompts)
    ]
    names = ["a.parquet", "b-00000-of-00002.parquet", "b-00001-of-00002.parquet", "c.parquet"]
    for at, name in enumerate(names):
        pq.write_table(pa.Table.from_pylist(found[at::4]), name, row_group_size=3)
    values = {"sources": ["a.parquet", "b.parquet", "c.parquet"], "total": 100, "near_duplicates": 0.7}
    values |= {"executor": {"workers": 1}}
    seen = []
    for tasks in (1, 2, 5):
        output = f"out/test/{tasks}"
        record = run_job(mixture, mixture.Mixture, values | {"output_dir": output, "tasks": tasks})
        seen.append((record["funnel"], Path(output, "train.parquet").read_bytes()))
    assert seen[0] == seen[1] == seen[2]
    funnel = seen[0][0]["near_duplicates"]
    assert 10 < seen[0][0]["kept"] < 60 and len(funnel["examples"]) == 10 and funnel["largest_cluster"] < 10
