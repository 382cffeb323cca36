"""Which language a text is likely in, by lingua, which is made for short texts and needs no network."""

import functools
import math
from collections.abc import Sequence


def foreign_odds(text: str, codes: Sequence[str]) -> float:
    """How many times as likely as the languages with these ISO 639-1 codes the likeliest of all is.

    1 where that is one of them; infinite where none of them is possible, as for a text without letters.
    A ratio, since to lingua a short caption is a little of everything: none of its probabilities is high.
    Raises ValueError for an unknown code, ImportError without lingua.
    """
    wanted = _wanted(tuple(codes))
    found = _detector().compute_language_confidence_values(text)  # likeliest first
    best = max(each.value for each in found if each.language in wanted)
    return found[0].value / best if best else math.inf


def check(codes: Sequence[str]) -> None:
    """Raises what `foreign_odds` would, before anything slow."""
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
