"""Merge a LoRA adapter into its parent: python -m recipes.tools.merge --parent DIR --adapter DIR --output DIR.

It merges the parent's files one by one, so it holds one file in memory at a time, and it resumes after a kill. The sum
is computed in float32 and cast once at the end, because rounding in bfloat16 can change which experts a mixture of
experts chooses. The result gets the tokenizer beside the adapter, if there is one, and its end token. Without
--adapter, the parent is rewritten in --dtype: a parent in FP8, such as the published DeepSeek-V3, becomes a checkpoint
that can be trained. With --dtype float8, what is in FP8 blocks stays in FP8 blocks.
"""

import hashlib
import json
import logging
import re
import sys
from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import EllipsisType
from typing import NamedTuple

from data_prep import runs
from data_prep.runs import ConfigError, commands, memory
from recipes.parent import Parent, align, expert_names, module_names, skeleton

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

logger = logging.getLogger(__name__)
PROGRESS = "merge.json"
FP8 = "float8"
EXPERT = re.compile(r"(.*\bexperts)\.(\d+)\.(\w+)")
# Initialisations of an adapter that do not change the parent's weights.
PLAIN = ("none", "true", "false", "gaussian", "eva", "orthogonal", "mica")
# Keys of an adapter's config. If one is set, the adapter's change is more than the product of two matrices.
UNREAD = (
    "use_dora", "fan_in_fan_out", "lora_bias", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config",
    "kasa_config", "monteclora_config", "layer_replication",
)  # fmt: skip


class LowRankChange(NamedTuple):
    """One low-rank change of one parent tensor."""

    where: EllipsisType | int | tuple  # index into the parent's tensor
    module: str  # the module with the pair of matrices
    parameter: str  # the name by which rank and alpha are looked up
    expert: int | None = None  # index of a stacked expert
    half: int | None = None  # gate or up, if the pair has both


