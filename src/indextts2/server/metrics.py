"""Prometheus figures of one server, under the names that other speech servers use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from indextts2.server.admission import Admission
from indextts2.server.model_host import ModelHost

PREFIX = "indextts2"
LATENCY_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128)
RTF_BUCKETS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 4, 8, 16)

REASONS = {
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    408: "timeout",
    409: "conflict",
    413: "too_large",
    429: "queue_full",
    499: "cancelled",
    503: "unavailable",
}
CLIENT_GONE = 499


@dataclass(kw_only=True)
class Sound:
    """What has been made of one request, and when."""

    start: float = field(default_factory=monotonic)
    first_audio: float | None = None
    samples: int = 0
    sample_rate: int = 0

    def add(self, samples: int, sample_rate: int) -> None:
        """Count a chunk."""
        if self.first_audio is None:
            self.first_audio = monotonic() - self.start
        self.samples += samples
        self.sample_rate = sample_rate

    @property
    def duration(self) -> float:
        """Seconds of audio."""
        return self.samples / self.sample_rate if self.samples else 0.0

    def log_fields(self) -> dict[str, float | None]:
        """Seconds for a line of the log."""
        return {
            "seconds": round(monotonic() - self.start, 3),
            "first_audio_seconds": self.first_audio and round(self.first_audio, 3),
            "audio_seconds": round(self.duration, 3),
        }


class Metrics:
    """Counters and histograms; gauges are read when somebody asks."""

    def __init__(self, admission: Admission, host: ModelHost) -> None:
        self.registry = CollectorRegistry()
        self._gauge("requests_running", "Requests that are spoken", lambda: admission.running)
        self._gauge("requests_waiting", "Requests that wait for their turn", lambda: admission.waiting)
        self._gauge("model_loaded", "1 while the model is in memory", lambda: int(host.loaded))
        self._gauge("model_loads", "How often the model was loaded", lambda: host.loads)
        self.finished = self._counter("success", "Requests that began to speak", "finished_reason")
        self.skipped = self._counter("skipped", "Requests that ended before the first sound", "reason")
        self.latency = self._histogram("e2e_latency_seconds", "From the request to its last byte", LATENCY_SECONDS)
        self.first_audio = self._histogram("time_to_first_audio_seconds", "To the first sample", LATENCY_SECONDS)
        self.duration = self._histogram("audio_duration_seconds", "Audio made by a request", LATENCY_SECONDS)
        self.rtf = self._histogram("rtf", "Seconds of work per second of audio", RTF_BUCKETS)

    def spoken(self, sound: Sound, reason: str) -> None:
        """Count what was heard; a request that ended before that is told to `refused`."""
        if sound.first_audio is None:
            return
        self.finished.labels(reason).inc()
        self.first_audio.observe(sound.first_audio)
        self.duration.observe(sound.duration)
        if reason == "stop" and sound.duration:
            seconds = monotonic() - sound.start
            self.latency.observe(seconds)
            self.rtf.observe(seconds / sound.duration)

    def refused(self, status: int) -> None:
        """Count a request that ended with this status before anything was heard."""
        self.skipped.labels(REASONS.get(status, "error" if status >= 500 else "invalid")).inc()

    def ended(self, sound: Sound | None, status: int) -> None:
        """Count how a session or an item of a batch ended before its `sound` was heard; not the end of an idle one."""
        if (sound is None or sound.first_audio is None) and not (sound is None and status == CLIENT_GONE):
            self.refused(status)

    def text(self) -> bytes:
        """All figures in the exposition format."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        Gauge(f"{PREFIX}_{name}", help_text, registry=self.registry).set_function(read)

    def _counter(self, name: str, help_text: str, label: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", help_text, [label], registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", help_text, buckets=buckets, registry=self.registry)
