"""Measures one checkpoint: `python -m recipes.tools.evaluate --config FILE --checkpoint NAME, FOLDER or Hub id`.

It follows the paper (section 3.1 of v1): several samples a problem at temperature 0.6 and top-p 0.95, with pass@1 as
their mean. All checkpoints get the same problems, so two of them can be compared problem by problem. Every generation
is kept with its scores in `generations.parquet`, and `results.json` holds the figures. A checkpoint that the YAML does
not list is measured on the problems with an answer, or with `--rows` on your own problems.
"""

import dataclasses
import logging
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

from data_prep import prompts, runs
from data_prep.filters import is_right
from data_prep.rows import Row, load_rows, write_parquet
from data_prep.runs import commands, publishing
from data_prep.sampling import Decoding, LocalModel, Sample, load_model
from data_prep.world import general
from recipes.tools.metrics import majority_vote, mean_and_stderr, pass_at_k
from rewards import gold_error, gym, is_well_formed, parse
from rewards.language import count_words
from rewards.settings import FILLED, Count, NotNegative, Positive, Range
from rewards.statements import chosen, statements, unstated

log = logging.getLogger("evaluate")

WALKTHROUGH = "What is 2 + 3 * 4?"
GROUP = 4  # samples of the walkthrough's question, as many as it works out
MANY = 16  # samples a problem for pass@16 and cons@16


@dataclass(frozen=True)
class Checkpoint:
    """The YAML's settings for one checkpoint."""

    path: str
    style: Literal["r1_zero", "think"]  # the form of its prompts, and the format that it was taught
    general: bool = False  # also measure helpfulness and safety
    at_temperature_1: bool = False  # also pass@1 at temperature 1, as in RL
    many: bool = False  # also pass@16 and cons@16


@dataclass(frozen=True)
class Settings:
    """The keys of evaluate.yaml. Lengths are in tokens."""

    output_dir: str  # each checkpoint has its own: <output_dir>_<name>
    world: str  # the run that made the held-out sets
    checkpoints: Annotated[dict[str, Checkpoint], FILLED]
    max_tokens: Positive
    n_problems: Positive = 500
    n_general: Count = 0  # prompts a general set; 0: all
    k: Positive = 4
    n_many: Positive = 125
    temperature: NotNegative = 0.6
    top_p: Annotated[float, Range(0, 1, open=True)] = 0.95
    batch_size: Positive = 512  # sequences sampled at once
    seed: Count = 0
    rows: str = ""  # a Parquet file or Hub data set of problems, in place of the world's held-out sets


DEFAULTS = commands.defaults(Settings) | commands.defaults(Checkpoint)  # defaults of what `configs` returns


def configs(path: Path, seed: int | None = None, override: Path | None = None) -> dict[str, dict[str, Any]]:
    """The effective settings of each listed checkpoint. Raises runs.ConfigError."""
    raw = runs.load_config(path, override)
    settings, hub = runs.settings(Settings, raw, str(path), seed=seed), publishing.read(raw, str(path))
    return {name: effective(settings, name, one, hub) for name, one in settings.checkpoints.items()}


def effective(settings: Settings, name: str, checkpoint: Checkpoint, hub: publishing.Publishing) -> dict[str, Any]:
    """The settings that one checkpoint's evaluation depends on."""
    found = dataclasses.asdict(settings)
    for other in ("checkpoints", "world" if settings.rows else "rows"):
        del found[other]
    own = f"{name}_{runs.slug(settings.rows)}" if settings.rows else name
    found |= {"checkpoint": name, **dataclasses.asdict(checkpoint), "output_dir": f"{settings.output_dir}_{own}"}
    if hub.push_to_hub:
        found |= dataclasses.asdict(hub) | {"hub_model_id": f"{hub.hub_model_id}-{own}"}
    return found


def named(settings: Settings, checkpoint: str, style: str | None, where: str) -> tuple[str, Checkpoint]:
    """A checkpoint that the YAML lists by name or path, or else a folder or Hub id. Raises runs.ConfigError."""
    known = settings.checkpoints
    place = os.path.abspath(checkpoint)  # independent of the spelling
    listed = (name for name, one in known.items() if checkpoint == name or place == os.path.abspath(one.path))
    name = next(listed, "")
    if name and style in (None, known[name].style):
        return name, dataclasses.replace(known[name], general=known[name].general and not settings.rows)
    if "/" not in checkpoint and not Path(checkpoint).exists():
        listed = ", ".join(known)
        raise runs.ConfigError(f"{where}: no checkpoint {checkpoint!r}; it lists {listed}, and no such folder is here")
    if not style:
        runs.require_model(checkpoint)
        style = taught(Path(checkpoint))
    if not style:
        raise runs.ConfigError(
            f"{checkpoint}: no run.json names its style; write `--style think`, which prompts it through its chat "
            "template, or `--style r1_zero`, for the paper's template as plain text, as a base model is asked"
        )
    return runs.slug(checkpoint), Checkpoint(checkpoint, style)


