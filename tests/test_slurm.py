"""What slurm/stage.sbatch starts on each of several machines, as accelerate reads and builds it; nothing runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed.run as torchrun
import yaml
from accelerate.commands import launch
from accelerate.utils import launch as builders

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "slurm/stage.sbatch"
NODES = 3
PROCESSES = NODES * 8
NAMED = {
    path.stem
    for stage in (ROOT / "recipes/configs").rglob("*.yaml")
    for path in map(Path, re.findall(r"^accelerate_config: *(\S+)", stage.read_text(encoding="utf-8"), re.MULTILINE))
}
CLAIMED = {"ddp", "fsdp2", "multi_node", "multi_node_8", "multi_node_16", "zero2", "zero3", "zero3_moe"}
SRUN = f"""#!/bin/bash
while [[ "$1" == -* ]]; do shift; done
for rank in $(seq 0 {NODES - 1}); do SLURM_NODEID=$rank "$@" || exit; done
"""
ACCELERATE = """#!/bin/bash
printf '%s\\0' "$@" > "$STARTED/$SLURM_NODEID"
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Stand-ins for Slurm's commands and for accelerate, in a working directory whose name has a space."""
    tools = {"srun": SRUN, "accelerate": ACCELERATE, "python": f'#!/bin/bash\nexec "{sys.executable}" "$@"\n'}
    tools["scontrol"] = "#!/bin/bash\nprintf '%s\\n' first second third\n"
    here = tmp_path / "a clone"
    for folder in ("bin", "started"):
        (here / folder).mkdir(parents=True)
    for name, text in tools.items():
        (here / "bin" / name).write_text(text, encoding="utf-8")
        (here / "bin" / name).chmod(0o755)
    (here / "accelerate_configs").symlink_to(ROOT / "accelerate_configs")
    monkeypatch.chdir(here)
    monkeypatch.setenv("PATH", f"{here / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("STARTED", str(here / "started"))
    monkeypatch.setenv("SLURM_NNODES", str(NODES))
    monkeypatch.setenv("SLURM_JOB_NODELIST", "[first-third]")
    monkeypatch.delenv("SLURM_GPUS_ON_NODE", raising=False)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    return here


def start(cluster: Path, config: str, *more: str) -> subprocess.CompletedProcess:
    command = ["bash", str(SCRIPT), "recipes/a stage.py", config, *more]
    return subprocess.run(command, cwd=cluster, capture_output=True, text=True, check=False)


def write(cluster: Path, line: str) -> str:
    (cluster / "the stage.yaml").write_text(f"output_dir: outputs/x/y\n{line}\nbatch_size: 24\n", encoding="utf-8")
    return "the stage.yaml"


def started(cluster: Path) -> list[list[str]]:
    """The arguments of `accelerate` on each machine."""
    files = [cluster / "started" / str(rank) for rank in range(NODES)]
    return [file.read_text(encoding="utf-8").split("\0")[:-1] for file in files]


def built(arguments: list[str], monkeypatch):
    """(torchrun's settings, its command, the environment) that accelerate builds from the arguments of one machine."""
    monkeypatch.setattr("sys.argv", ["accelerate", *arguments])
    monkeypatch.setattr(builders, "is_port_in_use", lambda port: False)  # of the machine that the test runs on
    assert arguments[0] == "launch"
    args, defaults, mixed = launch._validate_launch_command(launch.launch_command_parser().parse_args(arguments[1:]))
    if args.use_deepspeed:  # as launch_command does
        args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        command, environment = builders.prepare_deepspeed_cmd_env(args)
        assert command is None  # else `deepspeed --hostfile None --launcher pdsh ...`
    else:
        assert args.use_fsdp or args.multi_gpu
        environment = builders.prepare_multi_gpu_env(args)
    stage = ["--training_script", args.training_script, "--training_script_args", args.training_script_args]
    run = launch._filter_args(args, torchrun.get_args_parser(), stage)
    settings, _, words = torchrun.config_from_args(run)
    return settings, words, environment


def expected(name: str) -> dict[str, str]:
    """What the environment must say, by the accelerate config."""
    values = yaml.safe_load((ROOT / f"accelerate_configs/{name}.yaml").read_text(encoding="utf-8"))
    found = {"ACCELERATE_MIXED_PRECISION": "bf16"}
    fsdp, zero = values.get("fsdp_config", {}), values.get("deepspeed_config", {})
    if fsdp:
        found |= {"ACCELERATE_USE_FSDP": "true"}
        found |= {key.upper(): str(value).lower() for key, value in fsdp.items() if isinstance(value, bool)}
        found |= {key.upper(): str(value) for key, value in fsdp.items() if not isinstance(value, bool)}
    if zero:
        found |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(zero["zero_stage"])}
        found |= {"ACCELERATE_DEEPSPEED_ZERO3_INIT": str(zero["zero3_init_flag"]).lower()}
        if leaves := zero.get("deepspeed_moe_layer_cls_names"):
            found |= {"ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES": leaves}
    return found


