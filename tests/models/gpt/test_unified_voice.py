"""UnifiedVoice: keys, prefix and prefill parity, second pass, teacher forcing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from indextts2.config import GPTConfig
from indextts2.errors import ConfigError, UsageError
from indextts2.models.gpt.unified_voice import IGNORED_TARGET, LatentStream, UnifiedVoice, training_targets
from tests.conftest import Golden, golden_error, relative_l2
from tests.models.gpt.conftest import TINY, gpt_config, make_tiny
from tests.models.weights import assert_manifest_matches


@pytest.fixture(scope="module")
def prefix(voice: UnifiedVoice, golden: Golden, text_ids: dict[str, list[list[int]]]) -> Tensor:
    latents = torch.from_numpy(golden["speech_conditioning_latent"])
    conditioning = voice.conditioning(latents, torch.from_numpy(golden["emovec_alpha1.0"]))
    return voice.prefix(conditioning, torch.tensor(text_ids["en"][0]))


def tiny_prefix(model: UnifiedVoice, text: list[int], seed: int = 0) -> Tensor:
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(1, config.condition_latents, config.model_dim, generator=generator)
    emotion = torch.randn(1, config.model_dim, generator=generator)
    return model.prefix(model.conditioning(latents, emotion), torch.tensor(text, dtype=torch.long))


@pytest.mark.parametrize("size", ["small", "full"])
@pytest.mark.parametrize("with_text_head", [False, True])
def test_keys_are_those_of_the_checkpoint(reference: Path, size: str, with_text_head: bool) -> None:
    entries = json.loads((reference / f"manifest_{size}.json").read_text())["gpt.pth"]
    with torch.device("meta"):
        model = UnifiedVoice(gpt_config(reference, size), with_text_head=with_text_head)
    assert_manifest_matches(model, entries, "")


def test_prefill_matches_golden(voice: UnifiedVoice, prefix: Tensor, golden: Golden) -> None:
    assert golden_error(prefix, golden["gpt_prefill_emb"]) < 1e-6
    start = torch.tensor([[voice.config.start_mel_token]])
    rows = torch.cat((prefix, voice.embed_codes(start, torch.zeros_like(start))), dim=1)
    assert golden_error(voice.gpt.h[0](rows), golden["gpt_prefill_h0"]) < 1e-5
    assert golden_error(voice.gpt(rows), golden["gpt_prefill_last"]) < 1e-5
    prompt = voice.prefill(prefix)
    assert golden_error(voice.logits(prompt.hidden), golden["gpt_logits_step0"]) < 1e-5
    assert prompt.rows == prompt.cache.length == rows.shape[1]


def test_latents_match_golden(voice: UnifiedVoice, prefix: Tensor, golden: Golden) -> None:
    plan = json.loads((golden.folder.parent / "inputs" / "plan.json").read_text())
    codes = torch.from_numpy(golden[plan["downstream_codes"]])[0]
    assert golden_error(voice.latents(voice.prefill(prefix), codes), golden["gpt_latent"]) < 1e-5


@pytest.mark.parametrize("sizes", [[40], [1, 39], [7, 0, 1, 12, 20], [1] * 40])
def test_latents_in_pieces(voice: UnifiedVoice, prefix: Tensor, golden: Golden, sizes: list[int]) -> None:
    codes = torch.from_numpy(golden["greedy_rp10"])[0]
    prompt = voice.prefill(prefix)
    stream = LatentStream.beside(voice, prompt)
    pieces = torch.cat([stream.extend(piece) for piece in codes.split(sizes)], dim=1)
    assert golden_error(pieces, golden["gpt_latent"]) < 1e-5
    assert prompt.cache.length == prompt.rows


def test_latents_drop_rows_of_the_decoder(tiny: UnifiedVoice) -> None:
    prefix, codes = tiny_prefix(tiny, [3, 4]), torch.tensor([5, 6, 7, 8])
    fresh = tiny.latents(tiny.prefill(prefix), codes)
    used = tiny.prefill(prefix)
    tiny.latents(used, torch.tensor([30, 31, 32]))
    assert torch.equal(tiny.latents(used, codes), fresh)


def test_latent_of_one_code_is_the_start_state(tiny: UnifiedVoice) -> None:
    prompt = tiny.prefill(tiny_prefix(tiny, [3, 4, 5]))
    assert torch.equal(tiny.latents(prompt, torch.tensor([9]))[0], prompt.hidden)


def test_empty_text_has_a_prefix(tiny: UnifiedVoice) -> None:
    assert tiny_prefix(tiny, []).shape[1] == tiny.conditioning_rows + 2


@pytest.mark.parametrize(("text", "message"), [([2] * 21, "21 text tokens"), ([3, 1], "stop"), ([31], "0..30")])
def test_bad_text(tiny: UnifiedVoice, text: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tiny_prefix(tiny, text)


@pytest.mark.parametrize("changes", [{"heads": 3}, {"stop_mel_token": 42}, {"start_mel_token": 41}])
def test_bad_configuration(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        UnifiedVoice(dataclasses.replace(TINY, **changes))


def test_speed_rows_are_swapped(tiny: UnifiedVoice) -> None:
    rows = tiny.conditioning(torch.zeros(2, 4, 32), torch.ones(2, 32))
    assert torch.equal(rows[0, :4], torch.ones(4, 32))
    assert torch.equal(rows[1, 4], tiny.speed_emb.weight[1])
    assert torch.equal(rows[1, 5], tiny.speed_emb.weight[0])


# Teacher forcing

TEXTS = [[3, 9, 12, 5, 7], [8, 2], []]
CODES = [[5, 6, 7], [30, 2, 39, 0, 1, 2], [11]]


def padded(rows: list[list[int]], filler: int) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows]), torch.tensor([len(r) for r in rows])


def forward_batch(model: UnifiedVoice, filler: int) -> tuple[Tensor, Tensor, Tensor]:
    conditioning = torch.cat([tiny_prefix(model, [], seed)[:, : model.conditioning_rows] for seed in range(3)])
    text_logits, mel_logits, latents = model.training_forward(
        conditioning, *padded(TEXTS, filler), *padded(CODES, filler)
    )
    assert text_logits is not None
    return text_logits, mel_logits, latents


def test_padded_batch_equals_inference(tiny: UnifiedVoice) -> None:
    text_logits, mel_logits, latents = forward_batch(tiny, 17)
    assert text_logits.shape == (3, 6, 31)
    assert mel_logits.shape == (3, 7, 42)
    assert latents.shape == (3, 6, 32)
    for i, (text, codes) in enumerate(zip(TEXTS, CODES, strict=True)):
        prompt = tiny.prefill(tiny_prefix(tiny, text, i))
        expected = tiny.latents(prompt, torch.tensor(codes))
        assert relative_l2(latents[i : i + 1, : len(codes)].detach(), expected.detach()) < 1e-5
        assert not latents[i, len(codes) :].any()
        assert relative_l2(mel_logits[i, : len(codes)].detach(), tiny.logits(expected[0]).detach()) < 1e-5


def test_padding_never_matters(tiny: UnifiedVoice) -> None:
    for ours, other in zip(forward_batch(tiny, 17), forward_batch(tiny, 4), strict=True):
        for i in range(3):
            rows = len(TEXTS[i]) + 1 if ours.shape[1] == 6 and ours.shape[2] == 31 else len(CODES[i])
            assert torch.equal(ours[i, :rows], other[i, :rows])


def test_targets() -> None:
    targets = training_targets(*padded(CODES, 17), 41)
    x = IGNORED_TARGET
    assert targets.tolist() == [[5, 6, 7, 41, x, x, x], [30, 2, 39, 0, 1, 2, 41], [11, 41, x, x, x, x, x]]


def test_gradients_reach_every_parameter() -> None:
    model = make_tiny().train()
    audio, lengths = torch.randn(3, 11, 12), torch.tensor([11, 8, 5])
    conditioning = model.conditioning(model.speaker_latents(audio, lengths), model.emotion_vector(audio, lengths))
    (texts, text_lengths), (codes, code_lengths) = padded(TEXTS, 17), padded(CODES, 17)
    text_logits, mel_logits, latents = model.training_forward(conditioning, texts, text_lengths, codes, code_lengths)
    text_targets, mel_targets = training_targets(texts, text_lengths, 1), training_targets(codes, code_lengths, 41)
    loss = F.cross_entropy(text_logits.flatten(0, 1), text_targets.flatten(), ignore_index=IGNORED_TARGET)
    loss = loss + F.cross_entropy(mel_logits.flatten(0, 1), mel_targets.flatten(), ignore_index=IGNORED_TARGET)
    (loss + latents.square().mean()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert not without
    assert all(p.grad.abs().sum() > 0 for name, p in model.named_parameters() if "linear_k.bias" not in name)


def test_a_few_steps_learn_a_batch() -> None:
    model = make_tiny(scale=1.0).train()
    conditioning = torch.randn(3, model.conditioning_rows, 32)
    (texts, text_lengths), (codes, code_lengths) = padded(TEXTS, 17), padded(CODES, 17)
    targets = training_targets(codes, code_lengths, 41).flatten()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        _, logits, _ = model.training_forward(conditioning, texts, text_lengths, codes, code_lengths)
        loss = F.cross_entropy(logits.flatten(0, 1), targets, ignore_index=IGNORED_TARGET)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_without_text_head(tiny: UnifiedVoice) -> None:
    model = make_tiny(with_text_head=False)
    model.load_state_dict({k: v for k, v in tiny.state_dict().items() if not k.startswith("text_head")})
    conditioning = torch.zeros(1, model.conditioning_rows, 32)
    arguments = torch.tensor([[3]]), torch.tensor([1]), torch.tensor([[4, 5]]), torch.tensor([2])
    assert model.training_forward(conditioning, *arguments)[0] is None


def test_default_configuration_is_the_published_one() -> None:
    assert (GPTConfig().text_positions, GPTConfig().mel_positions) == (602, 1818)
