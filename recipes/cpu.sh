#!/usr/bin/env bash
# The whole pipeline of DeepSeek-R1 at the scale `cpu`, command by command, in the order of the paper. `make r1` runs
# these very commands, two side by side where it can, skips what is done, and shows how far it is.
# Start it from the repository's root with .venv/bin first in PATH: `source .venv/bin/activate; bash recipes/cpu.sh`.
set -euo pipefail
export OMP_NUM_THREADS=1   # `make r1` gives some stages two, by the key `threads` of their YAMLs
train="accelerate launch --quiet --config_file accelerate_configs/cpu.yaml"

# The toy world: a corpus for the base, training problems, and the held-out problems that only evaluation reads.
python -m data_prep.world --config recipes/configs/cpu/world.yaml
# The base, which the paper takes as given (DeepSeek-V3-Base).
$train recipes/base.py --config recipes/configs/cpu/base.yaml

# R1-Zero: GRPO on the base, with rewards for the right answer and the format (section 2).
$train recipes/r1_zero.py --config recipes/configs/cpu/r1_zero.yaml

# Cold-start data: answers of R1-Zero and of the base, which the oracle rewrites for readers (section 3, B.3.2).
python -m data_prep.cold_start --config recipes/configs/cpu/cold_start.yaml
# Dev1: SFT of the base on them.
$train recipes/cold_start_sft.py --config recipes/configs/cpu/cold_start_sft.yaml
# Dev2: reasoning RL with the language-consistency reward (section 3.2.1).
$train recipes/reasoning_rl.py --config recipes/configs/cpu/reasoning_rl.yaml

# 600k reasoning samples in the paper: what Dev2 gets right, by rejection sampling (B.3.3).
python -m data_prep.rejection_sampling --config recipes/configs/cpu/rejection_sampling.yaml
# 200k samples of general data in the paper, which the oracle judges (B.3.3).
python -m data_prep.general --config recipes/configs/cpu/general.yaml
# Both together, in the proportions of Table 5.
python -m data_prep.mixture --config recipes/configs/cpu/mixture.yaml
# Dev3: SFT of the base on the mixture (B.4.2).
$train recipes/sft_stage_2.py --config recipes/configs/cpu/sft_stage_2.yaml

# Preference pairs and safety labels. The toy world's oracle judges; in the paper DeepSeek-V3 does (section 3.1).
python -m data_prep.preferences --config recipes/configs/cpu/preferences.yaml
# The two reward models, helpfulness and harmlessness (section 3.1).
$train recipes/reward_models.py --config recipes/configs/cpu/reward_models.yaml
# R1: RL for all scenarios (section 3.2.2).
$train recipes/all_scenarios_rl.py --config recipes/configs/cpu/all_scenarios_rl.yaml

# Distillation: R1's answers to the mixture's prompts (B.3.3, B.4.3).
python -m data_prep.distillation --config recipes/configs/cpu/distillation.yaml
# The student's base, a smaller one.
$train recipes/base.py --config recipes/configs/cpu/student_base.yaml
# The student: SFT with a LoRA adapter on R1's answers.
$train recipes/distill.py --config recipes/configs/cpu/distill.yaml
# What distillation is compared with: RL on the same small base (v1, section 4.1).
$train recipes/r1_zero.py --config recipes/configs/cpu/student_rl.yaml
# What the language reward is compared with: the same RL without it (B.6).
$train recipes/reasoning_rl.py --config recipes/configs/cpu/reasoning_rl_no_language.yaml

# Every checkpoint on the held-out problems, and the report: outputs/cpu/report/index.html.
for checkpoint in base r1_zero cold_start_sft reasoning_rl reasoning_rl_no_language sft_stage_2 r1 student_base \
  student_rl student_distilled; do
  python -m recipes.tools.evaluate --config recipes/configs/cpu/evaluate.yaml --checkpoint "$checkpoint"
done
python -m recipes.tools.report --scale outputs/cpu
