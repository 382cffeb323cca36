"""The report of a finished run, from what training left in memory and in its workdir."""

import jax

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
    """Writes workdir/report/index.html and returns its path."""
    variables = state_lib.evaluation_variables(result.state)
    scenes, encode_text = {}, _no_text
    for evaluator in result.evaluators.values():
        scenes |= evaluator.scenes(variables)
        encode_text = evaluator.encode_text(variables)
    return write_report(
        workdir,
        title=config["name"],
        scenes=scenes,
        encode_text=encode_text,
        queries=QUERIES,
        facts=_facts(config, result, command),
    )


def _no_text(texts):
    """Stands in where no evaluator has a text tower; the report asks only if there are scenes."""
    raise ValueError(f"this run has no text tower to embed {len(texts)} texts with")


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
