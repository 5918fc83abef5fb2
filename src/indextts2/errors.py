"""Typed errors: every message says what failed, the value seen and the remedy."""


class IndexTTS2Error(Exception):
    """Base class of every error that this package raises on purpose."""

    exit_code = 1


class UsageError(IndexTTS2Error):
    """An argument or a combination of arguments makes no sense."""

    exit_code = 2


class TextError(IndexTTS2Error):
    """The text holds nothing that can be spoken, or cannot be read."""

    exit_code = 3


class AudioError(IndexTTS2Error):
    """Audio cannot be read, is not usable as a reference, or cannot be written."""

    exit_code = 4


class ConfigError(IndexTTS2Error):
    """A configuration file or value is missing, unknown or out of range."""

    exit_code = 5


class CheckpointError(IndexTTS2Error):
    """A model directory, file or tensor is missing, unexpected or misshapen."""

    exit_code = 6


class MissingExtraError(IndexTTS2Error):
    """An optional dependency is not installed; the message names the install command."""

    exit_code = 7

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an optional dependency; install it with: pip install 'indextts2[{extra}]'")


class GenerationError(IndexTTS2Error):
    """The model produced nothing that can be turned into sound."""

    exit_code = 8


class ValidationError(IndexTTS2Error):
    """A comparison with golden data could not be made or did not hold."""

    exit_code = 9


class DownloadError(IndexTTS2Error):
    """A file could not be fetched or does not have the expected hash."""

    exit_code = 10


class Cancelled(IndexTTS2Error):
    """The caller asked for the work to stop."""

    exit_code = 130
