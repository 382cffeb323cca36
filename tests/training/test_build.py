"""From a config to the parts of a run."""

import pytest

from big_ssl.objectives.base import EncoderCall
from big_ssl.objectives.contrastive import Contrastive
from big_ssl.training import build, loop
from big_ssl.training.requirements import RequirementsError
from configs.align_l2 import get_config


def test_the_stated_size_is_that_of_the_vocabulary():
    config = get_config("tiny").to_dict()
    assert build.tokenizer(config).vocab_size == config["tokenizer"]["size"]


def test_a_vocabulary_of_another_size_is_said():
    config = get_config("tiny").to_dict()
    config["tokenizer"]["size"] = 100
    message = r"^tokenizer.size is 100; the vocabulary 'emoji' has 4096 words$"
    with pytest.raises(RequirementsError, match=message):
        loop.set_up(config)


def test_a_vocabulary_that_is_not_there_is_said(tmp_path):
    config = get_config("tiny").to_dict()
    config["tokenizer"]["vocabulary"] = f"{tmp_path}/words.txt"
    with pytest.raises(RequirementsError, match=r"words\.txt"):
        loop.set_up(config)


def test_without_a_vocabulary_there_is_no_tokenizer():
    config = get_config("tiny").to_dict()
    config["tokenizer"]["vocabulary"] = ""
    assert build.tokenizer(config) is None


def test_a_field_that_an_objective_reads_must_be_there():
    config = get_config("tiny").to_dict()
    del config["streams"]["pairs"]["data"]["fields"]["text"]
    message = (
        r"^streams.pairs.objectives.contrastive reads the field 'text'; streams.pairs.data.fields has image$"
    )
    with pytest.raises(RequirementsError, match=message):
        loop.set_up(config)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            EncoderCall("image", "image", ("pooled", "cls")),
            "contrastive reads cls of encoders.image, a EfficientNet; its outputs are pooled, patches, "
            "pyramid",
        ),
        (
            EncoderCall("image", "image", ("pooled",), layers=(-1,)),
            r"contrastive reads \('pooled',\) and layers \(-1,\): these need each other",
        ),
        (
            EncoderCall("photo", "image"),
            r"contrastive reads encoders.photo, which is missing; there are \['image', 'text'\]",
        ),
    ],
)
def test_an_encoder_call_that_cannot_be_is_named(call, message, monkeypatch):
    monkeypatch.setattr(Contrastive, "inputs", dict(image=call))
    with pytest.raises(RequirementsError, match=f"^{message}$"):
        loop.set_up(get_config("tiny").to_dict())
