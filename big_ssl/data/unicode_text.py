"""Makes texts valid Unicode, which every tokenizer requires."""

import re

_SURROGATES = re.compile("[\ud800-\udfff]")


def well_formed(text: str) -> str:
    """Replaces each lone surrogate by U+FFFD, Unicode's replacement character, as UTF-8 decoders do.

    Python's JSON reader makes lone surrogates of half an emoji; no encoding can represent them.
    """
    return _SURROGATES.sub("\ufffd", text)
