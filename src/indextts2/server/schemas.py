"""Bodies of requests and answers. They are checked strictly: a number is no string, and true is no number."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, Strict, field_validator, model_validator

from indextts2.inference.emotion import Emotion

MAX_INPUT_CHARACTERS = 4096
MAX_BATCH_ITEMS = 32
MAX_SEED = 2**63 - 1

AudioFormat = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]
Text = Annotated[str, Strict()]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Whole = Annotated[int, Strict()]
Flag = Annotated[bool, Strict()]
Weight = Annotated[float, Strict(), Field(ge=0.0, le=1.2, allow_inf_nan=False)]


# The second names of fields.
ALIASES = {
    "emo_vector": "emotion_vector",
    "emo_alpha": "emotion_alpha",
    "emo_audio": "emotion_audio",
    "emo_text": "emotion_text",
    "use_emo_text": "use_emotion_text",
    "use_random": "random_emotion",
}
# Of each group one field is used: an item of a batch that gives one takes none of the batch's.
GROUPS = (
    {"voice", "ref_audio"},
    {"emotion", "emotion_vector", "emotion_audio", "emotion_text", "use_emotion_text"},
)


class VoiceReference(BaseModel):
    """A voice by its id, which is its name."""

    id: Annotated[Text, Field(min_length=1, max_length=256)]


def _both(name: str) -> AliasChoices:
    """A field that is known by two names."""
    return AliasChoices(name, *(alias for alias, field in ALIASES.items() if field == name))


class SpeechOptions(BaseModel):
    """How to speak. OpenAI's fields first, then those of this server; unknown ones are named in `X-Ignored-Fields`."""

    model_config = ConfigDict(extra="allow", protected_namespaces=(), populate_by_name=True)

    voice: Annotated[Text, Field(min_length=1, max_length=256)] | VoiceReference | None = Field(
        None, description="the name of a voice; needed unless ref_audio is given"
    )
    instructions: Annotated[Text, Field(max_length=4096)] | None = Field(
        None, description="how to speak, in words; used where the model reads emotion from words"
    )
    response_format: AudioFormat = Field("mp3", description="aac is written where the server has the extra for it")
    speed: Annotated[Number, Field(ge=0.25, le=4.0)] = 1.0
    stream_format: Literal["audio", "sse"] = "audio"
    stream: Flag | None = Field(
        None, description="true (the default): audio is sent while it is made; false: one complete file"
    )
    latency: Literal["exact", "low-latency"] = Field(
        "exact",
        description="exact: a piece of audio per sentence, the same sound as a whole file; low-latency: smaller pieces",
    )
    preset: Literal["exact", "balanced", "fast"] | None = Field(
        None, description="what may be left out for speed; that of the server otherwise"
    )
    seed: Annotated[Whole, Field(ge=-MAX_SEED - 1, le=MAX_SEED)] | None = Field(
        None, description="the same seed gives the same speech; drawn and told in X-Seed otherwise"
    )
    max_new_tokens: Annotated[Whole, Field(ge=1, le=4096)] | None = Field(
        None, description="semantic codes per segment, 50 are a second"
    )
    ref_audio: Text | None = Field(None, description="a voice to clone: data:audio/...;base64,..., 1 to 30 s")
    ref_text: Text | None = Field(None, description="accepted for other servers' clients; not needed, not used")
    language: Text | None = Field(None, description="accepted for other servers' clients; read from the text itself")
    emotion: Annotated[Text, Field(max_length=400)] | None = Field(
        None, description="weights by name, such as happy:0.7,sad:0.2"
    )
    emotion_vector: Annotated[list[Weight], Field(min_length=8, max_length=8)] | None = Field(
        None,
        validation_alias=_both("emotion_vector"),
        description="happy, angry, sad, afraid, disgusted, melancholic, surprised, calm; also emo_vector",
    )
    emotion_alpha: Annotated[Number, Field(ge=0.0, le=2.0)] = Field(
        1.0, validation_alias=_both("emotion_alpha"), description="strength; also emo_alpha"
    )
    emotion_audio: Text | None = Field(
        None,
        validation_alias=_both("emotion_audio"),
        description="speak with the emotion of this recording, a data: URL; also emo_audio",
    )
    emotion_text: Annotated[Text, Field(max_length=4096)] | None = Field(
        None,
        validation_alias=_both("emotion_text"),
        description="emotion in words, where the model reads it; also emo_text",
    )
    use_emotion_text: Flag = Field(
        False,
        validation_alias=_both("use_emotion_text"),
        description="read the emotion from emotion_text, or from the input if there is none; also use_emo_text",
    )
    random_emotion: Flag = Field(
        False,
        validation_alias=_both("random_emotion"),
        description="choose among the model's examples of an emotion by the seed; also use_random",
    )

    @field_validator("emotion")
    @classmethod
    def _check_emotion(cls, value: str | None) -> str | None:
        if value is not None:
            from indextts2.errors import UsageError
            from indextts2.models.emotion.vector import parse_emotion_vector

            try:
                parse_emotion_vector(value)
            except UsageError as error:
                raise ValueError(str(error)) from None
        return value

    @model_validator(mode="after")
    def _check_kinds(self) -> SpeechOptions:
        kinds = [self.emotion, self.emotion_vector, self.emotion_audio, self.emotion_text]
        if sum(kind is not None for kind in kinds) > 1:
            raise ValueError("an emotion is given by one of emotion, emotion_vector, emotion_audio and emotion_text")
        return self

    @property
    def voice_name(self) -> str | None:
        """The name of the voice."""
        return self.voice.id if isinstance(self.voice, VoiceReference) else self.voice

    @property
    def streams(self) -> bool:
        """Whether audio is sent while it is made."""
        return self.stream is not False

    def ignored_fields(self, reads_words: bool) -> list[str]:
        """Names of fields that have no effect here, those that a header can hold."""
        names = ("ref_text", "language") if reads_words else ("ref_text", "language", "instructions")
        unused = [name for name in names if getattr(self, name) is not None]
        unknown = sorted(name for name in self.model_extra or {} if re.fullmatch(r"\w{1,40}", name, re.ASCII))
        return unused + unknown[:20]


