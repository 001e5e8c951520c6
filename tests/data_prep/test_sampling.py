"""Sampling: the same bytes after a kill, the checkpoint's own distribution, and servers that fail in every way."""

import json
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from data_prep import sampling
from data_prep.sampling import Decoding, LocalModel, Server, ServerError, ServerSettings

import pytest
import torch

PROMPTS = ["What is 2 + 3 * 4?", "计算 3 + 4。", [{"role": "user", "content": "Hello!"}], "9 - 8?", "1 + 1?"]
DECODING = Decoding(max_tokens=12)


@pytest.fixture(scope="module")
def model(checkpoint):
    return LocalModel(checkpoint, batch_size=8)


def test_batches_do_not_depend_on_what_was_done_before(model, tmp_path):
    whole = model.sample(PROMPTS, 4, DECODING, seed=1, store=tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3  # 20 sequences in batches of 8
    stamps = {path: path.stat().st_mtime_ns for path in files}
    files[1].unlink()
    assert model.sample(PROMPTS, 4, DECODING, seed=1, store=tmp_path) == whole
    assert [p for p in files if p.stat().st_mtime_ns != stamps[p]] == [files[1]]
    assert model.sample(PROMPTS, 4, DECODING, seed=1) == whole
    assert model.sample(PROMPTS, 4, DECODING, seed=2) != whole


def test_a_broken_batch_file_is_sampled_again(model, tmp_path):
    whole = model.sample(PROMPTS, 4, DECODING, seed=1, store=tmp_path)
    victim = sorted(tmp_path.iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:100])
    assert model.sample(PROMPTS, 4, DECODING, seed=1, store=tmp_path) == whole


def test_greedy_is_what_transformers_generates(model):
    tokenizer = model.tokenizer
    encoded = tokenizer(PROMPTS[:2], return_tensors="pt", padding=True)
    encoded.pop("token_type_ids", None)
    expected = model.model.generate(**encoded, max_new_tokens=12, do_sample=False)[:, encoded["input_ids"].shape[1] :]
    samples = model.sample(PROMPTS[:2], 1, Decoding(max_tokens=12, temperature=0.0), seed=0)
    assert [group[0].text for group in samples] == tokenizer.batch_decode(expected, skip_special_tokens=True)


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
    drawn = sampling._draw(logits, decoding, torch.Generator().manual_seed(0))
    counts = Counter(drawn.tolist())
    assert set(counts) == set(allowed)
    assert all(counts[token] / 20_000 == pytest.approx(share, abs=0.02) for token, share in allowed.items())


def test_finish_and_counts(model):
    samples = [s for group in model.sample(["ab"], 64, Decoding(max_tokens=40), seed=0) for s in group]
    assert {s.prompt_tokens for s in samples} == {2}
    assert {s.finish for s in samples} == {"stop", "length"}
    assert all((s.completion_tokens == 40) or s.finish == "stop" for s in samples)
    assert not any("<|" in s.text for s in samples)


def test_too_long_a_prompt_is_refused_before_any_work(model):
    with pytest.raises(ValueError, match="makes 302 tokens, the model takes 256"):
        model.sample(["a" * 290], 1, DECODING, seed=0)


# --- servers ----------------------------------------------------------------------------------------------------------


@contextmanager
def server(faults):
    """A server that answers "echo: <prompt> <seed>" after it has gone through ``faults``; yields (settings, log)."""
    faults, log = list(faults), []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            log.append(body)
            fault = faults.pop(0) if faults else None
            text = f"echo: {body.get('prompt') or body['messages'][-1]['content']} {body['seed']}"
            choice = {"text": text, "message": {"content": text}, "finish_reason": "stop"}
            data = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 5}}).encode()
            if fault == "cut":
                self.connection.close()
                return
            status = fault if isinstance(fault, int) else 200
            data = {"garbage": b"<html>busy</html>", "empty": b'{"choices": []}'}.get(fault, data)
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", "0")
            self.send_header("Content-Length", str(len(data) + (100 if fault == "half" else 0)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{listening.server_port}/v1"
    try:
        yield ServerSettings(url, "m", concurrency=2, attempts=4, first_wait_s=0.01, timeout_s=5), log
    finally:
        listening.shutdown()
        listening.server_close()


@pytest.mark.parametrize("fault", [429, 500, 503, 408, "cut", "garbage", "empty", "half"])
def test_faults_that_pass_are_tried_again(fault):
    with server([fault, fault]) as (settings, log):
        samples = Server(settings).sample(["a", PROMPTS[2]], 2, DECODING, seed=5)
    assert [[s.text for s in group] for group in samples] == [
        ["echo: a 5", "echo: a 6"],
        ["echo: Hello! 5", "echo: Hello! 6"],
    ]
    assert len(log) == 6


def test_faults_that_stay_end_with_what_and_where_and_lose_nothing(tmp_path):
    told = r"http://127.*/v1/completions: 4 attempts failed, .*status 500"
    with server([None] * 3 + [500] * 100) as (settings, log), pytest.raises(ServerError, match=told):
        Server(settings).sample(list("abcdef"), 1, DECODING, seed=5, store=tmp_path)
    with server([]) as (settings, log):
        samples = Server(settings).sample(list("abcdef"), 1, DECODING, seed=5, store=tmp_path)
    assert [group[0].text for group in samples] == [f"echo: {letter} 5" for letter in "abcdef"]
    assert len(log) == 3  # the three that were answered are not asked again, on another port either


def test_a_refusal_is_not_tried_again():
    with server([401]) as (settings, log), pytest.raises(ServerError, match="status 401"):
        Server(settings).sample(["a"], 1, DECODING, seed=5)
    assert len(log) == 1


def test_a_key_that_is_not_set_is_named_before_any_work(monkeypatch):
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ValueError, match="variable JUDGE_KEY is not set"):
        ServerSettings("https://judge.example/v1", "m", api_key_variable="JUDGE_KEY")
    monkeypatch.setenv("JUDGE_KEY", "secret")
    settings = ServerSettings("https://judge.example/v1", "m", api_key_variable="JUDGE_KEY")
    assert Server(settings).headers == {"Authorization": "Bearer secret"}
    assert "secret" not in repr(settings)  # settings go into run.json


def test_the_world_is_served_on_demand():
    with sampling.connect(ServerSettings("world", "world-oracle")) as server:
        ((sample,),) = server.sample([[{"role": "user", "content": "Hello!"}]], 1, DECODING, seed=0)
    assert sample.text
