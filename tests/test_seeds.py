"""Bounds from several seeds: by hand, and through the command on runs that are done."""

import json
from pathlib import Path

from data_prep import runs
from recipes.tools import report, seeds

import pytest

RAISES = "RL alone raises pass@1"
REFUSALS = "R1 does not refuse harmless look-alikes"


def result(raised: float, refused: float, helped: float | None = 0.2, reproduced: bool = True) -> dict:
    return {
        "effects": [
            {"name": RAISES, "aim": "at least 0.2 above base", "figure": raised, "reproduced": reproduced},
            {"name": REFUSALS, "aim": "at most 0.03", "figure": refused, "reproduced": True},
            {"name": "R1 is more helpful", "aim": "above sft", "figure": helped, "reproduced": helped is not None},
        ]
    }


def test_a_bound_is_four_deviations_from_the_mean_on_the_side_of_failure():
    effects = seeds.spread([result(0.4, 0.01), result(0.5, 0.02), result(0.6, 0.03)])
    assert effects[0] == {
        "name": RAISES,
        "aim": "at least 0.2 above base",
        "mean": pytest.approx(0.5),
        "sd": pytest.approx(0.1),
        "lowest": 0.4,
        "shown": 3,
        "runs": 3,
    }
    found = seeds.bounds(effects)
    assert found[RAISES] == {"at_least": pytest.approx(0.1)}
    assert found[REFUSALS] == {"at_most": pytest.approx(0.06)}
    assert not report.missing_effects(result(0.11, 0.05), found)
    assert len(report.missing_effects(result(0.09, 0.07), found)) == 2


def test_rates_that_never_varied_leave_room_for_the_next_run():
    bounds = seeds.bounds(seeds.spread([result(1.0, 0.0), result(1.0, 0.0)]))
    assert bounds[RAISES] == {"at_least": pytest.approx(0.98)}
    assert bounds[REFUSALS] == {"at_most": pytest.approx(0.02)}


def test_a_gain_that_every_run_had_may_not_be_gone():
    bounds = seeds.bounds(seeds.spread([result(0.1, 0.0), result(0.3, 0.0)]))
    assert bounds[RAISES] == {"at_least": 0.0}
    assert seeds.bounds(seeds.spread([result(-0.1, 0.0), result(0.1, 0.0)]))[RAISES]["at_least"] < -0.5


def test_what_every_seed_has_measured_gets_a_bound_shown_or_not():
    effects = seeds.spread([result(0.4, 0.01, None), result(0.1, 0.02, 0.1, reproduced=False)])
    assert set(seeds.bounds(effects)) == {RAISES, REFUSALS}
    assert [effect["shown"] for effect in effects] == [1, 2, 1]
    assert "| R1 is more helpful | above sft | not measured | 1 of 2 |" in seeds.table(effects)


def test_the_command_runs_each_seed_in_its_own_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(scale, folder, seed, override):
        assert override == Path("other.yaml")
        return result(0.4 + seed / 100, 0.01, reproduced=folder.name == str(seed) and scale.name == "cpu")

    monkeypatch.setattr(seeds, "run", run)
    (tmp_path / "outputs/cpu_seeds").mkdir(parents=True)
    assert seeds.main(["--seeds", "3", "4", "--thresholds", "bounds.json", "--override", "other.yaml"]) == 0
    assert f"| {RAISES} | at least 0.2 above base | 0.435 ± 0.007 | 2 of 2 |" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "bounds.json").read_text())) == {RAISES, REFUSALS, "R1 is more helpful"}
    assert json.loads((tmp_path / "outputs/cpu_seeds/seeds.json").read_text())["seeds"].keys() == {"3", "4"}


def test_a_seed_that_fails_is_named_with_its_log(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(runs.Stopped, match="seed 1 failed; outputs/such_seeds/1/pipeline.log says why"):
        seeds.main(["--scale", "no/such", "--seeds", "1", "2"])
    assert "no such scale" in (tmp_path / "outputs/such_seeds/1/pipeline.log").read_text()


def test_one_seed_has_no_spread(capsys):
    with pytest.raises(SystemExit):
        seeds.main(["--seeds", "1", "1"])
    assert "one run has no spread" in capsys.readouterr().err
