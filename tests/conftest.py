"""What all tests share."""

import os
from pathlib import Path

import pytest
import tiny_run
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# Files whose tests share what takes long to make: the fixture `whole`, a report.
TOGETHER = {"tests/test_tiny.py": "whole", "tests/hub/test_pushed_pipeline.py": "whole", "tests/test_page.py": "page"}
TOGETHER |= {"tests/engines/test_two_processes.py": "processes", "tests/engines/test_host_memory.py": "processes"}
TOGETHER |= {"tests/engines/test_vllm.py": "vllm", "tests/engines/test_serving.py": "vllm"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fail-on-skip", action="store_true", help="a skipped test fails the session, as CI wants it")
    parser.addoption("--outputs", type=Path, help="outputs/SCALE of a whole run, to be pushed in place of a tiny one")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    if skipped and config.getoption("--fail-on-skip"):
        terminalreporter.section("skipped, which --fail-on-skip forbids")
        for report in skipped:
            terminalreporter.line(f"{report.nodeid}: {report.longrepr[2] if report.longrepr else ''}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.getoption("--fail-on-skip") and reporter.stats.get("skipped") and session.exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


class OneByOne(LoadScopeScheduling):
    """Hands the tests to the workers in their order, but those of `TOGETHER` to one worker. This is what `--dist
    loadgroup` is for, which pytest-xdist 3.8 does not do under pytest 9."""

    def _split_scope(self, nodeid: str) -> str:
        return TOGETHER.get(nodeid.partition("::")[0], nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> OneByOne:
    return OneByOne(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no worker waits for the other at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session")
def offline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """(a working directory, an environment in which only loopback can be reached and every attempt is logged)."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text(tiny_run.FORBID)
    path = os.pathsep.join([str(folder / "site"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "FORBIDDEN_LOG": str(folder / "forbidden.log")}
    for name in ("CI", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "TRANSFORMERS_OFFLINE"):
        environment.pop(name, None)  # with these a library might be silent for another reason than our switch
    return folder, environment


@pytest.fixture(scope="session")
def whole(offline: tuple[Path, dict[str, str]]) -> Path:
    """The working directory after one whole run that nothing interrupted; no test changes what lies in it."""
    folder, environment = offline
    tiny_run.run(folder, environment=environment)
    return folder
