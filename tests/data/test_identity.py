"""Texts from captions and from classes' names, their prompts, and the keys of equal examples."""

import itertools

import numpy as np
import pytest

from big_ssl.data import fields, pipeline, prompt_templates
from big_ssl.data.fields.identity import hashed
from big_ssl.data.pipeline import BadRecord, LoadExample
from big_ssl.data.sources import EmojiPairs
from big_ssl.data.tokenizers import WordPiece, vocabulary_path

TOKENIZER = WordPiece(vocabulary_path("emoji"), 16)
LABELS = ["red_fox", "owl, snowy", "ice+cream", "red_fox"]


class Records(list):
    """Records with the classes `names` under "kind"."""

    def __init__(self, records, names=LABELS):
        super().__init__(records)
        self.names = names

    def label_names(self, key):
        assert key == "kind"
        return self.names


CAPTION, CLASS = dict(captions=dict(text=1.0)), dict(class_key="kind")


def loader(records, text, names=LABELS, **identity):
    options = dict(text=dict(kind="text", **text), identity=dict(kind="identity", **identity))
    source = Records(records, names)
    opened = fields.opened(fields.build(options, 16), source, TOKENIZER)
    for field in opened.values():
        field.check()
    return LoadExample(source, opened)


def example(record, text, seed=0, **options):
    return loader([record], text, **options).load(0, np.random.default_rng(seed))


def ids(text):
    return TOKENIZER([text])["ids"][0].tolist()


def key(record, text, **options):
    return tuple(example(record, text, **options)["identity"]["key"].tolist())


# Texts.


@pytest.mark.parametrize(
    ("label", "text"), [(0, "red fox"), ("owl, snowy", "owl snowy"), (np.int64(2), "ice cream")]
)
def test_the_text_of_a_class_is_its_cleaned_name(label, text):
    assert example(dict(kind=label), CLASS)["text"]["ids"].tolist() == ids(text)


def test_class_names_by_the_rules_of_evaluation():
    wnids = dict(names=["n01440764", "n04356056"])
    options = CLASS | dict(label_set=["tench", "dark glasses"])
    assert example(dict(kind="n04356056"), options, **wnids)["text"]["ids"].tolist() == ids("dark glasses")
    wnids = [line.split("\t")[0] for line in _imagenet()]
    options = CLASS | dict(label_set="imagenet_unicl")
    assert example(dict(kind=837), options, names=wnids)["text"]["ids"].tolist() == ids("dark glasses")
    with pytest.raises(ValueError, match="there are 1 names for the 4 labels"):
        loader([], CLASS | dict(label_set=["fox"]))


def _imagenet():
    return prompt_templates.labels_file("imagenet.tsv").read_text().splitlines()


def test_a_class_that_is_none_of_a_partial_set_is_replaced():
    load = loader([dict(kind=0)], CLASS | dict(label_set="objectnet"), names=["n0", "alarm_clock"])
    with pytest.raises(BadRecord, match="the class 'n0' is none of objectnet") as error:
        load.load(0, np.random.default_rng(0))
    assert error.value.counter == "replaced_texts"


SHORT = dict(prompt_classes="short")
PROMPTS = ("a photo of a {}.", "{} on a table", "the {}")


@pytest.mark.parametrize(
    ("record", "text", "described", "prompted"),
    [
        (dict(kind=0), CLASS, "red fox", True),
        (dict(kind=0), CLASS | dict(prompt_words=1), "red fox", True),  # a class's name always is
        (dict(text="a cat"), CAPTION, "a cat", True),
        (dict(text="a black cat"), CAPTION, "a black cat", False),
        (dict(text="a black cat"), CAPTION | dict(prompt_words=3), "a black cat", True),
        (dict(text="a cat"), CAPTION | dict(augment=False), "a cat", False),
        (dict(kind=0), CLASS | dict(augment=False), "red fox", False),
        (dict(kind=0), CLASS | SHORT, "red fox", True),
        (dict(kind=0), CLASS | SHORT | dict(prompt_words=1), "red fox", False),
        (dict(kind="ice+cream"), CLASS | SHORT, "ice cream", True),
        (dict(kind="ice+cream"), CLASS | SHORT | dict(prompt_words=1), "ice cream", False),
    ],
)
def test_short_captions_and_classes_have_a_prompt_of_each_draw(record, text, described, prompted):
    load = loader([record], text | dict(prompts=PROMPTS))
    drawn = {tuple(load.load(0, np.random.default_rng(i))["text"]["ids"].tolist()) for i in range(30)}
    expected = [prompt.replace("{}", described) for prompt in PROMPTS] if prompted else [described]
    assert drawn == {tuple(ids(prompt)) for prompt in expected}


