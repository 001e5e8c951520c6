"""Loads the policy to train and its tokenizer, with the chat template of the stages."""

from pathlib import Path
from typing import TYPE_CHECKING

from data_prep import hub, runs
from data_prep.runs import ConfigError
from recipes import checks, parent, patches, sharded
from recipes.config import LoraArguments, StageArguments
from recipes.parent import Parent, refuse_quantized

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

if TYPE_CHECKING:
    from recipes.training import Run

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PAD, END = "<|pad|>", "<|end|>"
# For the token that ends an answer: the tokens that begin a question and an answer, and those that pad. They are ours,
# Qwen's, Llama's and DeepSeek's, from their own templates without the system prompts.
MARKUP = {
    END: ("<|user|>", "<|assistant|>", PAD),
    "<|im_end|>": ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|endoftext|>", "<|fim_pad|>"),
    "<|eot_id|>": (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<|finetune_right_pad_id|>",
    ),
    "<｜end▁of▁sentence｜>": ("<｜begin▁of▁sentence｜><｜User｜>", "<｜Assistant｜>", "<｜▁pad▁｜>"),
}


def require_checkpoint(name_or_path: str | None, key: str = "model_name_or_path") -> str:
    """The checkpoint's name. Raises ConfigError if it is neither a local folder nor on the Hub."""
    if not name_or_path:
        raise ConfigError(f"{key} is missing: write the directory or the Hub id of the checkpoint to start from.")
    try:
        runs.require_model(name_or_path)
        if not runs.is_here(name_or_path):
            hub.find(name_or_path, lambda: AutoConfig.from_pretrained(name_or_path))
    except FileNotFoundError as error:
        raise ConfigError(f"{key}: {error}") from None
    return name_or_path


def load_tokenizer(name_or_path: str, chat: bool = True, frozen: bool = False) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer. With `chat`, it gets our template, which keeps reasoning, in the markup of its
    vocabulary, and the markup's end token as its end of sequence.

    The end token of a base ends a text. It also ends answers if the embeddings are `frozen`, as under an adapter,
    because a base was never trained on the markup's end token. A checkpoint that was trained this way keeps it.
    """
    tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    vocabulary, own = tokenizer.get_vocab(), tokenizer.eos_token
    for markup, (user, assistant, *pads) in MARKUP.items():
        if chat and markup in vocabulary:
            keeps = own and (frozen or tokenizer.chat_template == _template(user, assistant, own))
            tokenizer.eos_token = end = own if keeps else markup
            tokenizer.chat_template = _template(user, assistant, end)
            # The pad token is never the end token, which would then get no loss.
            if pad := next((one for one in (*pads, markup) if one in vocabulary and one != end), None):
                tokenizer.pad_token = pad
            break
    return tokenizer


def _template(user: str, assistant: str, end: str) -> str:
    template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    for ours, theirs in (("<|user|>", user), ("<|assistant|>", assistant), (END, end)):
        template = template.replace(f"'{ours}'", f"'{theirs}'")
    return template


def weights(args: StageArguments) -> dict:
    """The arguments of `from_pretrained` for the dtype and the attention."""
    return {"dtype": getattr(torch, args.dtype), "attn_implementation": args.attn_implementation}


def load_policy(run: "Run") -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The policy to train, with a LoRA adapter if the settings ask for one, and its tokenizer."""
    args = run.args
    name = require_checkpoint(args.model_name_or_path)
    tokenizer = load_tokenizer(name, getattr(args, "completion_style", "think") == "think", args.use_peft)
    return load_model(AutoModelForCausalLM, name, tokenizer, args, run.config, **longer(args)), tokenizer


def longer(args: StageArguments) -> dict[str, int]:
    """The changes that the stage makes to its parent's config."""
    length = getattr(args, "max_position_embeddings", None)
    return {} if length is None else {"max_position_embeddings": length}


def load_model(kind: type, name: str, tokenizer: PreTrainedTokenizerBase, args: LoraArguments, config, **settings):
    """The model of class `kind` with the weights to train: all, an adapter, or an adapter on 4-bit weights."""
    settings |= weights(args)
    if args.doctor:
        checks.tell("tokenizer", tokenizer=tokenizer, args=args)
    if args.use_peft:  # a parent that cannot be merged is refused before training
        refuse_quantized(name, "load_in_4bit" if args.load_in_4bit else "use_peft", but_fp8=args.load_in_4bit)
        Parent(name)
    if args.load_in_4bit:
        from recipes import moe_qlora  # imports bitsandbytes, which is needed only here

        model, info = moe_qlora.load(kind, name, config, processes=args.expert_parallel, **settings)
    else:
        model, info = kind.from_pretrained(name, output_loading_info=True, **settings)
    if args.doctor or args.load_in_4bit:  # in 4 bits a missing router would be random and frozen
        checks.tell("weights", info=info, model=model, tokenizer=tokenizer, frozen=args.use_peft)
    sharded.share_buffers(model)
    align(model, tokenizer)
    if config.use_cpu:
        patches.project_labels_alone(model.config.get_text_config().vocab_size)
    if not args.use_peft:
        return model
    set_seed(config.seed)  # an adapter is initialised at random
    lora = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=0.0,  # TRL samples in train mode, so dropout would affect rollouts
        target_modules=args.lora_target_modules or LINEAR,
        task_type="CAUSAL_LM" if kind is AutoModelForCausalLM else "SEQ_CLS",
    )
    if args.load_in_4bit:
        return moe_qlora.adapt(model, lora, args.lora_target_modules)
    hint = f"Write names of linear layers: {', '.join(LINEAR)}."
    try:
        adapted = get_peft_model(model, lora)
    except ValueError as error:
        raise ConfigError(f"lora_target_modules: {error} {hint}") from error
    tied = getattr(model.config, "tie_word_embeddings", False)
    embeddings = (".lora_embedding_", ".lm_head.lora_") if tied else (".lora_embedding_",)
    if any(part in name for name, _ in adapted.named_parameters() for part in embeddings):
        raise ConfigError(f"lora_target_modules: an embedding's adapter could not be merged. {hint}")
    return adapted


def align(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the model stop at the tokenizer's end token and pad with its pad token, also after it is saved."""
    parent.align(tokenizer, model.config, getattr(model, "generation_config", None))
