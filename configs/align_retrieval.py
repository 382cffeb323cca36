"""ALIGN fine-tuned for retrieval on COCO and Flickr30K (Jia et al. 2021, arXiv 2102.05918).

    python -m big_ssl.main --config=configs/align_retrieval.py:base_coco --workdir=runs/align_coco \
        --config.init_from.path=align_base --config.tokenizer.vocabulary=align_base/vocab.txt \
        --config.streams.pairs.data.source.data_dir=gs://bucket/tensorflow_datasets

Presets: none, the paper's EfficientNet-L2 on COCO; `flickr30k`, the same on Flickr30K; `base_coco` and
`base_flickr30k`, COYO's model, whose weights `python -m big_ssl.convert --from=hf_align` makes; `tiny`,
seconds, for tests. All start from weights, config.init_from.path.
"""

import functools
from collections.abc import Callable

from ml_collections import ConfigDict

from big_ssl import recipe
from configs import align
from configs.rehearsal import rehearsal

# The datasets' names, and the paper's steps. TFDS's catalogue has COCO's captions; another dataset is
# prepared for TFDS in the same layout, all of an image's captions in one list.
_DATASETS = {"coco": ("coco_captions", 6_000), "flickr30k": ("flickr30k", 3_000)}
_CAPTIONS = "captions/text"


def get_config(arg: str = "") -> ConfigDict:
    """The recipe, one of its presets, or changes to it; see big_ssl/recipe.py."""
    presets: dict[str, Callable[[], dict]] = {
        "": functools.partial(full, "l2", "coco"),
        "flickr30k": functools.partial(full, "l2", "flickr30k"),
        "base_coco": functools.partial(full, "base", "coco"),
        "base_flickr30k": functools.partial(full, "base", "flickr30k"),
        "tiny": tiny,
        "rehearsal": lambda: rehearsal(full("l2", "coco")),
    }
    return recipe.choose("align_retrieval", arg, presets)


def full(model: str, dataset: str) -> dict:
    """All as in pre-training, but a batch of 2,048, so that few captions are false negatives of each
    other, and a rate that falls from 1e-5 to nothing."""
    config, (name, steps) = align.full(model), _DATASETS[dataset]
    config.update(name=f"align_{model}_{dataset}", total_steps=steps, eval_every=1_000)
    config["checkpoint"].update(every=500)
    # The paper speaks of an initial rate; pre-training's warm-up is longer than all of this.
    config["learning_rate"].update(peak=1e-5, warmup_steps=0)
    config["requires"].update(weights=True, preset_here="tiny")
    pairs = config["streams"]["pairs"]
    pairs["batch_size"] = 2_048
    pairs["data"]["source"].update(name=name, text_keys=(_CAPTIONS,))
    pairs["data"]["captions"] = {_CAPTIONS: 1.0}
    return config


def tiny() -> dict:
    """Of a model that configs/align_l2.py:tiny has trained, in seconds."""
    config = align.tiny("l2")
    config.update(name="align_retrieval_tiny", total_steps=4, log_every=2, eval_every=4)
    config["checkpoint"].update(every=4)
    config["learning_rate"].update(peak=1e-5, warmup_steps=0)
    config["requires"].update(weights=True)
    return config
