"""Shows a config before it runs: all values as text, all schedules as a plot.

    python -m big_ssl.inspect --config=configs/ibot.py --print
    python -m big_ssl.inspect --config=configs/ibot.py --output=schedules.png

The text has one value per line, sorted, with the preset and the changes on the command line applied: compare
two configs with diff. The plot shows learning rate, weight decay, EMA momentum, temperatures and weights.

Exit code 2, and one line on stderr, if the config is invalid.
"""

import functools
import math
import pprint
import sys
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from absl import app, flags, logging
from flax.traverse_util import empty_node, flatten_dict
from matplotlib.figure import Figure

from big_ssl import io
from big_ssl.command_line import CONFIG, OUTPUT, parse_flags
from big_ssl.config import ConfigError, validate
from big_ssl.training import schedules, stages
from big_ssl.training.layer_decay import is_layer_decay

_COLUMNS, _POINTS = 3, 400

_PRINT = flags.DEFINE_bool("print", False, "Print every value of the config, one per line.")


def config_text(config: Mapping) -> str:
    """One line `dotted.key = repr` per value, sorted with subtrees together; an empty subtree is {}."""
    flat = flatten_dict(config, keep_empty_nodes=True)
    # saferepr is repr, except that it sorts the keys of a dict within a tuple.
    lines = (
        f"{'.'.join(path)} = {'{}' if flat[path] is empty_node else pprint.saferepr(flat[path])}\n"
        for path in sorted(flat)
    )
    return "".join(lines)


def all_schedules(config: Mapping) -> Iterator[tuple[str, Callable]]:
    """Yields (key, function of the run's step) for every schedule in a config.

    Includes the objectives' weights even if they are constant. A schedule is NaN in stages that lack it.
    """
    parts: dict[str, dict[int, Callable]] = {}
    resolved = stages.resolve(config)
    for stage in resolved:
        for key, schedule in _schedules(stage.config):
            parts.setdefault(key, {})[stage.index] = schedule
    for key, by_stage in parts.items():
        yield key, functools.partial(_value, resolved, by_stage)


def _value(resolved, by_stage, step):
    stage = next((stage for stage in resolved if step < stage.end), resolved[-1])
    schedule = by_stage.get(stage.index)
    return math.nan if schedule is None else schedule(step - stage.start)


def _schedules(config):
    total = config["total_steps"]
    yield "learning_rate", schedules.build(config["learning_rate"], total)
    yield "optimizer.weight_decay", schedules.build(config["optimizer"]["weight_decay"], total)
    if config["ema"]:
        yield "ema", schedules.ema_momentum(config["ema"], total)
    for pattern, value in config["lr_multipliers"]:
        if not is_layer_decay(value):
            yield f"lr_multipliers: {pattern}", schedules.build(value, total)
    for stream, parts in config["streams"].items():
        for name, options in parts["objectives"].items():
            for key, value in options.items():
                if key == "weight" or ("temperature" in key and schedules.is_schedule(value)):
                    yield f"{stream}: {name}.{key}", schedules.build(value, total)


def plot(config: Mapping) -> Figure:
    """Draws one small plot per schedule over the run's steps, with a dotted line at each stage's start."""
    named_schedules = list(all_schedules(config))
    rows = math.ceil(len(named_schedules) / _COLUMNS)
    figure = Figure(figsize=(4 * _COLUMNS, 2.6 * rows), layout="constrained", facecolor="white")
    steps = np.unique(np.linspace(0, config["total_steps"], _POINTS).astype(int))
    starts = [stage.start for stage in stages.resolve(config)[1:]]
    for i, (name, schedule) in enumerate(named_schedules):
        axes = figure.add_subplot(rows, _COLUMNS, i + 1)
        axes.plot(steps, [float(schedule(step)) for step in steps], linewidth=1.6)
        for start in starts:
            axes.axvline(start, color="0.6", linewidth=0.8, linestyle=":")
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.grid(alpha=0.3)
        axes.ticklabel_format(useOffset=False)
    figure.suptitle(f"{config['name']}: {config['total_steps']:,} steps", fontsize=12)
    return figure


def run(config: Mapping, output: str | None, show: bool = False) -> int:
    """Prints the config and writes the plot.

    Args:
      config: the training config.
      output: the plot's file, None for no plot.
      show: whether to print the config.

    Returns:
      The exit code; see the top of this file.
    """
    try:
        validate(config)
        if show:
            print(config_text(config), end="")
        if output is None:
            return 0
        path = io.as_path(output)
        io.make_folder(path.parent)
    except (ConfigError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    with path.open("wb") as file:
        plot(config).savefig(file, format=path.suffix[1:] or "png", dpi=110)
    print(f"{len(list(all_schedules(config)))} schedules in {output}")
    return 0


def main(argv) -> None:
    del argv
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # jax logs every backend that it looks for
    sys.exit(run(CONFIG.value.to_dict(), OUTPUT.value, _PRINT.value))


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    flags.register_multi_flags_validator(
        ["output", "print"],
        lambda values: values["output"] is not None or values["print"],
        message="give --print for the config as text, --output=FILE for the plot of its schedules, or both",
    )
    app.run(main, flags_parser=parse_flags)
