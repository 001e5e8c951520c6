import time

from rewards import detect_language, language_consistency, language_consistency_reward

import pytest

SENTENCES = {
    "en": "First we multiply three by four and then we add two to the result. The answer is therefore fourteen.",
    "zh": "首先我们计算三乘以四，然后再加上二。所以答案是十四。",
    "es": "Primero multiplicamos tres por cuatro y luego sumamos dos. Por lo tanto la respuesta es catorce.",
    "fr": "D'abord nous multiplions trois par quatre, puis nous ajoutons deux. La réponse est donc quatorze.",
    "de": "Zuerst multiplizieren wir drei mit vier und dann addieren wir zwei dazu. Die Antwort ist also vierzehn.",
    "pt": "Primeiro multiplicamos três por quatro e depois somamos dois ao resultado. Portanto a resposta é quatorze.",
    "it": "Prima moltiplichiamo tre per quattro e poi aggiungiamo due al risultato. Quindi la risposta è quattordici.",
    "nl": "Eerst vermenigvuldigen we drie met vier en daarna tellen we twee erbij. Het antwoord is dus veertien.",
    "pl": "Najpierw mnożymy trzy przez cztery, a potem dodajemy dwa do wyniku. Odpowiedź brzmi więc czternaście.",
    "tr": "Önce üç ile dördü çarparız ve sonra sonuca iki ekleriz. Bu yüzden cevap on dörttür.",
    "vi": "Trước tiên chúng ta nhân ba với bốn rồi cộng hai vào kết quả. Vì vậy câu trả lời là mười bốn.",
    "ru": "Сначала мы умножаем три на четыре, а затем прибавляем два к результату. Поэтому ответ четырнадцать.",
    "uk": "Спочатку ми множимо три на чотири, а потім додаємо два до результату. Тому відповідь чотирнадцять.",
    "ja": "まず三に四を掛けて、それから二を足します。したがって答えは十四です。",
    "ko": "먼저 삼에 사를 곱한 다음 결과에 이를 더합니다. 그래서 답은 십사입니다.",
    "ar": "أولا نضرب ثلاثة في أربعة ثم نضيف اثنين إلى النتيجة. لذلك الجواب هو أربعة عشر.",
    "hi": "पहले हम तीन को चार से गुणा करते हैं और फिर परिणाम में दो जोड़ते हैं। इसलिए उत्तर चौदह है।",
    "el": "Πρώτα πολλαπλασιάζουμε το τρία με το τέσσερα και μετά προσθέτουμε δύο. Άρα η απάντηση είναι δεκατέσσερα.",
    "th": "ก่อนอื่นเราคูณสามด้วยสี่แล้วบวกสอง ดังนั้นคำตอบคือสิบสี่",
    "he": "קודם נכפול שלוש בארבע ואז נוסיף שתיים לתוצאה. לכן התשובה היא ארבע עשרה.",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("language", SENTENCES)
def test_a_pure_text_scores_one_and_is_detected(language):
    assert language_consistency(SENTENCES[language], language) == 1.0
    assert detect_language(SENTENCES[language]) == language
    other = "en" if language != "en" else "de"
    assert language_consistency(SENTENCES[language], other) < 0.1


@pytest.mark.parametrize("pair", [("en", "zh"), ("es", "en"), ("de", "en"), ("fr", "es"), ("ru", "en"), ("ja", "en")])
def test_sentences_of_two_languages_score_the_share_of_words(pair):
    one, other = pair
    both = f"{SENTENCES[one]} {SENTENCES[other]}"
    score = language_consistency(both, one)
    words = [language_words(SENTENCES[language]) for language in pair]
    assert score == pytest.approx(words[0] / sum(words), abs=0.06)
    assert score + language_consistency(both, other) == pytest.approx(1.0, abs=0.06)


def language_words(text: str) -> int:
    from rewards.language import count_words

    return count_words(text, "en")[1]


@pytest.mark.parametrize(
    "text, language, score",
    [
        ("First 3 * 4 = 12 . Then 2 + 12 = 14 .", "en", 1.0),
        ("先算 3 * 4 = 12 。", "zh", 1.0),
        ("先算 3 * 4 = 12 。Then 2 + 12 = 14 .", "zh", 2 / 3),
        ("我们 first 计算 the 和", "zh", 5 / 7),
        ("因为 x=2，所以 f(x)=sin x，再 mod 7 得 3。", "zh", 1.0),
        ("3 * 4 = 12, 2 + 12 = 14", "en", 1.0),
        ("", "zh", 1.0),
        ("看 `print(foo)` 和 https://example.org/foo/bar", "zh", 1.0),
        ("```python\nprint('hello world')\n```\n结果", "zh", 1.0),
        (r"所以 $\text{area of the circle}$ 是 \(\pi r^2\) 。", "zh", 1.0),
        ("<b>结果</b>", "zh", 1.0),
        ("漢字とかな", "zh", 0.0),
        ("漢字とかな", "ja", 1.0),
        ("so it is გამარჯობა მეგობრებო", "en", 3 / 5),  # a script of no language that is known here
        ("გამარჯობა", "en", 0.0),
        ("先算 Ｔｈｅｎ 𝐭𝐡𝐞 ｓｕｍ", "zh", 2 / 5),
        ("先算 T\u200bh\u200be\u200bn", "zh", 2 / 3),
        ("因此 AB=CD，且 AC=BD。", "zh", 1.0),
        ("由 E=mc^2 得，△ABC 中", "zh", 1.0),
        ("速度是 5 km/h", "zh", 1.0),
        # No hiding place: sentences of two words, a fence, an unclosed one, inline code, a formula, names.
        ("Primero multiplicamos. Luego sumamos. Por tanto. Es catorce. Así termina.", "en", 0.0),
        ("```\n首先我们把两个数字相乘，因为乘法要先于加法。\n```", "en", 0.0),
        ("```\n首先我们把", "en", 0.0),
        ("```\nPrimero multiplicamos tres por cuatro y luego sumamos dos\n```", "en", 0.0),
        ("`Primero multiplicamos tres por cuatro y luego sumamos dos`", "en", 0.0),
        ("$首先我们把$", "en", 0.0),
        ("Primero_multiplicamos_los_dos_números_porque", "en", 0.0),
    ],
)
def test_what_counts_as_a_word(text, language, score):
    assert language_consistency(text, language) == pytest.approx(score)


@pytest.mark.parametrize("language", ["en", "es", "fr", "de", "pt", "it"])
def test_no_piece_of_a_pure_text_is_taken_for_another_language(language):
    words = SENTENCES[language].replace(".", "").split()
    pieces = [words[start : start + n] for n in range(3, 16) for start in range(len(words) - n + 1)]
    assert [piece for piece in pieces if language_consistency(" ".join(piece), language) < 1.0] == []


def test_a_sentence_that_changes_its_language_is_seen_to():
    text = "Primero multiplicamos tres por cuatro y luego sumamos and then we add two to the result of the product"
    for language in ("es", "en"):
        assert language_consistency(text, language) == pytest.approx(0.5, abs=0.1)


def test_the_target_is_the_column_else_the_question_else_the_prompt():
    completions = ["<think>先算 3 * 4 = 12 。</think> 14"] * 2
    assert language_consistency_reward(completions=completions, language=["zh", "en"]) == [1.0, 0.0]
    assert language_consistency_reward(completions=completions, question=["多少?", "How much is it?"]) == [1.0, 0.0]
    prompts = [[{"role": "user", "content": text}] for text in ("等于多少?", "What is it?")]
    assert language_consistency_reward(completions=completions, prompts=prompts) == [1.0, 0.0]


def test_reasoning_without_words_scores_one_and_is_counted_apart():
    logged = {}
    completions = ["<think>3 * 4 = 12</think> The answer is 12.", "<think>so it is</think> 答案是 12 。", "你好"]
    rewards = language_consistency_reward(
        completions=completions, language=["en"] * 3, thinking=[True, True, False], log_metric=logged.__setitem__
    )
    assert rewards == [1.0, 1.0, 0.0]
    assert logged["language/no_words"] == pytest.approx(1 / 3)
    assert logged["language/summary"] == pytest.approx(1 / 3)


def test_an_empty_reasoning_earns_nothing():
    completions = ["<think></think> 14", "<think> \n </think> 14", "<think>3 * 4 = 12</think> 14"]
    assert language_consistency_reward(completions=completions, language=["en"] * 3) == [0.0, 0.0, 1.0]


def test_an_unknown_language_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match="en, .*es"):
        language_consistency("a", "xx")


def test_questions():
    assert detect_language("What is 2 + 3 * 4?") == "en"
    assert detect_language("2 + 3 * 4 等于多少?") == "zh"
    assert detect_language("2 + 3 * 4 = ?") == "en"


LONG = [
    "`" * 100_000, "$" * 100_000, "\\[" * 50_000, "a" * 300_000, "a_" * 100_000, "<a" * 100_000, "a@" * 100_000,
    "\\begin{a}" * 20_000, "x." * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("text", LONG, ids=range(len(LONG)))
def test_long_texts_cost_little(text):
    start = time.process_time()
    language_consistency(text, "en")
    assert time.process_time() - start < 30  # tenfold room: what is quadratic takes minutes
