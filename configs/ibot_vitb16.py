"""iBOT's ViT-B/16; see configs/ibot.py."""

from configs import ibot


def get_config(arg: str = ""):
    """The recipe, one of its presets, or changes to it."""
    return ibot.get_config("vitb16", arg)
