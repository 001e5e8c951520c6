"""The base checkpoint of a CPU scale: a tokenizer and a small Qwen3, pre-trained on a generated corpus.

At other scales a Hub model stands here (the paper's is DeepSeek-V3-Base). The student's base is this script with
another YAML, which takes the first one's tokenizer through the key `tokenizer`.
"""

from dataclasses import dataclass, field

from data_prep.prompts import R1_ZERO_PREFIX
from recipes import training
from recipes.config import SFTConfig, StageArguments, parse

import torch
from datasets import Dataset
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config, set_seed

SPECIAL = [training.PAD, training.END, "<|user|>", "<|assistant|>"]
# Not special: rewards read the decoded completion, and TRL decodes with special tokens skipped.
TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
# What BPE merges only within: a digit; an operator with the spaces around it, so that digits have no second form with a
# space before them; a word; a run of other signs; white space.
PIECES = r"\d| ?[-+*/=×÷−] ?| ?\p{L}+| ?\(|\)| ?[^\s\p{L}\d()]+|\s+"


@dataclass
class BaseArguments(StageArguments):
    dataset: str = field(default="", metadata={"help": "Parquet file with the corpus, in a column `text`."})
    tokenizer: str | None = field(default=None, metadata={"help": "Checkpoint whose tokenizer to take; none: train."})
    vocab_size: int = field(default=1024, metadata={"help": "Tokens, all told."})
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    max_position_embeddings: int = 1024


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE over the corpus. The constant start of R1-Zero's prompt is one token: it would be a hundred."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    plain = [AddedToken(text, special=False, normalized=False) for text in [*TAGS, R1_ZERO_PREFIX]]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(plain), special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator((text.replace(R1_ZERO_PREFIX, "") for text in texts), trainer)
    bpe.add_tokens(plain)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=training.PAD,
        eos_token=training.END,
        additional_special_tokens=SPECIAL[2:],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = training.CHAT_TEMPLATE.read_text(encoding="utf-8")
    return tokenizer


def main() -> None:
    run = training.start(*parse(BaseArguments, SFTConfig))
    args = run.args
    texts = [row["text"] for row in training.read_records(args.dataset, "dataset")]
    if args.tokenizer:
        tokenizer = training.load_tokenizer(training.require_checkpoint(args.tokenizer, "tokenizer"))
    else:
        tokenizer = train_tokenizer(texts, args.vocab_size)
    # Products in bfloat16 where the CPU can: 58 ms a step for 90. Elsewhere each new shape of a batch costs memory.
    torch.set_float32_matmul_precision("medium")
    set_seed(run.config.seed)
    model = AutoModelForCausalLM.from_config(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=args.hidden_size,
            intermediate_size=args.intermediate_size,
            num_hidden_layers=args.num_hidden_layers,
            num_attention_heads=args.num_attention_heads,
            num_key_value_heads=args.num_key_value_heads,
            head_dim=args.hidden_size // args.num_attention_heads,
            max_position_embeddings=args.max_position_embeddings,
            tie_word_embeddings=True,
        ),
        **training.weights(args),
    )
    training.align(model, tokenizer)
    run.figures["parameters"] = model.num_parameters()
    corpus = Dataset.from_dict({"text": texts})
    run.train(training.SFTTrainer(model, args=run.config, train_dataset=corpus, processing_class=tokenizer))


if __name__ == "__main__":
    training.launch(main)
