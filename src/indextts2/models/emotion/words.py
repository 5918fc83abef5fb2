"""From words to an emotion vector with the fine-tuned Qwen model (spec 04 section 6).

The answer of the model is text; reading it is a chain of pure functions: `cut_thinking` (token ids), `read_answer`
(text to a JSON value), `swap_melancholic`, `labelled` (labels to scores), `scores`.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from indextts2.config import EMOTIONS
from indextts2.errors import CheckpointError, GenerationError, MissingExtraError, TextError
from indextts2.models.emotion.vector import MAX_WEIGHT, EmotionVector

logger = logging.getLogger(__name__)

CHINESE = ("高兴", "愤怒", "悲伤", "恐惧", "反感", "低落", "惊讶", "自然")
"""Keys of the model's answer, in the order of EMOTIONS."""
SAD, MELANCHOLIC, CALM = "悲伤", "低落", "自然"
LABEL_FIELDS = ("emotion", "emotion_label", "label", "情感", "情绪")
MELANCHOLIC_WORDS = ("低落", "melancholy", "melancholic", "depression", "depressed", "gloomy")
SYSTEM_PROMPT = "文本情感分类"
END_OF_THINKING = 151668
"""Token id of </think>."""
MAX_NEW_TOKENS = 32768
# A key and, if there is one, its number. Keys are taken whole (possessive) and also without a number, so that long
# answers without any pair are read in linear time.
_PAIR = re.compile(r'([^\s":.,]++)(?:"?\s*:\s*([\d.]+))?')


def cut_thinking(ids: Sequence[int]) -> list[int]:
    """What follows the last end-of-thinking token; everything if there is none."""
    ids = list(ids)
    if END_OF_THINKING not in ids:
        return ids
    return ids[len(ids) - ids[::-1].index(END_OF_THINKING) :]


def read_answer(answer: str) -> Any:
    """The JSON value of the answer, or the `key: number` pairs found in it where it is no JSON.

    Raises:
        GenerationError: a pair whose number is none, such as 1.2.3.
    """
    try:
        return json.loads(answer)
    except (ValueError, RecursionError):
        pass
    try:
        return {key: float(number) for key, number in _PAIR.findall(answer) if number}
    except ValueError as error:
        raise GenerationError(f"the emotion model answered {answer!r}, which cannot be read ({error})") from error


def swap_melancholic(content: Any, text: str) -> Any:
    """The model confuses sad with melancholic: their scores are swapped where `text` speaks of melancholy.

    Anything but a mapping is left alone.
    """
    if not isinstance(content, Mapping) or not any(word in text.lower() for word in MELANCHOLIC_WORDS):
        return content
    return {**content, SAD: content.get(MELANCHOLIC, 0.0), MELANCHOLIC: content.get(SAD, 0.0)}


def label_of(value: Any) -> str | None:
    """The Chinese key that a Chinese or English label names, None for anything else."""
    if not isinstance(value, str):
        return None
    label = value.strip()
    if label in CHINESE:
        return label
    return CHINESE[EMOTIONS.index(label.lower())] if label.lower() in EMOTIONS else None


def labelled(content: Any) -> dict[str, Any]:
    """A dict of scores by Chinese key, with labels in place of scores resolved."""
    values: dict[str, Any] = dict(content) if isinstance(content, Mapping) else {}
    detected = label_of(content)
    if detected is None:
        detected = next((label for field in LABEL_FIELDS if (label := label_of(values.get(field)))), None)
    if detected is not None and not any(key in values for key in CHINESE):
        values[detected] = 1.0
    for key in CHINESE:
        label = label_of(values.get(key))
        if label is not None:
            values[key] = 0.0
            values[label] = 1.0
    return values


def scores(values: Mapping[str, Any]) -> EmotionVector:
    """Eight weights in [0, MAX_WEIGHT]; calm where nothing is above zero.

    Raises:
        GenerationError: a score that is no number.
    """
    weights = [_score(key, values.get(key, 0.0)) for key in CHINESE]
    if not any(weight > 0 for weight in weights):
        weights[CHINESE.index(CALM)] = 1.0
    return tuple(weights)


def _score(key: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isnan(number):
        raise GenerationError(f"the emotion model gave {key} the score {value!r}, which is no number")
    return max(0.0, min(MAX_WEIGHT, number))


def answer_to_vector(answer: str, text: str) -> EmotionVector:
    """The emotion vector that the model's `answer` to `text` means.

    Raises:
        GenerationError: the answer holds something that should be a number and is none.
    """
    return scores(labelled(swap_melancholic(read_answer(answer), text)))


class EmotionFromText:
    """Classifies text. `model` and `tokenizer` are those of transformers, or objects with the same methods."""

    def __init__(self, model: Any, tokenizer: Any, *, greedy: bool = False) -> None:
        """Args:
        greedy: take the most probable token always, whatever the model's own generation settings say.
        """
        self._model = model
        self._tokenizer = tokenizer
        self._greedy = greedy

    @classmethod
    def load(cls, folder: str | Path, *, device: str | None = None, greedy: bool = False) -> EmotionFromText:
        """Load the model directory (`qwen0.6bemo4-merge`): float16 on a GPU, float32 on a CPU.

        Raises:
            CheckpointError: the directory is missing or holds no such model.
            MissingExtraError: transformers is not installed.
        """
        import torch

        try:
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise MissingExtraError("emotion from text", "emotion-text") from error
        folder = Path(folder)
        if not folder.is_dir():
            raise CheckpointError(f"the emotion model {folder} does not exist; download it or give an emotion vector")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float32 if device == "cpu" else torch.float16
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"the emotion model {folder} cannot be loaded: {error}") from error
        return cls(model.to(device=device, dtype=dtype).eval(), tokenizer, greedy=greedy)

    def vector(self, text: str) -> EmotionVector:
        """The emotion vector of `text`.

        Raises:
            TextError: the text is blank.
            GenerationError: the model's answer cannot be read.
        """
        if not text.strip():
            raise TextError("there is no text to read an emotion from; give a description or an emotion vector")
        answer = self.answer(text)
        logger.debug("emotion model answered %s", answer)
        return answer_to_vector(answer, text)

    def answer(self, text: str) -> str:
        """What the model answers to `text`."""
        messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": text}]
        prompt = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        inputs = self._tokenizer([prompt], return_tensors="pt").to(self._model.device)
        options: dict[str, Any] = {
            "max_new_tokens": MAX_NEW_TOKENS,
            "pad_token_id": self._tokenizer.eos_token_id,
        }
        if self._greedy:
            options |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        output = self._model.generate(**inputs, **options)
        new = output[0][inputs["input_ids"].shape[1] :].tolist()
        return str(self._tokenizer.decode(cut_thinking(new), skip_special_tokens=True))
