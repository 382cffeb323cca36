"""Trains a WordPiece vocabulary on a config's captions.

python -m big_ssl.train_tokenizer --config=configs/align_l2.py:demo --vocab_size=4096 --output=FILE
"""

from collections.abc import Iterator

from absl import app, flags
from etils import epath
from ml_collections import config_flags

from big_ssl.data import sources
from big_ssl.data.tokenizers import train_wordpiece

_CONFIG = config_flags.DEFINE_config_file("config", None, "The recipe whose captions to read.")
_SIZE = flags.DEFINE_integer("vocab_size", 100_000, "Largest number of words; ALIGN has 100,000.")
_OUTPUT = flags.DEFINE_string("output", None, "The file to write, a word a line.")


def captions(config) -> Iterator[str]:
    """Every text of every record of every stream, in order."""
    for stream in config.streams.values():
        for record in sources.records(sources.build(stream.data.source)):
            for candidates in record.texts.values():
                yield from (text for text in candidates if isinstance(text, str))


def main(_) -> None:
    words = train_wordpiece(captions(_CONFIG.value), _SIZE.value)
    epath.Path(_OUTPUT.value).write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    print(f"{len(words)} words in {_OUTPUT.value}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "output"])
    app.run(main)
