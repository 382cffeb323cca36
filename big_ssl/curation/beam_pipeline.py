"""The filters as Apache Beam transforms, for sets that no single machine counts.

Only the counts are made otherwise than in counting.py; the rules and their order are the same. Needs
`pip install 'big-ssl[curation]'`.
"""

import json

import apache_beam as beam

from big_ssl import io
from big_ssl.curation import funnel, records
from big_ssl.curation.filters import TextFacts, frequency_floor, judge, ngrams, text_key
from big_ssl.curation.limits import Limits


class ReadItems(beam.PTransform):
    """A pipeline -> PCollection[Item], each worker reading its own blocks of records.Items."""

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
    """PCollection[Item] -> PCollection[Verdict], one a record."""

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
        judged = dict(
            item=items | "ItemById" >> beam.Map(lambda item: (item.id, item)),
            image_texts=_by_digest(items, texts_of_image),
            texts=_text_facts(items, pairs, limits),
        )
        return judged | "ById" >> beam.CoGroupByKey() | "Judge" >> beam.Map(_judge, limits)


class Funnel(beam.PTransform):
    """PCollection[Verdict] -> PCollection of one dict, funnel.table's."""

    def expand(self, judged):
        return (
            judged
            | "Tally" >> beam.Map(funnel.tally)
            | "Total" >> beam.CombineGlobally(funnel.total)
            | "Table" >> beam.Map(funnel.table)
        )


class Curate(beam.PTransform):
    """A pipeline -> PCollection[(key, example)] of what stays, for records.write.

    items: records.Items; table: the file for funnel.table's dict, in JSON.
    """

    def __init__(self, items, limits: Limits, table: str):
        super().__init__()
        self._items, self._limits, self._table = items, limits, table

    def expand(self, pipeline):
        source, table = self._items.source, self._table
        judged = pipeline | ReadItems(self._items) | Filter(self._limits)
        written = judged | Funnel() | "WriteTable" >> beam.Map(lambda found: _write(table, found))
        del written  # a branch of its own
        return (
            judged
            | "Kept" >> beam.Filter(lambda verdict: verdict.kept)
            | "Example" >> beam.Map(lambda verdict: records.example(source, verdict))
        )


def _write(path, found):
    io.as_path(path).write_text(json.dumps(found))


def _by_digest(items, texts_of_image):
    """(id, how many different texts the picture has)."""
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
    """(text key, True) of the texts with an n-gram below the floor."""
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


def _judge(grouped, limits):
    _, group = grouped
    (item,), (image_texts,) = group["item"], group["image_texts"]
    texts = [facts for _, facts in sorted(group["texts"])]
    return judge(item, image_texts, texts, limits)
