"""Every stage on tiny networks: its loss falls, and a resumed run equals an uninterrupted one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from indextts2.config import ModelConfig
from indextts2.text.phonemes import SPACE_ID
from indextts2.training.alignment import ctc_path, token_of_frame
from indextts2.training.augment import stretch
from indextts2.training.codec import CodecStage, CodecStageConfig, write_codes, write_features
from indextts2.training.data import Corpus
from indextts2.training.gpt import GPTStage, GPTStageConfig, write_alignment, write_latents
from indextts2.training.optimizers import split_matrices
from indextts2.training.runner import RunConfig, Stage, load_trained, run_stage
from indextts2.training.semantic import (
    Recogniser,
    SemanticStage,
    SemanticStageConfig,
    augment,
    edit_distance,
    greedy,
)

STAGES = ("semantic", "codec", "gpt")


def make_stage(name: str, corpus: Corpus, config: ModelConfig) -> Stage:
    torch.manual_seed(2)
    if name == "semantic":
        return SemanticStage(corpus, config, SemanticStageConfig(rows_per_batch=120))
    recogniser = Recogniser(config, 0.0).eval()
    write_features(corpus, recogniser)
    codec = CodecStage(corpus, config.semantic_codec, CodecStageConfig(rows_per_batch=120))
    statistics = np.load(corpus.folder / "statistics.npz")
    mean, var = torch.from_numpy(statistics["mean"]), torch.from_numpy(statistics["var"])
    codec.model.set_phoneme_head(recogniser.middle_head, mean, var)
    if name == "codec":
        return codec
    write_codes(corpus, codec.model.codec.eval())
    write_alignment(corpus, recogniser)
    stage_config = GPTStageConfig(rows_per_batch=200, aligned_layers=(1, 2), max_condition_frames=30)
    return GPTStage(corpus, config.gpt, stage_config, np.load(corpus.folder / "alignment.npy"))


def run_config(output: Path, steps: int, **more: object) -> RunConfig:
    base = RunConfig(str(output), steps=steps, learning_rate=3e-3, warmup_steps=2, precision="float32", log_every=1)
    return dataclasses.replace(base, **more)  # type: ignore[arg-type]


def logged(output: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (output / "losses.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", STAGES)
def test_loss_falls_and_the_run_leaves_its_files(
    name: str, corpus: Corpus, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    figures = run_stage(make_stage(name, corpus, tiny_config), run_config(tmp_path / "run", steps=40))
    losses = logged(tmp_path / "run")
    assert len(losses) == 40
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:3])
    assert figures
    assert all(np.isfinite(value) for value in figures.values())
    for file in ("config.yaml", "losses.png", "last.pt", "evaluation.json"):
        assert (tmp_path / "run" / file).stat().st_size > 0


@pytest.mark.parametrize("name", STAGES)
def test_resumed_run_equals_an_uninterrupted_one(
    name: str, corpus: Corpus, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    whole = make_stage(name, corpus, tiny_config)
    run_stage(whole, run_config(tmp_path / "whole", steps=6))
    cut = make_stage(name, corpus, tiny_config)
    stop_after(cut, 3)
    assert run_stage(cut, run_config(tmp_path / "parts", steps=6)) == {}
    rest = make_stage(name, corpus, tiny_config)
    run_stage(rest, run_config(tmp_path / "parts", steps=6))
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    first, second = load_trained(tmp_path / "whole"), load_trained(tmp_path / "parts")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_muon_trains_hidden_matrices_and_resumes(corpus: Corpus, tiny_config: ModelConfig, tmp_path: Path) -> None:
    matrices, others = split_matrices(make_stage("gpt", corpus, tiny_config).model, GPTStage.outer_layers)
    assert all(matrix.dim() == 2 for matrix in matrices)
    assert tiny_config.gpt.number_mel_codes not in {matrix.shape[0] for matrix in matrices}
    assert len(matrices) > 10
    assert len(others) > 10
    run_stage(make_stage("gpt", corpus, tiny_config), run_config(tmp_path / "whole", steps=40, optimizer="muon"))
    losses = logged(tmp_path / "whole")
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:3])
    cut = make_stage("gpt", corpus, tiny_config)
    stop_after(cut, 20)
    run_stage(cut, run_config(tmp_path / "parts", steps=40, optimizer="muon"))
    run_stage(make_stage("gpt", corpus, tiny_config), run_config(tmp_path / "parts", steps=40, optimizer="muon"))
    assert logged(tmp_path / "parts") == losses


def test_stretch_changes_length_and_keeps_order() -> None:
    rows = np.arange(10)
    assert stretch(rows, 1.0).tolist() == rows.tolist()
    assert stretch(rows, 0.5).tolist() == [0, 2, 4, 6, 8]
    assert stretch(rows, 1.5).tolist() == sorted(stretch(rows, 1.5).tolist())
    assert len(stretch(rows, 1.5)) == 15
    assert stretch(np.ones((1, 4)), 0.2).shape == (1, 4)


def stop_after(stage: Stage, steps: int) -> None:
    """Send the process the signal to stop during the step `steps`."""
    import signal

    losses, calls = stage.losses, []

    def counting(batch: object, step: int) -> dict[str, torch.Tensor]:
        calls.append(step)
        if len(calls) == steps:
            signal.raise_signal(signal.SIGTERM)
        return losses(batch, step)

    stage.losses = counting  # type: ignore[method-assign]


def test_averaged_weights_are_used_for_the_evaluation_only(
    corpus: Corpus, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    stage = make_stage("semantic", corpus, tiny_config)
    run_stage(stage, run_config(tmp_path, steps=5, ema_decay=0.9))
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    key = "head.weight"
    assert torch.equal(stage.model.state_dict()[key], saved["model"][key])
    assert not torch.equal(saved["model"][key], saved["ema"][key])


def test_augmentation_keeps_the_shape_of_the_encoder_input() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        result = augment(rng.normal(size=(40, 160)), SemanticStageConfig(), rng)
        assert result.shape[1] == 160
        assert 34 <= len(result) <= 46
        assert np.isfinite(result).all()


def test_ctc_path_finds_the_frames_of_the_labels() -> None:
    said = [0, 3, 3, 0, 3, 0, 0, 5, 4, 0]
    output = np.log(np.full((len(said), 6), 0.02))
    output[np.arange(len(said)), said] = np.log(0.9)
    assert ctc_path(output, [3, 3, 5, 4]).tolist() == [1, 4, 7, 8]
    assert greedy(torch.from_numpy(output)) == [3, 3, 5, 4]


def test_token_of_frame_changes_half_way() -> None:
    aligned = token_of_frame(np.array([1, 5, 6]), np.array([0, 2, 3]), 9)
    assert aligned.tolist() == [0, 0, 0, 2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize(("first", "second", "distance"), [
    ([], [1, 2], 2), ([1, 2, 3], [1, 2, 3], 0), ([1, 2, 3], [2, 3, 4], 2), ([1, 5, 3, 3], [1, 3], 2), ([4], [], 1),
])  # fmt: skip
def test_edit_distance(first: list[int], second: list[int], distance: int) -> None:
    assert edit_distance(first, second) == distance


def test_short_items_are_the_last_words_with_their_codes(corpus: Corpus, tiny_config: ModelConfig) -> None:
    stage = make_stage("gpt", corpus, tiny_config)
    assert isinstance(stage, GPTStage)
    stage.config = dataclasses.replace(stage.config, short=1.0, short_words=1)
    text, codes, aligned = stage._clip(0)
    short, spoken, index = stage._maybe_short((text, codes, aligned), np.random.default_rng(0))
    assert SPACE_ID not in short
    assert short.tolist() == text[len(text) - len(short) :].tolist()
    first = len(text) - len(short)
    assert text[first - 1] == SPACE_ID
    assert spoken.tolist() == codes[aligned >= first].tolist()
    assert index.tolist() == (aligned[aligned >= first] - first).tolist()
    assert 0 < len(spoken) < len(codes)
    # Not in an evaluation, and not where there is but one word.
    assert stage._maybe_short((text, codes, aligned), None)[0] is text
    assert stage._maybe_short((short, spoken, index), np.random.default_rng(0))[0] is short


def test_latents_have_a_row_per_code(corpus: Corpus, tiny_config: ModelConfig) -> None:
    stage = make_stage("gpt", corpus, tiny_config)
    assert isinstance(stage, GPTStage)
    stage.device = torch.device("cpu")
    write_latents(stage)
    latents = corpus.get("latents", 4, like="fbank")
    assert latents.shape == (corpus.clips[4].length("fbank"), tiny_config.gpt.model_dim)
    assert np.isfinite(latents).all()
    assert latents.std() > 0.1
