"""Cut off at any file that it writes, a job that asks models ends with the same bytes when it is run again."""

import itertools
from pathlib import Path

from data_prep import cold_start, general, preferences, rows
from data_prep.world import general as world

import pytest
import test_cold_start

ORACLE = {"base_url": "world", "model": "world-oracle"}
ASKED = {"checkpoint": "./model", "judge": ORACLE, "writer": ORACLE, "decoding": {"max_tokens": 64}, "n": 2}
WAY = {"checkpoint": "./model", "prompts": {"math": 12}, "n": 2, "decoding": {"max_tokens": 64}}


class Killed(BaseException):
    """Nobody catches it."""


JOBS = {
    "general": (general, general.General, ASKED | {"prompts": "helpful.parquet"}),
    "preferences": (
        preferences, preferences.Preferences,
        ASKED | {"helpful": "helpful.parquet", "harmless": "harmless.parquet", "length_tolerance": 9.0},
    ),
    "cold_start": (
        cold_start, cold_start.ColdStart, test_cold_start.settings(few_shot=None, direct=None, r1_zero=WAY)
    ),
}  # fmt: skip


def say(prompt, k):
    if isinstance(prompt, str):
        return test_cold_start.say(prompt, k)
    request = world.BY_QUESTION[prompt[0]["content"]]
    return request.reply if k else world.REFUSALS[request.language]


def files(folder):
    return {
        path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file() and path.suffix != ".json"
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", JOBS)
def test_the_same_command_ends_with_the_same_bytes(name, run_job, scripted, tmp_path, monkeypatch):
    module, settings, values = JOBS[name]
    rows.write_rows(tmp_path / "prompts.parquet", [p.row(f"r{i}") for i, p in enumerate(test_cold_start.QUESTIONS)])
    for kind in ("helpful", "harmless"):
        requests = enumerate(world.requests(kind, "test")[:12])
        rows.write_rows(tmp_path / f"{kind}.parquet", [r.row(f"{kind}{i}") for i, r in requests])
    scripted(say)
    run_job(module, settings, values | {"output_dir": "out/test/whole"})
    whole = files("out/test/whole")
    replace = Path.replace
    for number in itertools.count(1):
        folder, calls = f"out/test/cut{number}", itertools.count(1)

        def cut(path, target, calls=calls, number=number):
            if next(calls) == number:
                raise Killed
            return replace(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", cut)
            try:
                run_job(module, settings, values | {"output_dir": folder})
                break  # there was no further file
            except Killed:
                assert not (Path(folder) / "run.json").exists()
        run_job(module, settings, values | {"output_dir": folder})
        assert files(folder) == whole
    assert number >= 4  # begun.json, the rows, run.json