def test_the_script_claims_what_the_yamls_name_and_every_config_for_gpus():
    one_process = {"cpu", "single_gpu"}
    assert NAMED - one_process <= CLAIMED
    there = {path.stem for path in (ROOT / "accelerate_configs").glob("*.yaml")}
    assert there == CLAIMED | one_process | {"ddp_2"}  # for two cards of one machine
    comment = SCRIPT.read_text(encoding="utf-8").partition("#SBATCH")[0]
    said = {"multi_node_8": "_8", "multi_node_16": "_16"}
    assert all(re.search(rf"\b{said.get(name, name)}\b", comment) for name in CLAIMED | one_process)


@pytest.mark.parametrize("name", sorted(CLAIMED))
def test_each_machine_gets_its_rank_and_the_engines_settings(name, cluster, monkeypatch):
    config = write(cluster, f"accelerate_config: accelerate_configs/{name}.yaml   # why it is this one")
    ended = start(cluster, config, "--reward_funcs", "a b")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    for rank, arguments in enumerate(started(cluster)):
        assert not {"pdsh", "--hostfile", "None"} & set(arguments)
        settings, words, environment = built(arguments, monkeypatch)
        assert (settings.min_nodes, settings.max_nodes, settings.nproc_per_node) == (NODES, NODES, 8)
        assert settings.min_nodes * settings.nproc_per_node == PROCESSES
        assert (settings.rdzv_backend, settings.rdzv_endpoint) == ("static", "first:29500")
        assert settings.rdzv_configs["rank"] == rank
        assert words[-5:] == ["recipes/a stage.py", "--config", "the stage.yaml", "--reward_funcs", "a b"]
        assert {key: environment.get(key) for key in expected(name)} == expected(name)
        assert ("ACCELERATE_USE_FSDP" in environment) == ("FSDP_VERSION" in expected(name))
        assert ("ACCELERATE_USE_DEEPSPEED" in environment) == name.startswith("zero")


def test_without_the_standard_launcher_accelerate_would_ask_for_a_hostfile(cluster, monkeypatch):
    values = yaml.safe_load((ROOT / "accelerate_configs/zero2.yaml").read_text(encoding="utf-8"))
    del values["deepspeed_config"]["deepspeed_multinode_launcher"]
    (cluster / "old.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    assert start(cluster, write(cluster, "accelerate_config: old.yaml")).returncode == 0
    with pytest.raises(AssertionError, match="hostfile"):
        built(started(cluster)[1], monkeypatch)


@pytest.mark.parametrize("quote", ['"', "'"])
def test_quotes_and_spaces_and_fewer_gpus_are_understood(quote, cluster, monkeypatch):
    text = (ROOT / "accelerate_configs/fsdp2.yaml").read_text(encoding="utf-8")
    (cluster / "my fsdp #2.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    ended = start(cluster, write(cluster, f"accelerate_config:   {quote}my fsdp #2.yaml{quote}   # mine"))
    assert (ended.returncode, ended.stderr) == (0, "")
    settings, _, environment = built(started(cluster)[2], monkeypatch)
    assert (settings.nproc_per_node, settings.rdzv_configs["rank"]) == (4, 2)
    assert environment["FSDP_VERSION"] == "2"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("dataset: x", "the stage.yaml lacks the key accelerate_config"),
        ("accelerate_config:", "the stage.yaml lacks the key accelerate_config"),
        ("accelerate_config: accelerate_configs/cpu.yaml", "cpu.yaml (distributed_type: NO) cannot start processes on"),
        ("accelerate_config: accelerate_configs/single_gpu.yaml", "on 3 machines of 8 GPUs; write `accelerate_config:"),
        ("accelerate_config: accelerate_configs/fsdp3.yaml", "fsdp3.yaml cannot be read (No such file or directory)"),
        ("accelerate_config: [", "the stage.yaml is no YAML"),
    ],
)
def test_what_cannot_be_started_ends_with_one_sentence(line, says, cluster):
    ended = start(cluster, write(cluster, line))
    assert ended.returncode == 1 and says in ended.stderr
    assert len(ended.stderr.splitlines()) == 1 and ended.stderr.endswith(".\n")
    assert not list((cluster / "started").iterdir())


def test_a_stage_without_its_yaml_or_with_one_that_is_not_there_is_told(cluster):
    ended = start(cluster, "nowhere.yaml")
    assert ended.returncode == 1 and "nowhere.yaml cannot be read" in ended.stderr
    ended = subprocess.run(["bash", str(SCRIPT), "recipes/r1_zero.py"], capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and ended.stderr.startswith("Write a stage's script and its YAML")
