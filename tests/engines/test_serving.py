"""`vllm serve`: started and stopped by the pipeline as its steps need it, and as the sampler of RL."""

import contextlib
import http.server
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from data_prep.sampling import Decoding, Server, ServerSettings
from recipes.tools.servers import Service

import cells
import httpx
import psutil
import pytest
import yaml
from conftest import REPOSITORY, World, kill, log_of
from test_vllm import ENGINE, LARGEST, SHAPES

PORT = 23111
SAMPLED = [
    cells.Case("single_gpu", "server", cells.LORA_RL),
    cells.Case("zero2", "server", cells.FULL_RL),
    cells.Case("fsdp2", "server", cells.LORA_RL),
]
URL = f"http://127.0.0.1:{PORT}/v1"
SERVE = {"enforce_eager": True, "max_model_len": 256, "max_num_seqs": 8}
JOB = '''
"""Does what its YAML says, and writes who listens at the server's port meanwhile."""
import os, signal, socket, sys, time
from dataclasses import dataclass, field
from pathlib import Path
import psutil
from data_prep import jobs
from data_prep.sampling import Decoding, Server, ServerSettings

@dataclass
class Settings:
    output_dir: str
    judge: ServerSettings | None = None
    inputs: list[str] = field(default_factory=list)
    kill: bool = False
    seed: int = 0
    script: str = ""

def load(config: Settings):
    return {}

def build(config, output_dir):
    if config.judge:
        said = Server(config.judge).sample(["What is 2 + 3 * 4?"], 8, Decoding(max_tokens=8), 0)
        (output_dir / "said.txt").write_text("\\n".join(repr(one.text) for one in said[0]))
    with socket.socket() as one:
        heard = one.connect_ex(("127.0.0.1", PORT)) == 0
    (output_dir / "heard.txt").write_text(str(heard))
    if config.kill:
        for process in psutil.process_iter(["cmdline"]):
            if "EngineCore" in " ".join(process.info["cmdline"] or []):
                process.kill()
        time.sleep(120)
    return {}

if __name__ == "__main__":
    sys.exit(jobs.run(Settings, load, build))
'''
DRIVER = """
import sys
from data_prep.runs import commands
from recipes.tools import pipeline
sys.exit(commands.run(pipeline.main, ["--scale", "./toy", *sys.argv[1:]]))
"""


class Toy:
    """A scale of three jobs, a <- b <- c, of which the first two ask a judge."""

    def __init__(self, world: World, folder: Path, model: str):
        self.folder, self.environment, self.judge = folder, world.environment, {"base_url": URL, "model": model}
        (folder / "toy").mkdir()
        for name in "abc":
            (folder / f"job_{name}.py").write_text(JOB.replace("PORT", str(PORT)), encoding="utf-8")
        self.write("a", judge=self.judge | {"serve": SERVE})
        self.write("b", judge=self.judge | {"serve": SERVE}, inputs=["outputs/toy/a/heard.txt"])
        self.write("c", inputs=["outputs/toy/b/heard.txt"])

    def write(self, name: str, **settings) -> None:
        text = yaml.safe_dump(settings | {"output_dir": f"outputs/toy/{name}", "script": f"job_{name}"})
        (self.folder / f"toy/{name}.yaml").write_text(text, encoding="utf-8")

    def start(self, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-c", DRIVER, *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
        default = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, **pipes, **default)

    def run(self, *arguments: str, status: int = 0) -> str:
        process = self.start(*arguments)
        try:
            output, _ = process.communicate(timeout=300)
        finally:
            if process.poll() is None:
                kill(process)
        assert process.returncode == status, output
        assert not left(), output
        return output

    def read(self, name: str) -> str:
        return (self.folder / f"outputs/toy/{name}").read_text(encoding="utf-8")


def left() -> list[str]:
    """What still runs of a server at the port, ten seconds at most after its end."""
    end = time.monotonic() + 10
    while True:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = " ".join(process.cmdline())
                if (f"--port {PORT}" in words or "EngineCore" in words) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(words)
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.2)


@pytest.fixture(scope="module")
def model(world: World) -> str:
    """A checkpoint whose own generation config would leave one token to choose from."""
    from test_stand_ins import stand_in

    os.chdir(world.folder)
    folder = world.folder / stand_in("qwen2", "greedy", **SHAPES["qwen2"])
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"top_k": 1, "do_sample": True}), encoding="utf-8")
    return str(folder)


@pytest.fixture
def toy(world: World, model: str, tmp_path: Path) -> Toy:
    return Toy(world, tmp_path, model)


