"""Evaluation of a trained model: word error, similarity, copy-synthesis, stopping, signal statistics.

Four ways from a held-out clip or a sentence to sound show which stage costs what:

| way | path |
|---|---|
| ``recording`` | the clip itself: the floor of the judges |
| ``vocoder`` | its mel -> vocoder |
| ``codes`` | its codes, and the GPT's latents for them, -> s2mel, prompted by another clip of the speaker -> vocoder |
| ``speech`` | a sentence -> the whole system |
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from indextts2.audio.features import log_mel
from indextts2.audio.resampler import speaker_audio
from indextts2.config import GenerationConfig, InferenceConfig
from indextts2.errors import ConfigError, GenerationError
from indextts2.inference import stages
from indextts2.inference.pipeline import IndexTTS2
from indextts2.inference.progress import Run
from indextts2.training.data import MEL_RATE_HZ, Corpus
from indextts2.training.judges import SpeakerJudge, Transcriber, signal_statistics, word_error_rate
from indextts2.types import Waveform

log = logging.getLogger(__name__)

WAYS = ("recording", "vocoder", "codes", "speech")


@dataclass(frozen=True)
class EvaluationConfig:
    """What to evaluate. `references`: folder with human clips (wav, flac), used by the way `speech` only."""

    output: str
    model: str | None = None
    data: str | None = None
    references: str | None = None
    sentences: tuple[str, ...] = ()
    ways: tuple[str, ...] = WAYS
    speakers: int = 6
    clips_per_speaker: int = 4
    # Shorter clips say too little about word error and speaker.
    min_clip_seconds: float = 2.0
    sentences_per_speaker: int = 10
    whisper: str = "base"
    seed: int = 1
    save_audio: bool = False
    inference: InferenceConfig = field(default_factory=InferenceConfig)

    def __post_init__(self) -> None:
        unknown = set(self.ways) - set(WAYS)
        if unknown:
            raise ConfigError(f"unknown ways {sorted(unknown)}; known are {', '.join(WAYS)}")
        if "speech" in self.ways and not self.sentences:
            raise ConfigError("the way speech needs sentences")


@dataclass(frozen=True)
class Item:
    """One utterance to judge; `own` is the key of its speaker."""

    way: str
    own: str
    text: str
    samples: np.ndarray
    sample_rate_hz: int
    # Real-time factor and limit of the synthesis, where there was one.
    rtf: float | None = None
    hit_limit: bool = False


class Evaluation:
    """A model with the reference recordings of all speakers."""

    def __init__(self, config: EvaluationConfig) -> None:
        self.config = config
        self.tts = IndexTTS2.from_pretrained(config.model)
        self.corpus = Corpus(Path(config.data)) if config.data else None
        self.references: dict[str, Waveform] = {}
        self.reference_clips: dict[str, int] = {}
        if self.corpus is not None:
            self._choose_references(self.corpus)
        if config.references:
            self._read_references(Path(config.references))

    def _choose_references(self, corpus: Corpus) -> None:
        """The longest clip of each held-out speaker."""
        speakers = sorted({corpus.clips[i].speaker for i in corpus.held_out})[: self.config.speakers]
        for speaker in speakers:
            clip = max(corpus.by_speaker[speaker], key=lambda i: corpus.clips[i].seconds)
            self.reference_clips[speaker] = clip
            self.references[speaker] = Waveform(corpus.audio(clip), MEL_RATE_HZ)

    def _read_references(self, folder: Path) -> None:
        from indextts2.audio.loader import load_reference

        for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in (".wav", ".flac")):
            self.references[path.stem] = load_reference(path)

    def items(self) -> Iterator[Item]:
        """Everything that the configuration asks for, one utterance at a time."""
        for way in self.config.ways:
            yield from self._speech() if way == "speech" else self._copies(way)

    def _copies(self, way: str) -> Iterator[Item]:
        if self.corpus is None:
            raise ConfigError(f"the way {way} needs a prepared corpus")
        for speaker, reference in self.reference_clips.items():
            others = [i for i in self.corpus.by_speaker[speaker] if i != reference]
            long_enough = [i for i in others if self.corpus.clips[i].seconds >= self.config.min_clip_seconds]
            for clip in long_enough[: self.config.clips_per_speaker]:
                samples = self._copy(way, self.corpus, speaker, clip)
                yield Item(way, speaker, self.corpus.clips[clip].text, samples, MEL_RATE_HZ)

    def _copy(self, way: str, corpus: Corpus, speaker: str, clip: int) -> np.ndarray:
        """One clip by the way `recording`, `vocoder` or `codes`."""
        wave = Waveform(corpus.audio(clip), MEL_RATE_HZ)
        if way == "recording":
            return wave.samples
        models = self.tts.models
        with torch.inference_mode():
            if way == "vocoder":
                mel = torch.from_numpy(log_mel(wave.samples, models.config.s2mel.mel))[None].to(models.device)
                return stages.mel_to_waveform(models, mel)
            return self._resynthesise(wave, corpus.clips[clip].text, speaker)

    def _resynthesise(self, wave: Waveform, text: str, speaker: str) -> np.ndarray:
        """Codes of a recording and the latents of its text and codes -> s2mel with another prompt -> vocoder."""
        tts, models = self.tts, self.tts.models
        config = self.config.inference.resolved(models.config)
        voice = tts.voice(self.references[speaker])
        _, audio_16k = speaker_audio(wave, models.config.s2mel.mel.sample_rate)
        codes, _ = models.codec.quantize(stages.semantic_features(models, audio_16k))
        ids = torch.cat([segment.ids for segment in tts.text_segments(text, config)])
        emotion = tts.emotion_vector(voice, None, text)
        conditioning = models.gpt.conditioning(voice.speaker_latents, emotion).to(models.gpt_dtype)
        prompt = models.gpt.prefill(models.gpt.prefix(conditioning, ids), extra_rows=codes.shape[1])
        latents = models.gpt.latents(prompt, codes[0]).float()
        frames = stages.target_frames(models, codes.shape[1])
        condition = stages.codes_to_condition(models, stages.Codes(codes, latents, False), frames)
        generator = torch.Generator().manual_seed(self.config.seed)
        noise = stages.draw_noise(models, voice.prompt_mel.shape[-1] + frames, config, generator)
        mel = stages.condition_to_mel(
            models, voice.prompt_condition, voice.prompt_mel, voice.style, condition, noise, config, Run()
        )
        return stages.mel_to_waveform(models, mel)

    def _speech(self) -> Iterator[Item]:
        """Every reference speaker reads his share of the sentences."""
        count = self.config.sentences_per_speaker
        for number, (speaker, reference) in enumerate(self.references.items()):
            for i in range(count):
                text = self.config.sentences[(number * count + i) % len(self.config.sentences)]
                config = replace(self.config.inference, seed=self.config.seed + i)
                try:
                    result = self.tts.infer(text, reference, config=config)
                except GenerationError as error:
                    log.warning("%s: %r gave nothing: %s", speaker, text, error)
                    yield Item("speech", speaker, text, np.zeros(MEL_RATE_HZ, np.float32), MEL_RATE_HZ)
                    continue
                limit = any(segment.hit_limit for segment in result.segments)
                yield Item("speech", speaker, text, result.samples, result.sample_rate, result.rtf, limit)


def judge(evaluation: Evaluation, items: Iterator[Item]) -> Iterator[dict[str, object]]:
    """One row of figures per utterance; audio is saved beside the report when the configuration says so."""
    config = evaluation.config
    transcriber, speakers = Transcriber(config.whisper), SpeakerJudge()
    references = {k: speakers.embed(w.samples, w.sample_rate) for k, w in evaluation.references.items()}
    counts: Counter[str] = Counter()
    for item in items:
        row: dict[str, object] = {"way": item.way, "speaker": item.own, "text": item.text}
        row["heard"] = transcriber.transcribe(item.samples, item.sample_rate_hz)
        similarities = _similarities(speakers, item, references)
        row["similarity"] = similarities.get(item.own, 0.0)
        row["nearest_is_own"] = bool(similarities) and max(similarities, key=similarities.__getitem__) == item.own
        row |= signal_statistics(item.samples, item.sample_rate_hz)
        row |= {"seconds": len(item.samples) / item.sample_rate_hz, "rtf": item.rtf, "hit_limit": item.hit_limit}
        if config.save_audio:
            _save(Path(config.output) / "audio" / f"{item.way}-{item.own}-{counts[item.own + item.way]}.wav", item)
        counts[item.own + item.way] += 1
        yield row


def _similarities(speakers: SpeakerJudge, item: Item, references: dict[str, np.ndarray]) -> dict[str, float]:
    """Cosine to every reference speaker; empty where nothing is audible."""
    if not np.any(np.abs(item.samples) > 1e-3):
        return {}
    vector = speakers.embed(item.samples, item.sample_rate_hz)
    return {key: float(vector @ reference) for key, reference in references.items()}


def _save(path: Path, item: Item) -> None:
    from indextts2.audio.writer import write_audio

    path.parent.mkdir(parents=True, exist_ok=True)
    write_audio(path, item.samples, item.sample_rate_hz)


def summarise(rows: Sequence[dict[str, object]], group: Sequence[str] = ("way",)) -> list[dict[str, object]]:
    """Word error and means of all figures per group of rows."""
    summary = []
    for key in dict.fromkeys(tuple(row[name] for name in group) for row in rows):
        part = [row for row in rows if tuple(row[name] for name in group) == key]
        figures: dict[str, object] = dict(zip(group, key, strict=True))
        figures["utterances"] = len(part)
        figures["word_error"] = word_error_rate([str(r["text"]) for r in part], [str(r["heard"]) for r in part])
        for name in part[0]:
            values = [row[name] for row in part if isinstance(row[name], (bool, int, float))]
            if values:
                figures[name] = round(float(np.mean([float(v) for v in values])), 4)  # type: ignore[arg-type]
        summary.append(figures)
    return summary


def run_evaluation(config: EvaluationConfig) -> list[dict[str, object]]:
    """Evaluate, write ``rows.jsonl`` and ``report.json`` into ``config.output``, return the summary per way."""
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    evaluation = Evaluation(config)
    rows = []
    with (output / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in judge(evaluation, evaluation.items()):
            rows.append(row)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            log.info("%s %s: %r heard as %r, %.2f", row["way"], row["speaker"], row["text"], row["heard"],
                     row["similarity"])  # fmt: skip
    report = {"config": asdict(config), "ways": summarise(rows), "speakers": summarise(rows, ("way", "speaker"))}
    (output / "report.json").write_text(json.dumps(report, indent=1, default=str), encoding="utf-8")
    return summarise(rows)


def count_stops(
    tts: IndexTTS2, references: Sequence[Waveform], sentences: Sequence[str], generation: GenerationConfig | None = None
) -> dict[str, float]:
    """Decode `sentences` to codes only, in turn for each reference: how many run on, how many are empty.

    Returns:
        `sentences`, `run_on` (limit reached), `empty`, `codes_per_piece` (mean over those that stopped).
    """
    config = InferenceConfig(generation=generation).resolved(tts.config)
    result = {"sentences": 0.0, "run_on": 0.0, "empty": 0.0}
    rates: list[float] = []
    with torch.inference_mode():
        for number, text in enumerate(sentences):
            voice = tts.voice(references[number % len(references)])
            generator = torch.Generator().manual_seed(number)
            emotion = tts.emotion_vector(voice, None, text)
            for segment in tts.text_segments(text, config):
                result["sentences"] += 1
                try:
                    codes = stages.segment_to_codes(
                        tts.models, voice.speaker_latents, emotion, segment, config, generator, Run()
                    )
                except GenerationError:
                    result["empty"] += 1
                    continue
                result["run_on"] += codes.hit_limit
                rates.append(codes.codes.shape[1] / len(segment.pieces))
    result["codes_per_piece"] = float(np.mean(rates)) if rates else float("nan")
    return result
