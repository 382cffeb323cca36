"""How likely a text is in a language, by lingua, which is made for short texts and needs no network."""

import functools
from collections.abc import Sequence


def confidence(text: str, codes: Sequence[str]) -> float:
    """The probability that a text is in one of the languages with these ISO 639-1 codes.

    0 for a text without letters. Raises ValueError for an unknown code, ImportError without lingua.
    """
    wanted, detector = _wanted(tuple(codes)), _detector()
    found = detector.compute_language_confidence_values(text)
    return sum(each.value for each in found if each.language in wanted)


def check(codes: Sequence[str]) -> None:
    """Raises what `confidence` would, before anything slow."""
    if codes:
        _wanted(tuple(codes))


@functools.cache
def _wanted(codes):
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
