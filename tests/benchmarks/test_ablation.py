"""The ablation tables: configs that can run, weights at 0 where they should be, and the table."""

import pytest
from absl import flags
from absl.testing import flagsaver

from benchmarks import ablation


@pytest.fixture(autouse=True)
def parsed():
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["ablation", "--table=ibot", "--output=none"])


@pytest.mark.parametrize("preset", ["demo", "tiny"])
@pytest.mark.parametrize("name", list(ablation.TABLES))
def test_every_variant_is_a_config(name, preset):
    with flagsaver.flagsaver(preset=preset):
        for variant in ablation.TABLES[name].values():
            config = ablation.run_config(variant, 3, 40)
            (stream,) = config["streams"].values()
            assert (config["seed"], config["total_steps"], config["eval_every"]) == (3, 40, 40)
            assert config["learning_rate"]["warmup_steps"] <= 10
            for term, weight in variant.weights.items():
                assert stream["objectives"].get(term, dict(weight=0))["weight"] == weight
            for term, options in variant.options.items():
                assert stream["objectives"][term].items() >= options.items()


def test_the_untrained_network_is_a_run_without_a_rate():
    config = ablation.run_config(ablation.TABLES["ibot"]["DINO alone"], 0, 0)
    assert (config["total_steps"], config["learning_rate"]["peak"], config["learning_rate"]["start"]) == (
        1,
        0,
        0,
    )


def test_a_row_for_each_variant_and_what_it_lacks_is_empty():
    results = {
        "first": [
            {"knn/a/k20_top1": 0.5, "koleo_distance": 0.25},
            {"knn/a/k20_top1": 0.7, "koleo_distance": 0.75},
        ],
        "second": [{"knn/a/k20_top1": 0.4}],
    }
    assert ablation.table(results).splitlines()[2:] == [
        "| first | 60.0% (50.0% to 70.0%) | 0.500 (0.250 to 0.750) |",
        "| second | 40.0% |  |",
    ]
    found = {"eval/knn/a/k20_top1": 1.0, "train/koleo_distance": 2.0, "train/loss": 3.0}
    assert ablation.columns(found) == {"knn/a/k20_top1": 1.0, "koleo_distance": 2.0}


def test_unicl_and_clip_differ_in_the_positives_alone():
    unicl, clip = (ablation.run_config(variant, 0, 40) for variant in ablation.TABLES["unicl"].values())
    objective = unicl["streams"]["pairs"]["objectives"]["unicl"]
    assert objective["positives"] == "identity"
    objective.update(positives="")
    assert unicl == clip
