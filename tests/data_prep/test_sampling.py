"""Sampling: the same bytes after a kill, the checkpoint's own distribution, and servers that fail in every way."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
import types
from collections import Counter
from contextlib import closing, contextmanager
from dataclasses import replace

from data_prep import rows, runs, sampling
from data_prep.rl_prompts import PassRate
from data_prep.sampling import (
    Decoding,
    LocalModel,
    Sampler,
    Server,
    ServerError,
    ServerSettings,
    decode,
    open_model,
    samples,
    servers,
)
from data_prep.sampling.store import Store

import pytest
import torch
from loopback import serving
from transformers import AutoModelForCausalLM, Lfm2Config, LlamaConfig

PROMPTS = ["What is 2 + 3 * 4?", "计算 3 + 4。", [{"role": "user", "content": "Hello!"}], "9 - 8?", "1 + 1?"]
DECODING = Decoding(max_tokens=12)


@pytest.fixture(scope="module")
def model(checkpoint):
    return LocalModel(checkpoint, batch_size=8)


@pytest.fixture
def drawn(model, monkeypatch):
    """The prompts that ``model`` has completed."""
    found, generate = [], model._generate
    monkeypatch.setattr(model, "_generate", lambda inputs, *rest: found.extend(inputs) or generate(inputs, *rest))
    return found


def test_a_seed_gives_the_same_samples_and_a_damaged_store_is_put_aside(model, tmp_path, caplog):
    whole = model.sample(PROMPTS, 4, DECODING, seed=1, store=tmp_path)
    assert model.sample(PROMPTS, 4, DECODING, seed=1) == whole
    assert model.sample(PROMPTS, 4, DECODING, seed=2) != whole
    path = tmp_path / "requests.sqlite"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert model.sample(PROMPTS, 4, DECODING, seed=1, store=tmp_path) == whole
    assert "put aside as requests.broken" in caplog.text and "malformed" in caplog.text


def test_what_earlier_versions_stored_is_not_sampled_again(model, tmp_path, stored, drawn, caplog):
    """They had a Parquet file for each batch, a list of the batches, and for servers a database of one table."""
    whole = model.sample(PROMPTS, 4, DECODING, seed=1, store=tmp_path / "new")
    records = [{"key": key} | sample for _, key, sample in stored(tmp_path / "new")]
    rows.write_parquet(tmp_path / "old/a.parquet", records[8:16])
    (tmp_path / "old/b.parquet").write_bytes(b"torn")  # the first batch; the third was not drawn
    name = samples.key_of([8, *(record["key"] for record in records)])
    runs.write_json(tmp_path / f"old/{name}.plan.json", {"fresh": True, "places": list(range(20))})
    drawn.clear()
    for _ in range(2):
        assert model.sample(PROMPTS, 4, DECODING, seed=1, store=tmp_path / "old") == whole
        assert len(drawn) == 8 + 4
    assert caplog.text.count("old/b.parquet is sampled again") == 1

    request = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "model": "m", "prompt": "x", "max_tokens": 12}
    key = samples.key_of(request | {"temperature": 1.0, "top_p": 1.0, "seed": 5})
    answer = {"text": "\u4e2d", "finish": "stop", "prompt_tokens": 3, "completion_tokens": 5, "why": ""}
    with closing(sqlite3.connect(tmp_path / "requests.sqlite")) as file, file:
        file.execute("create table answers (request text primary key, sample text)")
        file.execute("insert into answers values (?, ?)", (key, json.dumps(answer)))
    asked = Server(ServerSettings("http://127.0.0.1:9/v1", "m", attempts=1))
    assert asked.sample(["x"], 1, DECODING, seed=5, store=tmp_path) == [[sampling.Sample(**answer)]]


def test_more_samples_and_more_prompts_find_what_is_there(model, tmp_path, stored, drawn):
    first = model.sample(PROMPTS[:3], 2, DECODING, seed=1, store=tmp_path)
    drawn.clear()
    more = model.sample(PROMPTS, 4, DECODING, seed=1, store=tmp_path)
    assert [group[:2] for group in more[:3]] == first
    assert len(drawn) == 20 - 6
    assert all(group[0] != group[2] or group[1] != group[3] for group in more[:3])  # further draws, not the same again
    assert model.sample(PROMPTS, 4, DECODING, seed=1, store=tmp_path) == more
    assert model.sample(PROMPTS[::-1], 3, DECODING, seed=1, store=tmp_path) == [group[:3] for group in more[::-1]]
    assert len(drawn) == 14
    assert model.sample(PROMPTS, 4, Decoding(max_tokens=12, temperature=0.9), seed=1, store=tmp_path) != more
    assert len(drawn) == 14 + 20
    assert len(stored(tmp_path)) == 40


def test_equal_prompts_get_samples_of_their_own(model):
    one, two = model.sample([PROMPTS[0]] * 2, 4, DECODING, seed=1)
    assert one != two


def test_a_kill_changes_no_batch_of_a_later_larger_list(model, tmp_path, stored, monkeypatch):
    model.sample(PROMPTS[:3], 2, DECODING, seed=1, store=tmp_path / "whole")
    whole = model.sample(PROMPTS, 4, DECODING, seed=1, store=tmp_path / "whole")
    model.sample(PROMPTS[:3], 2, DECODING, seed=1, store=tmp_path / "killed")
    calls, generate = [], model._generate

    def die_in_the_second_batch(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model, "_generate", die_in_the_second_batch)
        model.sample(PROMPTS, 4, DECODING, seed=1, store=tmp_path / "killed")
    assert model.sample(PROMPTS, 4, DECODING, seed=1, store=tmp_path / "killed") == whole
    assert stored(tmp_path / "killed") == stored(tmp_path / "whole")


def test_vllm_is_asked_for_token_ids_and_read_as_its_interface_says(checkpoint, tmp_path, monkeypatch):
    """vLLM itself needs a GPU: here its module has the same classes, and the tiny checkpoint's samples behind them."""
    local, made, batches = LocalModel(checkpoint), [], []

    class SamplingParams:
        def __init__(self, max_tokens, temperature, top_p, top_k, seed):
            self.decoding, self.seed = Decoding(max_tokens, temperature, top_p, top_k), seed

    class LLM:
        def __init__(self, model, revision, **arguments):
            made.append((model, revision, arguments))
            self.llm_engine = types.SimpleNamespace(model_config=types.SimpleNamespace(max_model_len=256))

        def get_tokenizer(self):
            return local.tokenizer

        def generate(self, prompts, sampling_params, use_tqdm):
            batches.append(len(prompts))
            for prompt, params in zip(prompts, sampling_params, strict=True):
                tokens = prompt["prompt_token_ids"]
                (sample,) = local._generate([tokens], params.decoding, params.seed)
                ids = list(range(sample.completion_tokens))
                output = types.SimpleNamespace(text=sample.text, finish_reason=sample.finish, token_ids=ids)
                yield types.SimpleNamespace(prompt_token_ids=tokens, outputs=[output])

    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    monkeypatch.setitem(sys.modules, "vllm", module)
    sampler = Sampler("vllm", batch_size=8, revision="abc", vllm={"tensor_parallel_size": 2})
    with open_model(str(checkpoint), sampler) as engine:
        samples = engine.sample(PROMPTS, 4, DECODING, seed=1, store=tmp_path)
        assert engine.sample(PROMPTS, 4, DECODING, seed=1, store=tmp_path) == samples
    assert made == [(str(checkpoint), "abc", {"tensor_parallel_size": 2})]
    assert batches == [8, 8, 4]
    assert len({sample.text for group in samples for sample in group}) > 10
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match="needs vllm"), open_model(str(checkpoint), sampler):
        pass


