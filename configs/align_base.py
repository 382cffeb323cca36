"""COYO's ALIGN, EfficientNet-B7 and BERT-Base; see configs/align.py."""

from configs import align


def get_config(arg: str = ""):
    """The recipe, one of its presets, or changes to it."""
    return align.get_config("base", arg)
