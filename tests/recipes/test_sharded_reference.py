"""A reference whose weights FSDP2 shards, in two processes: replaced, saved and restored as a whole one is."""

import os
import subprocess
import sys
from pathlib import Path

import recipes

import pytest

SCRIPT = """
import os
import sys
from pathlib import Path
from types import SimpleNamespace

from recipes import reference

import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import Qwen3Config, Qwen3ForCausalLM

torch.distributed.init_process_group("gloo")
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16, "vocab_size": 99}
heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True}
mesh = torch.distributed.init_device_mesh("cpu", (2,))


def shard(seed):
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(Qwen3Config(**sizes, **heads))
    for layer in [*model.model.layers, model]:
        fully_shard(layer, mesh=mesh)
    return model


def whole(model):
    return [parameter.full_tensor().clone() for parameter in model.parameters()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


accelerator = SimpleNamespace(unwrap_model=lambda model: model)
args = SimpleNamespace(should_save=torch.distributed.get_rank() == 0)
trainer = SimpleNamespace(model=shard(0), ref_model=shard(1), accelerator=accelerator, args=args)
assert all(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
policy = whole(trainer.model)
assert not same(whole(trainer.ref_model), policy)
reference.refresh(trainer)
assert same(whole(trainer.ref_model), policy)
reference.save(trainer, Path(sys.argv[1]))
with torch.no_grad():
    for parameter in trainer.ref_model.parameters():
        parameter.mul_(2)
assert not same(whole(trainer.ref_model), policy)
reference.restore(trainer, Path(sys.argv[1]))
assert same(whole(trainer.ref_model), policy)
torch.distributed.destroy_process_group()
os._exit(0)  # a thread of gloo that frees its last tensor while Python shuts down would abort the process
"""


@pytest.mark.slow
def test_a_sharded_reference_is_replaced_saved_and_restored(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    (tmp_path / "checkpoint").mkdir()
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    root = Path(recipes.__file__).parents[1]
    done = subprocess.run(
        [*start, str(tmp_path / "script.py"), str(tmp_path / "checkpoint")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "checkpoint/reference/.metadata").is_file()
