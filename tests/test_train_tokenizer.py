"""The train_tokenizer command: its vocabulary and the config keys that it prints."""

import functools

import pytest

from big_ssl.data import tokenizers
from tests import commands

run = functools.partial(commands.run, "big_ssl.train_tokenizer", "--config=configs/align_l2.py:tiny")


@pytest.mark.parametrize("kind", ["wordpiece", "clip_bpe", "sentencepiece", "sentencepiece_bert"])
def test_a_trained_vocabulary_fits_the_printed_config_keys(kind, tmp_path):
    path = str(tmp_path / "vocabulary")
    done = run(f"--kind={kind}", "--vocab_size=600", f"--output={path}")
    assert (done.returncode, done.stderr) == (0, "")
    keys, _, size = done.stdout.rpartition(", config.tokenizer.size=")
    assert keys == f"{path}: config.tokenizer.kind={kind}"
    assert 100 < int(size) <= 600
    built = tokenizers.build(dict(kind=kind, vocabulary=path, size=int(size), length=16))
    ids = built(["red heart", "grinning cat"])["ids"]
    assert not any(map(built.is_empty, ids))
    assert ids[0].tolist() != ids[1].tolist()


def test_an_error_is_one_line_and_exit_code_2(tmp_path):
    done = run("--kind=sentencepiece", "--vocab_size=5", f"--output={tmp_path / 'out'}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("no SentencePiece model of 5 pieces: Vocabulary size is smaller")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
