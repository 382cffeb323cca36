"""Languages of captions, where lingua is installed, and what is said where it is not."""

import sys

import pytest

from big_ssl.curation import languages
from big_ssl.curation.limits import Limits

LIMIT = Limits().language_confidence


@pytest.fixture
def lingua():
    return pytest.importorskip("lingua", reason="lingua is not installed: the curation extra")


@pytest.mark.slow  # reads a gigabyte of language models
@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("a drawing of a cat on a chair", "en"),
        ("collection of satellite engineering related clipart", "en"),
        ("uma seta para usar em seus trabalhos", "pt"),
        ("protection obligatoire contre les chutes", "fr"),
        ("Pattinatrici sul ghiaccio", "it"),
    ],
)
def test_the_language_of_real_captions(text, language, lingua):
    assert languages.confidence(text, (language,)) > 0.3
    assert (languages.confidence(text, ("en",)) >= LIMIT) == (language == "en")
    assert languages.confidence(text, ("en", "it", "pt", "fr")) > languages.confidence(text, ("en",)) - 1e-9


@pytest.mark.slow
def test_a_text_without_letters_is_in_no_language(lingua):
    assert languages.confidence("1920 1080 2", ("en",)) == 0


def test_an_unknown_language_is_named(lingua):
    with pytest.raises(ValueError, match=r"limits\.languages: no language 'english'; there are af, "):
        languages.check(("en", "english"))


def test_without_lingua_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lingua", None)
    languages._wanted.cache_clear()
    with pytest.raises(ImportError, match=r"pip install lingua-language-detector, or keep any with \(\)"):
        languages.check(("en",))
    languages.check(())
