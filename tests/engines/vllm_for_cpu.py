"""A plugin of vLLM 0.32: what it and TRL 1.16 do on GPUs only, so that all else is the real thing on a CPU.

- The engine computes in float32, so that its log-probabilities are the policy's to rounding. vLLM takes half precision
  for a checkpoint in float32, and TRL has no key for it.
- Nor does it take the kernels for AMX, which know no float32, where the CPU has that.
- What vLLM's kernels for CPUs pack is made anew with new weights: a layer's experts, and a head that is the embedding.
- Weights go to a server by a file in place of NCCL; the server's endpoints, their order, the names are the real ones.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine, NCCLWeightTransferUpdateInfo

FILE = "file"


def register() -> None:
    from vllm.config import model
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod
    from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

    if FILE in WeightTransferEngineFactory._registry:
        return
    WeightTransferEngineFactory.register_engine(FILE, __name__, "FileEngine")
    model._resolve_auto_dtype = lambda *_, **__: torch.float32
    torch.cpu._is_amx_tile_supported = lambda: False
    set_up = UnquantizedFusedMoEMethod._setup_kernel

    def packing(self, layer, w13, w2):
        again = self.moe_kernel is not None
        set_up(self, layer, w13, w2)
        if again:
            self.moe_kernel.fused_experts.process_weights_after_loading(layer)

    UnquantizedFusedMoEMethod._setup_kernel = packing
    UnquantizedEmbeddingMethod.process_weights_after_loading = lambda _, layer: setattr(
        layer, "cpu_linear", torch.nn.functional.linear
    )


@dataclass
class FileInfo(NCCLWeightTransferUpdateInfo):
    path: str = ""


class FileEngine(NCCLWeightTransferEngine):
    update_info_cls = FileInfo

    def init_transfer_engine(self, init_info) -> None:
        """There is no group to join."""

    def receive_weights(self, update_info) -> None:
        tensors = load_file(update_info.path)
        for name, dtype, shape in zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True):
            assert [list(tensors[name].shape), str(tensors[name].dtype)] == [list(shape), f"torch.{dtype}"], name
            self.model.load_weights([(name, tensors[name])])


def send_by_file() -> None:
    """Change TRL's client, in the process that trains."""
    from trl.generation.vllm_client import VLLMClient

    def init_communicator(self, device=0):
        assert self.get_server_info()["weight_transfer_config"] is not None
        init = {"master_address": "127.0.0.1", "master_port": self.group_port, "rank_offset": 1, "packed": True}
        init |= {"world_size": self.get_world_size() + 1}
        self._post(f"{self.base_url}/init_weight_transfer_engine", json={"init_info": init})

    def update_named_params(self, metadata, named_params):
        names, dtypes, shapes = (list(field) for field in zip(*metadata, strict=True))
        tensors = {name: one.detach().clone().contiguous() for name, one in named_params}
        assert list(tensors) == names
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "weights.safetensors")
            save_file(tensors, path)
            info = {"names": names, "dtype_names": dtypes, "shapes": shapes, "path": path}
            self._start_weight_update()
            self._post(f"{self.base_url}/update_weights", json={"update_info": info})
            self._finish_weight_update()

    VLLMClient.init_communicator, VLLMClient.update_named_params = init_communicator, update_named_params
