"""What is run by two processes, and by which settings: each cell of the matrix in docs/scales.md, as data that no
library is needed for. `tests/test_docs.py` compares the two."""

from typing import NamedTuple

ROWS = {
    "DDP": ("ddp",),
    "ZeRO-2": ("zero2",),
    "ZeRO-3": ("zero3", "zero3_moe"),
    "FSDP2": ("fsdp2", "multi_node", "multi_node_8", "multi_node_16"),
}
COLUMNS = {
    "all weights": "full",
    "LoRA, dense": "lora",
    "LoRA, MoE in 16 bits": "moe_lora",
    "QLoRA, dense": "qlora",
    "QLoRA, MoE": "moe_qlora",
}
ATTENTION = {"lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}  # experts in 16 bits take no adapter
LORA_SFT, LORA_RL = "gpu-24gb/cold_start_sft", "gpu-24gb/r1_zero"
FULL_SFT, FULL_RL = "node-8x80gb/cold_start_sft", "node-8x80gb/r1_zero"
QLORA_SFT, QLORA_RL = "moe-qlora/cold_start_sft", "moe-qlora/r1_zero"


class Case(NamedTuple):
    """One stage by a shipped YAML's method on a stand-in of a family, through one of `accelerate_configs`."""

    config: str
    column: str
    recipe: str
    family: str = "qwen2"

    @property
    def samples(self) -> bool:
        return "rl" in self.recipe or "r1_zero" in self.recipe

    @property
    def name(self) -> str:
        return "-".join([self.config, self.column, *self.recipe.split("/"), self.family])


CASES = [
    *(Case(config, "full", recipe) for config in ("ddp", "zero2", "zero3", "fsdp2") for recipe in (FULL_SFT, FULL_RL)),
    *(Case(config, "lora", recipe) for config in ("ddp", "zero2", "zero3", "fsdp2") for recipe in (LORA_SFT, LORA_RL)),
    *(Case(config, "moe_lora", LORA_SFT, "qwen3_moe") for config in ("ddp", "zero2", "zero3_moe", "fsdp2")),
    *(Case(config, "qlora", QLORA_SFT) for config in ("ddp", "zero2")),
    *(
        Case(config, "moe_qlora", recipe, "qwen3_moe")
        for config in ("ddp", "zero2")
        for recipe in (QLORA_SFT, QLORA_RL)
    ),
    Case("zero3_moe", "full", FULL_SFT, "qwen3_moe"),
    # What no other row has: the paper's own scale, two reward models, and reward models that are trained.
    Case("ddp", "lora", "node-8x80gb/reward_models"),
    Case("fsdp2", "full", "node-8x80gb/all_scenarios_rl"),
    Case("fsdp2", "full", "deepseek-v3/distill_llama_8b", "llama"),
    Case("multi_node", "full", "deepseek-v3/r1_zero", "deepseek_v3"),
    Case("multi_node_8", "full", "deepseek-v3/distill_llama_70b", "llama"),
    Case("multi_node_16", "full", "deepseek-v3/cold_start_sft", "deepseek_v3"),
    Case("multi_node_16", "full", "deepseek-v3/reward_models", "deepseek_v3"),
]
CONFIGS = list(dict.fromkeys(case.config for case in CASES))