def test_the_same_draw_has_the_same_prompt_and_without_prompts_nothing_is_drawn():
    record = dict(kind=1)
    unicl = CLASS | dict(prompts="unicl")
    for seed in range(5):
        first, second = (example(record, unicl, seed)["text"]["ids"].tolist() for _ in range(2))
        assert first == second
    for options in (CLASS, unicl | dict(augment=False)):
        rng = np.random.default_rng(3)
        loader([record], options).load(0, rng)
        # The only draw is that of a record among those of an item, of which there is one.
        assert rng.bit_generator.state == np.random.default_rng(3).bit_generator.state


def test_a_prompt_does_not_hide_an_empty_caption():
    with pytest.raises(BadRecord, match="nothing left after tokenisation"):
        example(dict(text="  "), CAPTION | dict(prompts=PROMPTS))


# Keys.


def test_a_key_is_that_of_the_text_before_its_prompt():
    load = loader([dict(text="a cat")], CAPTION | dict(prompts="unicl"))
    values = [load.load(0, np.random.default_rng(seed)) for seed in range(20)]
    assert len({tuple(value["text"]["ids"].tolist()) for value in values}) > 5
    for value in values:
        np.testing.assert_array_equal(value["identity"]["key"], hashed("a cat", b"text"))
        assert value["identity"]["key"].dtype == np.uint32
        assert value["identity"]["valid"]


def test_a_key_is_of_the_caption_that_was_drawn():
    load = loader([dict(text=["a cat", "an owl"])], CAPTION)
    pairs = set()
    for seed in range(20):
        value = load.load(0, np.random.default_rng(seed))
        pairs.add((tuple(value["text"]["ids"].tolist()), tuple(value["identity"]["key"].tolist())))
    assert pairs == {
        (tuple(ids(text)), tuple(hashed(text, b"text").tolist())) for text in ("a cat", "an owl")
    }


def test_hashes_stay_what_they_are():
    """Two hosts, and a restart, must agree."""
    assert hashed("a cat", b"text").tolist() == [3337087446, 3772256537]


CAT, OTHER_CAT = dict(text="red fox"), dict(text="Red fox")
FOX, SECOND_FOX = dict(kind=0), dict(kind=3)


def test_by_default_classes_are_equal_by_number_and_captions_by_text():
    assert key(CAT, CAPTION) == key(CAT, CAPTION, seed=9)
    assert key(CAT, CAPTION) != key(OTHER_CAT, CAPTION)
    assert key(FOX, CLASS) == key(FOX, CLASS, seed=9)
    assert key(FOX, CLASS) != key(SECOND_FOX, CLASS)
    assert key(FOX, CLASS) != key(CAT, CAPTION)


def test_class_3_of_two_sources_is_one_only_under_one_label():
    assert key(SECOND_FOX, CLASS) == key(SECOND_FOX, CLASS, names=["a", "b", "c", "red_fox", "e"])
    assert key(SECOND_FOX, CLASS) != key(SECOND_FOX, CLASS, names=["a", "b", "c", "d"])


def test_by_name_a_class_is_equal_to_its_name_everywhere():
    by_name = dict(class_by="name")
    fox = key(FOX, CLASS, **by_name)
    assert fox == key(SECOND_FOX, CLASS, **by_name) == key(CAT, CAPTION, **by_name)
    assert fox == key(dict(kind=1), CLASS, names=["owl", "red fox"], **by_name)
    assert fox != key(OTHER_CAT, CAPTION, **by_name)