class Adapter:
    """A LoRA adapter on disk, for separate experts or experts stacked in PEFT's form."""

    def __init__(self, folder: str | Path, model: PreTrainedModel):
        self.file = Path(folder) / "adapter_model.safetensors"
        path = Path(folder) / "adapter_config.json"
        if not path.is_file():
            raise ConfigError(f"{folder} holds no LoRA adapter (there is no {path.name}); name the folder of one")
        self.config = json.loads(path.read_text(encoding="utf-8"))
        odd = [key for key in UNREAD if self.config.get(key)]
        odd += ["bias"] if self.config.get("bias", "none") != "none" else []
        odd += ["init_lora_weights"] if str(self.config.get("init_lora_weights")).lower() not in PLAIN else []
        odd += ["peft_type"] if self.config["peft_type"] != "LORA" else []
        if odd:
            raise ConfigError(f"{folder} is not a plain LoRA adapter ({', '.join(odd)}); merge it with PEFT.")
        self.leaves, rename = expert_names(model), module_names(model)
        self.transposed = any(getattr(module, "is_transposed", False) for module in model.modules())
        self.tensors = safe_open(self.file, "pt")
        self._read = lru_cache(maxsize=4)(lambda key: self.tensors.get_tensor(key).float())  # stacked ones serve many
        self.names, self.whole = {}, {}  # name in the model -> name in the file
        self.apart = False  # whether it changes one of two tied tensors
        for key in list(self.tensors.keys()):
            module, _, pair = key.removeprefix("base_model.model.").partition(".lora_")
            if pair.startswith("A."):
                self.names[rename(f"{module}.weight").removesuffix(".weight")] = key.partition(".lora_")[0]
            elif not pair:
                if not module.endswith(".base_layer.weight"):  # the frozen head; PEFT saves it beside the head's pair
                    self.whole[module] = key
            elif not pair.startswith("B."):
                raise ConfigError(f"{folder}: {key} does not belong to a linear layer; merge it with PEFT.")

    def parts(self, name: str, shape: list[int]) -> list[LowRankChange]:
        """The changes of the parent's tensor that the model calls `name`."""
        module = name.removesuffix(".weight")
        if module in self.names:
            return [LowRankChange(..., module, module)]
        gate, up, down = self.leaves
        if (one := EXPERT.fullmatch(module)) and one[3] in self.leaves:
            half = {gate: 0, up: 1}.get(one[3])
            stacked = self._stacked(one[1], shape[0] if half is None else 2 * shape[0], shape[1])
            parameter = f"{one[1]}.{'down_proj' if half is None else 'gate_up_proj'}"
            return [LowRankChange(..., stacked, parameter, int(one[2]), half)] if stacked else []
        path, _, parameter = module.rpartition(".")
        if len(shape) != 3 or parameter not in ("gate_up_proj", "down_proj"):
            return []
        if stacked := self._stacked(path, *(shape[:0:-1] if self.transposed else shape[1:])):
            if self.transposed:
                raise ConfigError(f"{self.file.parent}: {name} is stored transposed; merge it with PEFT.")
            return [LowRankChange(expert, stacked, module, expert) for expert in range(shape[0])]
        middle = shape[1] // 2
        rows = {gate: slice(middle), up: slice(middle, None)} if parameter == "gate_up_proj" else {down: slice(None)}
        apart = [((e, part), f"{path}.{e}.{leaf}") for e in range(shape[0]) for leaf, part in rows.items()]
        return [LowRankChange(where, one, one) for where, one in apart if one in self.names]

    def check(self, plan: dict[str, list[LowRankChange]], source: Parent) -> None:
        """Raises ConfigError if the size of a pair of matrices does not match the tensor that it changes."""
        experts = Counter((part.module, part.parameter) for parts in plan.values() for part in parts if not part.half)
        for name, key in self.whole.items():
            if name in plan and self.tensors.get_slice(key).get_shape() != source.shape(name):
                raise ConfigError(
                    f"{self.file.parent}: {key} has another shape than {name} of {source.folder}. Name the checkpoint "
                    "that it was trained on."
                )
        for key, parts in plan.items():
            whole = torch.empty(source.shape(key), device="meta")
            for part in parts:
                a, b = (self.tensors.get_slice(one).get_shape() for one in self._pair(part.module))
                rank = self._setting("r", "rank_pattern", part.parameter)
                count = 1 if part.expert is None else experts[part.module, part.parameter]
                halves = 1 if part.half is None else 2
                rows, columns = whole[part.where].shape
                if (b[0], a[1], a[0], b[1]) != (halves * rows, columns, count * rank, count * rank):
                    raise ConfigError(
                        f"{self.file.parent}: {part.module} has matrices of {a} and {b} at rank {rank}, which do not "
                        f"fit {key} of {source.folder}. Name the checkpoint that it was trained on."
                    )

    def read_whole(self, dtype: str) -> dict[str, torch.Tensor]:
        """Tensors that were trained in full, such as a scorer's head."""
        return {name: self.tensors.get_tensor(key).to(getattr(torch, dtype)) for name, key in self.whole.items()}

    def delta(self, part: LowRankChange) -> torch.Tensor:
        """B A alpha / r, in float32."""
        a, b = (self._read(key) for key in self._pair(part.module))
        rank = self._setting("r", "rank_pattern", part.parameter)
        alpha = self._setting("lora_alpha", "alpha_pattern", part.parameter)
        if part.expert is not None:
            a, b = a.view(-1, rank, a.shape[1])[part.expert], b.view(len(b), rank, -1)[..., part.expert]
        change = (b @ a) * (alpha / (rank**0.5 if self.config.get("use_rslora") else rank))
        return change if part.half is None else change.chunk(2)[part.half]

    def _pair(self, module: str) -> list[str]:
        return [f"{self.names[module]}.lora_{matrix}.weight" for matrix in "AB"]

    def _stacked(self, path: str, rows: int, columns: int) -> str | None:
        """The module whose pair has this shape. If a module has two adapted parameters, PEFT keeps the pair of one of
        them in `base_layer`."""
        for module in (path, f"{path}.base_layer"):
            if module in self.names:
                a, b = (self.tensors.get_slice(key).get_shape() for key in self._pair(module))
                if (b[0], a[1]) == (rows, columns):
                    return module
        return None

    def _setting(self, key: str, patterns: str, parameter: str) -> int:
        for pattern, value in (self.config.get(patterns) or {}).items():
            if re.fullmatch(rf"(.*\.)?({pattern})", parameter):
                return value
        return self.config[key]


