"""The open data sets: where each one is, and how its records become the columns of rows.

The schemas are those that the named pages show, and no other columns are read. What a page does not show (such as a
column's values) is checked in each record, and unexpected records are refused. `data_prep.sources` reads them.
"""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import rewards
from data_prep import rows

_HUB = "https://huggingface.co/datasets"


class Refused(ValueError):
    """A record cannot be used. The message is `kind: why`; refusals are counted by their kind."""


@dataclass(frozen=True)
class Source:
    """A data set of the Hub. ``prompt(record)`` returns the columns of a row that differ from `DEFAULTS`, possibly with
    ``source_id``, ``tests`` and ``license``. ``trace(record)`` returns the text that ``generator`` wrote."""

    hub_id: str
    license: str
    rows: int
    prompt: Callable[[dict], dict[str, Any]]
    trace: Callable[[dict], str] | None = None
    generator: str = ""
    subset: str | None = None
    revision: str = ""
    schema: str = ""  # where its schema was read, if this is not its own page

    @property
    def page(self) -> str:
        """The page that shows the schema."""
        own = f"{_HUB}/{self.hub_id}"
        return self.schema or (f"{own}/blob/{self.revision}/README.md" if self.revision else own)


DEFAULTS = {"answer": "", "kind": "reasoning", "domain": "math", "verifier": "none", "thinking": True}
DEFAULTS |= dict.fromkeys(rows.RULES, "")
DOMAINS = {"math": "math", "code": "code", "puzzle": "logic"} | dict.fromkeys(
    ("science", "biology", "chemistry", "physics"), "stem"
)
ROLES = {"human": "user", "gpt": "assistant"}  # ShareGPT's names
REASONING = ("reasoning_content", "reasoning", "thinking")  # keys of a turn, by vLLM, OpenRouter and gpt-oss


def _known(domain: Any) -> str:
    if domain not in DOMAINS:
        raise Refused(f"domain: {domain!r} is not one of {', '.join(DOMAINS)}")
    return DOMAINS[domain]


def _choice(question: str, options: list[str], right: str, domain: str) -> dict[str, Any]:
    """The columns of a multiple-choice question; its options are listed with letters."""
    options = [option.strip() for option in options]
    if len(set(options)) < len(options) or "" in options or right.strip() not in options or len(options) > 10:
        raise Refused(f"options: {options!r} must be at most ten different texts, one of which is the right one")
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCDEFGHIJ", options, strict=False))
    text = f"{question.strip()}\n\n{listed}\n\nAnswer with the letter of the right option."
    letter = "ABCDEFGHIJ"[options.index(right.strip())]
    return {"question": text, "answer": letter, "verifier": "choice", "domain": domain}


def turn_texts(turns: list[dict], *wanted: str) -> list[str]:
    """The texts of a conversation whose turns have exactly the ``wanted`` roles, in this order. Raises Refused for a
    conversation with a system prompt or other turns, because a row cannot hold them (see docs/rejection_sampling.md).
    """
    roles = [ROLES.get(role, role) for role in (turn.get("role") or turn.get("from") for turn in turns)]
    if "system" in roles:
        raise Refused(f"system: {rows.CHAT.partition(';')[0]}")
    if roles != list(wanted):
        raise Refused(f"turns: {roles} instead of {' and '.join(wanted)}, which is all that a row can hold")
    return [_text(turn) for turn in turns]


def _text(turn: dict) -> str:
    """The text of a turn. If its reasoning has a separate key, it is put in tags before the content."""
    content = turn.get("value") if turn.get("content") is None else turn["content"]
    if isinstance(content, list) and not all(part.get("type") == "text" for part in content):
        raise Refused("turns: a part of a turn is not text")
    reasoning = next((turn[key] for key in REASONING if turn.get(key)), None)
    return rewards.text_of({"content": content, "reasoning_content": reasoning})


def question_and_answer(turns: list[dict]) -> list[str]:
    return turn_texts(turns, "user", "assistant")


def _reply(column: str) -> Callable[[dict], str]:
    """A function from a record to the answer of the conversation in ``column``."""
    return lambda record: question_and_answer(record[column])[1]


def _dapo(record: dict) -> dict[str, Any]:
    return {
        "question": turn_texts(record["prompt"], "user")[0],
        "answer": record["reward_model"]["ground_truth"],
    } | _MATH


def worked(record: dict) -> tuple[str, str]:
    """Return (solution without calculator annotations, gold answer) of a GSM8K record."""
    solution, mark, gold = record["answer"].rpartition("####")
    if not mark:
        raise Refused("gold: `answer` has no #### before the gold answer")
    return re.sub(r"<<[^<>]*>>", "", solution).strip(), gold.strip().removesuffix(".")


