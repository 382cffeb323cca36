"""Apache Beam's decisions and funnel equal those of one machine."""

import json
import pathlib

import numpy as np
import pytest

from big_ssl import curate
from big_ssl.curation import counting, records
from big_ssl.curation.filters import Item
from big_ssl.curation.limits import Limits
from big_ssl.data import sources
from big_ssl.data.records import values

beam = pytest.importorskip("apache_beam", reason="Apache Beam is not installed: the curation extra")
SAMPLE = str(pathlib.Path(__file__).parents[1] / "data" / "openclipart_sample.parquet")
pytestmark = pytest.mark.slow


def random_items(count):
    """Few texts and few images, repeated: every rule that depends on counts drops some and not others."""
    rng = np.random.default_rng(0)
    known = [" ".join(rng.choice(list("abcdefghijkl"), rng.integers(1, 6))) for _ in range(100)]
    for id in range(count):
        texts = rng.choice(known, rng.integers(0, 5), p=np.arange(1, 101) / 5050).tolist()
        yield Item(id, str(rng.integers(8)), 300, int(rng.choice([50, 300])), tuple(texts), id % 17 == 0)


def test_the_decisions_equal_those_of_one_machine(tmp_path):
    from big_ssl.curation.beam_pipeline import Filter

    limits = Limits(
        languages=(), max_texts=34, max_images=4, most_frequent=60, min_unigrams=2, max_unigrams=4
    )
    items = list(random_items(150))
    with beam.Pipeline(runner="DirectRunner") as pipeline:
        lines = pipeline | beam.Create(items) | Filter(limits) | beam.Map(json.dumps)
        lines | beam.io.WriteToText(str(tmp_path / "decisions"))
    written = [json.loads(line) for path in tmp_path.iterdir() for line in path.read_text().splitlines()]
    expected = list(counting.decisions(items, limits))
    assert sorted(written) == json.loads(json.dumps(expected))
    reasons = {v.image for v in expected} | {reason for v in expected for reason in v.texts}
    counted = {"many_texts", "evaluation_duplicate", "shared", "rare", "short", "long", "no_text", ""}
    assert counted < reasons


def test_the_command_writes_the_same_dataset_and_funnel(tmp_path):
    limits = Limits(languages=(), min_side=32, max_unigrams=8, most_frequent=400)
    source = sources.ParquetPairs(SAMPLE, text_keys=("title", "description", "width", "height"))
    items = records.Items(source, ("title", "description"), ("width", "height"))
    actual = []
    for name, options in (("here", []), ("beam", ["runner=DirectRunner"])):
        folder = tmp_path / name
        curate.curate(items, limits, str(folder), options)
        written = sources.TfdsPairs(records.NAME, records.SPLIT, str(folder))
        pairs = sorted((record["image"], values(record, "text")) for record in sources.records(written))
        actual.append((pairs, json.loads((folder / "funnel.json").read_text())))
    assert actual[0] == actual[1]
    assert len(actual[0][0]) > 20