def test_greedy_is_what_transformers_generates(model):
    tokenizer = model.tokenizer
    encoded = tokenizer(PROMPTS[:2], return_tensors="pt", padding=True)
    encoded.pop("token_type_ids", None)
    expected = model.model.generate(**encoded, max_new_tokens=12, do_sample=False)[:, encoded["input_ids"].shape[1] :]
    samples = model.sample(PROMPTS[:2], 3, Decoding(max_tokens=12, temperature=0.0), seed=0)  # a prompt is read once
    expected = tokenizer.batch_decode(expected, skip_special_tokens=True)
    assert [[sample.text for sample in group] for group in samples] == [[text] * 3 for text in expected]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_heads_that_share_keys_complete_as_transformers_does(attention):
    """Prompts of unlike lengths, ends at unlike times, and more tokens than a layer first has room for."""
    torch.manual_seed(0)
    shape = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    config = LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.5)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    prompts = [torch.randint(4, 32, (1 + row % 5,)).tolist() for row in range(24)]
    found = decode.complete(model, [p for p in prompts for _ in (0, 1)], 0, [2, 3], Decoding(300, temperature=0.0))
    plain = {"max_new_tokens": 300, "do_sample": False, "eos_token_id": [2, 3]}
    expected = [model.generate(torch.tensor([p]), **plain)[0, len(p) :].tolist() for p in prompts]
    assert found[::2] == found[1::2] == expected and len({len(one) for one in found}) > 4
    assert model.config._attn_implementation == attention


