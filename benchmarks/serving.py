"""Load on a server: latency, first audio, throughput at several numbers of clients, cancelling, and memory.

    python -m benchmarks.serving [--model DIR] [--voice NAME] [--clients 1,2,4,8] [--requests 8]
    python -m benchmarks.serving --clients 1 --requests 1 --soak 500

Starts `indextts2 serve` on a free port, so that its memory can be read, and asks it over HTTP as any client would.
Each client sends its next request when it has all of the last one; each request has a seed of its own, the same
seeds at every number of clients, and its audio is compared with that of the first number of clients. `--soak` sends
short texts in turn and reads the memory after every tenth of them. The last line of the output is all figures as JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from benchmarks.machine import describe
from indextts2.cli.console import say, table

SOAK_TEXTS = (
    "Good morning.",
    "How are you today?",
    "The train leaves at noon.",
    "Thank you, that is very kind.",
    "Please close the window before you go.",
)
SOAK_CLIENTS = 4
SOAK_PARTS = 10
TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps in the warm afternoon sun until evening."
START_SECONDS = 300.0
REQUEST_SECONDS = 600.0
LIVEZ_INTERVAL_SECONDS = 0.1
BYTES_PER_SAMPLE = 2


@dataclass
class Sample:
    """One request: seconds to its first and last byte, the PCM it gave, and what went wrong, if anything."""

    first_audio: float = 0.0
    latency: float = 0.0
    pcm: bytes = b""
    error: str | None = None


@dataclass
class Server:
    """A running server and what is asked of it."""

    process: subprocess.Popen[bytes]
    url: str
    body: dict[str, Any] = field(default_factory=dict)

    def memory_mib(self) -> float:
        """Resident memory of the server."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark, print its tables and JSON, and return the figures."""
    args = _parse(argv)
    with running_server(args) as server:
        facts = httpx.get(f"{server.url}/health").json()
        server.body = {"model": "indextts2", "voice": args.voice, "input": args.text, "response_format": "pcm",
                       "latency": args.latency}  # fmt: skip
        if args.max_codes is not None:
            server.body["max_new_tokens"] = args.max_codes
        rate = facts["sample_rate"]
        speak(server, seed=0)  # warm up
        memory_before = server.memory_mib()
        samples = {}
        for clients in args.clients:
            samples[clients] = load(server, clients, range(args.requests))
            say(f"{clients} clients: {args.requests / samples[clients].seconds:.3f} requests per second")
        cancel = cancel_seconds(server)
        refused = refusal_seconds(server, args.max_running + args.max_waiting)
        soaked = soak(server, args.soak, rate) if args.soak else None
        memory_after = server.memory_mib()
    levels = {clients: summary(level, rate) for clients, level in samples.items()}
    single = levels[args.clients[0]]["requests_per_second"]
    figures = {
        "benchmark": "serving",
        **describe(torch.device(args.device), torch.float32),
        "model": facts["fingerprint"][:16],
        "latency_mode": args.latency,
        "words": len(args.text.split()),
        "levels": {str(clients): level for clients, level in levels.items()},
        "throughput_ratio": {
            str(clients): round(level["requests_per_second"] / single, 3) for clients, level in levels.items()
        },
        "largest_difference": {
            str(clients): largest_difference(level, samples[args.clients[0]]) for clients, level in samples.items()
        },
        "cancel_to_idle_seconds": cancel,
        "refusal_seconds": refused,
        "soak": soaked,
        "memory_mib": {"before": round(memory_before, 1), "after": round(memory_after, 1)},
    }
    report(figures)
    line = json.dumps(figures)
    print(line)
    if args.json:
        with args.json.open("a") as file:
            file.write(line + "\n")
    return figures


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model directory or name [the embedded voice]")
    parser.add_argument("--voice", default="default", help="name of a voice of the server [%(default)s]")
    parser.add_argument("--text", default=TEXT)
    parser.add_argument("--latency", default="exact", choices=["exact", "low-latency"])
    parser.add_argument("--clients", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2, 4, 8])
    parser.add_argument("--requests", type=int, default=8, help="at each number of clients [%(default)s]")
    parser.add_argument("--soak", type=int, default=0, metavar="N",
                        help="further requests with short texts by 4 clients, for the memory [none]")  # fmt: skip
    parser.add_argument("--max-codes", type=int, help="bound on the codes of a segment [the model's]")
    parser.add_argument("--max-running", type=int, default=4)
    parser.add_argument("--max-waiting", type=int, default=16)
    parser.add_argument("--lanes", type=int, help="pieces of work the server computes at a time [its own choice]")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also append the JSON line to this file")
    return parser.parse_args(argv)


