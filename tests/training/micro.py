"""A recipe that compiles in seconds: `tiny` with the first two stages of its image tower.

A file of its own so that `python -m big_ssl.main --config=tests/training/micro.py` finds it too.
"""

from ml_collections import ConfigDict

from big_ssl.models import efficientnet, encoders
from configs import align_l2

STAGES = efficientnet.B0_STAGES[:2]


def tower(**options) -> efficientnet.EfficientNet:
    """Batch norm, depthwise convolutions, squeeze-excite and a stride, in a fifth of the layers."""
    return efficientnet.EfficientNet(stages=STAGES, width=0.25, depth=0.3, drop_connect=0.0, **options)


encoders.ENCODERS["micro"] = tower


def get_config() -> ConfigDict:
    """The recipe, for eight steps."""
    config = align_l2.get_config("tiny").to_dict()
    config.update(name="micro", total_steps=8, log_every=1, eval_every=100, evals={})
    config["checkpoint"].update(every=2, keep=2, best="")
    config["learning_rate"].update(warmup_steps=2)
    config["encoders"]["image"] = dict(kind="micro", bn_group=0, bn_momentum=0.9)
    width = efficientnet.round_channels(STAGES[-1].channels, 0.25)
    config["streams"]["pairs"]["objectives"]["contrastive"].update(embed_dim=width)
    return ConfigDict(config)
