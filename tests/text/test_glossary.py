from __future__ import annotations

from pathlib import Path

import pytest

from indextts2.errors import ConfigError
from indextts2.text.engines import EngineLoader
from indextts2.text.glossary import Glossary
from indextts2.text.normalizer import TextNormalizer

FILE = """
M.2: M 二
PCIe: {zh: P C I E}
PCIe 5.0: {zh: P C I E 五点零}
AGI:
  en: A G I
  zh: 通用人工智能
"""


@pytest.fixture
def glossary(tmp_path: Path) -> Glossary:
    (tmp_path / "glossary.yaml").write_text(FILE, encoding="utf-8")
    return Glossary.from_model_dir(tmp_path)


def test_terms(glossary: Glossary) -> None:
    assert len(glossary) == 4
    assert glossary.apply("agi 与 m.2", "zh") == "通用人工智能 与 M 二"
    assert glossary.apply("AGI, M.2, M-2", "en") == "A G I, M 二, M-2"


def test_longer_terms_go_first_and_a_missing_language_keeps_the_glossary_spelling(glossary: Glossary) -> None:
    assert glossary.apply("PCIE 5.0", "zh") == "P C I E 五点零"
    assert glossary.apply("pcie 5.0 rocks", "en") == "PCIe 5.0 rocks"


def test_a_term_matches_inside_words_and_its_reading_is_a_template() -> None:
    assert Glossary({"cat": r"[\g<0>]"}).apply("Concatenate", "en") == "Con[cat]enate"
    assert Glossary({"a\\b": {"zh": "x"}}).apply(r"A\B", "en") == "a\\b"


def test_the_normalizer_applies_it_before_all_else(engines: EngineLoader) -> None:
    normalizer = TextNormalizer(Glossary({"x9": {"zh": "xuan4"}, "km": "hello-5"}), engines=engines)
    assert normalizer.normalize("读x9。") == "读XVAN4."
    assert normalizer.normalize("A km away.") == "A hello-five away."


def test_no_glossary_file_is_an_empty_glossary(tmp_path: Path) -> None:
    assert len(Glossary.from_model_dir(tmp_path)) == 0
    (tmp_path / "glossary.yaml").write_text("# nothing yet\n")
    assert len(Glossary.from_model_dir(tmp_path)) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a\n- b", "must map terms"),
        ("12: twelve", "quotes around it"),
        ("'': x", "must be text"),
        ("a: 5", "the reading must be text"),
        ("a: [b]", "the reading must be text"),
        ("a: {fr: b}", "names the language 'fr'"),
        ("a: {zh: 5}", "the zh reading must be text"),
        (r"a: \q", "not a valid replacement"),
        (r"a: \g<name>", "not a valid replacement"),
        ("a: &x b\nc: *x", "alias"),
        ("a: b: c", "not valid YAML"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "glossary.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        Glossary.from_yaml(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        Glossary.from_yaml(tmp_path / "absent.yaml")
