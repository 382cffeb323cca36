"""Evaluators in a run: their metrics, the report, and the same numbers from the command afterwards."""

import pytest

from big_ssl import evaluate
from big_ssl.training import evaluation, loop, requirements, run_report
from big_ssl.training.metrics import read_lines

DRAWINGS = dict(kind="emoji", styles=("fxemoji",))
CATEGORIES = dict(kind="zero_shot", data=DRAWINGS, label="category", templates="{}")
EVALS = dict(
    drawings=dict(kind="emoji", styles=("fxemoji",), training_styles=("fxemoji",)),
    categories=CATEGORIES,
    captions=dict(kind="retrieval", data=dict(kind="emoji", styles=("fxemoji",)), captions=("label",)),
)


@pytest.fixture(scope="module")
def run(micro_config, set_up, tmp_path_factory):
    """(result, workdir, config) evaluated after its last step."""
    workdir = tmp_path_factory.mktemp("evaluated")
    config = micro_config(evals=EVALS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "set_up", set_up)
        return loop.train(config, workdir), workdir, config


def _found(workdir):
    (line,) = (
        line for line in read_lines(workdir / "metrics.jsonl") if "eval/zero_shot/categories/top1" in line
    )
    return line


def test_each_evaluator_has_its_own_keys(run):
    line = _found(run[1])
    assert line["step"] == 8
    keys = {key.rpartition("/")[0] for key in line if key.startswith("eval/")}
    assert {"eval/zero_shot/categories", "eval/zero_shot/fxemoji", "eval/retrieval/captions"} < keys
    assert line["eval/zero_shot/categories/chance"] == pytest.approx(1 / 10)
    assert line["eval/zero_shot/fxemoji/pixel_1nn_top1"] > 0
    # Of one style the pictures and their names are those of the suite, without the names of others.
    assert line["eval/retrieval/captions/image_to_text_r5"] == line["eval/retrieval/fxemoji/image_to_text_r5"]


def test_the_command_finds_the_same(run, tmp_path):
    options = {key: value for key, value in CATEGORIES.items() if key != "kind"}
    found = evaluate.evaluate(run[1], "zero_shot", options, tmp_path / "out.json", "categories")
    line = _found(run[1])
    assert len(found) == 4
    for key, value in found.items():  # one picture of 627 may fall the other way
        assert line[key] == pytest.approx(value, abs=0.002 if "mean" not in key else 0.02)


def test_the_report(run, tmp_path):
    result, workdir, config = run
    page = run_report.write_run_report(config, workdir, "command", result).read_text(encoding="utf-8")
    assert 'data-set="categories"' in page
    assert "<h4>“a cat”</h4>" in page
    without = result._replace(evaluators={"categories": result.evaluators["categories"]})
    page = run_report.write_run_report(config, workdir, "command", without).read_text(encoding="utf-8")
    assert 'data-set="categories"' in page
    assert "<h4>" not in page
    assert "None" not in page


def test_a_summary_names_each_kind():
    found = {"eval/zero_shot/a/top1": 0.5, "eval/zero_shot/a/top5": 0.7, "eval/linear_probe/b/top1": 0.25}
    assert evaluation.summary(found) == "zero-shot top1: a 50.0%  linear-probe top1: b 25.0%"
    found = {"eval/retrieval/c/image_to_text_r1": 0.125, "eval/retrieval/c/text_to_image_r1": 0.1}
    assert evaluation.summary(found) == "retrieval image_to_text_r1: c 12.5%"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(kind="emoji", styles=("twemojis",)), "evals: emoji: no style 'twemojis'"),
        (dict(CATEGORIES, classes=["a"]), "evals: classes: there are 1 names for the 10 labels of the data"),
        (dict(CATEGORIES, data=dict(kind="image_folder", path="nowhere")), "evals: .*nowhere"),
        (
            dict(kind="linear_sweep", train=DRAWINGS, test=DRAWINGS, label="category"),
            r"^evals\.x requires intermediate_layers; the model has encode_image, encode_text, zero_shot, ",
        ),
    ],
)
def test_what_does_not_fit_is_said_first(options, message, micro_config, train, tmp_path):
    with pytest.raises(requirements.RequirementsError, match=message):
        train(micro_config(evals=dict(x=options)), tmp_path)
    assert not (tmp_path / "checkpoints").exists()
