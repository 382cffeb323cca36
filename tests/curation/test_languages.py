"""Language detection with lingua, and the error without it."""

import sys

import pytest

from big_ssl.curation import languages
from big_ssl.curation.limits import Limits

LIMIT = Limits().max_foreign_odds


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
    assert languages.foreign_odds(text, (language,)) == 1
    assert languages.foreign_odds(text, ("en", "it", "pt", "fr")) == 1
    assert (languages.foreign_odds(text, ("en",)) > LIMIT) == (language != "en")


@pytest.mark.slow
@pytest.mark.parametrize("text", ["Naval Semaphore Flag u", "Beethoven Cartoon Bust", "Don't Panic!"])
def test_foreign_sounding_names_stay_below_the_threshold(text, lingua):
    assert 1 < languages.foreign_odds(text, ("en",)) < LIMIT


@pytest.mark.slow
def test_a_text_without_letters_has_infinite_odds(lingua):
    assert languages.foreign_odds("1920 1080 2", ("en",)) == float("inf")


def test_the_error_names_an_unknown_language(lingua):
    with pytest.raises(ValueError, match=r"limits\.languages: no language 'english'; there are af, "):
        languages.check(("en", "english"))


def test_the_error_without_lingua_contains_the_pip_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "lingua", None)
    languages._languages.cache_clear()
    with pytest.raises(ImportError, match=r"pip install lingua-language-detector, or keep any with \(\)"):
        languages.check(("en",))
    languages.check(())
