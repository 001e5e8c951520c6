"""What one share of a layer's experts takes, and how much of the checkpoint is read, beside the plan's figure.

    python -m benchmarks.expert_parallel [--experts 64] [--processes 2]

A random layer of DeepSeek-V3's shape (experts of 7168 x 2048) is written in FP8 blocks, as DeepSeek publishes it. It
takes 3.1 GB of disk with 64 experts. The processes then load it together, each its own experts in NF4. With 64 experts
and two processes, a process holds 32 experts of a layer, as each of eight does with the real model. The benchmark
prints the bytes of one process's experts beside the plan's, the peak of anonymous memory in loading, and the bytes that
all processes read from the disk, as a multiple of the checkpoint.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

from benchmarks.moe_qlora import Peak
from recipes import moe_qlora, qlora_proof
from recipes.parent import SCALES
from recipes.tools import needs

import torch
from safetensors.torch import save_file
from torch import distributed
from transformers import AutoConfig, AutoModelForCausalLM

HIDDEN, INNER, BLOCK = 7168, 2048, 128
SHAPE = {
    "hidden_size": HIDDEN, "intermediate_size": 18432, "moe_intermediate_size": INNER, "num_hidden_layers": 1,
    "first_k_dense_replace": 0, "num_attention_heads": 128, "num_key_value_heads": 128, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 1024, "n_group": 8, "topk_group": 4, "bos_token_id": 0,
    "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip


def write(folder: Path, experts: int) -> None:
    """Write the random checkpoint, one file for each expert and one for the rest."""
    config = AutoConfig.for_model("deepseek_v3", n_routed_experts=experts, **SHAPE)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    values = json.loads(config.to_json_string()) | {"architectures": ["DeepseekV3ForCausalLM"], "dtype": "bfloat16"}
    values["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    draw, where = torch.Generator().manual_seed(0), {}

    def fp8(name: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
        bits = torch.randint(0, 120, (rows, columns), dtype=torch.uint8, generator=draw)
        scales = torch.rand(-(-rows // BLOCK), -(-columns // BLOCK), generator=draw) * 1e-4
        return {name: bits.view(torch.float8_e4m3fn), name + SCALES: scales}

    def save(file: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where.update(dict.fromkeys(tensors, file))

    rest = {"model.layers.0.mlp.gate.e_score_correction_bias": torch.zeros(experts)}
    for name, one in model.named_parameters():
        if one.ndim < 3:  # stacked experts are published apart
            made = torch.randn(one.shape, dtype=torch.bfloat16, generator=draw) * 0.02
            rest |= fp8(name, *one.shape) if "_proj" in name else {name: made}
    save("rest.safetensors", rest)
    sizes = {"gate_proj": (INNER, HIDDEN), "up_proj": (INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
    for expert in range(experts):
        parts = (fp8(f"model.layers.0.mlp.experts.{expert}.{name}.weight", *size) for name, size in sizes.items())
        save(f"expert-{expert}.safetensors", {key: one for part in parts for key, one in part.items()})
    index = json.dumps({"metadata": {}, "weight_map": where})
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")


def forget(folder: Path) -> int:
    """Drop the files from the kernel's cache, and return their bytes."""
    files = list(folder.glob("*.safetensors"))
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return sum(path.stat().st_size for path in files)


def bytes_read() -> int:
    """What this process has read from the disk so far."""
    return int(Path("/proc/self/io").read_text(encoding="utf-8").split("read_bytes: ")[1].split()[0])


def load(folder: Path, experts: int) -> None:
    """Load one share, and print the figures in the first process."""
    distributed.init_process_group("gloo")
    size = forget(folder) if distributed.get_rank() == 0 else 0
    distributed.barrier()
    before, processes = bytes_read(), distributed.get_world_size()
    with Peak() as peak:
        config = SimpleNamespace()
        model, _ = moe_qlora.load(AutoModelForCausalLM, str(folder), config, torch.bfloat16, processes=processes)
    read = torch.tensor(bytes_read() - before)
    distributed.all_reduce(read)
    if distributed.get_rank() == 0:
        (layer,) = qlora_proof.experts(model).values()
        stacks = layer.stacks.values()
        held = sum(one.nbytes for stack in stacks for one in (stack.packed, stack.scales, stack.outer, stack.offsets))
        planned = needs.NF4 * (experts // processes) * 3 * HIDDEN * INNER
        print(f"{experts // processes} of {experts} experts: {held / 1e6:.1f} MB, {held / planned:.4f} of the plan's")
        print(f"loading: {peak.bytes / 1e9:.2f} GB at most beyond the process's start")
        print(f"read by all: {int(read) / size:.3f} of the checkpoint's {size / 1e9:.2f} GB")
    distributed.barrier()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # in a process of the launcher
    given = parser.parse_args()
    if given.folder:
        return load(given.folder, given.experts)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), given.experts)
        words = ["-m", "torch.distributed.run", f"--nproc_per_node={given.processes}", "--master_port=29517", "-m"]
        words += ["benchmarks.expert_parallel", "--experts", str(given.experts), "--folder", folder]
        subprocess.run([sys.executable, *words], check=True)


if __name__ == "__main__":
    main()
