"""Language detection by lingua, which is made for short texts and works offline."""

import functools
import math
from collections.abc import Sequence


def foreign_odds(text: str, codes: Sequence[str]) -> float:
    """The likeliest language's probability divided by that of the likeliest language in codes.

    codes: ISO 639-1. The result is 1 if the likeliest language is among them, and infinite if all of them
    have probability 0, as for a text without letters. It is a ratio because lingua spreads a short caption's
    probability over many languages. Raises ValueError for an unknown code, ImportError without lingua.
    """
    allowed = _languages(tuple(codes))
    confidences = _detector().compute_language_confidence_values(text)  # likeliest first
    best = max(confidence.value for confidence in confidences if confidence.language in allowed)
    return confidences[0].value / best if best else math.inf


def check(codes: Sequence[str]) -> None:
    """Raises `foreign_odds`'s errors, before anything slow runs."""
    if codes:
        _languages(tuple(codes))


@functools.cache
def _languages(codes):
    lingua = _lingua()
    by_code = {language.iso_code_639_1.name.lower(): language for language in lingua.Language.all()}
    for code in codes:
        if code not in by_code:
            raise ValueError(
                f"limits.languages: no language {code!r}; there are {', '.join(sorted(by_code))}"
            )
    return frozenset(by_code[code] for code in codes)


@functools.cache
def _detector():
    return _lingua().LanguageDetectorBuilder.from_all_languages().build()


def _lingua():
    try:
        import lingua
    except ImportError as error:
        message = "limits.languages needs lingua: pip install lingua-language-detector, or keep any with ()"
        raise ImportError(message) from error
    return lingua