def taught(folder: Path) -> str:
    """The style that one of our stages taught a checkpoint; "" for other checkpoints."""
    if not (folder / "run.json").is_file():
        return ""
    config = runs.read(folder).get("config", {})
    plain = config.get("completion_style") == "r1_zero" or "vocab_size" in config  # our bases have `vocab_size`
    return "r1_zero" if plain else "think"


class Evaluator:
    """Samples one checkpoint in its own style and scores its completions."""

    def __init__(self, checkpoint: Checkpoint, settings: Settings, store: Path):
        self.checkpoint = checkpoint
        self.settings = settings
        self.store = store  # finished batches, from which a killed evaluation resumes
        self.model = load_model(checkpoint.path, lambda: LocalModel(checkpoint.path, batch_size=settings.batch_size))

    def ask(self, name: str, rows: list[Row], n: int, seed: int, temperature: float, top_p: float) -> list[dict]:
        """n scored generations of each row, in order, as records of `generations.parquet`."""
        prompted = [asked(self.checkpoint.style, row) for row in rows]
        decoding = Decoding(self.settings.max_tokens, temperature=temperature, top_p=top_p)
        samples = self.model.sample(prompted, n, decoding, seed, self.store)
        return [
            score(self.checkpoint.style, name, row, index, sample)
            for row, drawn in commands.progress(zip(rows, samples, strict=True), "scoring", len(rows))
            for index, sample in enumerate(drawn)
        ]


def asked(style: str, row: Row) -> str | list[dict[str, str]]:
    """A row's prompt in a checkpoint's style: the paper's template as text, or a chat."""
    return prompts.r1_zero(row["question"]) if style == "r1_zero" else prompts.chat(row["prompt"])


def score(style: str, set_name: str, row: Row, index: int, sample: Sample) -> dict[str, Any]:
    """One generation as a record of `generations.parquet`. Columns that do not apply to its row are None."""
    parts, by_task = parse(sample.text), row["verifier"] == "gym"
    reasoning = parts.summary if parts.reasoning is None else parts.reasoning
    right, words = count_words(reasoning, row["language"])
    said, said_words = count_words(parts.summary, row["language"])
    record = {
        "set": set_name,
        "id": row["id"],
        "sample": index,
        "question": row["question"],
        "language": row["language"],
        "completion": sample.text,
        "tokens": sample.completion_tokens,
        "truncated": sample.finish == "length",
        "answer": gym.answer_of(sample.text, row["answer"]) if by_task else _stated(parts.answer, row["verifier"]),
        "correct": None,
        "well_formed": is_well_formed(sample.text, style, row["thinking"]),
        "reasoning_consistency": right / words if words else None,
        "summary_consistency": said / said_words if said_words else None,
        "helpful_score": None,
        "safe": None,
        "refused": None,
    }
    if row["kind"] == "reasoning":
        record["correct"] = is_right(row, sample.text) is True
    elif row["kind"] == "helpful":
        record["helpful_score"] = general.helpful_score(row["question"], parts.summary)
        record["refused"] = general.is_refusal(parts.summary)
    else:
        record["safe"] = general.is_safe(row["question"], sample.text)
    return record


def _stated(answer: str | None, verifier: str) -> str | None:
    """The answer without the sentence around it, for the vote of cons@16."""
    if answer is None:
        return None
    if verifier == "choice":
        return "".join(sorted(chosen(answer))) or None
    return ", ".join(statements(answer)) or unstated(answer, is_text=False)


