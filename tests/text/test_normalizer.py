from __future__ import annotations

import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from indextts2.errors import TextError
from indextts2.text import normalizer as normalizer_module
from indextts2.text.chunks import split_chunks
from indextts2.text.engines import Engine, EngineLoader
from indextts2.text.language import Language
from indextts2.text.normalizer import TextNormalizer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("IndexTTS 正式发布1.0版本了，效果666", "IndexTTS 正式发布一点零版本了,效果六百六十六"),
        ("“我爱你”的英语是“I love you”", "'我爱你'的英语是'I love you'"),
        ("2025/09/08 IndexTTS-2 全球发布", "二零二五年九月八日 IndexTTS-二 全球发布"),
        ("8:00 AM 开会", "上午八点 开会"),
        ("See you at 8:00 AM", "See you at eight AM"),
        (
            "This sales for 2.5% off, only $12.5.",
            "This sales for two point five percent off, only twelve point five dollars.",
        ),
        ("Couting down 3, 2, 1, go!", "Couting down three, two, one, go!"),
        ("这酒...里...有毒...", "这酒…里…有毒…"),
        ("1-2", "一减二"),
        ("123", "一百二十三"),
        ("50%", "百分之五十"),
        ("你$好", "你.好"),
        ("用A-1和B--2", "用A-一和B-负二"),
        ("電話在哪兒，ＡＢ", "电话在哪儿,AB"),
        ("GPT-5-Nano 是 GPT-5 模型", "GPT-五-Nano 是 GPT-五 模型"),
        ("读xün2", "读xün二"),
        ("user@example.com", "user@example.com"),
        ("test@abc.com please reply", "test at abc dot com please reply"),
        ("call 135-4567-8900 不", "call 一三五四五六七八九零零 不"),
        ("<字|zi4>", "<字|zi4>"),
        ("a\x00b 你\x00", "ab 你"),
        ("Room A5", "Room A5"),
        ("line one\nline two", "line one line two"),
        ("One.\nTwo.", "One.Two."),
    ],
)
def test_examples(normalizer: TextNormalizer, text: str, expected: str) -> None:
    assert normalizer.normalize(text) == expected


@pytest.mark.parametrize("text", ["\ud800", "fine until \udfff here", "你好\udc80"])
def test_a_lone_surrogate_is_refused(normalizer: TextNormalizer, text: str) -> None:
    with pytest.raises(TextError, match=r"lone surrogate U\+D"):
        normalizer.normalize(text)


@pytest.mark.parametrize("language", ["zh", "en"])
def test_a_hundred_thousand_digits_fail_before_a_grammar_runs(language: Language) -> None:
    def load(*_: object) -> Engine:
        raise AssertionError("no grammar is needed to refuse this")

    text = "1" * 100_000 + (" apples" if language == "en" else "个")
    with pytest.raises(TextError, match="more than 1000 characters in a row"):
        TextNormalizer(engines=EngineLoader(load=load)).normalize(text)


class Broken:
    def normalize(self, text: str) -> str:
        raise TextError("no reading")


def test_what_the_english_grammar_cannot_read_stays_as_written_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    normalizer = TextNormalizer(engines=EngineLoader(load=lambda *_: Broken()))
    with caplog.at_level(logging.WARNING):
        assert normalizer.normalize("It's GPT-5: 3") == "It is GPT-5, 3"
    assert "no reading; its numbers and abbreviations stay as written" in caplog.text


def test_what_the_chinese_grammar_cannot_read_is_an_error() -> None:
    with pytest.raises(TextError, match="no reading"):
        TextNormalizer(engines=EngineLoader(load=lambda *_: Broken())).normalize("你好3")


def test_english_after_a_leading_line_break_stays_as_written(normalizer: TextNormalizer) -> None:
    assert normalizer.normalize("\nI have 3 apples.") == " I have 3 apples."


CHINESE = "2025/09/08，气温25.5℃，共有3个人；圆周率是3.14吗？请读xuan4和an1，约瑟夫·高登也来了……电话：135-4567-8900。"
ENGLISH = 'On 2025-03-14 at 10:30 AM, it costs $1,299.99! "So?" said Dr. Smith. I have 12.5 kg of GPT-5-Nano. '


@pytest.mark.parametrize("text", [CHINESE * 3, ENGLISH * 3], ids=["zh", "en"])
def test_a_text_in_portions_reads_as_if_it_were_read_whole(
    engines: EngineLoader, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    normalizer = TextNormalizer(engines=engines)
    whole = normalizer.normalize(text)
    assert len(split_chunks(text, 80)) > 2
    monkeypatch.setattr(normalizer_module, "split_chunks", lambda text: split_chunks(text, 80))
    assert normalizer.normalize(text) == whole


def test_threads_share_a_normalizer(engines: EngineLoader) -> None:
    normalizer = TextNormalizer(engines=engines)
    texts = ["我有3个", "I have 3.", "2025年", "$5 off"] * 4
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(normalizer.normalize, texts)) == [normalizer.normalize(text) for text in texts]


def test_a_long_text_without_punctuation_is_read(normalizer: TextNormalizer) -> None:
    assert normalizer.normalize("你好" * 1000) == "你好" * 1000


def test_the_result_does_not_depend_on_the_hash_seed(normalizer: TextNormalizer) -> None:
    text = "读an1、xuan1、juan3、yuan2和an3，甲·乙、丙·丁·戊，A-1、BA-1和C-A-1"
    code = """
import sys
from indextts2.text.normalizer import TextNormalizer
sys.stdout.buffer.write(TextNormalizer().normalize(sys.argv[1]).encode())
"""
    for seed in ("1", "2"):
        process = subprocess.run(
            [sys.executable, "-c", code, text], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True
        )
        assert process.stdout.decode() == normalizer.normalize(text), process.stderr
        assert process.stderr == b""
