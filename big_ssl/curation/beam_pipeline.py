"""The filters as Apache Beam transforms, for datasets too large to count on one machine.

Only the counting differs from counting.py; the rules and their order are the same. Needs
`pip install 'big-ssl[curation]'`.
"""

import json

import apache_beam as beam

from big_ssl import io
from big_ssl.curation import funnel, records
from big_ssl.curation.filters import TextFacts, decide, frequency_floor, ngrams, text_key
from big_ssl.curation.limits import Limits


class ReadItems(beam.PTransform):
    """A pipeline -> PCollection[Item]; each worker reads blocks of records.Items."""

    _BLOCK = 1024

    def __init__(self, items):
        super().__init__()
        self._items = items

    def expand(self, pipeline):
        items = self._items
        blocks = [range(i, min(i + self._BLOCK, len(items))) for i in range(0, len(items), self._BLOCK)]
        return (
            pipeline
            | beam.Create(blocks)
            | beam.Reshuffle()
            | beam.FlatMap(lambda block: (items[index] for index in block))
        )


class Filter(beam.PTransform):
    """PCollection[Item] -> PCollection[Decision], one a record."""

    def __init__(self, limits: Limits):
        super().__init__()
        self._limits = limits

    def expand(self, items):
        limits = self._limits
        pairs = (
            items
            | "Pairs" >> beam.FlatMap(lambda item: {(item.digest, text_key(text)) for text in item.texts})
            | "Distinct" >> beam.Distinct()
        )
        texts_of_image = (
            pairs | "TextsOfImage" >> beam.Keys() | "CountTexts" >> beam.combiners.Count.PerElement()
        )
        facts = dict(
            item=items | "ItemById" >> beam.Map(lambda item: (item.id, item)),
            image_texts=_by_digest(items, texts_of_image),
            texts=_text_facts(items, pairs, limits),
        )
        return facts | "ById" >> beam.CoGroupByKey() | "Decide" >> beam.Map(_decide, limits)


class Funnel(beam.PTransform):
    """PCollection[Decision] -> PCollection with one element, funnel.table's dict."""

    def expand(self, decisions):
        return (
            decisions
            | "Tally" >> beam.Map(funnel.tally)
            | "Total" >> beam.CombineGlobally(funnel.total)
            | "Table" >> beam.Map(funnel.table)
        )


class Curate(beam.PTransform):
    """A pipeline -> PCollection[(key, example)] of the records to keep, for records.write.

    items: records.Items; limits: the thresholds; table: the JSON file for funnel.table's dict.
    """

    def __init__(self, items, limits: Limits, table: str):
        super().__init__()
        self._items, self._limits, self._table = items, limits, table

    def expand(self, pipeline):
        source, table = self._items.source, self._table
        decisions = pipeline | ReadItems(self._items) | Filter(self._limits)
        written = decisions | Funnel() | "WriteTable" >> beam.Map(lambda counts: _write(table, counts))
        del written  # a separate branch of the pipeline
        return (
            decisions
            | "Kept" >> beam.Filter(lambda decision: decision.kept)
            | "Example" >> beam.Map(lambda decision: records.example(source, decision))
        )


def _write(path, table):
    io.as_path(path).write_text(json.dumps(table))


def _by_digest(items, texts_of_image):
    """(id, the number of distinct texts of the record's image)."""
    joined = dict(
        ids=items | "IdByDigest" >> beam.Map(lambda item: (item.digest, item.id)), texts=texts_of_image
    )
    return (
        joined
        | "ByDigest" >> beam.CoGroupByKey()
        | "ImageTexts"
        >> beam.FlatMapTuple(lambda _, group: ((id, sum(group["texts"])) for id in group["ids"]))
    )


def _text_facts(items, pairs, limits):
    """(id, (position, TextFacts))."""
    joined = dict(
        texts=items | "Texts" >> beam.FlatMap(_texts),
        images=pairs | "ImagesOfText" >> beam.Values() | "CountImages" >> beam.combiners.Count.PerElement(),
        rare=_rare_texts(items, pairs, limits),
    )
    return joined | "ByText" >> beam.CoGroupByKey() | "TextFacts" >> beam.FlatMapTuple(_facts)


def _rare_texts(items, pairs, limits):
    """(text key, True) for texts with an n-gram below the floor."""
    occurrences = (
        items
        | "Ngrams" >> beam.FlatMap(lambda item: (ngram for text in item.texts for ngram in ngrams(text)))
        | "CountNgrams" >> beam.combiners.Count.PerElement()
    )
    histogram = occurrences | beam.Values() | "Histogram" >> beam.combiners.Count.PerElement()
    floor = histogram | beam.combiners.ToDict() | "Floor" >> beam.Map(frequency_floor, limits.most_frequent)
    rare = occurrences | "Rare" >> beam.Filter(
        lambda counted, floor: counted[1] < floor, beam.pvalue.AsSingleton(floor)
    )
    keys = pairs | "TextKeys" >> beam.Values() | "DistinctTexts" >> beam.Distinct()
    holders = keys | "Holders" >> beam.FlatMap(lambda key: ((ngram, key) for ngram in set(ngrams(key))))
    return (
        dict(rare=rare, holders=holders)
        | "ByNgram" >> beam.CoGroupByKey()
        | "RareTexts" >> beam.FlatMapTuple(lambda _, group: group["holders"] if any(group["rare"]) else ())
        | "DistinctRareTexts" >> beam.Distinct()
        | "MarkRare" >> beam.Map(lambda key: (key, True))
    )


def _texts(item):
    return ((text_key(text), (item.id, position, text)) for position, text in enumerate(item.texts))


def _facts(_, group):
    (images,), rare = group["images"], any(group["rare"])
    return ((id, (position, TextFacts(text, images, rare))) for id, position, text in group["texts"])


def _decide(grouped, limits):
    _, group = grouped
    (item,), (image_texts,) = group["item"], group["image_texts"]
    texts = [facts for _, facts in sorted(group["texts"])]
    return decide(item, image_texts, texts, limits)
