"""Prometheus figures of one server, under the names that other speech servers use."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from indextts2.server.admission import Admission
from indextts2.server.model_host import ModelHost

PREFIX = "indextts2"
LATENCY_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128)
RTF_BUCKETS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 4, 8, 16)


class Metrics:
    """Counters and histograms; gauges are read when somebody asks."""

    def __init__(self, admission: Admission, host: ModelHost) -> None:
        self.registry = CollectorRegistry()
        self._gauge("requests_running", "Requests that are spoken", lambda: admission.running)
        self._gauge("requests_waiting", "Requests that wait for their turn", lambda: admission.waiting)
        self._gauge("model_loaded", "1 while the model is in memory", lambda: int(host.loaded))
        self._gauge("model_loads", "How often the model was loaded", lambda: host.loads)
        self.finished = self._counter("success", "Requests that began to speak", "finished_reason")
        self.skipped = self._counter("skipped", "Requests that were refused", "reason")
        self.latency = self._histogram("e2e_latency_seconds", "From the request to its last byte", LATENCY_SECONDS)
        self.first_audio = self._histogram("time_to_first_audio_seconds", "To the first sample", LATENCY_SECONDS)
        self.duration = self._histogram("audio_duration_seconds", "Audio made by a request", LATENCY_SECONDS)
        self.rtf = self._histogram("rtf", "Seconds of work per second of audio", RTF_BUCKETS)

    def text(self) -> bytes:
        """All figures in the exposition format."""
        return generate_latest(self.registry)

    def _gauge(self, name: str, help_text: str, read: Callable[[], float]) -> None:
        Gauge(f"{PREFIX}_{name}", help_text, registry=self.registry).set_function(read)

    def _counter(self, name: str, help_text: str, label: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", help_text, [label], registry=self.registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", help_text, buckets=buckets, registry=self.registry)