def merge(
    parent: str | Path, adapter: str | Path | None, output: str | Path, dtype: str = "bfloat16", **settings
) -> None:
    """Write the checkpoint `parent` + `adapter` to `output`, with weights in `dtype`, the adapter's tokenizer (or else
    the parent's), and `settings` in its config.

    If the adapter changes only one of an embedding and its tied head, the result has both, untied. A tensor that a
    16-bit parent keeps in float32 stays in float32. With the adapter of a scorer, the result is a scorer. Raises
    ConfigError if the adapter has a part that the parent does not have.
    """
    source, output = Parent(parent), Path(output)
    model = skeleton(source.folder)
    added = Adapter(adapter, model) if adapter else None
    if output.resolve() == source.folder.resolve():
        raise ConfigError(f"{output} is the parent itself; name another output.")
    if dtype == FP8 and not source.fp8:
        raise ConfigError(f"dtype: {parent} is not in FP8, so that its blocks are not known; write bfloat16.")
    rest = source.dtype if dtype == FP8 else dtype  # of what is not in FP8
    plan = _plan(source, added, module_names(model), model.all_tied_weights_keys)
    _begin(source, added, output, dtype)
    for name in source.files():
        if not (output / name).exists():
            tensors = {}
            keys = [key for key in plan if source.file_of[key] == name]
            for done, key in enumerate(commands.progress(keys, f"merging {name}", unit="tensor"), 1):
                if dtype != FP8 or not source.is_scaled(key):
                    tensors[key] = _sum(source, added, key, plan[key], rest)
                elif plan[key]:
                    tensors |= source.in_blocks(key, _sum(source, added, key, plan[key], "float32"))
                else:
                    tensors |= source.stored(key)
                memory.give_back(done)
            if added and name == source.files()[-1]:
                tensors |= added.read_whole(rest)
            partial = output / f"{name}.partial"
            save_file(tensors, partial, metadata={"format": "pt"})
            del tensors  # before the next file is read
            partial.replace(output / name)
            logger.info("merged %s", output / name)
    _finish(source, added, output, {"dtype": rest} | settings, keeps_fp8=dtype == FP8)


def _plan(
    source: Parent, added: Adapter | None, rename: Callable[[str], str], tied: dict[str, str]
) -> dict[str, list[LowRankChange]]:
    """The changes of each tensor that is written. `tied` maps a tensor's name in the model to the one it is tied to."""
    if added is None:
        return {key: [] for key in source.keys}
    names = {key: rename(key) for key in source.keys}
    stored = {name: key for key, name in names.items()}
    scores = added.config.get("task_type") == "SEQ_CLS"
    if not scores:
        changed = added.whole.keys() | {f"{name}.weight" for name in added.names}
        apart = tied.keys() & changed
        if not added.config.get("ensure_weight_tying"):  # with it, PEFT changes both equally
            apart |= {name for name, other in tied.items() if other in changed}
        for pair in ((name, tied[name]) for name in apart):
            for one, other in (pair, pair[::-1]):
                if one not in stored:
                    source.untie(one, stored[other])
                    names[one] = stored[one] = one
        added.apart = bool(apart)
        added.whole = {stored.get(name, name): key for name, key in added.whole.items()}
    plan = {key: added.parts(name, source.shape(key)) for key, name in names.items()}
    left = added.names.keys() - {part.module for parts in plan.values() for part in parts}
    if left:
        raise ConfigError(
            f"{added.file.parent}: {len(left)} of its {len(added.names)} parts are not in {source.folder}, "
            f"such as {min(left)}. Name the checkpoint that it was trained on."
        )
    if strange := added.whole.keys() - plan.keys() - {"score.weight", "lm_head.weight"}:
        raise ConfigError(f"{added.file.parent}: {min(strange)} does not belong to a linear layer; merge it with PEFT.")
    added.check(plan, source)
    replaced = set(added.whole) | ({"lm_head.weight"} if scores else set())
    return {key: parts for key, parts in plan.items() if key not in replaced}


