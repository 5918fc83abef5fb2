"""Every array of a reference directory, computed by our pipeline from its audio, texts and plan alone.

Nothing is read from the golden folder but the emotion weights, which are an input of the run. Each array is computed on
what our own stages before it gave, so the figures are those of the whole pipeline.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from indextts2 import GenerationConfig, IndexTTS2, InferenceConfig
from indextts2.audio.features import kaldi_fbank, seamless_features
from indextts2.audio.loader import load_reference
from indextts2.audio.resampler import emotion_audio, speaker_audio
from indextts2.audio.writer import pcm16
from indextts2.inference import stages
from indextts2.inference.progress import Run
from indextts2.models.emotion.matrix import merge_emotion_vectors
from indextts2.models.gpt.decoders import BeamDecoder, Node, SingleDecoder, _History, path
from indextts2.models.gpt.generation import Generation, Request, advance
from indextts2.models.s2mel.flow_matching import integrate

Arrays = dict[str, Any]
SAMPLED = {"temperature": 0.8, "top_k": 30, "top_p": 0.8, "repetition_penalty": 10.0, "do_sample": True}
SAMPLE_SEED = 1234
LOGIT_STEPS = (0, 1, 2, 20, 39)


@dataclass
class Reference:
    """Plan, texts and inputs of a reference directory."""

    folder: Path
    size: str

    def __post_init__(self) -> None:
        inputs = self.folder / "inputs"
        self.plan = json.loads((inputs / "plan.json").read_text())
        self.texts = json.loads((inputs / self.plan["texts"]).read_text())
        self.speaker = load_reference(inputs / self.plan["speaker_audio"])
        self.emotion = load_reference(inputs / self.plan["emotion_audio"])
        golden = self.folder / f"golden_{self.size}"
        self.emotion_weights = np.load(golden / "emo_vector.npy")

    def noise(self, key: str, shape: tuple[int, ...]) -> np.ndarray:
        """The start noise of the flow, by the rule of the reference."""
        spec = importlib.util.spec_from_file_location("weights_rule", self.folder / "name_derived_weights.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.noise(key, shape)


@contextmanager
def recording(**modules: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Keep the first output of each module while the block runs; `name__in` keeps the first input instead."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            value = inputs[0] if name.endswith("__in") else output
            seen.setdefault(name, (value[0] if isinstance(value, tuple) else value).clone())

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def compute(tts: IndexTTS2, reference: Reference) -> Arrays:
    """All arrays by their golden name."""
    arrays = _audio(tts, reference)
    arrays |= _encoders(tts, arrays)
    arrays |= _conditioning(tts, reference, arrays)
    arrays |= _decoding(tts, reference, arrays)
    arrays |= _synthesis(tts, reference, arrays)
    return {name: value.numpy() if isinstance(value, Tensor) else value for name, value in arrays.items()}


def _audio(tts: IndexTTS2, reference: Reference) -> Arrays:
    audio_22k, audio_16k = speaker_audio(reference.speaker, tts.sample_rate)
    emotion_16k, own_16k = emotion_audio(reference.emotion), emotion_audio(reference.speaker)
    arrays = {
        "spk_audio_22k": audio_22k[None],
        "spk_audio_16k": audio_16k[None],
        "emo_audio_16k": emotion_16k[None],
        "spk_as_emo_audio_16k": own_16k[None],
        "fbank": kaldi_fbank(audio_16k),
    }
    for name, samples in (("spk", audio_16k), ("emo", emotion_16k)):
        features, mask = seamless_features(samples)
        arrays |= {f"{name}_w2v_input_features": features[None], f"{name}_w2v_attention_mask": mask[None]}
    return arrays


def _encoders(tts: IndexTTS2, arrays: Arrays) -> Arrays:
    models = tts.models
    found: Arrays = {}
    for name in ("spk", "emo"):
        features, mask = (torch.from_numpy(arrays[f"{name}_w2v_{n}"]) for n in ("input_features", "attention_mask"))
        states = list(models.w2v_bert.hidden_states(features, mask))
        found |= {f"{name}_w2v_hidden17": states[-1], f"{name}_cond_emb": models.feature_statistics(states[-1])}
        if name == "spk":
            found |= {"spk_w2v_feature_projection": states[0], "spk_w2v_layer0": states[1]}
    found["spk_as_emo_cond_emb"] = stages.semantic_features(models, arrays["spk_as_emo_audio_16k"][0])
    features = found["spk_cond_emb"]
    latents = models.codec.encode(features)
    codes, embedding = models.codec.quantize(features)
    projected = models.codec.vector_quantizer.in_project(latents).transpose(1, 2)
    found |= {"codec_encoder_out": latents, "codec_z_e": projected, "ref_codes": codes, "S_ref": embedding}
    speaker = models.campplus
    fbank = torch.from_numpy(arrays["fbank"])
    with recording(
        head=speaker.head,
        tdnn=speaker.xvector["tdnn"],
        block1=speaker.xvector["block1"],
        stats__in=speaker.xvector["dense"],
    ) as seen:
        found["style"] = speaker((fbank - fbank.mean(dim=0))[None])
    for name in ("tdnn", "block1"):
        seen[name] = seen[name].transpose(1, 2)
    return found | {f"camp_{name.removesuffix('__in')}": value for name, value in seen.items()}


def _conditioning(tts: IndexTTS2, reference: Reference, arrays: Arrays) -> Arrays:
    models, gpt = tts.models, tts.models.gpt
    voice = stages.encode_voice(models, reference.speaker, Run())
    conformer = gpt.conditioning_encoder
    with recording(embed__in=conformer.encoders[0], layer0=conformer.encoders[0], encoder=conformer) as seen:
        latents = gpt.speaker_latents(arrays["spk_cond_emb"])
    found: Arrays = {f"cond_{name.removesuffix('__in')}": value for name, value in seen.items()}
    with recording(encoder=gpt.emo_conditioning_encoder, perceiver=gpt.emo_perceiver_encoder) as seen:
        other = gpt.emotion_vector(arrays["emo_cond_emb"])
    found |= {f"emo_{name}": value for name, value in seen.items()}
    own, as_emotion = gpt.emotion_vector(arrays["spk_cond_emb"]), gpt.emotion_vector(arrays["spk_as_emo_cond_emb"])
    base = merge_emotion_vectors(own, as_emotion, 1.0)
    weights = reference.emotion_weights
    matrix = tts.loaded.emotion_matrix
    zero = torch.zeros_like(base)
    found |= {
        "ref_mel": voice.prompt_mel,
        "prompt_condition": voice.prompt_condition,
        "speech_conditioning_latent": latents,
        "emovec_emo": other,
        "emovec_spk": own,
        **{f"emovec_alpha{a}": merge_emotion_vectors(own, other, a) for a in reference.plan["alphas"]},
        "emo_vector": weights,
        "emo_vector_index": np.array(matrix.nearest_rows(arrays["style"])),
        "emo_vector_mat": matrix.blend(weights.tolist(), arrays["style"], zero),
        "emo_vector_base": base,
        "emo_vector_emovec": matrix.blend(weights.tolist(), arrays["style"], base),
    }
    return found


@dataclass
class Decoded:
    """A decoding run with what it saw on the way."""

    generation: Generation
    logits: list[Tensor]
    scores: list[Tensor]
    beam_indices: list[int]


def _decode(tts: IndexTTS2, prefix: Tensor, config: GenerationConfig, seed: int | None = None) -> Decoded:
    logits: list[Tensor] = []
    scores: list[Tensor] = []
    steps: list[tuple[list[int], list[Node]]] = []
    kinds = (SingleDecoder, BeamDecoder)
    originals = {kind: kind.accept for kind in kinds}
    process = _History.scores

    def spy_scores(self: Any, values: Tensor, new_tokens: int) -> Tensor:
        scores.append(process(self, values, new_tokens))
        return scores[-1]

    def spy_accept(self: Any, values: Tensor, states: Tensor | None) -> None:
        logits.append(values)
        originals[type(self)](self, values, states)
        if isinstance(self, BeamDecoder):
            steps.append((list(self.parents), list(self._nodes)))

    try:
        _History.scores = spy_scores
        for kind in kinds:
            kind.accept = spy_accept
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        request = Request(tts.models.gpt, prefix, config, generator)
        while not request.finished:
            advance(tts.models.gpt, [request])
    finally:
        _History.scores = process
        for kind in kinds:
            kind.accept = originals[kind]
    nodes = path(request.decoder.outcome().node)
    indices = [
        parents[next(i for i, n in enumerate(running) if n is node)]
        for node, (parents, running) in zip(nodes, steps, strict=False)
    ]
    return Decoded(request.result(), logits, scores, indices)


def _row(generation: Generation, stop: int) -> Tensor:
    """The codes as the official call returns them: with the stop token unless the limit was reached."""
    codes = generation.codes.tolist()
    return torch.tensor([codes if generation.hit_limit else [*codes, stop]])


def _decoding(tts: IndexTTS2, reference: Reference, arrays: Arrays) -> Arrays:
    gpt, plan = tts.models.gpt, reference.plan

    def prefix(text: str, segment: int, emotion: dict[str, Any]) -> Tensor:
        pieces = tts.text_segments(reference.texts[text]["text"], InferenceConfig())[segment]
        assert pieces.ids.tolist() == reference.texts[text]["segment_ids"][segment]
        name = "emo_vector_emovec" if emotion.get("vector") else f"emovec_alpha{emotion['audio_alpha']}"
        return gpt.prefix(gpt.conditioning(arrays["speech_conditioning_latent"], arrays[name]), pieces.ids)

    found: Arrays = {}
    for run in plan["runs"]:
        decoded = _decode(tts, prefix(run["text"], run["segment"], run["emotion"]), _plain(run))
        found[run["array"]] = _row(decoded.generation, gpt.config.stop_mel_token)
        if "score" in run:
            found[run["score"]] = np.array([decoded.generation.score], dtype=np.float32)
        if "first_logits" in run:
            found[run["first_logits"]] = decoded.logits[0]
        if run["array"] == "greedy_rp1":
            best = torch.cat(decoded.logits).topk(2).values
            found |= {"gpt_logits_step0": decoded.logits[0], "gpt_logits_step1": decoded.logits[1],
                      "gpt_logits_last": decoded.logits[-1], "greedy_rp1_margin": best[:, 0] - best[:, 1]}  # fmt: skip
        if run["array"] == "greedy_rp10":
            found["greedy_rp10_logits"] = torch.cat([decoded.logits[i] for i in LOGIT_STEPS])
    main = prefix(plan["main_text"], 0, plan["main_emotion"])
    return found | _samples(tts, main) | _prefill(tts, main)


def _plain(run: dict[str, Any]) -> GenerationConfig:
    assert run["decode"] in ("greedy", "beam_search")
    return GenerationConfig(
        do_sample=False,
        num_beams=run.get("num_beams", 1),
        length_penalty=run.get("length_penalty", 0.0),
        repetition_penalty=run["repetition_penalty"],
        max_mel_tokens=run["steps"],
    )


def _samples(tts: IndexTTS2, main: Tensor) -> Arrays:
    found: Arrays = {}
    for beams in (1, 3):
        config = GenerationConfig(num_beams=beams, max_mel_tokens=4, **SAMPLED)
        decoded = _decode(tts, main, config, SAMPLE_SEED)
        found[f"sample_nb{beams}_codes"] = _row(decoded.generation, tts.models.gpt.config.stop_mel_token)
        for step in (0, 1):
            found[f"sample_nb{beams}_scores{step}"] = decoded.scores[step]
        if beams == 3:
            # The official call pads to the longest sequence it could have made: prefix, start token, four codes.
            padding = [-1] * (main.shape[1] + 1 + 4 - len(decoded.beam_indices))
            found["sample_nb3_beam_indices"] = np.array([[*decoded.beam_indices, *padding]])
    return found


def _prefill(tts: IndexTTS2, main: Tensor) -> Arrays:
    """States of one parallel pass over prefix and start token."""
    gpt = tts.models.gpt
    start = torch.tensor([[gpt.config.start_mel_token]])
    rows = torch.cat([main, gpt.embed_codes(start, torch.zeros_like(start))], dim=1)
    with recording(h0=gpt.gpt.h[0]) as seen:
        last = gpt.gpt(rows)
    return {"gpt_prefill_emb": main, "gpt_prefill_h0": seen["h0"], "gpt_prefill_last": last}


def _synthesis(tts: IndexTTS2, reference: Reference, arrays: Arrays) -> Arrays:
    models, plan = tts.models, reference.plan
    codes = arrays[plan["downstream_codes"]]
    main = reference.texts[plan["main_text"]]["segment_ids"][0]
    emotion = plan["main_emotion"]
    name = "emo_vector_emovec" if emotion.get("vector") else f"emovec_alpha{emotion['audio_alpha']}"
    conditioning = models.gpt.conditioning(arrays["speech_conditioning_latent"], arrays[name])
    prompt = models.gpt.prefill(models.gpt.prefix(conditioning, torch.tensor(main)))
    latents = models.gpt.latents(prompt, codes[0])
    frames = stages.target_frames(models, codes.shape[1])
    condition = stages.codes_to_condition(models, stages.Codes(codes, latents, False), frames)
    found: Arrays = {
        "gpt_latent": latents,
        "gpt_layer_out": models.latent_projection(latents),
        "vq2emb": models.codec.embed(codes),
        "target_length": np.array([frames]),
        "cond": condition,
    }
    found |= _flow(tts, reference, arrays, condition)
    vocoder = models.bigvgan
    with recording(
        conv_pre=vocoder.conv_pre,
        ups0=vocoder.ups[0],
        resblock0=vocoder.resblocks[0],
        ups_last=vocoder.ups[-1],
        conv_post=vocoder.conv_post,
    ) as seen:
        wav = vocoder(found["mel"])
    found |= {f"bv_{name}": value for name, value in seen.items()}
    return found | {"wav": wav, "wav_int16": pcm16(wav[0, 0].numpy())[None]}


def _flow(tts: IndexTTS2, reference: Reference, arrays: Arrays, condition: Tensor) -> Arrays:
    models, flow = tts.models, reference.plan["flow"]
    dit = models.dit
    prompt_mel = arrays["ref_mel"]
    mu = torch.cat([arrays["prompt_condition"], condition], dim=1)
    noise = torch.from_numpy(reference.noise(flow["noise_key"], (1, prompt_mel.shape[1], mu.shape[1])))
    states: list[Tensor] = []
    velocities: list[Tensor] = []

    def on_step(_step: int, state: Tensor, velocity: Tensor) -> None:
        states.append(state.clone())
        velocities.append(velocity.clone())

    with recording(
        t1=dit.t_embedder,
        x_in__in=dit.transformer,
        layer0=dit.transformer.layers[0],
        transformer=dit.transformer,
        skip_linear=dit.skip_linear,
        wavenet=dit.wavenet,
        final_layer=dit.final_layer,
    ) as seen:
        whole = integrate(
            dit, mu, prompt_mel, arrays["style"], noise, steps=flow["steps"], cfg_rate=flow["cfg_rate"],
            all_frames=True, on_step=on_step,
        )  # fmt: skip
    found: Arrays = {f"dit_{name.removesuffix('__in')}": value for name, value in seen.items()}
    found["dit_wavenet"] = found["dit_wavenet"].transpose(1, 2)
    # We embed each time once for both branches of the guidance pair.
    found["dit_t1"] = found["dit_t1"][:1].expand(2, -1)
    for step in flow["recorded_steps"]:
        found |= {f"cfm_x_step{step}": states[step], f"cfm_v_step{step}": velocities[step]}
    # The pipeline computes only the frames that count; the result must be that of all frames.
    config = InferenceConfig(steps=flow["steps"], cfg_rate=flow["cfg_rate"]).resolved(models.config)
    mel = stages.condition_to_mel(
        models, arrays["prompt_condition"], prompt_mel, arrays["style"], condition, noise, config, Run()
    )
    return found | {"cfm_noise_head": noise[:, :, :16], "cfm_out_full": whole, "mel": mel}
