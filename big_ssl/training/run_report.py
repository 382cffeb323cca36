"""The report of a finished run, from what training left in memory and in its workdir."""

import jax
import numpy as np

from big_ssl.data import preprocessing
from big_ssl.evals import report_pictures
from big_ssl.evals.emoji_suite import EmojiSuite
from big_ssl.evals.knn import Knn
from big_ssl.evals.report import write_report
from big_ssl.training import state as state_lib

# Free texts for the gallery; none of them is the exact name of a concept.
QUERIES = (
    "a smiling face with hearts",
    "someone who is sad and crying",
    "a cat",
    "food from Japan",
    "a red fruit",
    "a flag with a cross",
    "a woman at work",
    "something to drink",
    "a fast vehicle",
    "musical instrument",
    "bad weather",
    "an arrow that points left",
)
# Of a run without texts: pictures whose inside is shown; rows of a gallery and how long they are; galleries.
_LOOKED_INTO, _QUERIES, _NEIGHBOURS, _GALLERIES = 6, 8, 8, 2

_SELF_SUPERVISED = (
    "One network learns from pictures alone: nobody tells it what they show. A student sees crops of a "
    "picture, some with patches hidden, and learns to answer what its teacher, a slow average of itself, "
    "answers about other crops and about the hidden patches. Answers have no given meaning; what counts is "
    "that alike pictures get alike ones. It is judged afterwards, frozen, on labelled pictures: by the "
    "classes of the nearest training pictures, and by linear classifiers on top of it. No label has "
    "reached the network."
)


def write_run_report(config, workdir, command: str, result):
    """Writes workdir/report/index.html and returns its path; on processes other than 0, None.

    All processes take part in the embedding, which runs on all devices.
    """
    scenes, texts = {}, np.empty((0, 0), np.float32)
    suites = [each for each in result.evaluators.values() if isinstance(each, EmojiSuite)]
    if suites:
        embedder = result.towers.at(state_lib.evaluation_variables(result.state))
        texts = embedder.texts(QUERIES)
        for each in suites:
            scenes |= each.scenes(embedder)
    pictures = _pictures(config, result)
    if jax.process_index() != 0:
        return None
    return write_report(
        workdir,
        title=config["name"],
        scenes=scenes,
        encode_text=lambda _: texts,
        queries=QUERIES,
        facts=_facts(config, result, command),
        pictures=pictures,
    )


def _pictures(config, result):
    """Of a run without texts, what its neighbours' pictures show: what it sees in them where it is a ViT, and
    which it takes for alike."""
    neighbours = [each for each in result.evaluators.values() if isinstance(each, Knn)]
    if result.setup.system.provider("encode_image") or not neighbours:
        return []
    embedder = result.towers.at(state_lib.evaluation_variables(result.state))
    tower, found = result.setup.system.encoders["image"], []
    if {"cls", "layers"} <= set(tower.outputs):
        prepared = preprocessing.model_keys(config["eval_transform"])
        shown = lambda factor: neighbours[0].pictures(  # noqa: E731
            _LOOKED_INTO, preprocessing.enlarged(prepared, factor)
        )
        found += report_pictures.inside(embedder, shown)
    galleries = (each.gallery(embedder, _QUERIES, _NEIGHBOURS) for each in neighbours[:_GALLERIES])
    return [*found, *map(report_pictures.gallery, galleries)]


def _facts(config, result, command):
    sizes = {
        name: sum(leaf.size for leaf in jax.tree.leaves(tower))
        for name, tower in result.state.params["encoders"].items()
    }
    towers = " + ".join(f"{size / 1e6:.1f}M {name}" for name, size in sizes.items())
    batch = sum(stream["batch_size"] for stream in config["streams"].values())
    texts = bool(result.setup.system.provider("encode_image"))
    return ({} if texts else {"task": _SELF_SUPERVISED}) | {
        "command": command,
        "parameters": towers,
        "steps": f"{config['total_steps']:,}",
        "examples seen": f"{config['total_steps'] * batch:,}",
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
