"""Public weights for images with other than three channels: read as they are, or adapted from RGB."""

from collections.abc import Mapping, Sequence

import numpy as np

from big_ssl.models.input_channels import adapted_kernel
from big_ssl.weights import architecture
from big_ssl.weights.errors import WeightsError
from big_ssl.weights.format import IMAGE, ModelConfig
from big_ssl.weights.rules import Rule


def stated(config: ModelConfig, rules: Sequence[Rule], tensors: Mapping[str, np.ndarray]) -> ModelConfig:
    """The config with the number of channels that the first layer's kernel has, if it states none.

    Raises WeightsError if the mean or standard deviation is neither one number nor one for each channel.
    """
    image = architecture.modules(config).image
    if image is None or "channels" in config["encoders"]["image"]:
        return config
    path = IMAGE + image.first_kernel
    kernels = [
        r.transform.read(tensors[r.theirs])[0] for r in rules if r.ours == (path,) and r.theirs in tensors
    ]
    channels = kernels[0].shape[-2] if kernels and kernels[0].ndim == 4 else 3
    view = config["views"]["image"]
    pixels = {key: _repeated(key, view[key], channels) for key in ("mean", "std")}
    return config if channels == 3 else _with(config, channels, pixels)


def adapted(
    config: ModelConfig, ours: Mapping[str, np.ndarray], channels: int
) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    """A model of RGB images as one of `channels` channels, to be trained on; see models/input_channels.py.

    The mean and standard deviation are repeated as the kernel is; one channel has their averages. Raises
    WeightsError for weights that are not of three channels.
    """
    if type(channels) is not int or channels < 1:
        raise WeightsError(f"channels is {channels!r}; it must be a whole number from 1")
    image = architecture.modules(config).image
    if image is None:
        raise WeightsError(f"channels is {channels}, and the weights have no image encoder")
    path = IMAGE + image.first_kernel
    kernel = ours[path]
    changed = adapted_kernel(kernel, (*kernel.shape[:2], channels, kernel.shape[3]))
    if changed is None:
        raise WeightsError(
            f"channels is {channels}; only weights for 3 can be adapted, to 1 or more; these are for "
            f"{kernel.shape[2]}"
        )
    view = {key: np.broadcast_to(config["views"]["image"][key], 3) for key in ("mean", "std")}
    colours = np.arange(channels) % 3
    pixels = {k: [float(x.mean())] if channels == 1 else x[colours].tolist() for k, x in view.items()}
    return _with(config, channels, pixels), {**ours, path: changed}


def _repeated(key, values, channels):
    values = np.unique(values) if len(np.unique(values)) == 1 else np.asarray(values)
    if len(values) not in (1, channels):
        raise WeightsError(f"the {key} of pixels is {values.tolist()}; the weights read {channels} channels")
    return np.broadcast_to(values, channels).tolist()


def _with(config, channels, pixels):
    encoders = config["encoders"] | dict(image=config["encoders"]["image"] | dict(channels=channels))
    views = config["views"] | dict(image=config["views"]["image"] | pixels)
    return config | dict(encoders=encoders, views=views)
