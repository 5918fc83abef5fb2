"""Reading the answers of the text-to-emotion model, and asking it through stand-ins."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from indextts2.errors import CheckpointError, GenerationError, MissingExtraError, TextError
from indextts2.models.emotion.words import (
    END_OF_THINKING,
    EmotionFromText,
    answer_to_vector,
    cut_thinking,
    label_of,
    labelled,
    read_answer,
    swap_melancholic,
)

CALM = (0, 0, 0, 0, 0, 0, 0, 1.0)
ANSWER = '{"高兴":0.0,"愤怒":0.1,"悲伤":0.6,"恐惧":0.0,"反感":0.0,"低落":0.2,"惊讶":0.0,"自然":0.3}'


def test_cut_thinking() -> None:
    end = END_OF_THINKING
    assert cut_thinking([1, 2, 3]) == [1, 2, 3]
    assert cut_thinking([1, end, 2, end, 3, 4]) == [3, 4]
    assert cut_thinking([1, end]) == []


@pytest.mark.parametrize(
    ("answer", "vector"),
    [
        (ANSWER, (0, 0.1, 0.6, 0, 0, 0.2, 0, 0.3)),
        ('{"高兴": 1.5, "愤怒": -1}', (1.2, 0, 0, 0, 0, 0, 0, 0)),
        ('{"惊讶": "0.5"}', (0, 0, 0, 0, 0, 0, 0.5, 0)),
        ("{}", CALM),
        ('{"happy": 0.5}', CALM),
        ("[1, 2]", CALM),
        ("3", CALM),
        ("null", CALM),
        ("nothing to see", CALM),
        ('"Sad "', (0, 0, 1.0, 0, 0, 0, 0, 0)),
        ('"高兴"', (1.0, 0, 0, 0, 0, 0, 0, 0)),
        ('{"emotion": "angry"}', (0, 1.0, 0, 0, 0, 0, 0, 0)),
        ('{"emotion": "unknown", "情绪": "惊讶"}', (0, 0, 0, 0, 0, 0, 1.0, 0)),
        ('{"emotion": "angry", "高兴": 0.4}', (0.4, 0, 0, 0, 0, 0, 0, 0)),
        ('{"高兴": "自然"}', CALM),
        ('{"高兴": "happy", "自然": 0.2}', (1.0, 0, 0, 0, 0, 0, 0, 0.2)),
        ('{"自然": "angry"}', (0, 1.0, 0, 0, 0, 0, 0, 0)),
        ('{"高兴": Infinity}', (1.2, 0, 0, 0, 0, 0, 0, 0)),
        ("高兴: 0.5, 愤怒 : 0.25", (0.5, 0.25, 0, 0, 0, 0, 0, 0)),
        ('{"高兴": 0.5, "愤怒": 0.25', (0.5, 0.25, 0, 0, 0, 0, 0, 0)),
        ("{'高兴': 0.5}", CALM),
    ],
)
def test_answers(answer: str, vector: tuple[float, ...]) -> None:
    assert answer_to_vector(answer, "some text") == vector


@pytest.mark.parametrize(
    "answer",
    [
        "高兴: 1.2.3",
        '{"高兴": "much"}',
        '{"高兴": null}',
        '{"高兴": [1]}',
        '{"高兴": NaN}',
        '{"高兴": 1' + "0" * 400 + "}",
    ],
)
def test_unreadable_answers(answer: str) -> None:
    with pytest.raises(GenerationError):
        answer_to_vector(answer, "some text")


@pytest.mark.parametrize("piece", ["[", "a", "a ", '"', "1", "a:", ": ", "a : "])
def test_long_answers_without_pairs_are_read_fast(piece: str) -> None:
    assert read_answer(piece * 100_000 + "!") == {}


def test_keys_stop_at_separators() -> None:
    assert read_answer('"a.b": 1, c,d :2') == {"b": 1.0, "d": 2.0}
    assert read_answer("a:0.5b : 1x y:2") == {"a": 0.5, "b": 1.0, "y": 2.0}


@pytest.mark.parametrize("text", ["我很低落", "She is DEPRESSED.", "a gloomy day", "Melancholy"])
def test_melancholic_words_swap(text: str) -> None:
    assert answer_to_vector(ANSWER, text) == (0, 0.1, 0.2, 0, 0, 0.6, 0, 0.3)


def test_melancholic_swap_details() -> None:
    assert swap_melancholic({"悲伤": 0.4}, "gloomy") == {"悲伤": 0.0, "低落": 0.4}
    assert swap_melancholic({"悲伤": 0.4}, "sunny") == {"悲伤": 0.4}
    assert swap_melancholic("sad", "gloomy") == "sad"
    original = {"悲伤": 0.4, "低落": 0.1}
    swap_melancholic(original, "gloomy")
    assert original == {"悲伤": 0.4, "低落": 0.1}


def test_labels() -> None:
    assert label_of(" Melancholic ") == "低落"
    assert label_of("高兴") == "高兴"
    assert label_of("glad") is None
    assert label_of(1.0) is None
    assert labelled({"label": "calm"})["自然"] == 1.0


class FakeInputs(dict[str, torch.Tensor]):
    def to(self, device: str) -> FakeInputs:
        self.device = device
        return self


class FakeTokenizer:
    eos_token_id = 9

    def __init__(self, answer: str) -> None:
        self.answer = answer
        self.messages: list[dict[str, str]] = []

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
        assert options == {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        self.messages = messages
        return "prompt"

    def __call__(self, prompts: list[str], return_tensors: str) -> FakeInputs:
        assert (prompts, return_tensors) == (["prompt"], "pt")
        return FakeInputs(input_ids=torch.tensor([[5, 6, 7]]))

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        assert ids == [42, 43]
        assert skip_special_tokens
        return self.answer


class FakeModel:
    device = "cpu"

    def generate(self, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        self.options = options
        return torch.cat((input_ids, torch.tensor([[8, END_OF_THINKING, 42, 43]])), dim=1)


def test_asking_the_model() -> None:
    model, tokenizer = FakeModel(), FakeTokenizer(ANSWER)
    assert EmotionFromText(model, tokenizer).vector("I lost my dog.") == (0, 0.1, 0.6, 0, 0, 0.2, 0, 0.3)
    assert tokenizer.messages == [
        {"role": "system", "content": "文本情感分类"},
        {"role": "user", "content": "I lost my dog."},
    ]
    assert model.options == {"max_new_tokens": 32768, "pad_token_id": 9}


def test_greedy_is_an_option() -> None:
    model = FakeModel()
    EmotionFromText(model, FakeTokenizer("{}"), greedy=True).vector("text")
    assert model.options["do_sample"] is False


def test_blank_text() -> None:
    with pytest.raises(TextError):
        EmotionFromText(FakeModel(), FakeTokenizer("{}")).vector(" \n")


def test_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"indextts2\[emotion-text\]"):
        EmotionFromText.load(tmp_path)


def fake_transformers(monkeypatch: pytest.MonkeyPatch, loader: Any) -> None:
    module = SimpleNamespace(AutoModelForCausalLM=loader, AutoTokenizer=loader)
    monkeypatch.setitem(sys.modules, "transformers", module)


def test_missing_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_transformers(monkeypatch, None)
    with pytest.raises(CheckpointError, match="does not exist"):
        EmotionFromText.load(tmp_path / "nowhere")


def test_damaged_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Loader:
        @staticmethod
        def from_pretrained(folder: Path, **_: Any) -> Any:
            return json.loads((folder / "config.json").read_text())

    fake_transformers(monkeypatch, Loader)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        EmotionFromText.load(tmp_path)


def test_importing_loads_no_heavy_library() -> None:
    code = "import sys, indextts2.models.emotion.words; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
