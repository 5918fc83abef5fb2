"""A picture of a result: waveform, mel spectrogram and where the segments lie."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from indextts2.errors import MissingExtraError

if TYPE_CHECKING:
    from indextts2.types import SpeechResult


def plot_result(result: SpeechResult, path: Path) -> Path:
    """Draw `result` into an image file (format by extension) and return its path."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("--plot", "plot") from error
    figure = Figure(figsize=(min(4 + 2 * result.duration, 40), 6), layout="constrained")
    wave, mel = figure.subplots(2, 1)
    seconds = np.arange(len(result.samples)) / result.sample_rate
    wave.plot(seconds, result.samples, linewidth=0.4)
    wave.set(xlim=(0, result.duration), ylim=(-1, 1), ylabel="amplitude", title=result.text[:100].replace("$", r"\$"))
    # The mel has no frames for the silence between segments, so each segment is drawn where it sounds.
    position = 0
    spoken = sum(s.end - s.start for s in result.segments)
    for segment in result.segments:
        frames = round(result.mel.shape[1] * (segment.end - segment.start) / spoken)
        part = result.mel[:, position : position + frames]
        position += frames
        mel.imshow(
            part,
            origin="lower",
            aspect="auto",
            extent=(segment.start, segment.end, 0, part.shape[0]),
            vmin=result.mel.min(),
            vmax=result.mel.max(),
        )
        for axes in (wave, mel):
            axes.axvline(segment.start, color="grey", linewidth=0.5)
            axes.axvline(segment.end, color="grey", linewidth=0.5)
    mel.set(xlim=(0, result.duration), ylim=(0, result.mel.shape[0]), xlabel="seconds", ylabel="mel band")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    return path
