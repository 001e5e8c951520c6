"""Reward functions for R1-style training: each maps a completion and its row to a number.

This package exports reward functions for TRL, the classes that configure them, and the plain functions that they call.
Importing it does not load torch, transformers or math-verify.
"""

from rewards.accuracy import AccuracyReward, accuracy_reward, gold_error, is_correct
from rewards.code import CodeReward, code_reward, parse_tests
from rewards.completion import Completion, parse, text_of
from rewards.format import FormatReward, format_reward, is_well_formed
from rewards.gym import GymReward, gym_reward
from rewards.judge import JudgeReward, judge_reward
from rewards.language import (
    LanguageConsistencyReward,
    detect_language,
    language_consistency,
    language_consistency_reward,
)
from rewards.length import CosineReward, LengthReward, OverlongReward, RepetitionReward, length_reward
from rewards.preference import HarmlessnessReward, HelpfulnessReward, harmlessness_reward, helpfulness_reward
from rewards.sandbox import LocalSandbox, PistonSandbox

__all__ = [
    "AccuracyReward",
    "CodeReward",
    "Completion",
    "CosineReward",
    "FormatReward",
    "GymReward",
    "HarmlessnessReward",
    "HelpfulnessReward",
    "JudgeReward",
    "LanguageConsistencyReward",
    "LengthReward",
    "LocalSandbox",
    "OverlongReward",
    "PistonSandbox",
    "RepetitionReward",
    "accuracy_reward",
    "code_reward",
    "detect_language",
    "format_reward",
    "gold_error",
    "gym_reward",
    "harmlessness_reward",
    "helpfulness_reward",
    "is_correct",
    "is_well_formed",
    "judge_reward",
    "language_consistency",
    "language_consistency_reward",
    "length_reward",
    "parse",
    "parse_tests",
    "text_of",
]
