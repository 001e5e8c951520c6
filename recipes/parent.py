"""The checkpoint that a stage starts from, on disk: its names, its tensors, and its special tokens.

A checkpoint and transformers' model can name a tensor differently, and experts that are published apart become one
stacked parameter. Loading in 4 bits and merging an adapter need both names.
"""

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from data_prep import hub
from data_prep.runs import ConfigError

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

SCALES = "_scale_inv"  # suffix of an FP8 weight's block scales
KEPT = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]  # weights, configs, tokenizers and their templates


def skeleton(name: str | Path) -> PreTrainedModel:
    """The parent's architecture without weights."""
    config = AutoConfig.from_pretrained(str(name))
    config.quantization_config = None
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def published_apart(model: PreTrainedModel) -> dict[str, list[str]]:
    """The published names of an expert's layers, by the stacked parameter that transformers creates from them; empty if
    the family publishes stacked experts."""
    found = {}
    for one in get_model_conversion_mapping(model):
        if isinstance(one, WeightConverter) and "experts.*." in one.source_patterns[0]:
            parameter = one.target_patterns[0].rpartition(".")[2]
            found[parameter] = [pattern.split(".")[-2] for pattern in one.source_patterns]
    return found


def expert_names(model: PreTrainedModel) -> tuple[str, str, str]:
    """The published names of an expert's layers: gate, up and down."""
    found = {"gate_up_proj": ["gate_proj", "up_proj"], "down_proj": ["down_proj"]} | published_apart(model)
    return (*found["gate_up_proj"], *found["down_proj"])


def module_names(model: PreTrainedModel) -> Callable[[str], str]:
    """A function from a name in a checkpoint to the name in the model. Experts stay separate or stacked."""
    renamings = [one for one in get_model_conversion_mapping(model) if isinstance(one, WeightRenaming)]
    known = model.state_dict()
    return lambda key: rename_source_key(key, renamings, [], model.base_model_prefix, known)[0]


def refuse_quantized(name: str | Path, key: str, but_fp8: bool = False) -> None:
    """Raises ConfigError if a checkpoint does not hold its weights in 16 or 32 bits. `but_fp8`: FP8 in blocks is read,
    too."""
    held = getattr(AutoConfig.from_pretrained(str(name)), "quantization_config", None) or {}
    held = held if isinstance(held, dict) else held.to_dict()
    method = held.get("quant_method")
    if method == "fp8" and held.get("weight_block_size"):
        if but_fp8:
            return
        raise ConfigError(
            f"{key}: {name} is in FP8. Convert it once, with the memory of one of its files, and start from the "
            f"result: python -m recipes.tools.merge --parent {name} --output {Path(name).name}-bf16"
        )
    if method:
        raise ConfigError(
            f"{key}: {name} is quantised already ({method}); name the 16-bit checkpoint that it was made from."
        )


