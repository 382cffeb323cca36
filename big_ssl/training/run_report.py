"""The report of a finished run, from what training left in memory and in its workdir."""

import jax
import numpy as np

from big_ssl.evals.emoji_suite import EmojiSuite
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


def write_run_report(config, workdir, command: str, result):
    """Writes workdir/report/index.html and returns its path; on processes other than 0, None.

    All processes take part in the embedding, which runs on all devices.
    """
    embedder = result.towers.at(state_lib.evaluation_variables(result.state))
    scenes, texts = {}, np.empty((0, 0), np.float32)
    for evaluator in result.evaluators.values():
        if isinstance(evaluator, EmojiSuite):
            scenes |= evaluator.scenes(embedder)
    if scenes:
        texts = embedder.texts(QUERIES)
    if jax.process_index() != 0:
        return None
    return write_report(
        workdir,
        title=config["name"],
        scenes=scenes,
        encode_text=lambda _: texts,
        queries=QUERIES,
        facts=_facts(config, result, command),
    )


def _facts(config, result, command):
    sizes = {
        name: sum(leaf.size for leaf in jax.tree.leaves(tower))
        for name, tower in result.state.params["encoders"].items()
    }
    towers = " + ".join(f"{size / 1e6:.1f}M {name}" for name, size in sizes.items())
    batch = sum(stream["batch_size"] for stream in config["streams"].values())
    return {
        "command": command,
        "parameters": towers,
        "steps": f"{config['total_steps']:,}",
        "examples seen": f"{config['total_steps'] * batch:,}",
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