def _gsm8k(record: dict) -> dict[str, Any]:
    return {"question": record["question"], "answer": worked(record)[1]} | _MATH


def _gsm8k_trace(record: dict) -> str:
    """The trace of a GSM8K record. Its summary is made from the gold answer, so the solution itself is checked: a
    calculator result or a number of the last line must be the gold answer."""
    solution, gold = worked(record)
    results = re.findall(r"=([^=<>]*)>>", record["answer"]) + re.findall(
        r"(?:(?<![\w)])-)?[\d.,]*\d", solution.rpartition("\n")[2]
    )
    if not any(rewards.is_correct(f"#### {one}", gold) for one in reversed(results)):
        raise Refused(f"trace: its steps do not come to {gold!r}")
    return f"<think>{solution}</think>\nThe answer is {gold}."


def _openr1(record: dict) -> dict[str, Any]:
    if record["question_type"] == "proof":
        raise Refused("proof: a rule cannot check the answer")
    return {"question": record["problem"], "answer": record["answer"], "source_id": record["uuid"]} | _MATH


def _openr1_trace(record: dict) -> str:
    for text, complete, correct in zip(
        record["generations"], record["is_reasoning_complete"], record["correctness_math_verify"], strict=True
    ):
        if complete and correct:
            return text
    raise Refused("trace: no generation is complete and verified")


def _deepmath(record: dict) -> dict[str, Any]:
    return {"question": record["question"], "answer": record["final_answer"]} | _MATH


def _coding(record: dict) -> dict[str, Any]:
    if record["verification_info"]["language"] != "python":
        raise Refused(f"program: in {record['verification_info']['language']!r}, not in python")
    tests = json.dumps(record["verification_info"]["test_cases"], ensure_ascii=False)
    return {
        "question": record["problem_statement"], "tests": tests, "verifier": "code", "domain": "code",
        "source_id": record["problem_id"],
    }  # fmt: skip


def _sciq(record: dict) -> dict[str, Any]:
    options = [record[name] for name in ("correct_answer", "distractor1", "distractor2", "distractor3")]
    random.Random(record["question"]).shuffle(options)
    return _choice(record["question"], options, record["correct_answer"], "stem")


def _medmcqa(record: dict) -> dict[str, Any]:
    options = [record[name] for name in ("opa", "opb", "opc", "opd")]
    if record["cop"] not in range(4):
        raise Refused(f"gold: `cop` is {record['cop']!r}, not 0 to 3")
    return _choice(record["question"], options, options[record["cop"]], "stem") | {"source_id": record["id"]}


def _logiqa(record: dict) -> dict[str, Any]:
    if record["answer"] not in range(len(record["options"])):
        raise Refused(f"gold: `answer` is {record['answer']!r}, not the index of an option")
    question = f"{record['text'].strip()}\n\n{record['question'].strip()}"
    return _choice(question, record["options"], record["options"][record["answer"]], "logic")


# Parts of tulu-3 that are refused, by a word in the column `source`: they are of other domains, or their prompts are
# requests to decline.
TULU_ELSEWHERE = ("math", "gsm", "algebra", "personahub_code", "wildguard", "wildjailbreak", "coconot")
TULU_LICENSES = {"no_robots": "cc-by-nc-4.0", "evol_codealpaca": "apache-2.0"}  # other parts have the mixture's licence


def _tulu(record: dict) -> dict[str, Any]:
    part = record["source"].lower()
    for name in TULU_ELSEWHERE:
        if name in part:
            raise Refused(f"part: {name} is not general data")
    license = next((license for name, license in TULU_LICENSES.items() if name in part), "odc-by")
    question = question_and_answer(record["messages"])[0]
    return {"question": question, "source_id": record["id"], "license": license} | _GENERAL


def _safety(record: dict) -> dict[str, Any]:
    return {"question": record["prompt"]} | _GENERAL | {"kind": "harmless"}


# Licences from the parts' own pages; the mixture's page states none.
MIXTURE_LICENSES = {
    "open-r1/OpenR1-Math-220k": "apache-2.0",
    "open-r1/codeforces-cots": "cc-by-4.0",
    "nvidia/Llama-Nemotron-Post-Training-Dataset": "cc-by-4.0",
}