def test_a_cache_that_cannot_be_cut_is_named():
    shape = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    config = Lfm2Config(**shape, num_attention_heads=2, num_key_value_heads=2, layer_types=["conv", "full_attention"])
    with pytest.raises(runs.ConfigError, match="the cache of a lfm2 cannot be cut by rows; sample with vLLM"):
        decode.complete(AutoModelForCausalLM.from_config(config), [[1], [1]], 0, [2], Decoding(max_tokens=2))


@pytest.mark.parametrize(
    ("decoding", "allowed"),
    [
        (Decoding(1, 1.0), {0: 0.5, 1: 0.3, 2: 0.15, 3: 0.05}),
        (Decoding(1, 1.0, top_p=0.75), {0: 0.625, 1: 0.375}),
        (Decoding(1, 1.0, top_k=3), {0: 0.526, 1: 0.316, 2: 0.158}),
        (Decoding(1, 0.5), {0: 0.685, 1: 0.247, 2: 0.062, 3: 0.007}),
        (Decoding(1, 0.0), {0: 1.0}),
    ],
)
def test_draws_follow_the_distribution(decoding, allowed):
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().repeat(20_000, 1)
    drawn = decode.draw(logits, decoding, torch.Generator().manual_seed(0))
    counts = Counter(drawn.tolist())
    assert set(counts) == set(allowed)
    assert all(counts[token] / 20_000 == pytest.approx(share, abs=0.02) for token, share in allowed.items())


def test_draws_from_a_large_vocabulary_follow_the_distribution():
    shares = {0: 0.1, 255: 0.2, 256: 0.3, 4999: 0.4}
    logits = torch.full((5000,), -torch.inf)
    logits[list(shares)] = torch.tensor(list(shares.values())).log()
    counts = Counter(decode.draw(logits.expand(5_000, -1), DECODING, torch.Generator().manual_seed(0)).tolist())
    assert {token: count / 5_000 for token, count in counts.items()} == pytest.approx(shares, abs=0.03)


def test_finish_and_counts(model):
    samples = [s for group in model.sample(["ab"], 64, Decoding(max_tokens=40), seed=0) for s in group]
    assert {s.prompt_tokens for s in samples} == {2}
    assert {s.finish for s in samples} == {"stop", "length"}
    assert all((s.completion_tokens == 40) or s.finish == "stop" for s in samples)
    assert not any("<|" in s.text for s in samples)


def test_too_long_a_prompt_is_refused_before_any_work(model):
    with pytest.raises(ValueError, match="makes 302 tokens, the model takes 256"):
        model.sample(["a" * 290], 1, DECODING, seed=0)


