"""Tiny mixtures of experts of several families, written by plain transformers."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, set_seed

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
LATENT = {
    "moe_intermediate_size": 64,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
FAMILIES = {
    "qwen3_moe": {"moe_intermediate_size": 64, "num_experts": 8, "head_dim": 16, "norm_topk_prob": True},
    "deepseek_v3": LATENT | {"q_lora_rank": 32, "n_group": 2, "topk_group": 1},
    "deepseek_v2": LATENT | {"q_lora_rank": None, "n_group": 1, "topk_group": 1},
    "qwen2_moe": {"moe_intermediate_size": 64, "num_experts": 8, "shared_expert_intermediate_size": 64},
    "mixtral": {"num_local_experts": 8, "head_dim": 16},
    "olmoe": {"num_experts": 8},
}
# Of the same form, and not named in README: other names in the checkpoint, other attention, other routers.
OTHERS = {
    "ernie4_5_moe": {"moe_intermediate_size": 64, "moe_num_experts": 8, "moe_k": 2, "moe_num_shared_experts": 1},
    "granitemoeshared": {"num_local_experts": 8, "shared_intermediate_size": 64},
    "jamba": {"num_experts": 8, "use_mamba_kernels": False, "mamba_d_state": 8, "attn_layer_period": 2}
    | {"attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "kimi_linear": LATENT | {"num_experts": 8, "layer_types": ["linear_attention", "full_attention"]},
    "deepseek_v32": FAMILIES["deepseek_v3"] | {"index_n_heads": 2, "index_head_dim": 32, "index_topk": 16},
}
GPT_OSS = {"num_local_experts": 8, "head_dim": 16, "layer_types": ["full_attention", "sliding_attention"]}


def write(folder: Path, family: str, vocab: int = 320, dtype: str = "float32", stacked: bool = False, **more) -> Path:
    """A random checkpoint, its experts apart as they are published, or `stacked` as transformers holds them."""
    set_seed(0)
    sizes = SIZES | {"vocab_size": vocab} | (FAMILIES | OTHERS).get(family, GPT_OSS) | more
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "embed" not in name:
            torch.nn.init.normal_(parameter, std=0.15)
    model.to(getattr(torch, dtype)).save_pretrained(folder, save_original_format=not stacked)
    return folder


def to_fp8(parent: Path) -> dict[str, torch.Tensor]:
    """Rewrite a checkpoint in FP8 as DeepSeek publishes it, in blocks of 32 x 32 with a scale each, and edges that fill
    none; the scales lie in another file. Returns its tensors in bfloat16."""
    small, scales, wanted = {}, {}, {}
    for key, tensor in load_file(parent / "model.safetensors").items():
        small[key] = wanted[key] = tensor
        if "_proj" in key:
            rows, columns = (-(-size // 32) for size in tensor.shape)
            scale = torch.rand(rows, columns) + 0.5
            spread = scale.repeat_interleave(32, 0)[: tensor.shape[0]].repeat_interleave(32, 1)[:, : tensor.shape[1]]
            small[key], scales[f"{key}_scale_inv"] = tensor.to(torch.float8_e4m3fn), scale
            wanted[key] = (small[key].float() * spread).bfloat16()
    (parent / "model.safetensors").unlink()
    for name, content in (("model-00001-of-00002.safetensors", small), ("model-00002-of-00002.safetensors", scales)):
        save_file(content, parent / name, metadata={"format": "pt"})
    weight_map = dict.fromkeys(small, "model-00001-of-00002.safetensors")
    weight_map |= dict.fromkeys(scales, "model-00002-of-00002.safetensors")
    (parent / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = json.loads((parent / "config.json").read_text())
    held = {"quant_method": "fp8", "weight_block_size": [32, 32], "fmt": "e4m3", "activation_scheme": "dynamic"}
    (parent / "config.json").write_text(json.dumps(config | {"quantization_config": held}))
    return wanted