class Parent:
    """A checkpoint on disk: the file of each tensor, and each tensor in 16 or 32 bits."""

    def __init__(self, name: str | Path):
        self.folder = Path(name)
        if not self.folder.is_dir():
            self.folder = Path(hub.find(str(name), lambda: snapshot_download(str(name), allow_patterns=KEPT)))
        config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        self.fp8 = config.get("quantization_config") or {}
        if self.fp8.get("quant_method", "fp8") != "fp8":
            raise ConfigError(f"{name} is quantised by {self.fp8['quant_method']}; merge into the 16-bit checkpoint.")
        if self.fp8 and len(self.fp8.get("weight_block_size") or ()) != 2:
            raise ConfigError(
                f"{name} is in FP8 without weight_block_size; only block scales, such as DeepSeek's, can be read."
            )
        self.dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
        self.index = self.folder / SAFE_WEIGHTS_INDEX_NAME
        if (self.folder / SAFE_WEIGHTS_NAME).is_file():  # like transformers, ignores an index beside it
            with safe_open(self.folder / SAFE_WEIGHTS_NAME, "pt") as file:
                self.file_of, self.index = dict.fromkeys(file.keys(), SAFE_WEIGHTS_NAME), None
        elif self.index.is_file():
            self.file_of = json.loads(self.index.read_text(encoding="utf-8"))["weight_map"]
        else:
            raise ConfigError(
                f"{name} has no {SAFE_WEIGHTS_NAME} and no {SAFE_WEIGHTS_INDEX_NAME}; save it as safetensors first."
            )
        if lost := sorted({file for file in self.file_of.values() if not (self.folder / file).is_file()}):
            raise ConfigError(f"{name} lacks {', '.join(lost[:3])}, which its index lists; copy the checkpoint again.")
        self.keys = [key for key in self.file_of if not (self.fp8 and key.endswith(SCALES))]
        self.untied: dict[str, str] = {}  # tensors to write separately, with the tensor that each is tied to
        self._open = lru_cache(maxsize=2)(lambda file: safe_open(self.folder / file, "pt"))

    def files(self) -> list[str]:
        return sorted({self.file_of[key] for key in self.keys})

    def untie(self, key: str, tied_to: str) -> None:
        """Store a tied tensor separately."""
        self.untied[key], self.file_of[key] = tied_to, self.file_of[tied_to]
        self.keys.append(key)

    def is_scaled(self, key: str) -> bool:
        return key + SCALES in self.file_of

    def shape(self, key: str) -> list[int]:
        return self._open(self.file_of[key]).get_slice(self.untied.get(key, key)).get_shape()

    def read(self, key: str) -> torch.Tensor:
        """The tensor as stored. FP8 is multiplied by its block scales and returned in float32."""
        key = self.untied.get(key, key)
        tensor = self._open(self.file_of[key]).get_tensor(key)
        if not self.is_scaled(key):
            if tensor.is_floating_point() and tensor.itemsize == 1:
                raise ConfigError(f"{self.folder}: {key} is in FP8, but there is no {key}{SCALES} to multiply it with.")
            return tensor
        return tensor.float() * self.scales(key, tensor.shape)

    def scales(self, key: str, shape: torch.Size, device: torch.device | str = "cpu") -> torch.Tensor:
        """What each number of an FP8 tensor of this shape is multiplied by, in float32."""
        scales = self._open(self.file_of[key + SCALES]).get_tensor(key + SCALES).float().to(device)
        rows, columns = self.fp8["weight_block_size"]
        scales = scales.repeat_interleave(rows, -2)[..., : shape[-2], :].repeat_interleave(columns, -1)
        return scales[..., : shape[-1]]

    def stored(self, key: str) -> dict[str, torch.Tensor]:
        """An FP8 tensor and its block scales as they are, by their names."""
        return {name: self._open(self.file_of[name]).get_tensor(name) for name in (key, key + SCALES)}

    def in_blocks(self, key: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
        """A matrix in FP8 and its block scales, by the names of `key`: the largest number of a block becomes FP8's."""
        if tensor.ndim != 2:
            raise ConfigError(f"{self.folder}: {key} is not one matrix, and cannot be written in FP8 blocks.")
        (rows, columns), (height, width), kind = self.fp8["weight_block_size"], tensor.shape, torch.float8_e4m3fn
        padded = torch.nn.functional.pad(tensor.float(), (0, -width % columns, 0, -height % rows))
        blocks = padded.view(padded.shape[0] // rows, rows, -1, columns)
        scales = blocks.abs().amax((1, 3)).clamp(min=torch.finfo(torch.float32).tiny) / torch.finfo(kind).max
        numbers = (blocks / scales[:, None, :, None]).view(padded.shape)[:height, :width]
        return {key: numbers.to(kind), key + SCALES: scales}


def align(tokenizer: PreTrainedTokenizerBase, *configs: PreTrainedConfig | GenerationConfig | None) -> None:
    """Make a model with these configs also stop at the tokenizer's end token, and pad with its pad token. Tokens that
    the tokenizer does not have stay unchanged."""
    for config in filter(None, configs):
        for key in ("eos_token_id", "pad_token_id", "bos_token_id"):
            held, own = getattr(config, key, None), getattr(tokenizer, key)
            several = isinstance(held, list) and len(held) > 1
            if own is not None and own not in (held if several else [held]):
                setattr(config, key, own)
