"""How fast we sample on a CPU beside `model.generate`.

    python -m benchmarks.sampling [--repeats 3] [--threads 2] [--tokens 64]

A model of SmolLM2-135M's shape with random weights, in bfloat16, completes 16 prompts of 200 tokens four times each, at
temperature 1, to the same length. Both methods take turns in one process. The benchmark prints the medians over the
turns; the ratio is the median of each turn's ratio.
"""

import argparse
import time
from statistics import median

from data_prep.sampling import Decoding, decode

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}
PROMPTS, SAMPLES, LENGTH = 16, 4, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64, help="of a completion")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), dtype=torch.bfloat16).eval()
    distinct = torch.randint(3, SHAPE["vocab_size"], (PROMPTS, LENGTH))
    prompts = distinct.repeat_interleave(SAMPLES, dim=0)
    decoding = Decoding(arguments.tokens, temperature=1.0)

    def ours() -> None:
        decode.complete(model, prompts.tolist(), 0, [], decoding, seed=0)

    def plain() -> None:
        model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=True,
            top_k=0,
            min_new_tokens=arguments.tokens,
            max_new_tokens=arguments.tokens,
            pad_token_id=0,
        )

    seconds = {"ours": [], "model.generate": []}
    for _ in range(arguments.repeats):
        for name, sample in (("ours", ours), ("model.generate", plain)):
            started = time.perf_counter()
            sample()
            seconds[name].append(time.perf_counter() - started)
    count = len(prompts) * arguments.tokens
    for name, taken in seconds.items():
        print(f"{name}: {count / median(taken):,.0f} tokens/s, prompts of {LENGTH} tokens read as well")
    ratios = [theirs / mine for mine, theirs in zip(*seconds.values(), strict=True)]
    print(f"{median(ratios):.1f} times as fast, {arguments.threads} threads, {arguments.repeats} turns")


if __name__ == "__main__":
    main()
