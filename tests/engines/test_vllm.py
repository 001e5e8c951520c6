"""RL whose completions vLLM samples, with the weights of each step: the engine beside training, and `vllm serve`.

The engine computes in float32, as the policy does, so that their log-probabilities are the same to rounding. What a
YAML of the scale says of the method stays.
"""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from data_prep.rows import read_parquet
from recipes import loading

import cells
import pytest
import torch
from conftest import World, kill, log_of
from transformers import AutoModelForCausalLM, AutoTokenizer

COLOCATED = [
    cells.Case("single_gpu", "vllm", cells.LORA_RL),
    cells.Case("single_gpu", "vllm", cells.FULL_RL, "qwen3_moe"),
    cells.Case("single_gpu", "vllm", "deepseek-v3/r1_zero", "deepseek_v3"),
    *(cells.Case(config, "vllm", recipe) for config in ("zero2", "fsdp2") for recipe in (cells.FULL_RL, cells.LORA_RL)),
]
ENDS = cells.Case("single_gpu", "vllm", "node-8x80gb/reasoning_rl")  # in our chat template
# Of the stand-ins: heads as wide as vLLM's kernels for CPUs take them, and what a published config names.
LATENT = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 64, "v_head_dim": 64}
SHAPES = {
    "qwen2": {"hidden_size": 64},
    "qwen3_moe": {"head_dim": 32},
    "deepseek_v3": LATENT | {"topk_method": "noaux_tc", "scoring_func": "sigmoid"},
}
ENGINE = {
    "generation": "vllm_colocate",
    "vllm_enable_sleep_mode": False,  # for GPUs only
    "vllm_tensor_parallel_size": 1,
    "vllm_gpu_memory_utilization": 0.1,
    "vllm_max_model_length": 256 + 8,
}
LARGEST = "sampling/sampling_logp_difference/max"


class Engines:
    """What ran with vLLM. The cases of an accelerate config run one after another in one launch."""

    def __init__(self, world: World):
        self.world = world
        self.said = cache(self._run)

    def _job(self, case: cells.Case, model: str, name: str = "") -> dict:
        engine = ENGINE | ({} if case.config == "single_gpu" else {"use_cpu": False, "ddp_backend": "gloo"})
        settings = self.world.settings(case) | engine | {"model_name_or_path": model}
        return {"argv": self.world.yaml(name or case.name, settings), "engine": True}

    def _run(self, config: str) -> str:
        from test_stand_ins import stand_in

        jobs = []
        for case in [case for case in COLOCATED if case.config == config]:
            os.chdir(self.world.folder)
            jobs.append(self._job(case, stand_in(case.family, f"{case.family}_wide", **SHAPES[case.family])))
        if config == "single_gpu":
            jobs.append(self._job(COLOCATED[0], "outputs/t/qwen2_wide", f"{COLOCATED[0].name}-again"))
            jobs.append(self._job(ENDS, one_that_ends(stand_in("qwen2", "ends", **SHAPES["qwen2"]))))
        processes = {"num_machines": 1, "num_processes": 1 if config == "single_gpu" else 2}
        process = self.world.start(config, jobs, log=f"vllm-{config}", main_process_port=21000, **processes)
        try:
            process.wait(400)
        finally:
            if process.poll() is None:
                kill(process)
        return (self.world.folder / f"vllm-{config}.txt").read_text(encoding="utf-8", errors="replace")[-6000:]

    def folder_of(self, case: cells.Case, more: str = "") -> Path:
        said = self.said(case.config)
        folder = self.world.folder / "outputs/t" / f"{case.name}{more}"
        assert (folder / "run.json").is_file(), said
        return folder


def one_that_ends(folder: str) -> str:
    """Make the token that ends an answer likely, which is not the one that the checkpoint's own config names."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids("<|im_end|>")] *= 40  # the head is tied
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    model.save_pretrained(folder)
    return folder


def completions(folder: Path) -> list[str]:
    return [row["completion"] for path in sorted(folder.glob("completions/*.parquet")) for row in read_parquet(path)]


@pytest.fixture(scope="module")
def engines(world: World) -> Engines:
    return Engines(world)


@pytest.mark.parametrize("case", COLOCATED, ids=lambda case: case.name)
def test_the_engine_samples_with_the_weights_of_each_step(case, engines):
    """Mixtures of experts too: their names in memory are not those that vLLM knows."""
    rows = log_of(engines.folder_of(case))
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert max(row[LARGEST] for row in rows) < 1e-5
    assert [row["kl"] for row in rows][2] == 0.0  # after the refresh
    assert min(row["grad_norm"] for row in rows) > 0


def test_one_seed_is_one_run(engines):
    """With the engine in the one process that trains."""
    one, again = (engines.folder_of(COLOCATED[0], more) for more in ("", "-again"))
    assert len(said := completions(one)) == 32
    assert said == completions(again)
    assert len(set(said)) > 16


def test_sampling_stops_at_the_end_token_of_the_stage(engines):
    """And not where the checkpoint's generation config says."""
    rows = log_of(engines.folder_of(ENDS))
    assert rows[0]["completions/mean_terminated_length"] < 4  # of at most 8
    assert rows[0]["completions/clipped_ratio"] < 0.2
    assert max(row[LARGEST] for row in rows) < 1e-5


SAMPLE = """
import json, sys
from data_prep.sampling import Decoding, Sampler, open_model

if __name__ == "__main__":  # vLLM starts a process of its own
    prompts, decoding = ["What is 2 + 3?", [{"role": "user", "content": "What is 4 + 9?"}]], Decoding(40, 0.0)
    settings = {"max_model_len": 256, "dtype": "float32", "max_num_seqs": 8, "enforce_eager": True}
    samplers = {"vllm": Sampler("vllm", batch_size=4, vllm=settings), "transformers": Sampler(batch_size=4)}
    said = {}
    for kind in sys.argv[2:]:
        with open_model(sys.argv[1], samplers[kind]) as model:
            said[kind] = [sample.text for group in model.sample(prompts, 2, decoding, 0) for sample in group]
    print(json.dumps(said))
"""


def test_a_data_job_samples_as_with_transformers(world: World):
    """Greedily, from the mixture of experts of `moe-qlora`."""
    from test_stand_ins import stand_in

    os.chdir(world.folder)
    name = stand_in("qwen3_moe", "sampled", **SHAPES["qwen3_moe"])
    loading.load_tokenizer(name).save_pretrained(name)  # with a chat template
    (world.folder / "sample.py").write_text(SAMPLE, encoding="utf-8")
    command = [sys.executable, "sample.py", name, "vllm", "transformers"]
    found = subprocess.run(command, env=world.environment, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr[-4000:]
    said = json.loads(found.stdout.splitlines()[-1])
    assert said["vllm"] == said["transformers"] and len(set(said["vllm"])) == 2
