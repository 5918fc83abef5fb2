"""Serve speech over HTTP: OpenAI's endpoints, a websocket, a web page, and Wyoming for Home Assistant."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from indextts2.cli import options
from indextts2.cli.console import say
from indextts2.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from indextts2.inference.engine import SpeechEngine
    from indextts2.server.settings import ServerSettings


def add_options(parser: argparse.ArgumentParser) -> None:
    from indextts2.server.settings import API_KEY_VARIABLE, ServerSettings

    defaults = ServerSettings.__dataclass_fields__
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on [%(default)s: this machine only]")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on [%(default)s]")
    options.add_model_options(parser)
    options.add_preset_option(parser)
    group = parser.add_argument_group("access")
    group.add_argument(
        "--api-key", action="append", metavar="KEY",
        help=f"a key that clients must send; may be given again. Better in {API_KEY_VARIABLE} (several with commas): "
        "command lines can be seen by others",
    )  # fmt: skip
    group.add_argument(
        "--allow-public-without-key", action="store_true", help="listen on a public address without any key"
    )
    group.add_argument("--allowed-origin", action="append", default=[], metavar="URL",
                       help="web pages of this origin may call the server [none]")  # fmt: skip
    group.add_argument("--allowed-host", action="append", default=[], metavar="NAME",
                       help="further name under which a server without key is called [localhost only]")  # fmt: skip
    group.add_argument("--allow-remote-audio", action="store_true", help="fetch reference audio from public addresses")
    group = parser.add_argument_group("load")
    for name, text in {
        "max-running": "requests spoken at the same time",
        "max-waiting": "further requests that may wait",
        "queue-seconds": "longest wait for a turn",
        "shutdown-seconds": "time for work in hand when told to stop",
    }.items():
        field = defaults[name.replace("-", "_")]
        kind = options.number if name.endswith("seconds") else int
        group.add_argument(f"--{name}", type=kind, default=field.default, metavar="N", help=f"{text} [%(default)s]")
    group.add_argument("--lanes", type=int, metavar="N",
                       help="pieces of work computed at a time, among which the cores are divided "
                            "[one for each core; with a GPU 1]")  # fmt: skip
    group.add_argument("--idle-unload", type=options.number, metavar="SECONDS",
                       help="free the model's memory after so long without a request [never]")  # fmt: skip
    group = parser.add_argument_group("voices")
    group.add_argument("--voices-dir", type=Path, metavar="DIR", help="uploaded voices [in the user's data directory]")
    group.add_argument("--max-voices", type=int, default=100, metavar="N", help="how many of them [%(default)s]")
    group.add_argument("--voice-alias", action="append", default=[], metavar="NAME=VOICE",
                       help="a further name of a voice, for clients that know only certain names")  # fmt: skip
    group = parser.add_argument_group("more")
    group.add_argument("--no-page", action="store_true", help="do not serve the web page")
    group.add_argument("--wyoming-port", type=int, metavar="N", help="also speak Wyoming on this port [off]")
    group.add_argument("--wyoming-host", metavar="HOST", help="on this address [that of --host]")


def run(args: argparse.Namespace) -> int:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("the server", "server") from error
    from indextts2.server.caches import bound_caches

    bound_caches()  # before torch is loaded
    from indextts2.server.app import create_app
    from indextts2.server.context import configure_logging
    from indextts2.server.run import prepare, serve

    settings = server_settings(args)
    configure_logging(args.verbose)

    cold = True

    def make_engine() -> SpeechEngine:
        nonlocal cold
        from indextts2.inference.engine import SpeechEngine
        from indextts2.server.warm_up import warm_up

        tts = options.load_tts(args)
        if cold:  # after an idle unload a request waits for the model already
            warm_up(tts, settings.preset, settings.max_running)
            cold = False
        return SpeechEngine(tts, max_running=settings.max_running, lanes=settings.lanes)

    app = create_app(settings, make_engine)
    listening = prepare(app)
    port = listening.getsockname()[1]
    say(f"indextts2 serve: http://{settings.host}:{port} (ready when /readyz says so; Ctrl-C stops it)")
    return serve(app, listening)


def server_settings(args: argparse.Namespace) -> ServerSettings:
    """The options as settings.

    Raises:
        UsageError: they make no sense, or would open the server to others without a key.
    """
    from indextts2.server.settings import ServerSettings, default_voices_directory, keys_from_environment

    return ServerSettings(
        host=args.host,
        port=args.port,
        api_keys=tuple(args.api_key or keys_from_environment()),
        allow_public_without_key=args.allow_public_without_key,
        allowed_origins=tuple(args.allowed_origin),
        allowed_hosts=tuple(args.allowed_host),
        voices_directory=args.voices_dir or default_voices_directory(),
        voice_aliases=dict(_alias(text) for text in args.voice_alias),
        max_voices=args.max_voices,
        preset=args.preset or "exact",
        max_running=args.max_running,
        max_waiting=args.max_waiting,
        lanes=args.lanes,
        queue_seconds=args.queue_seconds,
        shutdown_seconds=args.shutdown_seconds,
        idle_unload_seconds=args.idle_unload,
        allow_remote_audio=args.allow_remote_audio,
        serve_page=not args.no_page,
        wyoming_port=args.wyoming_port,
        wyoming_host=args.wyoming_host,
    )


def _alias(text: str) -> tuple[str, str]:
    name, equals, voice = text.partition("=")
    if not (name and equals and voice):
        raise UsageError(f"a voice alias looks like alloy=alice, not {text!r}")
    return name, voice
