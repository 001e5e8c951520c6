import math
import pickle

from rewards import HarmlessnessReward, HelpfulnessReward, harmlessness_reward

import pytest

TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|end|>"
WORDS = [
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|pad|>",
    "hi",
    "good",
    "bad",
    "why",
    "because",
    "[UNK]",
    "<think>",
    "</think>",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A reward model of two layers with random weights, as the stage `reward_models` saves it."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForSequenceClassification

    folder = tmp_path_factory.mktemp("model")
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<|pad|>", eos_token="<|end|>",
    unk_token="[UNK]",
                                        additional_special_tokens=["<|user|>", "<|assistant|>"])  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
    head_dim=16,
                         num_key_value_heads=2, intermediate_size=32, num_labels=1, pad_token_id=3)  # fmt: skip
    Qwen3ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


KINDS = ["helpful", "harmless", "reasoning", "helpful"]
COMPLETIONS = ["<think>why</think> good", "<think>bad</think> good", "good", "<think>bad</think> good"]
PROMPTS = [[{"role": "user", "content": "hi"}]] * 4


def test_each_row_gets_its_own_kind_s_model_and_helpfulness_reads_the_summary_only(model):
    helpful = HelpfulnessReward(model=model)(completions=COMPLETIONS, prompts=PROMPTS, kind=KINDS)
    harmless = HarmlessnessReward(model=model)(completions=COMPLETIONS, prompts=PROMPTS, kind=KINDS)
    assert [score is None for score in helpful] == [False, True, True, False]
    assert [score is None for score in harmless] == [True, False, True, True]
    assert helpful[0] == helpful[3]  # the reasoning differs, the summary does not
    assert 0 < helpful[0] < 1 and 0 < harmless[1] < 1
    assert harmless[1] != helpful[3]


def test_a_score_does_not_depend_on_the_rest_of_the_batch(model):
    reward = HelpfulnessReward(model=model, batch_size=2)
    texts = ["good", "bad because why because why bad", "good"]
    alone = [reward(completions=[text], prompts=PROMPTS[:1], kind=["helpful"])[0] for text in texts]
    together = reward(completions=texts, prompts=PROMPTS[:3], kind=["helpful"] * 3)
    assert together == pytest.approx(alone, abs=1e-5)


def test_it_is_the_sigmoid_of_the_model_s_score(model):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer("<|user|>hi<|assistant|>good<|end|>", return_tensors="pt", add_special_tokens=False)
    with torch.no_grad():
        score = AutoModelForSequenceClassification.from_pretrained(model)(**ids).logits.item()
    reward = HelpfulnessReward(model=model)(completions=["good"], prompts=["hi"], kind=["helpful"])
    assert reward == pytest.approx([1 / (1 + math.exp(-score))], abs=1e-5)


def test_a_completion_that_says_nothing_gets_zero(model):
    assert HelpfulnessReward(model=model)(
        completions=["<think>why", ""], prompts=PROMPTS[:2], kind=["helpful"] * 2
    ) == [0, 0]


def test_it_is_pickled_without_its_weights(model):
    reward = HelpfulnessReward(model=model)
    reward(completions=["good"], prompts=["hi"], kind=["helpful"])
    assert len(pickle.dumps(reward)) < 2000


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="harmlessness_reward"):
        harmlessness_reward(completions=["a"], prompts=["b"], kind=["harmless"])
    with pytest.raises(FileNotFoundError, match="no/such/folder"):
        HarmlessnessReward(model="no/such/folder")(completions=["a"], prompts=["b"], kind=["harmless"])
    assert harmlessness_reward(completions=["a"], prompts=["b"], kind=["reasoning"]) == [None]
