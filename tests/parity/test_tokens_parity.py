"""Token ids against transformers' CLIPTokenizer, the Python one that diffusers' pipelines load.

The vocabulary is trained here, on Python's help texts and on text in a dozen scripts, so that
words are put together from merges as they are with CLIP's own.
"""

import random
import unicodedata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from edgediff_export.source.tokenizer import write_tokenizer
from transformers import CLIPTokenizer

from edgediff.text.tokenizer import Tokenizer

CORPUS = """
El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia y frío, añoraba a su querido cachorro.
Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Straße, weiß, Öl, Übung.
Voix ambiguë d'un cœur qui, au zéphyr, préfère les jattes de kiwis. Ça, là, déjà vu.
Pijamalı hasta yağız şoföre çabucak güvendi. İstanbul'da ılık bir gün.
Съешь же ещё этих мягких французских булок, да выпей чаю. Привет, мир!
Ταχίστη αλώπηξ βαφής ψημένη γη, δρασκελίζει υπέρ νωθρού κυνός. Ο Οδυσσεύς είναι σοφός.
いろはにほへと ちりぬるを わかよたれそ つねならむ 漢字 猫の写真 東京 カタカナ コンピューター
天地玄黄 宇宙洪荒 日月盈昃 辰宿列张 一只猫的照片 山水画 红苹果
다람쥐 헌 쳇바퀴에 타고파. 고양이 사진 한국어
نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر. صورة قطة
דג סקרן שט בים מאוכזב ולפתע מצא חברה. תמונה של חתול
ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश करने वाले विष्णुवतार
นายสังฆภัณฑ์ เฮงพิทักษ์ฝั่ง ผู้เฒ่าซึ่งมีอาชีพเป็นฅนขายฃวด
😀😂🎉🚀❤️🔥👍🏽🐱🐶🍎🌲🎃🏴🇩🇪🇯🇵 → ✓ € £ ½ ² © ™ … — “quoted” ‘single’
""".strip()

PROMPTS = [
    "",
    " ",
    "   \t \n ",
    "a photo of a cat",
    "A Photo OF A CAT",
    "a  photo\tof\na\r\ncat ",
    "it's they'll we've I'M DON'T you're he'd 'tis rock'n'roll 's 'S",
    "'ſ 'ſomething 'K K k",
    "3.14159 1,000,000 2024-01-01 1st 2nd 100% 50/50 №5 ½ ¼ ² ³ Ⅳ ⅳ ٣ ৪ 五",
    "!!! ??? ... !?!? --- === *** ((()))",
    "masterpiece, best quality, ((highly detailed)), [ugly:0.5], <lora:x:1>",
    "hello!world?yes.no,maybe;so:on",
    "under_score snake_case_name CamelCase kebab-case",
    "user@example.com https://example.com/a?b=c&d=e#f",
    "<b>bold</b> &amp; &lt;tag&gt; &quot;q&quot; &#39; &nbsp; &eacute;",
    "café",
    "café",
    "naïve naïve Ångström Å Å",
    "ệ ệ ệ",
    "ǆ Ǆ ǅ ﬁne ﬂow oﬃce ﬆop",
    "straße STRASSE ẞ ß ŉ ΐ",
    "İstanbul IĞDIR ıi Iİ i̇",
    "ΟΔΥΣΣΕΥΣ ΟΔΥΣΣΕΥΣ. Σ ΣΑΣ ΑΣ' ΑΣΑ ΑΣ·Α Σ́ ΑΣ\u0345",
    "ͅ aͅb ᾳ ᾼ Ͱ",
    "😀",
    "😀😀😀 😀 a😀b",
    "👩‍👩‍👧‍👦 👨🏿‍🚀 🏳️‍🌈 ❤️ ❤ ☺️",
    "👍🏽 🇩🇪🇯🇵 1️⃣ #️⃣ ©️",
    "一只猫的照片",
    "a cat 猫 and a 犬dog",
    "猫!猫,猫。猫、「猫」",
    "日本語のテキスト カタカナ ひらがな 々〆〇",
    "豈更車 丽丸乁 㐀 𠀀 𪜀 𫝀 𫠠",
    "한국어 한국어",
    "صورة قطة على الأريكة",
    "تَشْكِيل ﷺ لا",
    "תמונה של חָתוּל",
    "फोटो हिन्दी संयुक्ताक्षर क्ष",
    "ภาพถ่ายของแมว",
    "Привет мир ЁЖИК Й й",
    "\ufeffbyte order mark",
    "zero\u200bwidth\u200cjoin\u200der soft\u00adhyphen",
    "non\u00a0breaking\u2003em\u3000ideographic\u2028line\u2029par\u1680ogham",
    "bell\x07 null\x00 escape\x1b[31m delete\x7f next\x85line \x0b \x0c \x1c",
    "replacement \ufffd char, private \ue000 use, noncharacter \ufdd0",
    "right‮to‬left ‎marks‏",
    "<|endoftext|>",
    "<|startoftext|>",
    "a <|endoftext|> b",
    "a<|startoftext|>b<|endoftext|>c",
    "<|endoftext|><|endoftext|>",
    "<|ENDOFTEXT|> <|EndOfText|> <|StartOfText|>",
    "!!<|ENDOFTEXT|> a<|ENDOFTEXT|>b <|<|ENDOFTEXT|>|>",
    "<|endoftext |> <|end|> <| endoftext|> |endoftext| <endoftext> endoftext",
    "<|end\x00oftext|> <|endo\u200bftext|>",
    "!",
    "!a! !! a!!b",
    "word " * 500,
    "漢" * 200,
    "supercalifragilisticexpialidocious" * 20,
    "x" * 3000,
    ", ".join(f"item {k}" for k in range(100)),
    " ".join(["a"] * 75),
    " ".join(["a"] * 76),
    " ".join(["a"] * 74),
    "a" + "\u0301" * 50,
    "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!͖̬̰̙̗̿̋ͥͥ̂ͣ̐́́͜͞",
    "\\n \\x41 \\u0041 %20 ${var} {{template}}",
    "\"double\" 'single' `back` “curly” ‘curly’ «guillemets» „low“",
    "a—b–c‒d−e‐f‑g",
    "∑∏∫√∞≠≤≥±×÷ ℝ ℕ ℵ 𝔸 𝒜 𝐀 Ａ ａ １ ！",
    "Ⓐ ⓐ ㋿ ㍿ ™ ℠ № ℡",
    "ªº µ μ Ω Ω",
    "ʰ ʲ ˢ ᵃ ₐ ⁿ",
    "ɑ ə ʃ ʒ θ ð ŋ",
    "ßs ss ſs sſ",
]