def test_a_share_of_the_prompts_may_be_too_long_and_changes_no_other_sample(checkpoint, model, tmp_path):
    long = "a" * 290
    with open_model(str(checkpoint), Sampler(batch_size=8, max_refused=0.3)) as sampler:
        *others, refused = sampler.sample([*PROMPTS, long], 4, DECODING, seed=1, store=tmp_path)
        told = "3 of 8 prompts do not fit, more than `max_refused: 0.3` of `sampler` allows: .* makes 302 tokens"
        sampler.max_refused = 0.25
        with pytest.raises(sampling.TooManyRefused, match=told.replace("0.3", "0.25")):
            sampler.sample([*PROMPTS, *[long] * 3], 4, DECODING, seed=1, store=tmp_path / "none")
    assert others == model.sample(PROMPTS, 4, DECODING, seed=1)
    assert {(one.text, one.finish, one.completion_tokens, one.is_unanswered) for one in refused} == {
        ("", "refused", 0, True)
    }
    assert not (tmp_path / "none").exists()
    assert [samples.may_refuse(share, 60) for share in (0, 0.01, 0.05, 0.1, 1)] == [0, 1, 3, 6, 60]


# --- servers ----------------------------------------------------------------------------------------------------------


@contextmanager
def server(faults, delay=0.0, refuses=()):
    """A server that answers "echo: <prompt> <seed>" after it has gone through ``faults``, and to the prompts of
    ``refuses`` with their (status, body); yields (settings, log)."""
    faults, log = list(faults), []

    def reply(request, body):
        body = json.loads(body)
        time.sleep(delay)
        log.append(body)
        fault = faults.pop(0) if faults else None
        text = f"echo: {body.get('prompt') or body['messages'][-1]['content']} {body['seed']}"
        choice = {"text": text, "message": {"content": text}, "finish_reason": "stop"}
        if body.get("prompt") in refuses:
            return refuses[body["prompt"]]
        if body.get("prompt") == "uncounted":
            return 200, {"choices": [choice], "usage": {"completion_tokens": None}}
        if fault == "filtered":
            return 200, {"choices": [choice | {"finish_reason": "content_filter"}]}
        if other := {"number": 5, "torn": "\ud800"}.get(fault):
            return 200, {"choices": [{"text": other, "message": {"content": other}}]}
        if fault in ("cut", "silent"):
            time.sleep(0.4 if fault == "silent" else 0.0)
            request.connection.close()
            return None
        data = {"garbage": b"<html>busy</html>", "empty": b'{"choices": []}', "list": b"[1]"}.get(fault)
        if fault in ("half", 429):
            request.send_response(429 if fault == 429 else 200)
            request.send_header("Retry-After", "0")
            request.send_header("Content-Length", "100")
            request.end_headers()
            request.wfile.write(b"{" * (100 if fault == 429 else 50))
            return None
        usage = {"prompt_tokens": 3, "completion_tokens": 5}
        return fault if isinstance(fault, int) else 200, data or {"choices": [choice], "usage": usage}

    with serving(reply) as url:
        yield ServerSettings(f"{url}/v1", "m", concurrency=2, attempts=4, first_wait_s=0.01, timeout_s=0.3), log


@pytest.mark.parametrize(
    "fault", [429, 500, 503, 408, "cut", "garbage", "list", "empty", "half", "silent", "number", "torn"]
)
def test_faults_that_pass_are_tried_again(fault, caplog):
    with server([fault, fault]) as (settings, log):
        asked = Server(settings)
        samples = asked.sample(["a", PROMPTS[2]], 2, DECODING, seed=5)
    assert [[s.text for s in group] for group in samples] == [
        ["echo: a 5", "echo: a 6"],
        ["echo: Hello! 5", "echo: Hello! 6"],
    ]
    assert len(log) == 6
    assert asked.faults.total() == 2
    assert f"tried again after {dict(asked.faults)}" in caplog.text


def test_faults_that_stay_end_with_what_and_where_and_lose_nothing(tmp_path):
    told = r"http://127.*/v1/completions: 4 attempts failed, .*status 500"
    with server([None] * 3 + [500] * 100) as (settings, log), pytest.raises(ServerError, match=told):
        Server(settings).sample(list("abcdef"), 1, DECODING, seed=5, store=tmp_path)
    with server([]) as (settings, log):
        samples = Server(settings).sample(list("abcdef"), 1, DECODING, seed=5, store=tmp_path)
    assert [group[0].text for group in samples] == [f"echo: {letter} 5" for letter in "abcdef"]
    assert len(log) == 3  # the three that were answered are not asked again, on another port either


