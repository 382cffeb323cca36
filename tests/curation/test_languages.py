"""Languages of captions, where lingua is installed, and what is said where it is not."""

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
def test_names_that_sound_foreign_are_not_foreign_enough(text, lingua):
    assert 1 < languages.foreign_odds(text, ("en",)) < LIMIT


@pytest.mark.slow
def test_a_text_without_letters_is_in_no_language(lingua):
    assert languages.foreign_odds("1920 1080 2", ("en",)) == float("inf")


def test_an_unknown_language_is_named(lingua):
    with pytest.raises(ValueError, match=r"limits\.languages: no language 'english'; there are af, "):
        languages.check(("en", "english"))


def test_without_lingua_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "lingua", None)
    languages._wanted.cache_clear()
    with pytest.raises(ImportError, match=r"pip install lingua-language-detector, or keep any with \(\)"):
        languages.check(("en",))
    languages.check(())
