"""FSDP2's efficient loading, in two processes: one reads, the other takes no memory and ends with the same weights."""

import os
import subprocess
import sys

import recipes

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

SCRIPT = """
import os
import re
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

from recipes import patches

import torch
from accelerate.utils.fsdp_utils import fsdp2_load_full_state_dict
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()


def anonymous():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])


def watch():
    while not over.wait(0.001):
        peak.append(anonymous())


patches.spare_host_memory()
patches.spare_host_memory()  # the second time changes nothing
over, peak = threading.Event(), [anonymous()]
watching = threading.Thread(target=watch)
watching.start()
model, info = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, output_loading_info=True)
over.set()
watching.join()
taken, size = max(peak) - peak[0], sum(p.nbytes for p in model.parameters())
assert not any(info.values()), info
tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
assert tied == model.config.tie_word_embeddings
assert size > 40e6 and all(p.device.type == "cpu" and p.requires_grad for p in model.parameters())
assert taken > 0.9 * size if rank == 0 else taken < 0.3 * size, (rank, taken, size)

values = model.state_dict()  # as accelerate's fsdp2_prepare_model goes on
buffers = {name: buffer for name, buffer in model.named_buffers()}
model.to("meta")
model.tie_weights()
fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (2,)))
fsdp2_load_full_state_dict(SimpleNamespace(is_main_process=rank == 0), model, values)
found = {name: tensor.full_tensor() for name, tensor in model.state_dict().items()}
torch.save((taken / size, found, buffers), f"{sys.argv[2]}/{rank}.pt")
torch.distributed.barrier()
"""


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_one_process_reads_and_the_other_takes_no_memory(tied, tmp_path):
    sizes = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 4, "head_dim": 64, "vocab_size": 8192}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": tied}
    Qwen3ForCausalLM(Qwen3Config(**sizes, **heads)).to(torch.bfloat16).save_pretrained(tmp_path / "model")
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    environment = os.environ | {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    environment |= {"PYTHONPATH": os.path.dirname(recipes.__path__[0]), "OMP_NUM_THREADS": "1"}
    command += [str(tmp_path / "script.py"), str(tmp_path / "model"), str(tmp_path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 0, ended.stderr
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    for rank in range(2):
        _, found, buffers = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.keys() == whole.state_dict().keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in whole.state_dict().items())
        assert all(torch.equal(buffers[name], tensor) for name, tensor in whole.named_buffers())
