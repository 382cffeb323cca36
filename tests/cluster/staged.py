"""The micro recipe in two stages: the second has shorter texts, whose positions are cut, and a new head."""

from ml_collections import ConfigDict

from tests.training import micro


def get_config() -> ConfigDict:
    """60 steps, 30 in each stage."""
    config = micro.get_config().to_dict()
    config.update(name="staged", total_steps=60, ema=0.9)
    config["checkpoint"].update(every=10)
    second = dict(
        name="second",
        steps=30,
        handover=dict(exclude=("heads/",), remap=()),
        tokenizer=dict(length=8),
        streams=dict(pairs=dict(batch_size=8)),
    )
    config["stages"] = (dict(name="first", steps=30), second)
    return ConfigDict(config)
