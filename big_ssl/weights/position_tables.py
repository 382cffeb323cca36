"""Position tables in exports to formats whose model class resizes them in another way than ours."""

from collections.abc import Callable, Mapping

import numpy as np

from big_ssl.models.position_embedding import resize_position_embedding
from big_ssl.weights import architecture
from big_ssl.weights.format import IMAGE, ModelConfig

_TABLE = f"{IMAGE}position_embedding"


def at_image_size(
    config: ModelConfig, ours: Mapping[str, np.ndarray], position_resize: Callable[[Mapping], str]
) -> tuple[ModelConfig, Mapping[str, np.ndarray]]:
    """Resizes the image encoder's table in our way, so that features at image_size stay what they are.

    Args:
      config: the model's ModelConfig.
      ours: {path: array}.
      position_resize: a Format's, not None.

    Returns:
      (config, ours), unchanged where the table has the images' grid already, where there is none, and where
      the format's class resizes it as our encoder does.
    """
    if _TABLE not in ours:
        return config, ours
    image = architecture.with_defaults(config)["encoders"]["image"]
    old, side = (size // image["patch"] for size in (image["image_size"], config["image_size"]))
    if side == old or image["position_resize"] == position_resize(image):
        return config, ours
    grids = (old, old), (side, side)
    table = np.asarray(resize_position_embedding(ours[_TABLE], *grids, image["position_resize"]))
    encoders = config["encoders"] | dict(
        image=config["encoders"]["image"] | dict(image_size=side * image["patch"])
    )
    return config | dict(encoders=encoders), {**ours, _TABLE: table}
