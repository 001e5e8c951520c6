"""Cards: every figure comes from the rows or from a run's record; the Hub's own reader reads the card."""

import json
from pathlib import Path

from data_prep import rows, runs
from data_prep.hub import cards
from data_prep.hub.cards import Card

import pytest
from huggingface_hub import DatasetCard

GOOD = "<think>I add them.</think>\nThe answer is 14."


@pytest.fixture
def made(row, run_job, tmp_path):
    """Two runs, the second's rows in two files, and a card of them; returns (card, stats)."""
    sampled, mixed = Path("outputs/full/rejection_sampling"), Path("outputs/full/mixture")
    funnel = {"seen": 60, "dropped": {"incorrect": 40, "repetitive": 4}, "kept": 16}
    decoding = {"max_tokens": 32768, "temperature": 0.6, "top_p": 0.95, "top_k": 0}
    config = {"checkpoint": "someone/dev2", "n": 4, "decoding": decoding, "filters": {"max_paragraph_chars": 1500}}
    runs.finish(sampled, config=config, seed=7, inputs=[], rows=16, funnel=funnel)
    contents = [
        row(id=f"m{i}", completion=GOOD, generator="someone/dev2", source="open-r1/OpenR1-Math-220k", revision="abc")
        for i in range(30)
    ]
    contents += [
        row(id=f"g{i}", kind="helpful", domain="general", verifier="none", answer="", thinking=False, language="zh",
            source="mine", license="cc-by-nc-4.0", completion="Write to ann@example.org.", generator="w", revision="")
        for i in range(10)
    ]  # fmt: skip
    rows.write_rows(mixed / "train-00000-of-00002.parquet", contents[:25], sft=True)
    rows.write_rows(mixed / "train-00001-of-00002.parquet", contents[25:], sft=True)
    domains = {"code": {"quota": 10, "available": 0, "rows": 0, "shortfall": 10}}
    runs.finish(mixed, config={"total": 50}, seed=0, inputs=[str(sampled)], rows=40, domains=domains)
    values = {"data": str(mixed), "title": "Tiny 800k", "gaps": ["No bug fixing."], "output_dir": "outputs/full/card"}

    def build(**changes):
        run_job(cards, Card, values | changes)
        folder = Path("outputs/full/card")
        return DatasetCard.load(folder / "README.md"), json.loads((folder / "stats.json").read_text())

    return build


def test_the_header_is_what_the_hub_reads(made):
    card, _ = made()
    data = card.data
    assert (data.pretty_name, data.license, data.language) == ("Tiny 800k", "other", ["en", "zh"])
    assert data.size_categories == "n<1K"
    assert data.source_datasets == ["open-r1/OpenR1-Math-220k"]
    assert data.annotations_creators == "machine-generated"
    assert data.task_categories == ["text-generation"]
    (config,) = data.configs
    assert config["config_name"] == "train"
    assert config["data_files"][0]["path"] == ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]
    assert "dataset_info" not in data.to_dict()  # `datasets` reads the types of columns from the files


def test_statistics_are_the_rows(made):
    card, stats = made()
    assert stats["rows"] == stats["rows_read"] == 40
    assert stats["counts"]["license"] == {"apache-2.0": 30, "cc-by-nc-4.0": 10}
    assert stats["commercial_rows"] == 30
    assert stats["domains"]["math"] == {"rows": 30, "table_5": 395_285, "difference": 30 - 395_285}
    assert stats["checked"] == {"rule": 30, "judge": 0, "none": 10}
    assert stats["lengths"]["reasoning"]["max"] == len("I add them.")
    assert stats["language_consistency"]["0.99 to 1"] == 30
    assert stats["emails"] == 10
    assert stats["incomplete"] == 0
    assert stats["gaps"] == ["No bug fixing.", "mixture: code is 10 rows short of its quota of 10."]


def test_the_card_has_every_section_and_the_funnel_of_its_runs(made):
    text = made()[0].content
    for section in (
        "# Tiny 800k", "## Uses", "## Structure", "## Licences and sources", "## Statistics", "### Rationale",
        "### Collection and processing", "### Producers", "### Annotations", "### Versions",
        "### Personal and sensitive information", "## Bias, risks and limits", "## Curators, citation, contact",
    ):  # fmt: skip
        assert f"\n{section}\n" in text
    for line in (
        "| funnel.dropped.incorrect | 40 |",
        "| config.filters.max_paragraph_chars | 1,500 |",
        "| outputs/full/rejection_sampling | 7 | 16 |",
        "- `rejection_sampling`: someone/dev2, revision as it was in this run; max_tokens 32768, temperature 0.6",
        "| cc-by-nc-4.0 | 10 | no |",
        "| [open-r1/OpenR1-Math-220k](https://huggingface.co/datasets/open-r1/OpenR1-Math-220k) | 30 | abc |",
        "math-verify 0.9.0",
        "Contact: Not stated.",
    ):
        assert line in text


def test_tokens_are_counted_by_a_tokenizer_on_every_kth_row(made, checkpoint):
    _, stats = made(tokenizer=str(checkpoint), read_rows=10)
    assert stats["rows_read"] == 10
    assert stats["counts"]["domain"] == {"math": 30, "general": 10}
    assert stats["unit"] == f"tokens of {checkpoint}"
    assert stats["lengths"]["prompt"]["max"] == len("What is 2 + 3 * 4?")  # a byte a token


def test_a_run_without_rows_or_record_is_an_error(run_job, capsys):
    with pytest.raises(SystemExit):
        run_job(cards, Card, {"data": "outputs/full/none", "title": "x"})
    assert "outputs/full/none has not been run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stated", "identifier"),
    [
        ("Apache-2.0", "apache-2.0"),
        ("Apache License, Version 2.0", "apache-2.0"),
        (" mit ", "mit"),
        ("MIT-0", None),
        ("gpl-3.0-or-later", "gpl-3.0"),
        ("GNU GPLv3+", "gpl-3.0"),
        ("LGPL-2.1-only", "lgpl-2.1"),
        ("GFDL-1.3-or-later", "gfdl"),
        ("ODC-By-1.0", "odc-by"),
        ("CC BY-NC 4.0", "cc-by-nc-4.0"),
        ("CC0", "cc0-1.0"),
        ("MIT OR Apache-2.0", None),
        ("proprietary", None),
        ("", "unknown"),
    ],
)
def test_a_licence_has_the_hubs_identifier_or_a_name_of_its_own(stated, identifier):
    assert rows.hub_license(stated) == identifier
    assert rows.commercial(stated) == (identifier in ("apache-2.0", "mit", "odc-by", "cc0-1.0"))
    header = cards.license_of([stated, stated.upper()])
    assert header["license"] == (identifier or "other")
    assert ("license_name" in header) == (identifier is None)


def test_other_licences_are_named_or_said_to_be_listed():
    assert cards.license_of(["Our Own Licence!"]) == {"license": "other", "license_name": "our-own-licence"}
    link = cards.license_of(["https://example.org/terms"])
    assert link == {
        "license": "other",
        "license_name": "example.org-terms",
        "license_link": "https://example.org/terms",
    }
    for several in (["mit", "apache-2.0"], ["other"], []):
        assert cards.license_of(several) == {"license": "other", "license_name": "as-listed-in-this-card"}


def test_the_header_has_the_licence_of_the_setting(made):
    data = made(license="Proprietary")[0].data
    assert (data.license, data.license_name) == ("other", "proprietary")