def _mixture(domain: str) -> Callable[[dict], dict[str, Any]]:
    def prompt(record: dict) -> dict[str, Any]:
        license = MIXTURE_LICENSES.get(record["source"], "unknown")
        return {"question": question_and_answer(record["messages"])[0], "domain": domain, "license": license}

    return prompt


def _thoughts3(record: dict) -> dict[str, Any]:
    return {"question": question_and_answer(record["conversations"])[0], "domain": _known(record["domain"])}


def _thoughts(record: dict) -> dict[str, Any]:
    return {"question": record["problem"], "domain": _known(record["domain"])}


def _thoughts_trace(record: dict) -> str:
    return f"<think>{record['deepseek_reasoning']}</think>\n{record['deepseek_solution']}"


_MATH = {"verifier": "math"}
_GENERAL = {"kind": "helpful", "domain": "general", "thinking": False}
R1 = "deepseek-ai/DeepSeek-R1"

SOURCES = {
    # Table 4, RL prompts
    "dapo-math-17k": Source(
        "BytedTsinghua-SIA/DAPO-Math-17k", "apache-2.0", 1_791_700, _dapo,
        schema=f"{_HUB}/open-r1/DAPO-Math-17k-Processed/blob/main/create_dataset.py",
    ),
    "verifiable-coding-problems-python": Source(
        "open-r1/verifiable-coding-problems-python", "unknown", 35_735, _coding,
    ),
    "sciq": Source(
        "allenai/sciq", "cc-by-nc-3.0", 11_679, _sciq, revision="c7ea11f06ac799e1206befb10da77d7a34c8ce46",
    ),
    "medmcqa": Source(
        "openlifescienceai/medmcqa", "apache-2.0", 182_822, _medmcqa,
        schema="https://tensorflow.org/datasets/community_catalog/huggingface/medmcqa",
    ),
    "logiqa2": Source(
        "baber/logiqa2", "cc-by-sa-4.0", 12_567, _logiqa, subset="logiqa2",
        revision="9494864c996d52531e6e43d047e4cbec4b6546d3",
    ),
    "pku-saferlhf": Source("PKU-Alignment/PKU-SafeRLHF", "cc-by-nc-4.0", 164_000, _safety),
    # Table 4 and Table 5: prompts with traces
    "deepmath-103k": Source(
        "zwhe99/DeepMath-103K", "mit", 103_110, _deepmath, lambda record: record["r1_solution_1"], R1,
        revision="0406dc9d807ab2bfe11423c84468a234c8be18c1",
    ),
    "openr1-math-220k": Source(
        "open-r1/OpenR1-Math-220k", "apache-2.0", 93_733, _openr1, _openr1_trace, R1, "default",
        "075afe03dbbc6e7b8bd35af1e4259957f0beb07d",
    ),
    "openr1-math-220k-extended": Source(
        "open-r1/OpenR1-Math-220k", "apache-2.0", 131_396, _openr1, _openr1_trace, R1, "extended",
        "075afe03dbbc6e7b8bd35af1e4259957f0beb07d",
    ),
    "tulu-3": Source(
        "allenai/tulu-3-sft-mixture", "odc-by", 939_343, _tulu, _reply("messages"), "tulu-3-sft-mixture",
        revision="b14afda60f1bbebe55d5d2fa1e4df5042f97f8be",
    ),
    # Solutions by people: they are short and lack the self-checks of a model's reasoning
    "gsm8k": Source("openai/gsm8k", "mit", 7_473, _gsm8k, _gsm8k_trace, "people, for GSM8K", "main"),
    # Table 5, traces
    "mixture-of-thoughts-code": Source(
        "open-r1/Mixture-of-Thoughts", "unknown", 83_070, _mixture("code"), _reply("messages"), R1, "code",
    ),
    "mixture-of-thoughts-science": Source(
        "open-r1/Mixture-of-Thoughts", "unknown", 172_514, _mixture("stem"), _reply("messages"), R1, "science",
    ),
    "openthoughts3": Source(
        "open-thoughts/OpenThoughts3-1.2M", "apache-2.0", 1_200_000, _thoughts3, _reply("conversations"),
        "Qwen/QwQ-32B", schema=f"{_HUB}/DedeProGames/OpenThoughts3-20k/blob/main/README.md",
    ),
    "openthoughts-114k": Source(
        "open-thoughts/OpenThoughts-114k", "apache-2.0", 113_957, _thoughts, _thoughts_trace, R1, "metadata",
        schema=f"{_HUB}/open-thoughts/OpenThoughts-Unverified-173k/blob/67d3730f4fc40f80cf492c94d309007d19718c37/README.md",
    ),
}  # fmt: skip