def test_as_many_as_may_fail_do_and_are_asked_again_the_next_time(tmp_path, caplog):
    with server([500] * 4) as (settings, log):
        settings = replace(settings, concurrency=1, failures=1)
        samples = Server(settings).sample(list("abc"), 1, DECODING, seed=5, store=tmp_path)
        assert [group[0].finish for group in samples] == ["failed", "stop", "stop"]
        assert "request 0 failed for good (1 of 1)" in caplog.text
        samples = Server(settings).sample(list("abc"), 1, DECODING, seed=5, store=tmp_path)
        assert [group[0].text for group in samples] == [f"echo: {letter} 5" for letter in "abc"]
        assert len(log) == 4 + 2 + 1


def test_another_revision_is_asked_again_and_a_broken_store_is_put_aside(tmp_path, caplog):
    with server([]) as (settings, log):
        for revision in ("", "", "a", "a", "b"):
            Server(replace(settings, revision=revision)).sample(["x"], 1, DECODING, seed=5, store=tmp_path)
        assert len(log) == 3
        (tmp_path / "requests.sqlite").write_bytes(b"no database" * 1000)
        Server(settings).sample(["x"], 1, DECODING, seed=5, store=tmp_path)
        assert len(log) == 4
    assert "put aside as requests.broken" in caplog.text


@pytest.mark.slow
def test_a_store_that_another_process_has_is_named(tmp_path):
    with (
        closing(Store(tmp_path)),
        pytest.raises(OSError, match=r"requests.sqlite: database is locked"),
    ):
        Server(ServerSettings("http://127.0.0.1:9/v1", "m")).sample(["x"], 1, DECODING, seed=5, store=tmp_path)


def test_a_full_disk_is_named(tmp_path):
    with closing(Store(tmp_path)) as store, pytest.raises(OSError, match="requests.sqlite: database or disk is full"):
        store.file.execute("pragma max_page_count = 9")
        store.put({"a": sampling.Sample("x" * 100_000, "stop", 1, 1)})


def test_a_reasoning_that_the_server_splits_off_is_put_back():
    for message in ({"reasoning_content": "I think.", "content": "14"}, {"reasoning": "I think.", "content": "14"}):
        assert servers._said(message) == "<think>I think.</think>14"
    assert servers._said({"content": None}) == ""


def test_a_kill_repeats_at_most_the_requests_in_flight(tmp_path):
    script = """
import sys
from pathlib import Path
from data_prep.sampling import Decoding, Server, ServerSettings
server = Server(ServerSettings(sys.argv[1], "m", concurrency=4))
samples = server.sample([f"p{i}" for i in range(100)], 2, Decoding(max_tokens=12), 5, Path(sys.argv[2]))
print([sample.text for group in samples for sample in group])
"""
    with server([], delay=0.01) as (settings, log):
        command = [sys.executable, "-c", script, settings.base_url, str(tmp_path)]
        killed = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while len(log) < 60:
            assert killed.poll() is None
            time.sleep(0.005)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert 60 <= len(log) < 200
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([f"echo: p{i} {seed}" for i in range(100) for seed in (5, 6)])
    asked = Counter((body["prompt"], body["seed"]) for body in log)
    assert len(asked) == 200
    assert len(log) <= 200 + 4


def test_a_refusal_is_not_tried_again():
    with server([401]) as (settings, log), pytest.raises(ServerError, match="status 401"):
        Server(settings).sample(["a"], 1, DECODING, seed=5)
    assert len(log) == 1


TOO_LONG = b'{"error": {"message": "this model takes 4096 tokens"}}'