@contextlib.contextmanager
def something_that_listens(models: list[str] | None):
    """A server of models that the pipeline did not start, or, with None, of something else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(404 if models is None else 200)
            self.end_headers()
            self.wfile.write(json.dumps({"data": [{"id": one} for one in models or []]}).encode())

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"choices": [{"text": "14", "finish_reason": "stop"}], "usage": {}}')

        def log_message(self, *_):
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


def test_a_server_runs_while_steps_need_it(toy: Toy):
    words = ("--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "8")
    start, stop = Service(URL, toy.judge["model"], words), f"kill $server_{PORT}; wait"
    printed = toy.run("--dry-run").splitlines()
    jobs = [f"python -m job_{name} --config toy/{name}.yaml" for name in "abc"]
    assert printed == [*start.script.splitlines(), *jobs[:2], stop, jobs[2]]
    assert printed[0].startswith(f"{shlex.join(start.command)} &")
    said = toy.run()
    assert said.count("starting at") == said.count("answers at") == said.count(": stopped") == 1
    assert said.index("answers at") < said.index("a: started") < said.index("b: done") < said.index(": stopped")
    assert said.index(": stopped") < said.index("c: started")
    assert [toy.read(f"{name}/heard.txt") for name in "abc"] == ["True", "True", "False"]
    # top_k of the model's generation config is not what was asked for.
    assert len(set(toy.read("a/said.txt").splitlines())) > 4


def test_a_server_that_dies_ends_the_step_with_its_log(toy: Toy):
    toy.write("a", judge=toy.judge | {"serve": SERVE}, kill=True)
    said = toy.run("--only", "a", status=1)
    assert f"the server of {toy.judge['model']} at {URL} ended with exit status" in said
    assert "The end of outputs/toy/logs/serve_" in said


def test_a_start_that_takes_too_long_and_ctrl_c_leave_nothing(toy: Toy):
    said = toy.run("--only", "a", "--server-timeout", "4", status=1)
    assert f"does not answer at {URL} after 4 s" in said
    assert f"vllm serve {toy.judge['model']} --host 127.0.0.1 --port {PORT}" in said
    process = toy.start("--only", "a")
    while not any("EngineCore" in line or "vllm serve" in line for line in left()):
        assert process.poll() is None
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(90) == 130
    assert not left()


def test_a_server_of_somebody_elses_is_used_and_left(toy: Toy):
    toy.write("a", judge=toy.judge | {"serve": SERVE})
    with something_that_listens([toy.judge["model"]]):
        said = toy.run("--only", "a")
        assert "answers at" in said and "is used as it is" in said and "stopped" not in said
        assert httpx.get(f"{URL}/models").status_code == 200
    with something_that_listens(["another"]):
        toy.write("b", judge=toy.judge | {"serve": SERVE})
        assert f"{URL} serves another, not {toy.judge['model']}" in toy.run("--only", "b", status=1)
    with something_that_listens(None):
        assert f"what listens on port {PORT} answers with status 404" in toy.run("--only", "b", status=1)


def test_rl_samples_at_a_server_with_the_weights_of_each_step(world: World, model: str):
    """The command of slurm/stage.sbatch, with a file in place of NCCL."""
    from test_stand_ins import stand_in

    os.chdir(world.folder)
    text = (REPOSITORY / "slurm/stage.sbatch").read_text(encoding="utf-8")
    start = text.index("VLLM_SERVER_DEV_MODE=1")
    line = text[start : text.index("#SBATCH", start)].replace("\\\n#", "").strip()
    checkpoint = stand_in("qwen2", "qwen2_wide", **SHAPES["qwen2"])
    words = shlex.split(line.replace("CHECKPOINT", checkpoint).replace("nccl", "file"))
    assert words[:3] == ["VLLM_SERVER_DEV_MODE=1", "vllm", "serve"]
    more = ["--host", "127.0.0.1", "--port", str(PORT), "--enforce-eager", "--max-model-len", "264"]
    environment = world.environment | {"VLLM_SERVER_DEV_MODE": "1"}
    with (world.folder / "server.txt").open("w") as log:
        server = subprocess.Popen([*words[1:], *more], env=environment, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 240
        while not Service(URL, checkpoint, ()).serves():
            assert server.poll() is None and time.monotonic() < end, (world.folder / "server.txt").read_text()[-4000:]
            time.sleep(0.5)
        address = {"generation": "vllm_server", "vllm_server_base_url": URL.removesuffix("/v1")}
        for case in SAMPLED:
            engine = ENGINE | address | {"model_name_or_path": checkpoint}
            if two := case.config != "single_gpu":
                engine |= {"use_cpu": False, "ddp_backend": "gloo"}
            job = {"argv": world.yaml(case.name, world.settings(case) | engine), "engine": True}
            more = {"num_machines": 1, "num_processes": 1 + two, "main_process_port": 22000}
            process = world.start(case.config, [job], log=case.name, **more)
            try:
                process.wait(300)
            finally:
                if process.poll() is None:
                    kill(process)
            said = (world.folder / f"{case.name}.txt").read_text(encoding="utf-8", errors="replace")
            assert (world.folder / "outputs/t" / case.name / "run.json").is_file(), said[-6000:]
            rows = log_of(world.folder / "outputs/t" / case.name)
            assert max(row[LARGEST] for row in rows) < 1e-5
            assert rows[2]["kl"] == 0.0
        asked = ServerSettings(base_url=URL, model=checkpoint)
        one, two = (Server(asked).sample(["What is 2 + 3?"], 2, Decoding(max_tokens=8), 0) for _ in range(2))
        assert one == two
    finally:
        kill(server)
