"""The settings of `recipes.config` combined with all of TRL's, for its trainers. Importing this imports TRL."""

from dataclasses import dataclass

from recipes import config

import trl


@dataclass
class GRPOConfig(config.GRPOConfig, trl.GRPOConfig):
    def __post_init__(self):
        config.GRPOConfig.__post_init__(self)
        trl.GRPOConfig.__post_init__(self)


@dataclass
class SFTConfig(config.SFTConfig, trl.SFTConfig):
    def __post_init__(self):
        config.SFTConfig.__post_init__(self)
        trl.SFTConfig.__post_init__(self)


@dataclass
class RewardConfig(config.RewardConfig, trl.RewardConfig):
    def __post_init__(self):
        config.RewardConfig.__post_init__(self)
        trl.RewardConfig.__post_init__(self)
