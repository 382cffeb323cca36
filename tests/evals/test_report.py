"""The report of a made-up run: what the page says, what it holds, and that a browser shows it."""

import base64
import dataclasses
import html.parser
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from big_ssl.evals import page as page_lib
from big_ssl.evals import plots, report, report_texts
from big_ssl.evals.report_sections import EvalSection

QUERIES = ["a red heart", "<b>cat & dog</b>", "flag of $France$"]
FACTS = {"parameters": "1,234"}
COMMAND = "python -m big_ssl.main --config=configs/some.py"
SETS = ("twemoji", "twemoji_no_flags", "twemoji_unseen", "twemoji_unseen_no_flags", "openmoji")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Page(html.parser.HTMLParser):
    """Collects (tag, attributes) of every element, the cells of each row by table, and the cards' guesses."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.rows, self.cards, self.words = [], [], [], []
        self._row = self._guess = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.elements.append((tag, attrs))
        if tag == "tr":
            self._row = {"attrs": attrs, "cells": []}
            self.rows.append(self._row)
        elif tag == "td":
            self._row["cells"].append("")
        elif tag == "article":
            self.cards.append({"image": int(attrs["data-image"]), "guesses": []})
        elif tag == "li":
            self._guess = {"right": attrs.get("class") == "right", "text": ""}
            self.cards[-1]["guesses"].append(self._guess)

    def handle_endtag(self, tag):
        if tag == "tr":
            self._row = None
        elif tag == "li":
            self._guess = None

    def handle_data(self, data):
        self.words.append(data)
        if self._row is not None and self._row["cells"]:
            self._row["cells"][-1] += data + " "
        if self._guess is not None:
            self._guess["text"] += data

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def images(self):
        return [attrs["src"] for tag, attrs in self.elements if tag == "img"]


def make_examples(seed, images=40, names=30, noise=0.3):
    """Examples whose names 0 mod 5 are unseen, with images near their names but not always nearest."""
    rng = np.random.default_rng(seed)
    text = rng.normal(size=(names, 16))
    labels = rng.permutation(np.arange(images) % names)
    return report_texts.RetrievalExamples(
        images=rng.integers(0, 256, (images, 24, 24, 3), dtype=np.uint8),
        names=[f"name {i} <&>" for i in range(names)],
        labels=labels,
        image_embeddings=unit(text[labels] + noise * 4 * rng.normal(size=(images, 16))),
        text_embeddings=unit(text),
        unseen=np.arange(names) % 5 == 0,
    )


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def encode_text(texts):
    return np.random.default_rng(len(texts)).normal(size=(len(texts), 16))


def evaluation(step):
    """A line of metrics.jsonl as an evaluation writes it; every value differs with the step."""
    line = {"step": step, "time/eval_seconds": 3.5}
    for i, name in enumerate(SETS):
        unseen = "unseen" in name
        base = f"eval/zero_shot/{name}"
        line |= {
            f"{base}/top1": step / 1000 - i / 50,
            f"{base}/top5": step / 800 - i / 50,
            f"{base}/chance": 1 / 1911,
        }
        line |= {f"{base}/pixel_1nn_top1": 0.0 if unseen else 0.485 - i / 50}
        base = f"eval/retrieval/{name}"
        for k in (1, 5, 10):
            line |= {
                f"{base}/image_to_text_r{k}": step / 1000 - i / 50 + k / 100,
                f"{base}/chance_r{k}": k / 1911,
            }
            line |= {f"{base}/text_to_image_r{k}": step / 1000 - i / 50 + k / 90}
        line |= {f"{base}/pixel_1nn_image_to_text_r1": 0.0 if unseen else 0.481}
    return line


def training(step):
    loss = 6 / (1 + step / 50)
    return {
        "step": step,
        "train/loss": loss if step != 20 else None,
        "train/contrastive/loss": loss * 0.9,
        "train/contrastive/temperature": 0.07 - step / 20000,
        "train/learning_rate": 1e-3,
        "train/contrastive/image_to_text_accuracy": step / 600,
    }


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    lines = [training(step) for step in range(10, 601, 10)] + [evaluation(step) for step in (300, 600)]
    text = "\n".join(json.dumps(line) for line in lines)
    (path / "metrics.jsonl").write_text(text + '\n{"step": 610, "train/lo', encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def examples():
    return {"twemoji": make_examples(0), "openmoji": make_examples(1, images=35, noise=0.6)}


def write(workdir, examples, queries=QUERIES):
    sections = report_texts.retrieval_sections(examples, queries, encode_text(queries))
    return report.write_report(workdir, title="A <run>", facts=FACTS, command=COMMAND, sections=sections)


@pytest.fixture(scope="module")
def text(workdir, examples):
    return write(workdir, examples).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def number(text):
    return float(text.strip().rstrip("%×").replace(",", "")) / (100 if "%" in text else 1)


def test_every_image_is_in_the_page_and_decodes(page):
    sources = page.images()
    # 6 panels, a heat map, 8 images a query, and the cards of both sets.
    assert len(sources) == 6 + 1 + 8 * (3 + 3) + 12 + 6
    for source in sources:
        header, data = source.split(",", 1)
        assert header == "data:image/png;base64"
        Image.open(io.BytesIO(base64.b64decode(data, validate=True))).load()


def test_nothing_is_loaded_from_elsewhere(text, page, workdir):
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.elements}
    for tag, attrs in page.elements:
        assert not re.match(r"(https?:)?//", attrs.get("src") or attrs.get("href") or ""), (tag, attrs)
    assert "url(" not in text
    assert "@import" not in text
    assert str(workdir) not in text


def test_tables_equal_the_last_evaluation(page):
    last = evaluation(600)
    rows = [row for row in page.rows if "data-set" in row["attrs"] and "data-way" not in row["attrs"]]
    zero_shot = {row["attrs"]["data-set"]: row["cells"] for row in rows}
    assert set(zero_shot) == set(SETS)
    for name, cells in zero_shot.items():
        top1, top5, chance, times, pixel = map(number, cells)
        base = f"eval/zero_shot/{name}/"
        expected = [last[base + metric] for metric in ("top1", "top5", "chance", "pixel_1nn_top1")]
        np.testing.assert_allclose([top1, top5, chance, pixel], expected, atol=5.1e-4)
        assert times == pytest.approx(last[base + "top1"] * 1911, abs=0.5)


def test_retrieval_table_equals_the_last_evaluation(page):
    last = evaluation(600)
    rows = [row for row in page.rows if "data-way" in row["attrs"]]
    rows = {(row["attrs"]["data-set"], row["attrs"]["data-way"]): row["cells"] for row in rows}
    assert set(rows) == {(name, way) for name in SETS for way in ("image_to_text", "text_to_image")}
    for (name, way), cells in rows.items():
        for k, cell in zip((1, 5, 10), cells[1:], strict=True):
            value, chance, _, pixel = cell.split()
            assert number(value) == pytest.approx(last[f"eval/retrieval/{name}/{way}_r{k}"], abs=5.1e-4)
            assert number(chance) == pytest.approx(k / 1911, abs=5.1e-5)
            assert (pixel == "–") == (k > 1 or way == "text_to_image")


def test_headline_of_the_first_set(page):
    last = evaluation(600)["eval/zero_shot/twemoji/top1"]
    note = "flat colour drawings, in a style that was kept out of training"
    assert f"Shown an image from twemoji ({note}), the model ranks its right name first" in page.text
    assert f"in {last:.1%} of cases" in page.text
    assert "python -m big_ssl.main --config=configs/some.py" in page.text
    assert "“<b>cat & dog</b>”" in page.text  # shown, not obeyed


def test_nearest_names_are_the_most_similar(page, examples):
    some = examples["twemoji"]
    similarities = some.image_embeddings @ some.text_embeddings.T
    for card in page.cards[:12]:
        row = similarities[card["image"]]
        true = some.names[some.labels[card["image"]]]
        assert card["guesses"][0]["text"].startswith(some.names[int(np.argmax(row))])
        assert [g["right"] for g in card["guesses"]].count(True) == 1
        (right,) = [g["text"] for g in card["guesses"] if g["right"]]
        assert right.startswith(f"{true} ✓")
        shown = sorted((g["text"][-4:] for g in card["guesses"][:5]), reverse=True)
        assert shown == [f"{value:.2f}" for value in np.sort(row)[::-1][:5]]


def test_nearest_images_are_the_most_similar(examples):
    some = examples["twemoji"]
    texts = unit(encode_text(["a", "b"]))
    nearest = report_texts.nearest_images(some, texts, 8)
    similarities = texts @ some.image_embeddings.T
    np.testing.assert_array_equal(nearest[:, 0], similarities.argmax(1))
    assert (np.diff(np.take_along_axis(similarities, nearest, 1)) <= 0).all()


def test_shown_images_do_not_depend_on_the_model(page, examples):
    some = examples["twemoji"]
    shown = [card["image"] for card in page.cards[:12]]
    other = make_examples(0, noise=5.0)
    assert shown == report_texts.spread_images(some, 12) == report_texts.spread_images(other, 12)
    assert len(set(shown)) == 12
    assert some.unseen[some.labels[shown]].sum() == 6


def test_failures_are_shown_with_the_rank_of_the_right_name(examples):
    some = examples["openmoji"]
    cards = report_texts._image_to_text(some, list(range(len(some.images))))
    similarities = some.image_embeddings @ some.text_embeddings.T
    for i, card in enumerate(cards):
        assert card["rank"] == 1 + (similarities[i] > similarities[i, some.labels[i]]).sum()
    assert {card["rank"] > 5 for card in cards} == {True, False}


def test_a_run_without_sections(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(training(s)) for s in (10, 20, 30)))
    page = Page(write(tmp_path, {}).read_text(encoding="utf-8"))
    assert len(page.images()) == 4
    headings = [attrs["id"] for tag, attrs in page.elements if tag == "h2"]
    assert headings == ["curves"]
    assert "Over 30 training steps the loss went from" in page.text


def self_supervised(step):
    """A line of a run that learns from pictures alone; a set of unseen concepts beside the whole."""
    line = training(step) | {"train/dino/loss": 2.0, "train/ibot/loss": 1.0}
    for term in ("dino", "ibot"):
        line |= {f"train/{term}/{name}": 1.0 for name in ("teacher_entropy", "target_kl", "target_spread")}
    for i, name in enumerate(("twemoji", "twemoji_unseen")):
        base = f"eval/knn/{name}/"
        line |= {f"{base}k10_top1": 0.3, f"{base}k20_top1": step / 100 - i / 10, f"{base}majority": 0.2}
        line |= {f"{base}pixel_k10_top1": 0.7, f"{base}pixel_k20_top1": 0.75 - i / 4}
    return line | {f"eval/linear_sweep/heads/{name}": 0.5 for name in ("top1", "validation_top1")}


def test_a_run_without_texts(tmp_path):
    """The headline is of the largest k at the last step; figures are also files beside the page."""
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(self_supervised(s)) for s in (10, 40)))
    figure = plots.tiles([[plots.Tile(np.zeros((4, 4, 3), np.uint8), "black", plots.WRONG)] * 2])
    section = EvalSection("attention", "Attention", "At <edges>.", figure)
    again = EvalSection("attention", "Attention", "The same of another evaluator.")
    path = report.write_report(
        tmp_path, title="A run", facts=FACTS, task=["To <see>."], sections=[section, again]
    )
    page = Page(path.read_text(encoding="utf-8"))
    assert "the 20 nearest training images vote for its right class in 40.0% of cases" in page.text
    assert (
        "plain pixels, downsampled to 16 × 16, gets 75.0%; always naming the most frequent class gets"
        in page.text
    )
    assert "of any style in the training set, it is right in 30.0% of cases (pixels 50.0%)" in page.text
    assert "At <edges>." in page.text
    assert "To <see>." in page.text
    assert "another evaluator" not in page.text
    headings = [attrs["id"] for tag, attrs in page.elements if tag == "h2"]
    assert headings == ["task", "curves", "further", "attention"]
    titles = [attrs["alt"] for tag, attrs in page.elements if tag == "img"]
    curves = ["Neighbours vote, twemoji", "Neighbours vote, twemoji unseen", "Linear heads, heads"]
    curves += [
        "Teacher's entropy, dino",
        "Teacher's entropy, ibot",
        "Student behind teacher",
    ]
    assert titles[-7:] == [*(f"{curve} over training steps" for curve in curves), "Attention"]
    embedded = base64.b64decode(page.images()[-1].split(",", 1)[1])
    assert (path.parent / "attention.png").read_bytes() == embedded
    assert (path.parent / "neighbours_vote_twemoji.png").exists()


def test_a_run_without_retrieval_baselines_or_queries(tmp_path, examples):
    line = {"step": 5, "eval/zero_shot/twemoji/top1": 0.25, "eval/retrieval/twemoji/image_to_text_r1": 0.25}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line))
    page = Page(write(tmp_path, examples, queries=[]).read_text(encoding="utf-8"))
    assert "first in 25.0% of cases" in page.text
    assert "twemoji-text-to-image" not in [attrs.get("id") for _, attrs in page.elements]
    assert "None" not in page.text


def test_metrics_of_a_resumed_run(tmp_path):
    lines = ['{"step": 1, "a": 1.0}', '{"step": 3, "a": 9}', '{"step": 2, "a": NaN, "b": null}', '{"st']
    lines.append('{"step": 3, "a": 3.0}')
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert report.read_metrics(tmp_path / "metrics.jsonl") == {"a": [(1, 1.0), (3, 3.0)]}


def test_the_page_is_replaced_and_the_same_each_time(text, workdir, examples):
    path = write(workdir, examples)
    assert path == workdir / "report" / "index.html"
    assert path.read_text(encoding="utf-8") == text
    names = {p.name for p in path.parent.iterdir()}
    assert {"index.html", "loss.png", "zero_shot_top_1.png", "retrieval_r_1_twemoji.png"} < names
    assert len(names) == 1 + 6
    assert Image.open(path.parent / "loss.png").size == (640, 464)


def test_examples_of_unequal_lengths_are_an_error(examples):
    some = examples["twemoji"]
    with pytest.raises(ValueError, match="differ in number"):
        dataclasses.replace(some, images=some.images[1:])
    with pytest.raises(ValueError, match="differ in number"):
        dataclasses.replace(some, names=some.names[1:])


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (0.0, "0%"), (1 / 1911, "0.05%"), (0.416, "41.6%"), (1, "100.0%")]
)
def test_percent(value, text):
    assert page_lib.percent(value) == text


def test_running_mean_is_centred():
    values = np.arange(9.0)  # a straight line stays where it is, but for the end
    np.testing.assert_allclose(plots.running_mean(values, 5), [0, 1, 2, 3, 4, 5, 6, 6.5, 7])
    np.testing.assert_allclose(plots.running_mean(np.eye(7)[3], 3), [0, 0, 1 / 3, 1 / 3, 1 / 3, 0, 0])


def test_a_browser_shows_every_image(text, page, tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium on this machine")
    widths = "[...document.images].map(image => image.naturalWidth).join()"
    script = f"addEventListener('load', () => document.title = {widths})"
    copy = tmp_path / "copy.html"
    copy.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"]
    shown = subprocess.run(
        [browser, *flags, copy.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    title = re.search("<title>(.*?)</title>", shown.stdout).group(1)
    widths = [int(width) for width in title.split(",")]
    assert len(widths) == len(page.images())
    assert min(widths) > 0


def test_a_run_of_every_kind_has_every_headline_and_table(tmp_path):
    """Zero-shot, neighbours and what has no table of its own."""
    line = evaluation(600) | self_supervised(600) | {"eval/classification/photos/top1": 0.75}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line))
    page = Page(report.write_report(tmp_path, title="A run", facts=FACTS).read_text(encoding="utf-8"))
    assert "the model ranks its right name first" in page.text
    assert "the 20 nearest training images vote" in page.text
    headings = [attrs["id"] for tag, attrs in page.elements if tag == "h2"]
    assert headings == ["curves", "zero-shot", "retrieval", "further"]
    kinds = {row["attrs"]["data-kind"]: row["cells"] for row in page.rows if "data-kind" in row["attrs"]}
    assert set(kinds) == {"linear_sweep", "classification"}
    assert [cell.strip() for cell in kinds["classification"]] == ["top1", "0.75"]
