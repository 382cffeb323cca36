"""Trains a tokenizer's vocabulary on a config's captions.

python -m big_ssl.train_tokenizer --config=configs/align_l2.py:demo --vocab_size=4096 --output=FILE
python -m big_ssl.train_tokenizer --kind=sentencepiece --config=... --vocab_size=32000 --output=spiece.model

Exit code 2, and one line on stderr, if no vocabulary can be trained on the texts.
"""

import functools
import sys
from collections.abc import Callable, Iterator

from absl import app, flags

from big_ssl import io
from big_ssl.command_line import CONFIG, OUTPUT, parse_flags
from big_ssl.data import clip_bpe, records, sentence_piece, sources
from big_ssl.data.records import IMAGE
from big_ssl.data.tokenizers import TOKENIZERS, train_wordpiece


def wordpiece_file(texts: Iterator[str], vocab_size: int) -> bytes:
    """Trains a WordPiece vocabulary; returns the file, one word per line."""
    return "".join(f"{word}\n" for word in train_wordpiece(texts, vocab_size)).encode()


# {config.tokenizer.kind: (texts, vocab_size) -> the vocabulary file's content}.
TRAINERS: dict[str, Callable[[Iterator[str], int], bytes]] = {
    "wordpiece": wordpiece_file,
    "clip_bpe": clip_bpe.train,
    "sentencepiece": functools.partial(sentence_piece.train, style=sentence_piece.SIGLIP),
    "sentencepiece_bert": functools.partial(sentence_piece.train, style=sentence_piece.BERT),
}

_KIND = flags.DEFINE_enum(
    "kind", "wordpiece", list(TRAINERS), "The tokenizer to train, a config's tokenizer.kind."
)
_SIZE = flags.DEFINE_integer("vocab_size", 100_000, "Largest number of entries; ALIGN has 100,000.")


def captions(config) -> Iterator[str]:
    """Yields all texts of all streams, in order."""
    for stream in config.streams.values():
        for entry in sources.entries(stream.data):
            for record in sources.records(sources.build(entry.source)):
                for key in (key for key in record if key != IMAGE):
                    yield from (text for text in records.values(record, key) if isinstance(text, str))


def run(kind: str, config, vocab_size: int, output: str) -> int:
    """Trains and writes a vocabulary, and prints the config's keys for it.

    Args:
      kind: in TRAINERS.
      config: its streams have the captions.
      vocab_size: the largest number of entries.
      output: the file.

    Returns:
      The exit code.
    """
    try:
        io.make_folder(io.as_path(output).parent)
        io.write_atomically(output, TRAINERS[kind](captions(config), vocab_size))
        size = TOKENIZERS[kind](output, 2).vocab_size
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{output}: config.tokenizer.kind={kind}, config.tokenizer.size={size}")
    return 0


def main(_) -> None:
    sys.exit(run(_KIND.value, CONFIG.value, _SIZE.value, str(OUTPUT.value)))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "output"])
    app.run(main, flags_parser=parse_flags)
