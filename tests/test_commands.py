"""What all commands have in common, each asked in this process: its help, and how it says what is wrong."""

import os
import re
import runpy
import subprocess
import sys
import termios
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [path for floor in ("data_prep", "recipes") for path in sorted((ROOT / floor).rglob("*.py"))]
COMMANDS = [
    str(path.relative_to(ROOT)) for path in FILES if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")
]
STAGES = [path for path in COMMANDS if path.count("/") == 1 and path.startswith("recipes/")]
WRONG = {
    "data_prep/push.py": ["nowhere", "--hub-model-id", "me/model"],
    "data_prep/review.py": ["nowhere/review.jsonl"],
    "recipes/tools/check.py": ["data_prep.world", "missing.yaml"],
    "recipes/tools/doctor.py": ["--scale", "nowhere/scale"],
    "recipes/tools/evaluate.py": ["--config", "missing.yaml", "--checkpoint", "base"],
    "recipes/tools/merge.py": ["--parent", "nowhere/base", "--output", "merged"],
    "recipes/tools/pipeline.py": ["--scale", "nowhere/scale"],
    "recipes/tools/plan.py": ["--scale", "nowhere/scale"],
    "recipes/tools/report.py": ["--scale", "nowhere"],
    "recipes/tools/runs.py": ["nowhere"],
    "recipes/tools/smollm2.py": ["--output", "."],
    "recipes/tools/seeds.py": ["--scale", "nowhere/scale", "--seeds", "1", "2"],
}


@pytest.fixture
def ask(monkeypatch, tmp_path, capsys, caplog):
    """Runs a command as `python FILE ...` or `python -m MODULE ...` would; returns (exit status, stdout, stderr)."""

    def run(command, *arguments):
        caplog.clear()
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [command, *arguments])
        with pytest.raises(SystemExit) as ended:
            if command in STAGES:
                runpy.run_path(str(ROOT / command), run_name="__main__")
            else:
                module = command.removesuffix(".py").replace("/", ".").removesuffix(".__main__")
                runpy.run_module(module, run_name="__main__", alter_sys=True)
        said = capsys.readouterr()
        return ended.value.code, said.out, said.err + "\n".join(caplog.messages)

    return run


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_ours_and_short(ask, command):
    status, text, _ = ask(command, "--help")
    assert status == 0
    assert "--debug" in text
    doc = next(line for line in (ROOT / command).read_text(encoding="utf-8").splitlines() if line.startswith('"""'))
    assert doc.strip('"') in text
    assert text.count("\n") < 150
    if command in STAGES:
        assert "--learning_rate" in text and "--adam_beta1" not in text
        assert "https://huggingface.co/docs/trl/v" in text
    elif "--config" in text and "tools" not in command:
        assert "keys of the YAML:\n  output_dir: str\n" in text


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("command", COMMANDS)
def test_an_error_is_one_paragraph_and_debug_shows_where_it_came_from(ask, command):
    wrong = WRONG.get(command, ["--config", "missing.yaml"])
    status, _, said = ask(command, *wrong)
    assert status in (1, 2)
    assert said.startswith("error: ") and "\n\n" not in said.strip() and "Traceback" not in said
    again, _, more = ask(command, *wrong, "--debug")
    assert again == status
    assert "Traceback (most recent call last)" in more and more.endswith(said)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("recipes/r1_zero.py", "--max_step 4", "unknown key `max_step`"),
        ("data_prep/world/__main__.py", "--config missing.yaml --dry", "unrecognized arguments: --dry"),
        ("recipes/tools/plan.py", "--scale cpu --gpu 4", "unrecognized arguments: --gpu"),
    ],
)
def test_a_word_cut_short_is_no_key(ask, command, words, said):
    assert said in ask(command, *words.split())[2]


@pytest.mark.parametrize("command", STAGES)
def test_a_stage_without_a_config_asks_for_one(ask, command):
    status, _, said = ask(command)
    assert status == 2 and "is missing. Name a YAML that has it, as --config recipes/configs/cpu/" in said


SLOW = {"torch", "transformers", "trl", "peft"}
ASKED = """
import runpy, sys
stage, *wrong = sys.argv[1:]
for words in (["--help"], ["--sead", "3"], ["--seed", "three"], *(["--config", path] for path in wrong)):
    sys.argv = [stage, *words]
    try:
        runpy.run_path(stage, run_name="__main__")
    except SystemExit as ended:
        sys.stderr.write(f"{ended.code}\\n")
print(*sys.modules)
"""
ANSWERS = r"""0
error: command line: unknown key `sead`; did you mean `seed`\?
2
error: command line: `seed` is 'three'; write a value of type int
2
error: missing\.yaml: no such file; .*
2
error: key\.yaml: unknown key `sead`; did you mean `seed`\?
2
error: type\.yaml: `seed` is 'three'; write a value of type int
2
error: batch\.yaml: .* not divide .*
2
"""


@pytest.mark.parametrize("stage", STAGES)
def test_help_and_what_is_wrong_are_said_before_anything_slow_is_imported(stage, tmp_path):
    wrong = {"missing": None, "key": "sead: 3", "type": "seed: three", "batch": "per_device_train_batch_size: 7"}
    for name, text in wrong.items():
        if text:
            (tmp_path / f"{name}.yaml").write_text(text)
    command = [sys.executable, "-c", ASKED, str(ROOT / stage), *(f"{name}.yaml" for name in wrong)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert "--learning_rate" in done.stdout and re.fullmatch(ANSWERS, done.stderr), done.stderr
    assert not SLOW & set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "words", ["recipes.tools.check recipes/base.py missing.yaml", "recipes.tools.plan --help", "data_prep.world --help"]
)
def test_a_module_says_so_before_anything_slow_is_imported(words):
    command = [sys.executable, "-X", "importtime", "-m", *words.split()]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stderr
    assert "data_prep.runs.commands" in said and not re.search(rf"\| +({'|'.join(SLOW)})$", said, re.MULTILINE)


LOOP = """
import time
from data_prep.runs.commands import progress
[time.sleep(0.3) for _ in progress(range(6), 'counting')]
"""
LIBRARYS = "import data_prep; from tqdm import tqdm; [None for _ in tqdm(range(9), desc='a library')]"


def test_a_bar_with_the_time_left_is_shown_on_a_terminal_only():
    ours, theirs = os.openpty()
    os.set_blocking(ours, False)
    termios.tcsetwinsize(theirs, (24, 80))
    on_terminal = subprocess.Popen([sys.executable, "-c", LOOP], cwd=ROOT, stderr=theirs)
    silent = [subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True) for code in (LOOP, LIBRARYS)]
    assert on_terminal.wait(60) == 0
    assert re.search(rb"counting: +\d+%.*\[00:0\d<00:0\d", os.read(ours, 65536))
    os.close(ours)
    os.close(theirs)
    assert [done.stderr + done.stdout for done in silent] == [b"", b""]
