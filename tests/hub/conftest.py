"""A Hub on loopback, and a process whose clients know no other: they read HF_ENDPOINT once, as they are imported."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import hub_server
import pytest
from hub_server import WRITER, Hub


@pytest.fixture(scope="session")
def server() -> Iterator[Hub]:
    hub = Hub()
    running = hub_server.start(hub)
    yield hub
    running.shutdown()
    running.server_close()


@pytest.fixture
def hub(server: Hub) -> Iterator[Hub]:
    """The session's Hub, at peace and with an empty log. Whatever else a test does to it, no client may have asked for
    what it does not speak, and no token may have been shown to the storage host."""
    server.faults.clear()
    server.asked.clear()
    yield server
    assert server.unknown == []
    assert server.leaks == []


@pytest.fixture(scope="session")
def environment(server: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What a client needs to talk to this Hub and to keep what it gets to itself."""
    home = tmp_path_factory.mktemp("hf_home")
    settings = {"HF_ENDPOINT": server.url, "HF_TOKEN": WRITER, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    kept = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    return kept | settings | quiet


@pytest.fixture(scope="session")
def client(environment: dict[str, str]) -> Iterator[Callable[..., Any]]:
    """Calls a function of a module in the other process; returns what it returns, raises what it raises."""
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        pool.submit(os.getpid).result()  # it starts now, with this environment
    finally:
        os.environ.clear()
        os.environ.update(before)
    yield lambda function, *arguments, **named: pool.submit(function, *arguments, **named).result(timeout=300)
    pool.shutdown()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path
