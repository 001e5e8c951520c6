"""Model servers for steps, such as a judge: `vllm serve` runs while a step needs it.

The pipeline starts the model of each `{base_url: ..., model: ..., serve: {...}}` in a step's settings before the step,
and stops it before the next step that does not need it. So one GPU can hold first a judge and later a policy. `serve`
holds arguments of `vllm serve`. Without `serve`, or if the model already answers there, the server is external: it is
used but never stopped.
"""

import contextlib
import json
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from data_prep.runs import ConfigError, Stopped
from recipes.tools import children

import httpx
import psutil

START_LIMIT = 1800.0  # seconds; the first start of a model downloads it
STOP_LIMIT = 30.0  # seconds for a server to end by itself
OWN = dict.fromkeys(("host", "port"), "base_url says it") | {"served_model_name": "it is served as `model`"}
OWN |= {"api_key": "set VLLM_API_KEY, and name it in `api_key_variable`"}


@dataclass(frozen=True)
class Service:
    """A model at an address. `arguments` are those of `vllm serve`, as words; `key` is the token that it requires."""

    base_url: str
    model: str
    arguments: tuple[str, ...] = ()
    key: str = field(default="", repr=False)

    @property
    def port(self) -> int:
        return urlsplit(self.base_url).port

    @property
    def command(self) -> tuple[str, ...]:
        """The start command. Requests set the decoding, and the model's own generation config is not used."""
        where = ("--host", urlsplit(self.base_url).hostname, "--port", str(self.port))
        return ("vllm", "serve", self.model, *where, "--generation-config", "vllm", *self.arguments)

    @property
    def script(self) -> str:
        """Shell commands that start the server and wait for it."""
        waits = f"until curl -sf {self.base_url}/models > /dev/null; do sleep 1; done"
        return f"{shlex.join(self.command)} & server_{self.port}=$!\n{waits}"

    @property
    def stop_script(self) -> str:
        """Shell commands that stop the server that `script` has started."""
        return f"kill $server_{self.port}; wait"

    def serves(self) -> list[str] | None:
        """Names of the models that answer at the address; None if there is no server.

        Raises ServeError if a server there does not list its models.
        """
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            reply = httpx.get(f"{self.base_url}/models", headers=headers, timeout=10, trust_env=False)
            return [one["id"] for one in reply.raise_for_status().json()["data"]]
        except httpx.ConnectError:
            return None
        except httpx.HTTPStatusError as error:
            said = f"answers with status {error.response.status_code}"
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            said = f"is no server of models ({type(error).__name__})"
        raise ServeError(
            f"{self.base_url}: what listens on port {self.port} {said}. Stop it, or write another port in base_url; "
            "for a server of yours that wants a token, write `api_key_variable`."
        )

    def is_there(self) -> bool:
        """Whether the model is already served. Raises ServeError if another server uses the address."""
        answers = self.serves()
        if answers is not None and self.model not in answers:
            raise ServeError(
                f"{self.base_url} serves {', '.join(answers)}, not {self.model}. Stop that server, or write another "
                "port in base_url."
            )
        return answers is not None


class ServeError(Stopped):
    """A server does not start or has died. The message has the end of its log."""


def needed(settings: object, where: str) -> list[Service]:
    """The servers that a step's settings ask the pipeline to start.

    Raises ConfigError if `serve` is not a mapping, repeats `base_url` or `model`, or is for another machine, or if two
    models have the same address.
    """
    found: dict[int, Service] = {}
    for one in _mappings(settings):
        serve, address = one.get("serve"), str(one.get("base_url") or "").rstrip("/")
        if serve is None or not address:
            continue
        if not isinstance(serve, dict):
            raise ConfigError(f"{where}: serve is {serve!r}; write arguments of `vllm serve`, as in {{dtype: half}}.")
        if twice := sorted({str(key).replace("-", "_") for key in serve} & set(OWN)):
            raise ConfigError(f"{where}: serve: {', '.join(twice)}: {OWN[twice[0]]}; remove it.")
        if not re.fullmatch(r"http://(localhost|127\.0\.0\.1|\[::1\]):\d{1,5}/v1", address):
            raise ConfigError(
                f"{where}: base_url is {one['base_url']}; a server that the pipeline starts is on this machine, as in "
                "http://localhost:8000/v1. Leave `serve` out for one that runs elsewhere."
            )
        if not isinstance(one.get("model"), str):
            raise ConfigError(f"{where}: `model` is missing beside base_url {address}; write the model to serve.")
        key = os.environ.get(one.get("api_key_variable") or "", "")
        service = Service(address, one["model"], tuple(_words(dict(sorted(serve.items())))), key)
        if found.setdefault(service.port, service) != service:
            raise ConfigError(
                f"{where}: two servers at {address}, of {found[service.port].model} and {service.model}, "
                "or with other arguments. Write one of them everywhere, or two ports."
            )
    return list(found.values())