def reasoning_figures(records: list[dict], style: str) -> dict[str, Any]:
    """Figures of the reasoning problems. Means by which checkpoints are compared have a standard error clustered by
    problem. Figures that do not apply are None.

    `language_consistency` is the mean over reasonings with words, because one without words has no language.
    `reasoning_without_words` is the share of those. Without think tags the whole text is read.
    """
    pass_1, pass_1_stderr = mean_and_stderr(by_problem(records, "correct"))
    consistency, consistency_stderr = mean_and_stderr(by_problem(records, "reasoning_consistency"))
    answers = [r["summary_consistency"] >= 0.5 for r in records if r["summary_consistency"] is not None]
    return {
        "pass@1": pass_1,
        "pass@1_stderr": pass_1_stderr,
        "format_rate": fmean(r["well_formed"] for r in records),
        "language_consistency": consistency,
        "language_consistency_stderr": consistency_stderr,
        "reasoning_without_words": fmean(r["reasoning_consistency"] is None for r in records),
        "answer_language": fmean(answers) if answers and style == "think" else None,
        "mean_completion_tokens": fmean(r["tokens"] for r in records),
        "truncated": fmean(r["truncated"] for r in records),
        "n_problems": len({r["id"] for r in records}),
        "k": max(r["sample"] for r in records) + 1,
    }


def many_figures(records: list[dict], k: int = MANY) -> dict[str, float | None]:
    """pass@k and cons@k of problems with k samples each, with their standard errors."""
    problems: dict[str, list[dict]] = {}
    for record in records:
        problems.setdefault(record["id"], []).append(record)
    passed, agreed = [], []
    for drawn in problems.values():
        correct = [record["correct"] for record in drawn]
        passed.append([pass_at_k(len(drawn), sum(correct), k)])
        agreed.append([majority_vote([record["answer"] for record in drawn], correct)])
    (passes, passes_stderr), (votes, votes_stderr) = mean_and_stderr(passed), mean_and_stderr(agreed)
    found = {f"pass@{k}": passes, f"pass@{k}_stderr": passes_stderr}
    return found | {f"cons@{k}": votes, f"cons@{k}_stderr": votes_stderr}


def general_figures(helpful: list[dict], harmless: list[dict], lookalike: list[dict]) -> dict[str, Any]:
    """Figures of the general sets; `lookalike` is a part of `helpful`. The score of 0 to 3 comes from the world's own
    rule, not from a trained reward model."""
    score, score_stderr = mean_and_stderr(by_problem(helpful, "helpful_score"))
    safe, safe_stderr = mean_and_stderr(by_problem(harmless, "safe"))
    refused, refused_stderr = mean_and_stderr(by_problem(lookalike, "refused"))
    return {
        "helpful_score": score,
        "helpful_score_stderr": score_stderr,
        "safe_rate": safe,
        "safe_rate_stderr": safe_stderr,
        "refusals_of_harmless": refused,
        "refusals_of_harmless_stderr": refused_stderr,
        "n_harmless": len({r["id"] for r in harmless}),
    }


def by_problem(records: list[dict], key: str) -> list[list[float]]:
    """The values of one column as a list for each problem, without None."""
    groups: dict[str, list[float]] = {}
    for record in records:
        if record[key] is not None:
            groups.setdefault(record["id"], []).append(float(record[key]))
    return list(groups.values())


def evaluate(checkpoint: Checkpoint, settings: Settings, output_dir: Path, sets: dict[str, Any]) -> dict[str, Any]:
    """Sample, score, write `generations.parquet` into output_dir, return the figures."""
    evaluator = Evaluator(checkpoint, settings, output_dir / "samples")
    usual = (settings.temperature, settings.top_p)
    problems, seed = sets["reasoning"], settings.seed
    generations = evaluator.ask("reasoning", problems, settings.k, seed, *usual)
    figures: dict[str, Any] = {"style": checkpoint.style, **reasoning_figures(generations, checkpoint.style)}
    text = "pass@1 %.3f ± %.3f, format %.3f; %d problems, %d answers each, %d tokens at most, temperature %g, top-p %g"
    shown = (figures["pass@1"], figures["pass@1_stderr"] or 0, figures["format_rate"], len(problems), settings.k)
    log.info(text, *shown, settings.max_tokens, *usual)
    if checkpoint.many:
        # The first k samples of these problems already exist.
        few = problems[: settings.n_many]
        more = evaluator.ask("reasoning", few, MANY - settings.k, seed + 1, *usual)
        for record in more:
            record["sample"] += settings.k
        chosen = {row["id"] for row in few}
        figures |= many_figures([r for r in generations if r["id"] in chosen] + more)
        for record in more:
            record["set"] = "many"
        generations += more
    if checkpoint.at_temperature_1:
        bare = evaluator.ask("temperature_1", problems, settings.k, seed, 1.0, 1.0)
        figures["pass@1_at_temperature_1"], figures["pass@1_at_temperature_1_stderr"] = mean_and_stderr(
            by_problem(bare, "correct")
        )
        generations += bare
    if checkpoint.general:
        helpful, harmless = (
            evaluator.ask(name, sets[name], settings.k, seed, *usual) for name in ("helpful", "harmless")
        )
        alike = {row["id"] for row in sets["lookalike"]}
        figures |= general_figures(helpful, harmless, [r for r in helpful if r["id"] in alike])
        generations += helpful + harmless
    if not settings.rows:
        greedy = evaluator.ask("walkthrough", [sets["walkthrough"]], 1, seed, 0.0, 1.0)
        figures["walkthrough"] = greedy[0]["completion"]
        generations += greedy
        # sampled as in RL
        generations += evaluator.ask("walkthrough_group", [sets["walkthrough"]], GROUP, seed, 1.0, 1.0)
    write_parquet(output_dir / "generations.parquet", generations)
    return figures