class SpeechBody(SpeechOptions):
    """`POST /v1/audio/speech`."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": ["voice"]}, {"required": ["ref_audio"]}]},
    )

    model: Annotated[Text, Field(min_length=1, max_length=256)]
    input: Annotated[Text, Field(min_length=1, max_length=MAX_INPUT_CHARACTERS)]

    @field_validator("input")
    @classmethod
    def _check_input(cls, value: str) -> str:
        return not_blank(value)

    @model_validator(mode="after")
    def _check_voice(self) -> SpeechBody:
        if self.voice is None and self.ref_audio is None:
            raise ValueError("voice: Field required (or ref_audio)")
        return self


class BatchItem(BaseModel):
    """One text of a batch; every other field overrides that of the batch, a voice or an emotion as a whole."""

    model_config = ConfigDict(extra="allow")

    input: Annotated[Text, Field(min_length=1, max_length=MAX_INPUT_CHARACTERS)]

    @field_validator("input")
    @classmethod
    def _check_input(cls, value: str) -> str:
        return not_blank(value)


class BatchBody(SpeechOptions):
    """`POST /v1/audio/speech/batch`: texts, and what is common to them."""

    model: Annotated[Text, Field(min_length=1, max_length=256)]
    items: Annotated[list[BatchItem], Field(min_length=1, max_length=MAX_BATCH_ITEMS)]


def item_body(batch: BatchBody, item: BatchItem) -> SpeechBody:
    """One item as a request of its own: what it says, and of the batch what it leaves open.

    Raises:
        ValidationError: the item says something that no request may.
    """
    common = _by_name(batch.model_dump(exclude={"items"}, exclude_unset=True))
    own = _by_name(item.model_dump(exclude_unset=True))
    for group in GROUPS:
        if any(own.get(name) not in (None, False) for name in group):
            common = {name: value for name, value in common.items() if name not in group}
    return SpeechBody.model_validate(common | own)


def _by_name(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The same fields without second names; where both were given the first name counts."""
    aliased = {ALIASES[name]: value for name, value in fields.items() if name in ALIASES}
    return aliased | {name: value for name, value in fields.items() if name not in ALIASES}


