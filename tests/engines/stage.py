"""accelerate launch ... stage.py JOBS: runs recipes one after the other in these processes, as their own commands do.

Stands in for what accelerate and TRL give to GPUs only, and for the kill between two runs. JOBS is a JSON list of
{"argv": [script, ...], "keep": folder, "completions": file, "replay": bool, "engine": bool}: where `keep` is given,
the run is first cut back to its last checkpoint, as a kill would leave it, and what it had made is kept there. With
`engine`, vLLM samples.
"""

import gc
import json
import os
import runpy
import shutil
import sys
import time
import traceback
from pathlib import Path

from recipes.grpo import GRPOTrainer

import torch
import yaml
from accelerate import state
from accelerate.utils import DistributedType

RANK, WORLD = (int(os.environ.get(key, default)) for key, default in (("RANK", "0"), ("WORLD_SIZE", "1")))


def take_processes_for_gpus() -> None:
    """accelerate knows FSDP on GPUs only: without this each process trains alone on the CPU, without a word."""

    def set_device(self):
        self.device = torch.device("cpu")

    state.PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    state.PartialState.set_device = set_device


def record_or_replay(file: Path, replay: bool) -> None:
    """What one process samples, by step and place in the rollout, is what several get, each its own part."""
    score, generate = GRPOTrainer._generate_and_score_completions, GRPOTrainer._generate_single_turn

    def scoring(self, inputs):
        self.in_rollout = True  # and not in the doctor's sample
        try:
            return score(self, inputs)
        finally:
            self.in_rollout = False

    def generating(self, prompt_ids, *others):
        if not getattr(self, "in_rollout", False):
            return generate(self, prompt_ids, *others)
        known = json.loads(file.read_text()) if file.exists() else {}
        step = str(self.state.global_step)
        if not replay:
            found = generate(self, prompt_ids, *others)
            file.write_text(json.dumps(known | {step: [prompt_ids, found[0]]}))
            return found
        part = slice(RANK * len(prompt_ids), (RANK + 1) * len(prompt_ids))
        asked, said = known[step]
        assert prompt_ids == asked[part] and len(asked) == WORLD * len(prompt_ids)
        return said[part], None

    GRPOTrainer._generate_and_score_completions, GRPOTrainer._generate_single_turn = scoring, generating


def cut_back(folder: Path, keep: Path) -> None:
    """Leave of a finished run what was there when its last checkpoint had been written and the next step was not."""
    shutil.copytree(folder, keep)
    for path in folder.iterdir():
        if path.name not in ("begun.json", "log.jsonl") and not path.name.startswith("checkpoint-"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def run(job: dict) -> None:
    argv = job["argv"]
    if "keep" in job:
        folder = Path(yaml.safe_load(Path(argv[2]).read_text())["output_dir"])
        if RANK == 0:
            cut_back(folder, Path(job["keep"]))
        if WORLD > 1:
            torch.distributed.barrier()
    real = GRPOTrainer._generate_and_score_completions, GRPOTrainer._generate_single_turn
    if "completions" in job:
        record_or_replay(Path(job["completions"]), job["replay"])
    if job.get("engine"):
        import vllm_for_cpu

        vllm_for_cpu.send_by_file()
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")
    GRPOTrainer._generate_and_score_completions, GRPOTrainer._generate_single_turn = real
    if job.get("engine"):
        from vllm.distributed import destroy_model_parallel

        destroy_model_parallel()  # the next engine may be a mixture of experts, and want a group for these
    gc.collect()


def main() -> None:
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        take_processes_for_gpus()
    for job in json.loads(Path(sys.argv[1]).read_text()):
        began = time.monotonic()
        run(job)
        if RANK == 0:
            sys.stdout.write(f"{time.monotonic() - began:.1f} s: {' '.join(job['argv'])}\n")


if __name__ == "__main__":
    code = 1
    try:
        main()
        code = 0
    finally:  # also where a stage ends its process: the others would wait for this one
        if code:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # a thread of gloo or DeepSpeed that frees its last tensor while Python shuts down would abort
