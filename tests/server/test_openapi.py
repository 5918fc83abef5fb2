"""The OpenAPI document, and the server held against it by schemathesis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from indextts2.server.app import create_app
from indextts2.server.settings import ServerSettings
from tests.server.conftest import add_voice
from tests.server.fakes import Script, serve_in_thread

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


OPERATIONS = [
    ("/v1/audio/speech", "POST"),
    ("/v1/audio/speech/batch", "POST"),
    ("/v1/audio/voices", "GET"),
    ("/v1/audio/voices", "POST"),
    ("/v1/audio/voices/{name}", "DELETE"),
    ("/v1/models", "GET"),
    ("/v1/models/{model}", "GET"),
    ("/livez", "GET"),
    ("/readyz", "GET"),
    ("/health", "GET"),
    ("/metrics", "GET"),
]
KNOWN = {"model": "indextts2", "voice": "alice", "ref_audio": None, "response_format": "wav"}
BOUNDED = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The schema of a running server whose engine is a fake."""
    directory = tmp_path_factory.mktemp("voices")
    app = create_app(ServerSettings(voices_directory=directory), Script().make_engine)
    with serve_in_thread(app) as server:
        add_voice(app)
        yield schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_every_operation_is_tried(document: Any) -> None:
    found = {(result.ok().path, result.ok().method.upper()) for result in document.get_all_operations()}
    assert found == set(OPERATIONS)


@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=lambda part: part.strip("/"))
def test_good_requests(document: Any, path: str, method: str) -> None:
    statuses = set()

    @BOUNDED
    @given(case=document[path][method].as_strategy(generation_mode=GenerationMode.POSITIVE))
    def check(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict) and "model" in case.body:
            # What the document cannot say: which names exist, and that of several kinds of emotion one may be given.
            case.body = {name: value for name, value in case.body.items() if "emo" not in name} | KNOWN
        statuses.add(case.call_and_validate(checks=CHECKS).status_code)

    check()
    if "{" not in path and path != "/v1/audio/voices":
        assert 200 in statuses


@pytest.mark.parametrize("path", [path for path, method in OPERATIONS if method == "POST"])
def test_bad_requests(document: Any, path: str) -> None:
    @BOUNDED
    @given(case=document[path]["POST"].as_strategy(generation_mode=GenerationMode.NEGATIVE))
    def check(case: schemathesis.Case) -> None:
        assert 400 <= case.call_and_validate(checks=CHECKS).status_code < 500

    check()


def test_wrong_requests_are_documented_as_they_are_answered(document: Any) -> None:
    operations = [operation for methods in document.raw_schema["paths"].values() for operation in methods.values()]
    assert not [operation for operation in operations if "422" in operation["responses"]]
    schemas = document.raw_schema["components"]["schemas"]
    assert set(schemas["ErrorObject"]["required"]) == {"message", "type", "param", "code"}


def test_the_provenance_of_every_answer_with_audio_is_documented(document: Any) -> None:
    for path in ("/v1/audio/speech", "/v1/audio/speech/batch"):
        assert "X-Provenance" in document.raw_schema["paths"][path]["post"]["responses"]["200"]["headers"]
