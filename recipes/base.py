"""The base checkpoint of a CPU scale: a tokenizer and a small Qwen3, or Qwen3-MoE, pre-trained on a generated corpus.

All scales but `cpu` and `cpu-moe` use a Hub model instead (the paper uses DeepSeek-V3-Base). The student's base uses
this script with another YAML. Its key `tokenizer` names the first base, whose tokenizer is used again. With the key
`checkpoint`, nothing is trained: the stage copies a checkpoint that the same settings made.
"""

from dataclasses import dataclass, field

from recipes.commandline import launch
from recipes.config import SFTConfig, StageArguments
from rewards.settings import Count, Positive

EXPERTS = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
SHAPE = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")


@dataclass
class BaseArguments(StageArguments):
    dataset: str = field(default="", metadata={"help": "Parquet file with the corpus, in a column `text`."})
    tokenizer: str | None = field(default=None, metadata={"help": "Checkpoint whose tokenizer to take; none: train."})
    checkpoint: str | None = field(
        default=None,
        metadata={"help": "Folder, from the repository's root, of a base that these settings made; none: train one."},
    )
    vocab_size: Positive = field(default=1024, metadata={"help": "Tokens, all told."})
    hidden_size: Positive = 128
    intermediate_size: Positive = 384
    num_hidden_layers: Positive = 4
    num_attention_heads: Positive = 4
    num_key_value_heads: Positive = 4
    max_position_embeddings: Positive = 1024
    num_experts: Count = field(default=0, metadata={"help": "Experts in place of each dense layer; 0: a dense model."})
    num_experts_per_tok: Positive = 2
    moe_intermediate_size: Positive = field(default=96, metadata={"help": "Inner width of one expert."})


SETTINGS = BaseArguments, SFTConfig


def main(args: BaseArguments, config: SFTConfig) -> None:
    from recipes import data, given, loading, training  # slow to import, so after the settings are read
    from recipes.muon import MuonWithAdamW
    from recipes.tokenizer import train_tokenizer

    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig, set_seed

    run = training.start(args, config)
    if args.checkpoint:
        return given.take(run)
    run.figures["made_with"] = given.made_with(run)
    texts = [row["text"] for row in data.read_records(args.dataset, "dataset", "text")]
    if args.tokenizer:
        tokenizer = loading.load_tokenizer(loading.require_checkpoint(args.tokenizer, "tokenizer"))
    else:
        tokenizer = train_tokenizer(texts, args.vocab_size)
    # Use bf16 matmul if the CPU has it: 58 ms a step instead of 90. On other CPUs each new batch shape costs memory.
    torch.set_float32_matmul_precision("medium")
    set_seed(run.config.seed)
    kind, shape = (Qwen3MoeConfig, SHAPE + EXPERTS) if args.num_experts else (Qwen3Config, SHAPE)
    model = AutoModelForCausalLM.from_config(
        kind(
            vocab_size=len(tokenizer),
            **{key: getattr(args, key) for key in shape},
            max_position_embeddings=args.max_position_embeddings,
            head_dim=args.hidden_size // args.num_attention_heads,
            tie_word_embeddings=True,
        ),
        **loading.weights(args),
    )
    loading.align(model, tokenizer)
    run.figures["parameters"] = model.num_parameters()
    # Tokenize all texts at once, because TRL tokenizes them one by one, which takes half a minute.
    tokens = tokenizer([text + tokenizer.eos_token for text in texts])["input_ids"]
    optimizer = MuonWithAdamW(model, run.config.learning_rate, run.config.weight_decay)
    trainer = training.SFTTrainer(
        model,
        args=run.config,
        train_dataset=Dataset.from_dict({"input_ids": tokens, "labels": tokens}),
        processing_class=tokenizer,
        optimizers=(optimizer, None),
    )
    run.train(trainer)


if __name__ == "__main__":
    launch(main, *SETTINGS)
