"""`/v1/audio/voices`: list, upload and delete; and `/v1/models`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, File, Form, Request, UploadFile

from indextts2.errors import UsageError
from indextts2.server.errors import ApiError, as_api_error
from indextts2.server.intake import EncodedAudio
from indextts2.server.openapi import ERRORS
from indextts2.server.responses import ClientGone, while_connected
from indextts2.server.schemas import DeleteAnswer, ModelBody, ModelList, UploadAnswer, UploadedVoiceBody, VoiceList
from indextts2.server.speech import SpeechService
from indextts2.server.voice_names import check_name
from indextts2.server.voices import UploadedVoice

REFUSALS = {"", "0", "false", "no", "none", "null", "off"}
MAX_WORDS = 2000
# The release of this interface: OpenAI's list has a date for each model.
CREATED = 1_767_225_600


def voice_routes(service: SpeechService) -> APIRouter:
    """The routes of voices."""
    router = APIRouter(tags=["voices"])
    library = service.library

    @router.get("/v1/audio/voices", response_model_exclude_none=True, responses=ERRORS)
    def list_voices() -> VoiceList:
        """Names of all voices, and what is known of the uploaded ones."""
        uploaded = [_body(service, voice) for voice in library.registry.all()]
        return VoiceList(voices=library.names(), uploaded_voices=uploaded)

    @router.post("/v1/audio/voices", response_model_exclude_none=True, responses=ERRORS)
    async def upload_voice(
        request: Request,
        audio_sample: Annotated[UploadFile, File(description="1 to 30 s of clear speech")],
        name: Annotated[str, Form(min_length=1, max_length=1000)],
        consent: Annotated[str, Form(max_length=MAX_WORDS, description="who allowed this voice to be cloned, and how")],
        ref_text: Annotated[str | None, Form(max_length=MAX_WORDS)] = None,
        speaker_description: Annotated[str | None, Form(max_length=MAX_WORDS)] = None,
    ) -> UploadAnswer:
        """Make a voice of a recording. `consent` says who allowed it and is kept with the voice."""
        facts = {"consent": _consent(consent)} | {
            key: text for key, text in (("ref_text", ref_text), ("speaker_description", speaker_description)) if text
        }
        _check_words(facts)
        checked = _checked(name)
        library.check_free(checked)
        audio = EncodedAudio(await audio_sample.read(), _media_type(audio_sample))
        try:
            voice = await while_connected(request.receive, _add(service, checked, audio, facts))
        except ClientGone:
            raise ApiError(499, "the client went away") from None
        return UploadAnswer(success=True, voice=_body(service, voice))

    @router.delete("/v1/audio/voices/{name}", responses=ERRORS)
    def delete_voice(name: str) -> DeleteAnswer:
        """Delete an uploaded voice."""
        try:
            found = library.registry.remove(check_name(name))
        except UsageError:
            found = False
        if not found:
            raise ApiError(404, "there is no uploaded voice of this name", param="name", code="voice_not_found")
        return DeleteAnswer(success=True, message="the voice was deleted")

    return router


def model_routes(service: SpeechService) -> APIRouter:
    """The routes of models: one model, which may have several names."""
    router = APIRouter(tags=["models"])

    def names() -> tuple[str, ...]:
        return (service.settings.model_name, *service.settings.model_aliases)

    @router.get("/v1/models", responses=ERRORS)
    def list_models() -> ModelList:
        """The names that `model` may have; all of them mean the one model."""
        return ModelList(data=[ModelBody(id=name, created=CREATED) for name in names()])

    @router.get("/v1/models/{model}", responses=ERRORS)
    def get_model(model: str) -> ModelBody:
        """One of them."""
        service.check_model(model)
        return ModelBody(id=model, created=CREATED)

    return router


async def _add(service: SpeechService, name: str, audio: EncodedAudio, facts: dict[str, str]) -> UploadedVoice:
    """Decode, encode and keep a voice, as one request among the others."""
    with service.admission.enter():
        try:
            waveform = await service.intake.decode(audio)
        except Exception as error:
            raise as_api_error(error, "audio_sample") from error
        async with service.admission.turn():
            voice = await service.make_voice(waveform)
        facts = {**facts, "file_size": str(len(audio.data)), "mime_type": audio.media_type}
        return await service.in_thread(lambda: service.library.registry.add(name, voice, facts))


def _body(service: SpeechService, voice: UploadedVoice) -> UploadedVoiceBody:
    facts = service.host.facts
    return UploadedVoiceBody(
        name=voice.name,
        consent=voice.consent,
        created_at=voice.created_at,
        file_size=voice.file_size,
        mime_type=voice.mime_type,
        ref_text=voice.ref_text or None,
        speaker_description=voice.speaker_description or None,
        usable=facts is None or facts.fingerprint == voice.model,
    )


def _checked(name: str) -> str:
    try:
        return check_name(name)
    except UsageError as error:
        raise ApiError(400, str(error), param="name", code="invalid_name") from None


def _consent(consent: str) -> str:
    if consent.strip().lower() in REFUSALS:
        raise ApiError(400, "a voice is cloned only with the consent of its owner; say in consent who gave it",
                       param="consent", code="consent_missing")  # fmt: skip
    return consent.strip()


def _check_words(facts: dict[str, str]) -> None:
    """What is kept with a voice must be writable as UTF-8."""
    for key, text in facts.items():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ApiError(400, f"{key} is not valid text", param=key, code="invalid_value") from None


def _media_type(upload: UploadFile) -> str:
    """The type that the client named, if it looks like one."""
    named = (upload.content_type or "").partition(";")[0].strip().lower()
    return named if named.isascii() and named.isprintable() and 0 < len(named) <= 100 else "application/octet-stream"
