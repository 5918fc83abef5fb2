from __future__ import annotations

from pathlib import Path

import pytest

from indextts2.errors import CheckpointError, TextError
from indextts2.text.normalizer import TextNormalizer
from indextts2.text.segmenter import split_segments
from indextts2.text.tokenizer import TextTokenizer, Tokenizer, require_speech, space_cjk


@pytest.mark.parametrize(
    ("text", "spaced"),
    [
        ("你好世界是 hello world 的中文", "你 好 世 界 是 HELLO WORLD 的 中 文"),
        ("  a,b。c！d  ", "A,B 。 C！D"),
        ("straße 𠀀x", "STRASSE 𠀀 X"),
        ("   ", ""),
    ],
)
def test_spacing(text: str, spaced: str) -> None:
    assert space_cjk(text) == spaced


TRACES = {
    "晕XUAN4是一种GAN3觉": "10201 2491 10201 9967 10201 2474 10201 7 10201 4162 10201 8876 10201 5470",
    "我爱你！": "10201 2044 10201 3484 10201 208 10201 10481",
    "I love you!": "10214 10424 10212 10481",
    "Couting down 3, 2, 1, go!": "10201 10336 10747 10261 10328 10321 10209 10270 10209 10238 10209 10284 10481",
    "受不liao3你了": "10201 645 10201 15 10201 9234 10201 208 10201 79",
    "“你好！”他说。": "10201 10206 10201 208 10201 1260 10201 10481 10206 10201 132 10201 5580 10203",
    'He said (yes): "no"; ok?': (
        "10240 10338 10201 10206 10344 10432 10206 10209 10201 10206 10612 10206 10209 10441 10264"
    ),
    "a": "10201 2",
    " 你\n": "10201 208",
}


@pytest.mark.parametrize("text", TRACES)
def test_id_traces(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.to_ids(tokenizer.tokenize(text)) == [int(token) for token in TRACES[text].split()]


def test_the_start_of_a_mixed_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.to_ids(tokenizer.tokenize("GPT-5-Nano 是 GPT-5 模型家族中最小且速度最快的变体"))
    assert ids[:14] == [10201, 10381, 10549, 10224, 11901, 10201, 90, 10201, 11901, 10971, 10612, 10201, 2474, 10201]


def test_piece_ids(tokenizer: Tokenizer) -> None:
    known = {"▁": 10201, "▁,": 10202, ",": 10209, "▁.": 10203, "...": 10451, ".": 10216, "!": 10481, "?": 10264,
             "▁?": 10219, "-": 11901, "'": 10206, "梳": 11999, "A1": 8473, "ZUO5": 10200}  # fmt: skip
    unknown = ["▁-", "▁'", "▁!", "▁...", "%", "$", "<", ">", "@", "+", "|", "…"]
    assert tokenizer.to_ids(known) == list(known.values())
    assert tokenizer.to_ids(unknown) == [2] * len(unknown)
    assert tokenizer.vocab_size == 12000


def test_segments_of_real_text(tokenizer: Tokenizer) -> None:
    pieces = tokenizer.tokenize("你好。'世界'！")
    assert len(pieces) == 13
    assert [len(segment) for segment in split_segments(pieces)] == [14]
    assert [len(segment) for segment in split_segments(pieces, 6)] == [6, 6, 2]
    pieces = tokenizer.tokenize("Translate for me, what is a surprise! I was there. It was good; really.")
    assert [len(segment) for segment in split_segments(pieces, 20)] == [18, 10]
    assert len(tokenizer.tokenize("欢迎大家来体验indextts2，并给予我们意见与反馈，谢谢大家。")) == 51


def test_two_thousand_characters_without_punctuation_split(tokenizer: Tokenizer) -> None:
    segments = split_segments(tokenizer.tokenize("我" * 2000))
    assert sum(map(len, segments)) == 4000
    assert max(map(len, segments)) <= 120


@pytest.mark.parametrize("text", ["", " ", " \n\t "])
def test_blank_text_has_no_pieces(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.tokenize(text) == []


@pytest.mark.parametrize("text", ["", "  ", "...", "。", "😀", "😀👍🎉", "안녕하세요", "!?", "\x00", "\x01\x02", "a"])
def test_nothing_to_speak_is_an_error(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(TextError, match="holds nothing that can be spoken"):
        require_speech(text, tokenizer.tokenize(text), tokenizer)


@pytest.mark.parametrize("text", ["A", "你", "Hi 😀", "55", "xuan4", "a b"])
def test_something_to_speak_passes(tokenizer: Tokenizer, text: str) -> None:
    require_speech(text, tokenizer.tokenize(text), tokenizer)


def test_unknown_pieces_are_named_once(tokenizer: Tokenizer) -> None:
    assert tokenizer.unknown(["▁HELLO", "@@", "▁", "😀", "@@"]) == ["@@", "😀"]


def test_readable_text_of_pieces(tokenizer: Tokenizer) -> None:
    assert tokenizer.to_text(tokenizer.tokenize("你好，world！再见。")) == "你好,WORLD! 再见."[:9] + "再见."
    assert tokenizer.to_text(tokenizer.tokenize("Hello, big world.")) == "HELLO, BIG WORLD."


@pytest.mark.parametrize("text", ["\ud800", "a\ud800b"])
def test_a_lone_surrogate_is_refused(tokenizer: Tokenizer, text: str) -> None:
    with pytest.raises(TextError, match="lone surrogate"):
        tokenizer.tokenize(text)


@pytest.mark.parametrize("content", [None, b"", b"not a model", "half"])
def test_an_unreadable_model_is_named(tmp_path: Path, reference: Path, content: bytes | str | None) -> None:
    path = tmp_path / "bpe.model"
    if content == "half":
        content = (reference / "checkpoint_files" / "bpe.model").read_bytes()[:200_000]
    if isinstance(content, bytes):
        path.write_bytes(content)
    tokenizer = Tokenizer(path, TextNormalizer())
    with pytest.raises(CheckpointError, match=r"bpe\.model"):
        tokenizer.to_ids(["A"])


def test_the_protocol_holds(tokenizer: Tokenizer) -> None:
    any_tokenizer: TextTokenizer = tokenizer
    assert any_tokenizer.marks.sentence_ends == {".", "!", "?", "▁.", "▁?", "▁..."}
