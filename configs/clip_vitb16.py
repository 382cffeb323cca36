"""CLIP's ViT-B/16; see configs/clip.py."""

from configs import clip


def get_config(arg: str = ""):
    """The recipe, one of its presets, or changes to it."""
    return clip.get_config("vitb16", arg)
