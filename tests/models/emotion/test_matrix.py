"""Choice of rows and blending, against the golden arrays and the formula."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from indextts2.config import ModelConfig
from indextts2.errors import CheckpointError, UsageError
from indextts2.models.emotion.matrix import EmotionMatrix, merge_emotion_vectors
from tests.conftest import Golden, golden_error, relative_l2

EMO_NUM = ModelConfig().emo_num


@pytest.fixture(scope="module")
def matrix(small_checkpoint: Path) -> EmotionMatrix:
    speakers, emotions = (torch.load(small_checkpoint / f, weights_only=True) for f in ("feat1.pt", "feat2.pt"))
    return EmotionMatrix(speakers, emotions, EMO_NUM)


@pytest.mark.parametrize("alpha", [1.0, 0.6])
def test_merge_matches_golden(golden: Golden, alpha: float) -> None:
    speaker, emotion = (torch.from_numpy(golden[name]) for name in ("emovec_spk", "emovec_emo"))
    merged = merge_emotion_vectors(speaker, emotion, alpha)
    assert golden_error(merged, golden[f"emovec_alpha{alpha}"]) < 1e-6


def test_merge_of_alpha_0_is_the_speaker() -> None:
    speaker, emotion = torch.randn(1, 5), torch.randn(1, 5)
    assert torch.equal(merge_emotion_vectors(speaker, emotion, 0.0), speaker)
    assert torch.allclose(merge_emotion_vectors(speaker, emotion, 2.0), 2 * emotion - speaker)


def test_blend_matches_golden(matrix: EmotionMatrix, golden: Golden) -> None:
    style, base = torch.from_numpy(golden["style"]), torch.from_numpy(golden["emo_vector_base"])
    vector = golden["emo_vector"].tolist()
    rows = matrix.nearest_rows(style)
    assert rows == golden["emo_vector_index"].tolist()
    assert golden_error(matrix.mix(vector, rows), golden["emo_vector_mat"]) < 1e-6
    assert golden_error(matrix.blend(vector, style, base), golden["emo_vector_emovec"]) < 1e-6


def test_blend_is_the_formula() -> None:
    torch.manual_seed(0)
    speakers, emotions = torch.randn(5, 3), torch.randn(5, 4)
    small = EmotionMatrix(speakers, emotions, (2, 3))
    style, merged = torch.randn(1, 3), torch.randn(1, 4)
    rows = []
    for start, end in ((0, 2), (2, 5)):
        cosines = [float(style[0] @ speakers[r] / style.norm() / speakers[r].norm()) for r in range(start, end)]
        rows.append(int(np.argmax(cosines)))
    expected = 0.9 * emotions[rows[0]] + 0.4 * emotions[2 + rows[1]] + (1 - 1.3) * merged
    assert small.nearest_rows(style) == rows
    assert relative_l2(small.blend((0.9, 0.4), style, merged), expected) < 1e-6


def test_zero_vector_changes_nothing(matrix: EmotionMatrix) -> None:
    merged = torch.randn(1, matrix.width)
    assert torch.equal(matrix.blend([0] * 8, torch.randn(1, 192), merged), merged)


def test_sum_of_one_ignores_the_audio(matrix: EmotionMatrix) -> None:
    style, vector = torch.randn(1, 192), [0.5, 0.5, 0, 0, 0, 0, 0, 0]
    first, second = (matrix.blend(vector, style, torch.randn(1, matrix.width)) for _ in range(2))
    assert torch.equal(first, second)


def test_random_rows_depend_on_the_given_generator_only(matrix: EmotionMatrix) -> None:
    expected = random.Random(7)
    rows = matrix.random_rows(random.Random(7))
    assert rows == [expected.randint(0, n - 1) for n in EMO_NUM]
    style, merged = torch.randn(1, 192), torch.randn(1, matrix.width)
    vector = [0.1] * 8
    blended = matrix.blend(vector, style, merged, random.Random(7))
    assert torch.allclose(blended, matrix.mix(vector, rows) + 0.2 * merged, atol=1e-5)
    assert any(matrix.random_rows(random.Random(seed)) != rows for seed in range(5))


def test_first_of_equal_rows() -> None:
    same = EmotionMatrix(torch.ones(4, 3), torch.zeros(4, 2), (1, 3))
    assert same.nearest_rows(torch.ones(1, 3)) == [0, 0]


@pytest.mark.parametrize(
    ("speakers", "emotions"),
    [
        (torch.zeros(5, 3), torch.zeros(6, 3)),
        (torch.zeros(6, 3), torch.zeros(6)),
        (torch.zeros(6, 3), torch.zeros(6, 3, dtype=torch.long)),
        (torch.full((6, 3), torch.nan), torch.zeros(6, 3)),
    ],
)
def test_bad_matrices(speakers: Tensor, emotions: Tensor) -> None:
    with pytest.raises(CheckpointError, match="matrix"):
        EmotionMatrix(speakers, emotions, (2, 4))


def test_bad_style(matrix: EmotionMatrix) -> None:
    with pytest.raises(UsageError, match="192"):
        matrix.nearest_rows(torch.zeros(1, 10))
