"""What QLoRA on a mixture of experts costs, beside LoRA on attention with the experts in 16 bits.

    python -m benchmarks.moe_qlora [--experts 8 64 128] [--hidden 512] [--inner 256] [--layers 4] [--merge]

For each number of experts, a random Qwen3-MoE (top 8) is written layer by layer, and each method runs in a separate
process. It reports bytes per expert parameter, their share of 16 bits, the peak of anonymous memory in loading and in
training steps (both beyond that of the process before), and tokens per second. `--merge` adds the peak of a merge.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

from recipes import moe_qlora, qlora_proof
from recipes.tools.merge import merge

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

WAYS = ("16-bit experts, LoRA on attention", "NF4, LoRA on attention", "NF4, LoRA on attention and experts")
VOCABULARY = 4096


def anonymous() -> int:
    """Anonymous memory of this process in bytes, which the kernel cannot drop and read again."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


class Peak:
    """The peak of anonymous memory in a `with` block, beyond that at its start; it is read every 2 ms."""

    def __enter__(self):
        self.before, self.bytes, self.over = anonymous(), 0, threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self):
        while not self.over.wait(0.002):
            self.bytes = max(self.bytes, anonymous() - self.before)

    def __exit__(self, *error):
        self.over.set()
        self.thread.join()
        self.bytes = max(self.bytes, anonymous() - self.before)


def config_of(experts: int, hidden: int, inner: int, layers: int) -> Qwen3MoeConfig:
    """The config of a small Qwen3-MoE, top 8."""
    return Qwen3MoeConfig(
        hidden_size=hidden,
        moe_intermediate_size=inner,
        num_hidden_layers=layers,
        num_experts=experts,
        num_experts_per_tok=min(8, experts),
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 256),
        head_dim=64,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
    )


def write(folder: Path, config: Qwen3MoeConfig) -> None:
    """Write a random checkpoint in bfloat16 under the published names; each layer is a file, with the same numbers."""
    config.architectures, config.dtype = ["Qwen3MoeForCausalLM"], torch.bfloat16
    config.save_pretrained(folder)
    torch.manual_seed(0)
    hidden, inner, size = config.hidden_size, config.moe_intermediate_size, config.head_dim
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def normal(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, dtype=torch.bfloat16, device=device) * 0.02).cpu()

    ends = {
        "model.embed_tokens.weight": normal(config.vocab_size, hidden),
        "model.norm.weight": torch.ones(hidden).bfloat16(),
    }
    if not config.tie_word_embeddings:
        ends["lm_head.weight"] = normal(config.vocab_size, hidden)
    weight_map = dict.fromkeys(ends, "model-ends.safetensors")
    save_file(ends, folder / "model-ends.safetensors", metadata={"format": "pt"})
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads, "v": config.num_key_value_heads}
    layer = {f"self_attn.{one}_proj": normal(size * count, hidden) for one, count in heads.items()}
    layer |= {
        "self_attn.o_proj": normal(hidden, size * config.num_attention_heads),
        "mlp.gate": normal(config.num_experts, hidden),
    }
    layer |= {f"{one}_layernorm": torch.ones(hidden).bfloat16() for one in ("input", "post_attention")}
    layer |= {f"self_attn.{one}_norm": torch.ones(size).bfloat16() for one in "qk"}
    for expert in range(config.num_experts):
        layer |= {f"mlp.experts.{expert}.{one}_proj": normal(inner, hidden) for one in ("gate", "up")}
        layer[f"mlp.experts.{expert}.down_proj"] = normal(hidden, inner)

    def save(number: int) -> dict[str, str]:
        named = {f"model.layers.{number}.{name}.weight": tensor for name, tensor in layer.items()}
        save_file(named, folder / f"model-{number}.safetensors", metadata={"format": "pt"})
        return dict.fromkeys(named, f"model-{number}.safetensors")

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(save, range(config.num_hidden_layers)):
            weight_map |= found
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def measure(folder: Path, way: str, steps: int, merged: bool) -> dict:
    """Measure one method in this process."""
    lora = LoraConfig(
        r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM"
    )
    with Peak() as load:
        if way == WAYS[0]:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        else:
            model, _ = moe_qlora.load(AutoModelForCausalLM, str(folder), SimpleNamespace(), torch.bfloat16)
    words = {WAYS[1]: ["attention"], WAYS[2]: None}
    model = get_peft_model(model, lora) if way == WAYS[0] else moe_qlora.adapt(model, lora, words[way])
    rows = qlora_proof.table(model)
    model.train()
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    optimizer = torch.optim.AdamW((one for one in model.parameters() if one.requires_grad), lr=1e-4)
    tokens = torch.randint(VOCABULARY, (1, 512))
    with Peak() as step:
        times = []
        for _ in range(steps):
            began = time.process_time()
            model(tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            times.append(time.process_time() - began)
    found = {"load_bytes": load.bytes, "step_bytes": step.bytes, "tokens_per_cpu_second": 512 / min(times)}
    found["model_bytes"] = sum(row["bytes"] for (kind, _), row in rows.items() if "LoRA" not in kind)
    experts = rows.get(("routed experts", "nf4"))
    if experts:
        found["bytes_per_parameter"] = experts["bytes"] / experts["numbers"]
        if merged:
            moe_qlora.save_adapter(model, folder / "adapter", str(folder))
            del model, optimizer
            with Peak() as peak:
                merge(folder, folder / "adapter", folder / "merged")
            found["merge_bytes"] = peak.bytes
    return found


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, description=__doc__.splitlines()[0])
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 64, 128])
    for name, size in (("hidden", 512), ("inner", 256), ("layers", 4), ("steps", 3)):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument("--merge", action="store_true")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)  # a folder and a method, for the separate process
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    if args.measure:
        folder, way = args.measure
        print(json.dumps(measure(Path(folder), way, args.steps, args.merge)))
        return
    for experts in args.experts:
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder), config_of(experts, args.hidden, args.inner, args.layers))
            sizes = [path.stat().st_size for path in Path(folder).glob("*.safetensors")]
            print(f"{experts} experts: {sum(sizes) / 1e6:,.0f} MB in 16 bits, a layer {max(sizes) / 1e6:,.0f} MB")
            for way in WAYS:
                command = [
                    sys.executable,
                    "-m",
                    "benchmarks.moe_qlora",
                    "--measure",
                    folder,
                    way,
                    "--steps",
                    str(args.steps),
                ]
                command += ["--merge"] * args.merge
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                found = json.loads(done.stdout.splitlines()[-1])
                line = f"  {way}: model {found['model_bytes'] / 1e6:,.0f} MB"
                if ratio := found.get("bytes_per_parameter"):
                    line += f", {ratio:.3f} bytes per expert parameter, {ratio / 2:.3f} of 16 bits"
                line += f", peak loading {found['load_bytes'] / 1e6:,.0f} MB, steps {found['step_bytes'] / 1e6:,.0f} MB"
                if "merge_bytes" in found:
                    line += f", merge {found['merge_bytes'] / 1e6:,.0f} MB"
                print(f"{line}, {found['tokens_per_cpu_second']:,.0f} tokens per CPU second", flush=True)


if __name__ == "__main__":
    main()