def _mappings(value: object) -> Iterator[dict]:
    if isinstance(value, dict):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _mappings(one)


def _words(arguments: dict) -> Iterator[str]:
    for key, value in arguments.items():
        name = f"--{str(key).replace('_', '-')}"
        if isinstance(value, bool):
            yield name if value else f"--no-{name[2:]}"
        elif isinstance(value, list):
            yield from (name, *map(str, value))
        else:
            yield from (name, json.dumps(value) if isinstance(value, dict) else str(value))


class Servers:
    """The servers that this pipeline has started. The end of the block stops them."""

    def __init__(self, environment: dict[str, str], limit: float, say: Callable[[str], None]):
        self.environment, self.limit, self.say = environment, limit, say
        self.running: dict[Service, tuple] = {}  # (process, log)

    def __enter__(self) -> "Servers":
        return self

    def __exit__(self, *_: object) -> None:
        self.keep([])

    def require(self, services: list[Service], logs: Path) -> None:
        """Start the services that do not answer yet, log to `logs`, and wait until all answer. Raises ServeError."""
        for service in services:
            if service not in self.running:
                if service.is_there():
                    self.say(f"{service.model}: answers at {service.base_url} already, and is used as it is")
                else:
                    self._start(service, logs / f"serve_{service.port}.log")

    def _start(self, service: Service, log: Path) -> None:
        self.say(f"{service.model}: starting at {service.base_url}")
        started = time.monotonic()
        self.running[service] = (children.start(service.command, log, self.environment), log)
        while not _answers(service):
            self.check()
            if time.monotonic() - started > self.limit:
                self.keep([one for one in self.running if one != service])
                raise ServeError(
                    f"{service.model} does not answer at {service.base_url} after {self.limit:.0f} s.{_end(log)}"
                    "Start it by hand to see more:\n"
                    f"  {shlex.join(service.command)}"
                )
            time.sleep(0.5)
        self.say(f"{service.model}: answers at {service.base_url} after {time.monotonic() - started:.0f} s")

    def check(self) -> None:
        """Raises ServeError if a server has died."""
        for service, (process, log) in list(self.running.items()):
            if process.exitcode is not None:
                self.keep([one for one in self.running if one != service])
                raise ServeError(
                    f"the server of {service.model} at {service.base_url} ended with exit status {process.exitcode}."
                    f"{_end(log)}What is finished stays; the same command resumes from there."
                )

    def keep(self, services: list[Service]) -> None:
        """Stop all other services, and wait until they have ended and their memory is free."""
        for service in [one for one in self.running if one not in services]:
            process, _ = self.running.pop(service)
            family = []
            with contextlib.suppress(psutil.Error):
                parent = psutil.Process(process.pid)
                family = [parent, *parent.children(recursive=True)]
            for one in family[1:2]:  # `vllm serve` itself, a child of the process that watches it
                with contextlib.suppress(psutil.Error):
                    one.terminate()
            psutil.wait_procs(family[1:], STOP_LIMIT)
            children.end(process)
            psutil.wait_procs(family, STOP_LIMIT)
            self.say(f"{service.model}: stopped")


def _answers(service: Service) -> bool:
    """Whether a starting server answers. It may accept a request before it can answer."""
    try:
        return bool(service.serves())
    except ServeError:
        return False


def _end(log: Path) -> str:
    return f" The end of {log}:\n{children.end_of(log.read_text(encoding='utf-8', errors='replace'))}"
