"""The pipeline's own command at the scale of tests/configs/tiny, and what forbids it any network but loopback."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCALE = ROOT / "tests" / "configs" / "tiny"
# Python imports this by itself at the start of every process, here of every child of the pipeline too.
FORBID = """
import ipaddress, os, socket

def allowed(address):
    if not isinstance(address, tuple):
        return True  # a Unix socket
    host = address[0]
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

def guard(name):
    real = getattr(socket.socket, name)
    def guarded(self, address, *rest):
        if not allowed(address):
            tell(f"{name} {address}")
        return real(self, address, *rest)
    setattr(socket.socket, name, guarded)

def tell(what):
    with open(os.environ["FORBIDDEN_LOG"], "a") as log:
        log.write(what + "\\n")
    raise OSError(f"forbidden in this test: {what}")

real_lookup = socket.getaddrinfo
def lookup(host, *rest, **more):
    if host is not None and not allowed((host.decode() if isinstance(host, bytes) else host, 0)):
        tell(f"getaddrinfo {host}")
    return real_lookup(host, *rest, **more)
socket.getaddrinfo = lookup
guard("connect")
guard("connect_ex")
"""


def start(folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> subprocess.Popen:
    command = [sys.executable, "-m", "recipes.tools.pipeline", "--scale", str(SCALE), *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def run(folder: Path, *arguments: str, environment: dict[str, str] | None = None) -> str:
    process = start(folder, *arguments, environment=environment)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    return output
