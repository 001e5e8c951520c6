"""The tokenizer of a base checkpoint that is trained here: a byte-level BPE with one token for each digit."""

from data_prep.prompts import R1_ZERO_PREFIX
from recipes import loading

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = [loading.PAD, loading.END, "<|user|>", "<|assistant|>"]
# They are not special tokens, because TRL skips those when it decodes completions for rewards.
TAGS = ["<think>", "</think>", "<answer>", "</answer>"]
# BPE merges only within these pieces: a digit; an operator with the spaces around it, so digits have no second form
# with a leading space; a word; a run of other signs; white space.
PIECES = r"\d| ?[-+*/=×÷−] ?| ?\p{L}+| ?\(|\)| ?[^\s\p{L}\d()]+|\s+"


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the corpus. The constant start of R1-Zero's prompt is one token instead of a hundred."""
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
        pad_token=loading.PAD,
        eos_token=loading.END,
        additional_special_tokens=SPECIAL[2:],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = loading.CHAT_TEMPLATE.read_text(encoding="utf-8")
    return tokenizer