@torch.no_grad()
def _sum(source: Parent, added: Adapter | None, key: str, parts: list[LowRankChange], dtype: str) -> torch.Tensor:
    tensor = source.read(key)
    kept = tensor.dtype == torch.float32 and source.dtype != "float32" and not source.is_scaled(key)
    if not tensor.is_floating_point() or (kept and not parts):
        return tensor
    merged = tensor.to(getattr(torch, dtype), copy=True)
    for part in parts:
        merged[part.where] = (tensor[part.where].float() + added.delta(part)).to(merged.dtype)
    return merged


def _begin(source: Parent, added: Adapter | None, output: Path, dtype: str) -> None:
    """Create the output folder. Files that an earlier, killed run of the same merge has written are kept."""
    digest = hashlib.sha256(dtype.encode())
    for name in source.files():
        stat = (source.folder / name).stat()
        digest.update(f"{name} {stat.st_size} {stat.st_mtime_ns}".encode())
    if added:
        digest.update(json.dumps(added.config, sort_keys=True).encode())
        with added.file.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    output.mkdir(parents=True, exist_ok=True)
    progress = output / PROGRESS
    if not progress.is_file() or progress.read_text(encoding="utf-8") != digest.hexdigest():
        for old in {*output.glob("model*.safetensors*"), *(output / name for name in source.files())}:
            old.unlink(missing_ok=True)
        progress.write_text(digest.hexdigest(), encoding="utf-8")


def _finish(source: Parent, added: Adapter | None, output: Path, settings: dict, keeps_fp8: bool) -> None:
    """Write the index, if there are several files, and everything that is not a weight."""
    if source.index:
        weight_map, size = {}, 0
        for name in source.files():
            with safe_open(output / name, "pt") as file:
                weight_map |= dict.fromkeys(file.keys(), name)
            size += (output / name).stat().st_size
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (output / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True), encoding="utf-8")
    config = AutoConfig.from_pretrained(source.folder)
    if hasattr(config, "quantization_config") and not keeps_fp8:
        del config.quantization_config
    config.update(settings)
    if added and added.apart:
        for one in (config, config.get_text_config()):
            one.tie_word_embeddings = False
    if added and added.config.get("task_type") == "SEQ_CLS":
        config.num_labels = len(added.read_whole(settings["dtype"])["score.weight"])
        config.architectures = [AutoModelForSequenceClassification._model_mapping[type(config)].__name__]
    generation = None
    if (source.folder / "generation_config.json").is_file():
        generation = GenerationConfig.from_pretrained(source.folder)
    trained = added is not None and bool(list(added.file.parent.glob("tokenizer*")))
    if trained or list(source.folder.glob("tokenizer*")):
        tokenizer = AutoTokenizer.from_pretrained(added.file.parent if trained else source.folder)
        tokenizer.save_pretrained(output)
        if trained:
            align(tokenizer, config, generation)
    for one in filter(None, (config, generation)):
        one.save_pretrained(output)
    (output / PROGRESS).unlink()


def main(argv: list[str]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = commands.parser("recipes.tools.merge", __doc__)
    for key, needed in (("parent", True), ("adapter", False), ("output", True)):
        parser.add_argument(f"--{key}", required=needed)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16", FP8])
    found = parser.parse_args(argv)
    for place in filter(None, (found.parent, found.adapter)):
        if runs.is_here(place) and not Path(place).is_dir():
            raise ConfigError(f"{place}: there is no such folder{runs.advice(place)}")
    merge(found.parent, found.adapter, found.output, found.dtype)


if __name__ == "__main__":
    sys.exit(commands.run(main))