def test_a_name_is_equal_to_a_caption_letter_by_letter():
    """Cleaned for a prompt, "owl, snowy" and "owl snowy" would be one description."""
    by_name, names = dict(class_by="name"), ["owl, snowy", "owl snowy", "ice+cream", "ice cream"]
    keys = [key(dict(kind=i), CLASS, names=names, **by_name) for i in range(4)]
    assert len(set(keys)) == 4
    assert [key(dict(text=name), CAPTION, **by_name) for name in names] == keys
    with_prompts = [
        key(dict(kind=i), CLASS | dict(prompts=PROMPTS), names=names, **by_name) for i in range(4)
    ]
    assert with_prompts == keys


def test_captions_by_pair_equal_nothing():
    load = loader([CAT], CAPTION, caption_by="pair")
    keys = [tuple(load.load(0, np.random.default_rng(seed))["identity"]["key"]) for seed in range(20)]
    assert len(set(keys)) == 20
    again = load.load(0, np.random.default_rng(7))["identity"]["key"]
    assert tuple(again) == keys[7]
    assert key(FOX, CLASS, caption_by="pair") == key(FOX, CLASS)


def test_a_missing_example_is_not_valid():
    value = fields.build(dict(text=dict(kind="text", **CAPTION), identity=dict(kind="identity")), 8)
    assert not value["identity"].zeros()["valid"]


# Mixtures.


def test_a_mixture_of_captions_and_classes_is_a_function_of_seed_and_step():
    """One set of fields; each source reads its own kind of text."""
    parts = []
    for text in (dict(captions=dict(name=1.0)), dict(class_key="label")):
        options = dict(text=dict(kind="text", prompts="unicl", **text), identity=dict(kind="identity"))
        source = EmojiPairs(["fxemoji"], "seen")
        load = LoadExample(source, fields.opened(fields.build(options, 16), source, TOKENIZER))
        parts.append(pipeline.Part(load, len(source), 1.0))

    def batches(start, steps):
        iterator = pipeline.batches(parts, 64, seed=0, start=start, threads=2)
        taken = list(itertools.islice(iterator, steps))
        iterator.close()
        return taken

    first, later = batches(0, 3), batches(2, 1)
    for name, part in (("identity", "key"), ("text", "ids")):
        np.testing.assert_array_equal(first[2][name][part], later[0][name][part])
    names = EmojiPairs(["fxemoji"], "seen").label_names("label")
    classes = {tuple(hashed(f"{i} {name}", b"class")) for i, name in enumerate(names)}
    counts = [sum(tuple(row) in classes for row in batch["identity"]["key"]) for batch in first]
    assert sum(counts) == 96  # half of 192


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(text=dict(kind="text", **CAPTION, **CLASS)), "text.class_key is 'kind'; with it captions must"),
        (
            dict(text=dict(kind="text", **CAPTION, prompt_classes="few")),
            "text.prompt_classes is 'few'; use all or",
        ),
        (
            dict(text=dict(kind="text", **CAPTION, label_set="imagenet")),
            "text.label_set is 'imagenet'; without class_key it has no effect: drop it$",
        ),
        (
            dict(text=dict(kind="text", **CAPTION, prompt_words=3)),
            "text.prompt_words is 3; without prompts it has no effect: drop it$",
        ),
        (
            dict(text=dict(kind="text", **CLASS, prompt_classes="short")),
            "text.prompt_classes is 'short'; without prompts it has no effect: drop it$",
        ),
        (
            dict(text=dict(kind="text", **CLASS, augment=False)),
            "text.augment is False; without prompts it has no effect: drop it$",
        ),
        (dict(text=dict(kind="text")), "text.captions is missing or empty; without class_key"),
        (dict(x=dict(kind="identity")), "x.text is 'text'; there are the text fields none"),
        (
            dict(a=dict(kind="text", **CAPTION), x=dict(kind="identity", text="b")),
            "x.text is 'b'; there are the text fields a",
        ),
        (dict(x=dict(kind="identity", class_by="id")), "x.class_by is 'id'; use number or name"),
        (dict(x=dict(kind="identity", caption_by="hash")), "x.caption_by is 'hash'; use text or pair"),
    ],
)
def test_options_that_can_not_be(options, message):
    with pytest.raises(ValueError, match=rf"^fields\.{message}"):
        fields.build(options, 8)
