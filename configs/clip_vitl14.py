"""CLIP's ViT-L/14, and by the preset `336` its last epoch at 336 pixels; see configs/clip.py."""

from configs import clip


def get_config(arg: str = ""):
    """The recipe, one of its presets, or changes to it."""
    return clip.get_config("vitl14", arg, **{"336": clip.high_resolution})
