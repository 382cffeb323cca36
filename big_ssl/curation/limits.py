"""The thresholds of curation/filters.py."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """ALIGN's thresholds (section 3.1), except max_foreign_odds, which is ours.

    min_side: the shorter side must be larger, in pixels; max_aspect: longer side / shorter side must be
    smaller; max_texts: the most distinct texts of an image; max_images: the most images that share a text;
    most_frequent: all n-grams of a text must be among this many most frequent unigrams and bigrams;
    min_unigrams, max_unigrams: the number of words in a text; languages: ISO 639-1 codes to keep, () for
    any; max_foreign_odds: the largest languages.foreign_odds. Raises ValueError for a limit that nothing
    could pass.
    """

    min_side: int = 200
    max_aspect: float = 3.0
    max_texts: int = 1000
    max_images: int = 10
    most_frequent: int = 100_000_000
    min_unigrams: int = 3
    max_unigrams: int = 20
    languages: tuple[str, ...] = ("en",)
    max_foreign_odds: float = 10.0

    def __post_init__(self):
        for name in ("max_texts", "max_images", "most_frequent"):
            if getattr(self, name) < 1:
                raise ValueError(f"limits.{name} is {getattr(self, name)}; it must be at least 1")
        if self.max_aspect <= 1:
            raise ValueError(f"limits.max_aspect is {self.max_aspect}; it must be more than 1")
        if self.min_unigrams > self.max_unigrams:
            raise ValueError(f"limits.min_unigrams is {self.min_unigrams}, more than max_unigrams")
        if self.max_foreign_odds < 1:
            raise ValueError(f"limits.max_foreign_odds is {self.max_foreign_odds}; it must be at least 1")
