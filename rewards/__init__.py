"""Rewards for R1-style training: a completion and a row in, a number out.

Everything exported here is a callable that TRL takes as a reward function, or one of the plain functions under them.
Importing this package loads neither torch nor transformers nor math-verify.
"""

from rewards.accuracy import AccuracyReward, accuracy_reward, is_correct
from rewards.code import CodeReward, code_reward
from rewards.completion import Completion, parse, text_of
from rewards.format import FormatReward, format_reward, is_well_formed
from rewards.language import (
    LanguageConsistencyReward,
    detect_language,
    language_consistency,
    language_consistency_reward,
)
from rewards.preference import HarmlessnessReward, HelpfulnessReward

__all__ = [
    "AccuracyReward",
    "CodeReward",
    "Completion",
    "FormatReward",
    "HarmlessnessReward",
    "HelpfulnessReward",
    "LanguageConsistencyReward",
    "accuracy_reward",
    "code_reward",
    "detect_language",
    "format_reward",
    "is_correct",
    "is_well_formed",
    "language_consistency",
    "language_consistency_reward",
    "parse",
    "text_of",
]
