"""The micro recipe with its data in a folder, such as one in a bucket: pairs in FOLDER/pairs.parquet,
pictures for its evaluation in FOLDER/pictures.

    python -m big_ssl.main --config=tests/training/micro_in_bucket.py:FOLDER --workdir=...
"""

from ml_collections import ConfigDict

from tests.training import micro


def get_config(folder: str) -> ConfigDict:
    """The recipe; folder: local or gs://."""
    config = micro.get_config().to_dict()
    config["streams"]["pairs"]["data"].update(
        source=dict(kind="parquet", path=f"{folder}/pairs.parquet", text_keys=("title",)),
        cache_mib=0,
    )
    config["streams"]["pairs"]["data"]["fields"]["text"].update(captions=dict(title=1.0))
    pictures = dict(kind="image_folder", path=f"{folder}/pictures")
    config.update(
        eval_every=4, evals=dict(pictures=dict(kind="knn", train=pictures, test=pictures, ks=(1, 2)))
    )
    return ConfigDict(config)
