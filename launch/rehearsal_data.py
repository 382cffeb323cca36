"""Makes what the preset `rehearsal` of a recipe reads, and prints the flags that say where it is.

    python launch/rehearsal_data.py --config=configs/align_l2.py:rehearsal --output=gs://BUCKET/rehearsal

A TFDS set of embedded emoji drawings in array_record shards, with names and classes; and, where the recipe
reads texts, a vocabulary of its tokenizer's kind, trained on the names. launch/rehearse.sh calls it.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO

from absl import app, flags

from big_ssl import io
from big_ssl.command_line import CONFIG, OUTPUT, parse_flags
from big_ssl.data import sources, tfds_writer
from big_ssl.data.tokenizers import TOKENIZERS
from big_ssl.train_tokenizer import TRAINERS
from big_ssl.training import build
from configs import rehearsal

SPLITS = {
    "train": dict(kind="emoji", styles=("fxemoji",), concepts="seen"),
    "validation": dict(kind="emoji", styles=("fxemoji",), concepts="unseen"),
}
DESCRIPTION = "Emoji drawings with their names and categories, to rehearse a run with."


def examples(source: Mapping) -> Iterator[tuple[int, dict]]:
    """(key, example) of every drawing of a source's config."""
    for key, record in enumerate(sources.records(sources.build(source))):
        texts = [record["label"], record["name"]]
        yield key, {"image": BytesIO(record["image"]), "text": texts, "label": record["category"]}


def write_images(folder: str) -> None:
    """The set, unless it is there."""
    import tensorflow_datasets as tfds  # slow to import, and needed only here

    if (io.as_path(folder) / rehearsal.DATA_SET).exists():
        return
    names = sources.build(SPLITS["train"]).label_names("category")
    features = {
        "image": tfds.features.Image(),
        "text": tfds.features.Sequence(tfds.features.Text()),
        "label": tfds.features.ClassLabel(names=names),
    }
    splits = {name: examples(source) for name, source in SPLITS.items()}
    tfds_writer.write(folder, rehearsal.DATA_SET, DESCRIPTION, features, splits)


def write_vocabulary(kind: str, path: str) -> int:
    """The vocabulary, unless it is there; how many words it has."""
    if not io.as_path(path).exists():
        texts = (text for _, example in examples(SPLITS["train"]) for text in example["text"])
        io.write_atomically(path, TRAINERS[kind](texts, rehearsal.VOCABULARY))
    return TOKENIZERS[kind](path, 2).vocab_size


def data_folders(value, path: str) -> Iterator[str]:
    """Yields the path of every data_dir, of streams, of each source of a mixture, and of evaluators.

    Args:
      value: a part of a config.
      path: its own, such as "config.streams"; items of a tuple are `[0]`, as in a flag.
    """
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from (f"{path}.{key}",) if key == "data_dir" else data_folders(part, f"{path}.{key}")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for i, part in enumerate(value):
            yield from data_folders(part, f"{path}[{i}]")


def main(_) -> None:
    """Prints the flags, a line each."""
    config, folder = CONFIG.value.to_dict(), OUTPUT.value
    write_images(folder)
    for path in data_folders(config, "config"):
        print(f"--{path}={folder}")
    if build.reads_texts(config):
        kind = config["tokenizer"]["kind"]
        path = f"{folder}/vocabulary.{kind}"
        size = write_vocabulary(kind, path)
        print(f"--config.tokenizer.vocabulary={path}\n--config.tokenizer.size={size}")
    sys.stdout.flush()


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "output"])
    app.run(main, flags_parser=parse_flags)