@pytest.mark.parametrize("status", [400, 403, 413, 422, 451])
def test_what_a_server_refuses_is_no_answer_and_is_not_asked_again(status, tmp_path, caplog):
    with server([], refuses={"b": (status, TOO_LONG)}) as (settings, log):
        for _ in range(2):
            samples = Server(settings).sample(list("abc"), 2, DECODING, seed=5, store=tmp_path)
            assert [[one.finish for one in group] for group in samples] == [["stop"] * 2, ["refused"] * 2, ["stop"] * 2]
            assert [(one.text, one.why) for one in samples[1]] == [("", f"status {status}: {TOO_LONG.decode()}")] * 2
        assert len(log) == 6
    assert f"refused 2 of 6 requests, the first with status {status}" in caplog.text


def test_tokens_that_a_server_does_not_count_are_none():
    with server([]) as (settings, _):
        ((sample,),) = Server(settings).sample(["uncounted"], 1, DECODING, seed=5)
    assert (sample.finish, sample.prompt_tokens, sample.completion_tokens) == ("stop", 0, 0)


def test_what_a_content_filter_stops_is_refused_too():
    with server(["filtered"]) as (settings, _):
        samples = Server(replace(settings, concurrency=1)).sample(list("ab"), 1, DECODING, seed=5)
    assert [(group[0].finish, group[0].text) for group in samples] == [("refused", ""), ("stop", "echo: b 5")]


def test_more_refusals_than_may_be_end_the_job_and_are_asked_again_the_next_time(tmp_path):
    refuses = dict.fromkeys("bcde", (400, TOO_LONG))
    told = r"http://127.* refused 2 of 10 requests, more than `max_refused: 0.1` allows, .* 400: .* takes 4096 tokens"
    with server([], refuses=refuses) as (settings, log):
        settings = replace(settings, concurrency=1, max_refused=0.1)
        with pytest.raises(sampling.TooManyRefused, match=told):
            Server(settings).sample(list("abcdefghij"), 1, DECODING, seed=5, store=tmp_path)
        assert len(log) == 3
        with pytest.raises(sampling.TooManyRefused, match="`max_refused: 0` allows"):
            Server(replace(settings, max_refused=0.0)).sample(["b"], 1, DECODING, seed=5)
    with server([]) as (settings, log):  # started anew, it takes longer prompts
        samples = Server(settings).sample(list("abcdefghij"), 1, DECODING, seed=5, store=tmp_path)
    assert [group[0].text for group in samples] == [f"echo: {letter} 5" for letter in "abcdefghij"]
    assert len(log) == 9


def test_a_key_that_is_not_set_is_named_before_any_work(monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ValueError, match="variable JUDGE_KEY is not set"):
        ServerSettings("https://judge.example/v1", "m", api_key_variable="JUDGE_KEY")
    monkeypatch.setenv("JUDGE_KEY", "secret")
    settings = ServerSettings("https://judge.example/v1", "m", api_key_variable="JUDGE_KEY")
    assert Server(settings).headers == {"Authorization": "Bearer secret"}
    assert "secret" not in repr(settings)  # settings go into run.json


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: ServerSettings("world", "m", concurrency=0), "concurrency"),
        (lambda: ServerSettings("world", "m", attempts=0), "attempts"),
        (lambda: Sampler(batch_size=0), "batch_size"),
        (lambda: Decoding(max_tokens=0), "max_tokens"),
        (lambda: PassRate("m", Decoding(8), n=0), "n"),
    ],
)
def test_what_would_ask_nothing_is_refused(make, key):
    with pytest.raises(ValueError, match=f"`{key}` is 0; write at least 1"):
        make()


def test_what_cannot_be_sampled_is_refused():
    with pytest.raises(ValueError, match="`temperature` is -0.5; write at least 0"):
        Decoding(max_tokens=1, temperature=-0.5)
    with pytest.raises(ValueError, match="`top_p` is 1.5; write a number from 0 to 1"):
        Decoding(max_tokens=1, top_p=1.5)


def test_no_samples_may_be_asked_for():
    assert Server(ServerSettings("http://127.0.0.1:9/v1", "m")).sample(["a", "b"], 0, DECODING, seed=0) == [[], []]


def test_the_world_is_served_on_demand():
    with sampling.connect(ServerSettings("world", "world-oracle")) as server:
        ((sample,),) = server.sample([[{"role": "user", "content": "Hello!"}]], 1, DECODING, seed=0)
    assert sample.text