def not_blank(text: str) -> str:
    """The text, if there is something in it."""
    if not text.strip():
        raise ValueError("the text is blank; send something to say")
    return text


# --- answers ----------------------------------------------------------------------------------------------------------


class ErrorObject(BaseModel):
    """What went wrong, as OpenAI's clients read it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every answer that is no success."""

    error: ErrorObject


class UsageBody(BaseModel):
    """Tokens of text and semantic codes."""

    input_tokens: int
    output_tokens: int
    total_tokens: int


class BatchResult(BaseModel):
    """One finished or failed item; `audio_data` is base64."""

    index: int
    status: Literal["success", "error"]
    audio_data: str | None = None
    media_type: str | None = None
    seed: int | None = None
    provenance: str | None = Field(None, description="synthetic speech, by which version and model")
    usage: UsageBody | None = None
    error: ErrorObject | None = None


class BatchAnswer(BaseModel):
    """All items of a batch in their order."""

    id: str
    results: list[BatchResult]
    total: int
    succeeded: int
    failed: int


class UploadedVoiceBody(BaseModel):
    """An uploaded voice."""

    name: str
    consent: str
    created_at: int
    file_size: int
    mime_type: str
    ref_text: str | None = None
    speaker_description: str | None = None
    usable: bool = Field(description="false when another model made it: upload it again")


class VoiceList(BaseModel):
    """All names, and the facts of those that were uploaded."""

    voices: list[str]
    uploaded_voices: list[UploadedVoiceBody]


class UploadAnswer(BaseModel):
    """The voice that was made."""

    success: bool
    voice: UploadedVoiceBody


class DeleteAnswer(BaseModel):
    """What was deleted."""

    success: bool
    message: str


class ModelBody(BaseModel):
    """A model as OpenAI lists it."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "indextts2"


class ModelList(BaseModel):
    """All names of the model."""

    object: Literal["list"] = "list"
    data: list[ModelBody]


class Health(BaseModel):
    """The state of the server."""

    status: Literal["ready", "loading", "failed", "draining"]
    version: str
    model: str
    model_loaded: bool
    fingerprint: str | None
    sample_rate: int | None
    reads_emotion_from_words: bool | None
    response_formats: list[AudioFormat]
    running: int
    waiting: int
    uptime_seconds: float


def emotion_of(options: SpeechOptions, emotion_audio: Any, reads_words: bool) -> Emotion | None:
    """The library's value of the emotion fields; `emotion_audio` is the decoded recording, if there is one.

    Raises:
        UsageError: the model cannot read emotion from words but is asked to.
    """
    from indextts2.errors import UsageError
    from indextts2.inference.emotion import EmotionAudio, EmotionVector, EmotionWords
    from indextts2.models.emotion.vector import parse_emotion_vector

    if emotion_audio is not None:
        return EmotionAudio(emotion_audio, options.emotion_alpha)
    if options.emotion_vector is not None:
        return EmotionVector(tuple(options.emotion_vector), options.emotion_alpha, options.random_emotion)
    if options.emotion is not None:
        return EmotionVector(parse_emotion_vector(options.emotion), options.emotion_alpha, options.random_emotion)
    words = options.emotion_text
    if words is None and not options.use_emotion_text:
        words = options.instructions if reads_words else None
        if words is None:
            return None
    elif not reads_words:
        raise UsageError("this model does not read emotion from words; give emotion or emotion_vector")
    return EmotionWords(words or None, options.emotion_alpha, options.random_emotion)
