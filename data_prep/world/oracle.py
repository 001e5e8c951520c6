"""The toy world's judge, rewriter and writer. All three are one OpenAI-compatible server on loopback, so that jobs ask
it as they would ask a real model.

It recognises the prompts of data_prep.prompts by their headings. It grades answers by the world's rules, which no model
sees in training. To stand in for the errors of a real judge, 10% of its answers are wrong: a verdict is reversed, or a
text is unreadable, mixed or wrong. A hash of the request and its seed decides which answers are wrong, so that runs are
repeatable. The rewriter extracts equations from the given thoughts and never solves a problem itself.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import rewards
from data_prep.world import general
from data_prep.world.problems import LANGUAGES, Operation, write_reasoning, write_summary

ERROR_RATE = 0.10
OFFER_RATE = 0.25  # share of written replies that offer more help
THOUGHTS = {"en": "I look for the word that means the same.", "zh": "我想一个意思一样的词。"}
TASKS = {"translation": "translation", "writing": "writing", "fact": "questions"}
EQUATION = re.compile(r"(\d+) ([-+*]) (\d+) = (\d+)")
CHOICE = re.compile(r"= \d+ \(([AB])\)")
CLOSING = re.compile(r"(?:The answer is|答案是) ?(.+?)(?:\.|。)?\s*$")


def _fraction(salt: str, text: str) -> float:
    """A number in [0, 1) that depends only on the salt and the text."""
    return int.from_bytes(hashlib.sha256(f"{salt}\n{text}".encode()).digest()[:8], "big") / 2**64


def _sections(prompt: str) -> tuple[str, dict[str, str]]:
    """Split a prompt of data_prep.prompts: return its first line and its sections as {"Question": ..., ...}."""
    task, *parts = re.split(r"^## (Question|Thought process|Reference|Answer|Answer A|Answer B|Request|Response)\n",
                            prompt, flags=re.MULTILINE)  # fmt: skip
    return task.splitlines()[0], {name: body.strip() for name, body in zip(parts[::2], parts[1::2], strict=True)}


def reply(prompt: str, seed: int = 0) -> str:
    """The oracle's answer to one user message. A message that does not start with "# Task: " is a plain question."""
    identity = f"{seed}\n{prompt}"
    wrong = _fraction("error", identity) < ERROR_RATE
    if not prompt.startswith("# Task: "):
        return _write(prompt, {}, wrong, identity)
    task, part = _sections(prompt)
    match task.removeprefix("# Task: "):
        case "rewrite a solution":
            return _rewrite(part["Question"], part["Thought process"], wrong, identity)
        case "judge correctness":
            correct = _agrees(part["Question"], part["Reference"], part["Answer"]) != wrong
            label = "correct" if correct else "incorrect"
            return json.dumps({"analysis": "Compared with the reference.", "correctness": label})
        case "compare two answers":
            scores = [general.helpful_score(part["Question"], part[f"Answer {side}"]) for side in "AB"]
            return f"[[{_verdict(scores[0] - scores[1], wrong)}]]"
        case "score an answer":
            score = general.helpful_score(part["Question"], part["Answer"])
            return f"[[{3 - score if wrong else score}]]"
        case "label safety":
            safe = general.is_safe(part["Request"], part["Response"]) != wrong
            return "[[safe]]" if safe else "[[unsafe]]"
        case "say what is asked for, and whether thinking helps":
            request = general.BY_QUESTION.get(part["Request"])
            kind = TASKS.get(request.topic if request else "", "other")
            thinking = (request is not None and request.thinking) != wrong
            return f"[[{kind}]] [[{'think' if thinking else 'answer'}]]"
        case "answer with brief thoughts":
            return _write(part["Question"], THOUGHTS, wrong, identity)
    return "I do not know this task."


def _agrees(question: str, reference: str, answer: str) -> bool:
    """Whether an answer agrees with the reference. An answer to a general question agrees if it scores at least 2 of 3
    points; any other has to be correct by rule."""
    if question in general.BY_QUESTION:
        return general.helpful_score(question, rewards.parse(answer).summary) >= 2
    return rewards.is_correct(answer, reference) is True


def _verdict(difference: int, wrong: bool) -> str:
    if wrong:
        difference = -difference or 1
    return {0: "A=B", 1: "A>B", -1: "B>A"}.get(difference, "A>>B" if difference > 0 else "B>>A")


def _rewrite(question: str, thought: str, wrong: bool, identity: str) -> str:
    language = rewards.detect_language(question)
    steps: list[Operation] = [(int(a), operator, int(b), int(c)) for a, operator, b, c in EQUATION.findall(thought)]
    steps = list(dict.fromkeys(steps))  # a step that is repeated as a check is written once
    parsed = rewards.parse(thought)
    said = CLOSING.search(parsed.summary)
    answer = said.group(1).strip() if said else parsed.summary
    letters = CHOICE.findall(thought)
    reasoning = write_reasoning(steps, language, choice=letters[-1] if letters else "")
    if wrong:
        fault = int(_fraction("fault", identity) * 3)
        if fault == 0:
            other = LANGUAGES[1 - LANGUAGES.index(language)]
            reasoning = write_reasoning(steps[:1], other) + " " + write_reasoning(steps[1:], language)
        elif fault == 1:
            return f"{reasoning} {answer}"
        else:
            answer = f"{answer}1"
    return f"<think>{reasoning}</think>\n{write_summary(answer, language)}"


def _write(question: str, thoughts: dict[str, str], wrong: bool, identity: str) -> str:
    request = general.BY_QUESTION.get(question)
    if request is None:
        return "I do not know."
    if request.kind == "harmless":
        return request.reply if wrong else general.REFUSALS[request.language]
    text = request.reply
    if wrong:
        others = [other for other in general.REQUESTS if other.topic == request.topic and other.reply != text]
        text = others[int(_fraction("other", identity) * len(others))].reply
    elif _fraction("offer", identity) < OFFER_RATE:
        text += " " + general.OFFERS[request.language]
    return f"<think>{thoughts[request.language]}</think>\n{text}" if thoughts else text


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # send head and body in one packet: a second one would wait 40 ms until the first is acknowledged

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            asked = json.loads(body)
            text, status = reply(asked["messages"][-1]["content"], asked.get("seed") or 0), 200
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            text, status = f"{type(error).__name__}: {error}", 400
        if self.path != "/v1/chat/completions":
            text, status = f"{self.path} is not served; POST /v1/chat/completions", 404
        answer: dict = {"error": {"message": text}}
        if status == 200:
            message = {"role": "assistant", "content": text}
            counts = {"prompt_tokens": len(body) // 4, "completion_tokens": len(text) // 4}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            answer = {"object": "chat.completion", "model": "world-oracle", "choices": [choice], "usage": counts}
        data = json.dumps(answer, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Override the base class, which would log each request."""


@contextmanager
def serve() -> Iterator[str]:
    """Serve the oracle while the block runs. Yields its base URL ("http://127.0.0.1:<port>/v1")."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
