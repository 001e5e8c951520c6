"""What a step's settings say of servers; tests/engines/test_serving.py starts and stops real ones."""

from data_prep.runs import ConfigError, identity
from data_prep.sampling import NEUTRAL, Decoding, Server, ServerSettings
from recipes import grpo
from recipes.config import RLArguments
from recipes.tools import servers

import httpx
import pytest

HERE = {"base_url": "http://localhost:8000/v1", "model": "me/judge"}


def test_the_command_has_the_arguments_of_the_yaml():
    serve = {"gpu_memory_utilization": 0.45, "enforce_eager": True, "enable_prefix_caching": False, "hf_overrides": {}}
    asked = {"judge": HERE | {"serve": serve}, "writer": HERE | {"serve": serve}, "sampler": {"server": HERE}}
    (service,) = servers.needed(asked, "x.yaml")
    assert " ".join(service.command) == (
        "vllm serve me/judge --host localhost --port 8000 --generation-config vllm --no-enable-prefix-caching "
        "--enforce-eager --gpu-memory-utilization 0.45 --hf-overrides {}"
    )
    swapped = dict(reversed(serve.items()))
    assert servers.needed({"judge": HERE | {"serve": swapped, "base_url": HERE["base_url"] + "/"}}, "") == [service]


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (HERE | {"serve": True}, "x.yaml: serve is True; write arguments of `vllm serve`"),
        (HERE | {"serve": {}, "base_url": "http://gpu7:8000/v1"}, "a server that the pipeline starts is on this"),
        (HERE | {"serve": {}, "base_url": "http://localhost/v1"}, "as in http://localhost:8000/v1"),
        (HERE | {"serve": {}, "model": "me/two"}, "two servers at http://localhost:8000/v1, of me/judge and me/two"),
        (HERE | {"serve": {"dtype": "half"}}, "or with other arguments"),
        (HERE | {"serve": {"port": 8001}}, "serve: port: base_url says it; remove it"),
        (HERE | {"serve": {"served-model-name": "x"}}, "served_model_name: it is served as `model`"),
        (HERE | {"serve": {}, "base_url": "https://localhost:8000/v1"}, "as in http://localhost:8000/v1"),
        (HERE | {"serve": {}, "base_url": "http://localhost:8000"}, "as in http://localhost:8000/v1"),
        ({"base_url": HERE["base_url"], "serve": {}}, "`model` is missing"),
    ],
)
def test_what_cannot_be_started_is_refused_where_it_is_read(one, said):
    with pytest.raises(ConfigError, match=said):
        servers.needed({"judge": HERE | {"serve": {}}, "writer": one}, "x.yaml")


def test_how_a_server_is_started_makes_no_other_run():
    """Only what it is asked counts, so that a job goes on beside another share of the card."""
    asked = {"judge": HERE | {"serve": {"gpu_memory_utilization": 0.45}}}
    assert identity.plain(asked) == {"judge": HERE}


def test_the_judge_of_a_reward_is_started_too():
    kwargs = {"judge_reward": HERE | {"serve": {"dtype": "half"}}}
    assert servers.needed({"reward_kwargs": kwargs}, "x.yaml")
    (reward,) = grpo.load_rewards(RLArguments(reward_funcs=["judge_reward"], reward_kwargs=kwargs))
    assert reward.base_url == HERE["base_url"]


@pytest.mark.parametrize(("extensions", "more"), [(True, NEUTRAL), (False, {})])
def test_a_request_leaves_nothing_to_the_servers_own_settings(extensions, more, monkeypatch):
    """vLLM would take what is left out from the model's generation config."""
    sent = []

    async def post(self, url, json):
        sent.append(json)
        request = httpx.Request("POST", url)
        return httpx.Response(200, json={"choices": [{"text": "5", "finish_reason": "stop"}]}, request=request)

    monkeypatch.setattr(httpx.AsyncClient, "post", post)
    server = Server(ServerSettings(**HERE, extensions=extensions))
    server.sample(["2 + 3"], 1, Decoding(8, temperature=0.5, top_p=0.9), 0)
    server.sample(["2 + 3"], 1, Decoding(8, top_k=20), 0)
    plain = {"model": "me/judge", "prompt": "2 + 3", "max_tokens": 8, "seed": 0}
    assert sent == [
        more | plain | {"temperature": 0.5, "top_p": 0.9},
        more | plain | {"temperature": 1.0, "top_p": 1.0, "top_k": 20},
    ]