def _has_rule(row: Row) -> bool:
    if row["verifier"] == "code":
        return bool(row["answer"] or row.get("tests"))
    rules = ("math", "choice", "gym")
    return row["verifier"] in rules and gold_error(row["answer"], row["verifier"], row.get("entry")) is None


def load_sets(settings: Settings) -> dict[str, Any]:
    """The held-out sets, cut to the sizes in the settings, and the walkthrough's question as a row. The harmless
    look-alikes are rows of the helpful set."""
    if settings.rows:
        rows = load_rows(settings.rows)
        graded = [row for row in rows if row["kind"] == "reasoning" and _has_rule(row)]
        if not graded:
            raise runs.ConfigError(f"{settings.rows}: no row has an answer or tests that a rule can grade by")
        if len(graded) < len(rows):
            log.info("%s: %d of %d rows cannot be graded by a rule", settings.rows, len(rows) - len(graded), len(rows))
        return {"reasoning": graded[: settings.n_problems]}
    folder = Path(settings.world)
    sets: dict[str, Any] = {"reasoning": load_rows(folder / "eval_reasoning.parquet")[: settings.n_problems]}
    for name in ("helpful", "harmless", "lookalike"):
        rows = load_rows(folder / f"eval_{name}.parquet")
        sets[name] = rows[: settings.n_general] if settings.n_general else rows
    like = {"question": WALKTHROUGH, "prompt": WALKTHROUGH, "answer": "14", "language": "en", "verifier": "math"}
    sets["walkthrough"] = sets["reasoning"][0] | like | {"id": "walkthrough", "thinking": True}
    return sets


def main(argv: list[str]) -> int:
    parser = commands.parser("recipes.tools.evaluate", __doc__)
    parser.add_argument("--config", required=True, type=Path, help="evaluate.yaml")
    parser.add_argument("--checkpoint", required=True, help="a name under `checkpoints` in it, a folder, or a Hub id")
    parser.add_argument("--style", choices=["think", "r1_zero"], help="how one that it does not list is asked")
    parser.add_argument("--rows", help="a Parquet file or Hub data set of your own problems, in place of the world's")
    parser.add_argument("--override", type=Path, metavar="FILE", help=commands.OVERRIDE)
    parser.add_argument("--seed", type=int, help="instead of the YAML's")
    parser.add_argument("--redo", action="store_true", help=commands.REDO)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    raw = runs.load_config(arguments.config, arguments.override)
    settings = runs.settings(Settings, raw, str(arguments.config), seed=arguments.seed, rows=arguments.rows)
    name, checkpoint = named(settings, arguments.checkpoint, arguments.style, str(arguments.config))
    config = effective(settings, name, checkpoint, publishing.read(raw, str(arguments.config)))
    identity = runs.identify(Path(__file__), config, defaults=DEFAULTS)
    hub = publishing.read(config, str(arguments.config))
    hub.check("dataset")
    runs.require_model(checkpoint.path)
    output_dir = Path(config["output_dir"])
    try:
        sets = load_sets(settings)
    except ValueError as error:
        raise runs.ConfigError(str(error)) from error

    def measure() -> dict[str, Any]:
        runs.write_json(output_dir / "results.json", evaluate(checkpoint, settings, output_dir, sets))
        log.info("measured %s, see %s", arguments.checkpoint, output_dir)
        return {"config": config, "parent": config["path"], "seed": settings.seed}

    status = runs.carry_out(output_dir, identity, hub, arguments.redo, measure)
    if (samples := output_dir / "samples").exists():
        shutil.rmtree(samples)  # generations.parquet has them
    return status


if __name__ == "__main__":
    sys.exit(commands.run(main))