def _more_prompts(count: int) -> list[str]:
    """Random mixtures of what is awkward about the others."""
    draw = random.Random(0)
    awkward = "aB 'sS<|>endoftext!,.\u0301漢あ한😀\u200d\ufe0fΣσİß\t\n\u0300éÅ\u0345·1٣½\u00ad豈丽"
    words = [*CORPUS.split(), *PROMPTS[3].split(), "<|endoftext|>", "!", "'s", "İ", "ΣΣ"]
    prompts = ["".join(draw.choice(awkward) for _ in range(draw.randint(1, 60)))]
    while len(prompts) < count:
        if draw.random() < 0.5:
            prompts.append("".join(draw.choice(awkward) for _ in range(draw.randint(1, 60))))
        else:
            chosen = [draw.choice(words) for _ in range(draw.randint(1, 40))]
            prompts.append(draw.choice([" ", "", "-"]).join(chosen).swapcase())
    return prompts


class Pair(NamedTuple):
    """CLIPTokenizer and ours, of one vocabulary."""

    slow: Any
    ours: Tokenizer


@pytest.fixture(scope="module", params=["<|endoftext|>", "!"], ids=["pads-with-eos", "pads-with-!"])
def pair(request: pytest.FixtureRequest, sd15_shape: Any, tmp_path_factory: Any) -> Pair:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    size = sd15_shape.write_tokenizer(folder, 49408, pad_token=request.param, corpus=CORPUS * 20)
    assert size == 49408
    spec = write_tokenizer(folder, folder)
    slow = CLIPTokenizer.from_pretrained(folder)
    assert (spec.bos_token_id, spec.eos_token_id) == (49406, 49407)
    assert (spec.pad_token_id, spec.max_length) == (slow.pad_token_id, 77)
    return Pair(slow, Tokenizer(folder / spec.file, spec))


def _known_to_python(text: str) -> str:
    """Without characters that are newer than this Python's Unicode, which it takes for none."""
    return "".join(c for c in text if unicodedata.category(c) != "Cn" or c == "\ufdd0")


def _expected(pair: Pair, prompt: str) -> np.ndarray:
    encoded = pair.slow(
        prompt,
        padding="max_length",
        max_length=pair.slow.model_max_length,
        truncation=True,
        return_tensors="np",
    )
    return encoded.input_ids


@pytest.mark.parametrize("prompt", PROMPTS, ids=range(len(PROMPTS)))
def test_awkward_prompts(prompt: str, pair: Pair) -> None:
    prompt = _known_to_python(prompt)
    ours = pair.ours.encode(prompt)
    assert ours.ids.dtype == np.int64
    np.testing.assert_array_equal(ours.ids, _expected(pair, prompt))


def test_random_prompts(pair: Pair) -> None:
    for prompt in map(_known_to_python, _more_prompts(1000)):
        ours = pair.ours.encode(prompt).ids
        np.testing.assert_array_equal(ours, _expected(pair, prompt), err_msg=repr(prompt))


@pytest.mark.slow
def test_every_character(pair: Pair) -> None:
    """Each character that this Python knows, between two letters."""
    for first in range(0x20, 0x32000, 24):
        letters = [chr(c) for c in range(first, first + 24) if not 0xD800 <= c < 0xE000]
        prompt = _known_to_python(" ".join(f"a{c}B" for c in letters))
        np.testing.assert_array_equal(
            pair.ours.encode(prompt).ids, _expected(pair, prompt), err_msg=hex(first)
        )


def test_the_number_of_tokens_is_clips(pair: Pair) -> None:
    for prompt in ("a cat", "word " * 500, ""):
        assert pair.ours.encode(prompt).tokens == len(pair.slow.tokenize(prompt))


def test_the_vocabulary_exercises_merges(pair: Pair) -> None:
    """Else the comparisons above would be of single bytes."""
    assert pair.slow.tokenize("the function returns") == ["the</w>", "function</w>", "returns</w>"]
    assert len(pair.slow.tokenize("猫")) < 3
