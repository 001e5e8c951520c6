"""What the paper calls the stages and checkpoints of this project, and the paper's own results.

This is all that the report knows about a stage by its name. Its kind, its inputs, its order and the evaluation of its
checkpoint come from the YAMLs and the runs (`recipes.tools.folders`). A stage that is not here has its own name in the
report.
"""

from dataclasses import dataclass

# v2 tables 3, 8, 15 and 16, section E.4 and figure 1: AIME 2024 pass@1 and majority vote (of 16 for R1-Zero, else of
# 64), MATH-500, GPQA Diamond, LiveCodeBench, AlpacaEval 2.0, ArenaHard.
COLUMNS = ("AIME 2024", "cons@k", "MATH-500", "GPQA-D", "LiveCodeBench", "AlpacaEval", "ArenaHard")


@dataclass(frozen=True)
class Stage:
    """One stage's title, and for a stage that makes a checkpoint the name of the checkpoint. `published`: the model in
    the paper that corresponds to the checkpoint, and its results in the order of COLUMNS."""

    title: str
    checkpoint: str = ""
    published: tuple[str | float | None, ...] = ()
    is_ablation: bool = False


STAGES = {  # in the order of the paper
    "base": Stage("base", "base", ("DeepSeek-V3-Base", 15.6, None, None, None, None, None, None)),
    "r1_zero": Stage("R1-Zero", "R1-Zero", ("R1-Zero", 77.9, 86.7, 95.9, 75.8, 50.0, 24.7, 53.6)),
    "cold_start": Stage("cold-start data"),
    "cold_start_sft": Stage(
        "Dev1: SFT", "Dev1 (cold-start SFT)", ("Dev1", 59.0, None, 94.2, 66.1, 57.5, 50.1, 77.0)
    ),
    "reasoning_rl": Stage("Dev2: RL", "Dev2 (RL)", ("Dev2", 74.0, None, 95.9, 70.7, 63.5, 55.8, 73.2)),
    "reasoning_rl_no_language": Stage("no language reward", "Dev2 without language reward", is_ablation=True),
    "general": Stage("general data"),
    "sft_stage_2": Stage("Dev3: SFT", "Dev3 (SFT)", ("Dev3", 78.1, None, 95.4, 71.2, 64.6, 62.1, 75.6)),
    "all_scenarios_rl": Stage("R1: RL", "R1", ("R1", 79.8, 86.7, 97.3, 71.5, 65.9, 87.6, 92.3)),
    "student_base": Stage("the student's base", "student's base"),
    "student_rl": Stage(
        "student by RL", "student by RL", ("Qwen2.5-32B by RL", 47.0, 60.0, 91.6, 55.0, 40.2, None, None)
    ),
    "distillation": Stage("distillation set"),
    "distill": Stage(
        "distilled student", "distilled student",
        ("Qwen2.5-32B distilled", 72.6, 83.3, 94.3, 62.1, 57.2, None, None),
    ),
}  # fmt: skip
PUBLISHED = {name: stage.published for name, stage in STAGES.items() if stage.published}


def named(stage: str) -> Stage:
    """What the report calls a stage."""
    return STAGES.get(stage) or Stage(stage.replace("_", " "))


def title(stage: str) -> str:
    return named(stage).title


def checkpoint(stage: str, name: str) -> str:
    """What the report calls the checkpoint of a stage, which evaluate.yaml calls `name`."""
    return named(stage).checkpoint or name.replace("_", " ")
