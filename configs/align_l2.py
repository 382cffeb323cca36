"""ALIGN's EfficientNet-L2 and BERT-Large; see configs/align.py."""

from configs import align


def get_config(arg: str = ""):
    """The recipe, one of its presets, or changes to it."""
    return align.get_config("l2", arg)
