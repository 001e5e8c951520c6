"""Distillation: the teacher answers each prompt once and is checked; or the mixture's rows as they are."""

from data_prep import distillation, rows

import pytest

GOOD = "<think>I first work out 3 * 4 = 12. Then I get 2 + 12 = 14.</think>\n2 + 3 * 4 = 14. The answer is 14."


MIXTURE = {"mode": "mixture", "mixture": "mixture.parquet"}
TEACHER = MIXTURE | {
    "mode": "teacher",
    "checkpoint": "./model",
    "judge": {"base_url": "world", "model": "world-oracle"},
    "decoding": {"max_tokens": 64},
}


def write_mixture(row, tmp_path):
    questions = ["What is 2 + 3 * 4?", "What is 7 + 7?", "What is 1 + 1?"]
    found = [
        row(id=f"q{i}", question=q, answer=a) for i, (q, a) in enumerate(zip(questions, ("14", "14", "2"), strict=True))
    ]
    mixed = [rows.sft_row(r, number, f"old {number}", "dev2") for r in found for number in range(2)]
    rows.write_rows(tmp_path / "mixture.parquet", mixed, sft=True)
    return mixed


def test_the_teacher_answers_every_prompt_once_and_wrong_answers_are_counted(run_job, scripted, row, tmp_path):
    write_mixture(row, tmp_path)
    scripted(lambda prompt, k: GOOD)
    record = run_job(distillation, distillation.Distillation, TEACHER)
    kept = rows.load_rows("out/test/distillation/train.parquet", sft=True)
    assert [r["question"] for r in kept] == ["What is 2 + 3 * 4?", "What is 7 + 7?"]
    assert {r["completion"] for r in kept} == {GOOD}
    assert (record["prompts"], record["funnel"]["dropped"]["incorrect"]) == (3, 1)


def test_mixture_gives_the_same_rows(run_job, row, tmp_path):
    mixed = write_mixture(row, tmp_path)
    assert run_job(distillation, distillation.Distillation, MIXTURE)["rows"] == 6
    assert rows.load_rows("out/test/distillation/train.parquet", sft=True) == mixed


@pytest.mark.parametrize("key", ["checkpoint", "judge", "decoding"])
def test_a_teacher_is_named_whole_or_not_at_all(run_job, capsys, key):
    with pytest.raises(SystemExit):
        run_job(distillation, distillation.Distillation, {k: v for k, v in TEACHER.items() if k != key})
    assert capsys.readouterr().err.endswith(f".yaml: `mode: teacher` needs `{key}`; write it\n")
    with pytest.raises(SystemExit):
        run_job(distillation, distillation.Distillation, MIXTURE | {key: TEACHER[key]})
    assert capsys.readouterr().err.endswith(f".yaml: `mode: mixture` has no teacher; remove `{key}`\n")