@contextmanager
def running_server(args: argparse.Namespace) -> Iterator[Server]:
    """Start the server, wait until it is ready, and stop it gently in the end."""
    with socket.socket() as sock, tempfile.TemporaryDirectory() as voices:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        sock.close()
        command = [sys.executable, "-m", "indextts2.cli.main", "serve", "--port", str(port), "--device", args.device,
                   "--voices-dir", voices, "--max-running", str(args.max_running),
                   "--max-waiting", str(args.max_waiting)]  # fmt: skip
        if args.model:
            command += ["--model", args.model]
        if args.lanes is not None:
            command += ["--lanes", str(args.lanes)]
        environment = {name: value for name, value in os.environ.items() if name != "INDEXTTS2_API_KEY"}
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
        try:
            wait_ready(process, f"http://127.0.0.1:{port}")
            yield Server(process, f"http://127.0.0.1:{port}")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def wait_ready(process: subprocess.Popen[bytes], url: str) -> None:
    """Return when the server is ready; RuntimeError when it ended or took too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"the server is not ready (exit code {process.poll()}); run `indextts2 serve` to see why")


def speak(server: Server, seed: int, text: str | None = None) -> Sample:
    """One request, timed from before the connection to the last byte."""
    body = server.body | {"seed": seed} | ({} if text is None else {"input": text})
    start = time.perf_counter()
    first, parts = 0.0, []
    try:
        with httpx.stream("POST", f"{server.url}/v1/audio/speech", json=body, timeout=REQUEST_SECONDS) as response:
            if response.status_code != 200:
                return Sample(error=f"status {response.status_code}")
            for data in response.iter_raw():
                first = first or time.perf_counter() - start
                parts.append(data)
    except httpx.HTTPError as error:
        return Sample(error=type(error).__name__)
    return Sample(first, time.perf_counter() - start, b"".join(parts))


@dataclass
class Level:
    """Requests by some clients at once, in the order of their seeds, the seconds that all took, and those that
    /livez took meanwhile."""

    samples: list[Sample]
    seconds: float
    livez: list[float] = field(default_factory=list)


def load(server: Server, clients: int, seeds: range, texts: Sequence[str | None] = (None,)) -> Level:
    """A request for each seed by so many clients at once, with the texts in turn."""
    start = time.perf_counter()
    with watching_livez(server) as livez, ThreadPoolExecutor(clients) as pool:
        samples = list(pool.map(lambda seed: speak(server, seed, texts[seed % len(texts)]), seeds))
        seconds = time.perf_counter() - start
    return Level(samples, seconds, livez)


@contextmanager
def watching_livez(server: Server) -> Iterator[list[float]]:
    """Ask for /livez again and again during the block; the seconds of each answer."""
    found: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        with httpx.Client(base_url=server.url, timeout=REQUEST_SECONDS) as client:
            while True:
                start = time.perf_counter()
                client.get("/livez").raise_for_status()
                found.append(time.perf_counter() - start)
                if ended.wait(LIVEZ_INTERVAL_SECONDS):
                    return

    with ThreadPoolExecutor(1) as pool:
        watcher = pool.submit(watch)
        try:
            yield found
        finally:
            ended.set()
        watcher.result()


def summary(level: Level, rate: int) -> dict[str, Any]:
    """Throughput, latency and errors of a level."""
    good = [sample for sample in level.samples if sample.error is None]
    audio = sum(len(sample.pcm) for sample in good) / BYTES_PER_SAMPLE / rate
    errors = [sample.error for sample in level.samples if sample.error is not None]
    return {
        "requests": len(level.samples),
        "errors": {error: errors.count(error) for error in sorted(set(errors))},
        "seconds": round(level.seconds, 3),
        "requests_per_second": round(len(good) / level.seconds, 4),
        "audio_seconds_per_second": round(audio / level.seconds, 4),
        "latency_seconds": percentiles([sample.latency for sample in good]),
        "first_audio_seconds": percentiles([sample.first_audio for sample in good]),
        "livez_seconds": percentiles(level.livez),
    }


def largest_difference(level: Level, reference: Level) -> int | None:
    """Largest difference of two samples with the same seed, in steps of 16-bit PCM; None where lengths differ."""
    largest = 0
    for one, other in zip(level.samples, reference.samples, strict=True):
        if len(one.pcm) != len(other.pcm):
            return None
        if one.pcm:
            pcm, expected = (np.frombuffer(sample.pcm, "<i2").astype(np.int32) for sample in (one, other))
            largest = max(largest, int(np.abs(pcm - expected).max()))
    return largest


def soak(server: Server, requests: int, rate: int) -> dict[str, Any]:
    """Short texts by several clients, with the memory (MiB) before and after each part of them."""
    memory, errors, seconds, audio = [server.memory_mib()], 0, 0.0, 0.0
    bounds = [requests * part // SOAK_PARTS for part in range(SOAK_PARTS + 1)]
    for first, end in itertools.pairwise(bounds):
        level = load(server, SOAK_CLIENTS, range(first, end), SOAK_TEXTS)
        errors += sum(sample.error is not None for sample in level.samples)
        audio += sum(len(sample.pcm) for sample in level.samples) / BYTES_PER_SAMPLE / rate
        seconds += level.seconds
        memory.append(server.memory_mib())
    return {
        "requests": requests,
        "clients": SOAK_CLIENTS,
        "errors": errors,
        "seconds": round(seconds, 1),
        "audio_seconds": round(audio, 1),
        "memory_mib": [round(value, 1) for value in memory],
    }


def percentiles(values: list[float]) -> dict[str, float]:
    """Median, 95th percentile and maximum."""
    if len(values) < 2:
        return {name: round(value, 3) for value in values for name in ("p50", "p95", "max")}
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return {"p50": round(cuts[9], 3), "p95": round(cuts[18], 3), "max": round(max(values), 3)}


def busy(server: Server) -> int:
    """Requests that run or wait."""
    health = httpx.get(f"{server.url}/health").json()
    return int(health["running"]) + int(health["waiting"])


def cancel_seconds(server: Server, times: int = 5) -> dict[str, float]:
    """From the moment a client leaves to the moment the server is idle."""
    found = []
    for _ in range(times):
        with abandoned_request(server):
            while not busy(server):
                time.sleep(0.005)
            time.sleep(0.1)
        start = time.perf_counter()
        while busy(server):
            time.sleep(0.005)
        found.append(time.perf_counter() - start)
    return percentiles(found)


def refusal_seconds(server: Server, places: int, times: int = 10) -> dict[str, float]:
    """How fast a request too many is told so, while all places are taken."""
    found = []
    with httpx.Client(base_url=server.url) as client:
        stack = [abandoned_request(server) for _ in range(places)]
        for request in stack:
            request.__enter__()
        while busy(server) < places:
            time.sleep(0.005)
        for _ in range(times):
            start = time.perf_counter()
            status = client.post("/v1/audio/speech", json=server.body).status_code
            if status == 429:
                found.append(time.perf_counter() - start)
        for request in stack:
            request.__exit__(None, None, None)
    while busy(server):
        time.sleep(0.01)
    return percentiles(found)


@contextmanager
def abandoned_request(server: Server) -> Iterator[None]:
    """A request whose client leaves at the end of the block without having read the answer."""
    body = json.dumps(server.body).encode()
    host = server.url.removeprefix("http://")
    head = f"POST /v1/audio/speech HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((host.split(":")[0], int(host.split(":")[1]))) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        yield


def report(figures: dict[str, Any]) -> None:
    """The figures as tables on stderr."""
    rows = []
    for clients, level in figures["levels"].items():
        first, latency = level["first_audio_seconds"], level["latency_seconds"]
        numbers = [first.get("p50", 0), first.get("p95", 0), latency.get("p50", 0), latency.get("p95", 0)]
        rows.append(
            [clients, str(level["requests"]), str(sum(level["errors"].values())), f"{level['requests_per_second']:.3f}",
             f"{level['audio_seconds_per_second']:.2f}", f"{figures['throughput_ratio'][clients]:.2f}",
             *(f"{number:.2f}" for number in numbers)]
        )  # fmt: skip
    header = ["clients", "requests", "errors", "per s", "audio s/s", "ratio", "first p50", "p95", "all p50", "p95"]
    say(table(rows, header))
    memory = figures["memory_mib"]
    say(f"cancel to idle: {figures['cancel_to_idle_seconds']} s; refusal: {figures['refusal_seconds']} s")
    livez = {clients: level["livez_seconds"] for clients, level in figures["levels"].items()}
    say(f"livez during load, by clients: {livez} s")
    say(f"largest difference to {next(iter(figures['levels']))} clients, in steps of PCM: "
        f"{figures['largest_difference']}")  # fmt: skip
    say(f"memory: {memory['before']} MiB before, {memory['after']} MiB after")
    if figures["soak"] is not None:
        say(f"soak: {figures['soak']}")


if __name__ == "__main__":
    main()
