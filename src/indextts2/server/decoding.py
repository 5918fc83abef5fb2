"""Decodes one clip in a process of its own: `python -m indextts2.server.decoding SECONDS`, run by `intake`.

Standard input holds the encoded audio; standard output gets one line of JSON, then float32 samples. A decoder that
crashes or eats memory takes only this process down.
"""

from __future__ import annotations

import json
import sys

MEMORY_BYTES = 2 << 30


def limit_resources(cpu_seconds: int) -> None:
    """Bound memory, processor time and written files of this process, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> int:
    """Read, decode, answer."""
    max_seconds, cpu_seconds = float(sys.argv[1]), int(sys.argv[2])
    from indextts2.audio.loader import AudioTooLongError, load_audio
    from indextts2.errors import AudioError

    limit_resources(cpu_seconds)
    out = sys.stdout.buffer
    try:
        audio = load_audio(sys.stdin.buffer.read(), max_seconds=max_seconds)
    except AudioError as error:
        kind = "too_long" if isinstance(error, AudioTooLongError) else "audio"
        out.write(json.dumps({"error": kind, "message": str(error)}).encode() + b"\n")
        return 0
    out.write(json.dumps({"sample_rate": audio.sample_rate, "samples": len(audio.samples)}).encode() + b"\n")
    out.write(audio.samples.astype("<f4").tobytes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
