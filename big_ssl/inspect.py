"""Shows a config before it runs: every value as text, every schedule over the run as a plot.

    python -m big_ssl.inspect --config=configs/ibot.py --print
    python -m big_ssl.inspect --config=configs/ibot.py --output=schedules.png

The text has one value a line, sorted, after the preset and the changes on the command line: two configs
compare with diff. The plot shows rates, decay, average, temperatures and weights.

Exit code 2, and one line, where the config is wrong.
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

_PRINT = flags.DEFINE_bool("print", False, "Print every value of the config, one a line.")


def config_text(config: Mapping) -> str:
    """Every value as a line `dotted.key = repr`, sorted by key, subtrees together; an empty subtree is {}."""
    flat = flatten_dict(config, keep_empty_nodes=True)
    # saferepr is repr, except that it sorts the keys of a dict within a tuple.
    lines = (
        f"{'.'.join(path)} = {'{}' if flat[path] is empty_node else pprint.saferepr(flat[path])}\n"
        for path in sorted(flat)
    )
    return "".join(lines)


def all_schedules(config: Mapping) -> Iterator[tuple[str, Callable]]:
    """Yields (key, function of the run's step) of everything in a config that is a schedule, weights of
    objectives included where they are plain numbers; NaN in stages that do not have it."""
    parts: dict[str, dict[int, Callable]] = {}
    resolved = stages.resolve(config)
    for stage in resolved:
        for key, schedule in _schedules(stage.config):
            parts.setdefault(key, {})[stage.index] = schedule
    for key, of_stage in parts.items():
        yield key, functools.partial(_value, resolved, of_stage)


def _value(resolved, of_stage, step):
    stage = next((stage for stage in resolved if step < stage.end), resolved[-1])
    schedule = of_stage.get(stage.index)
    return math.nan if schedule is None else schedule(step - stage.start)


def _schedules(config):
    total = config["total_steps"]
    yield "learning_rate", schedules.build(config["learning_rate"], total)
    yield "optimizer.weight_decay", schedules.build(config["optimizer"]["weight_decay"], total)
    if config["ema"]:
        yield "ema", schedules.ema_momentum(config["ema"], total)
    for pattern, value in config["rates"]:
        if not is_layer_decay(value):
            yield f"rates: {pattern}", schedules.build(value, total)
    for stream, parts in config["streams"].items():
        for name, options in parts["objectives"].items():
            for key, value in options.items():
                if key == "weight" or ("temperature" in key and schedules.is_schedule(value)):
                    yield f"{stream}: {name}.{key}", schedules.build(value, total)


def plot(config: Mapping) -> Figure:
    """A small plot for each schedule, all over the same steps, dotted where a stage begins."""
    found = list(all_schedules(config))
    rows = math.ceil(len(found) / _COLUMNS)
    figure = Figure(figsize=(4 * _COLUMNS, 2.6 * rows), layout="constrained", facecolor="white")
    steps = np.unique(np.linspace(0, config["total_steps"], _POINTS).astype(int))
    starts = [stage.start for stage in stages.resolve(config)[1:]]
    for place, (name, schedule) in enumerate(found):
        axes = figure.add_subplot(rows, _COLUMNS, place + 1)
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
    """Prints the config if `show`, and writes the plot to `output` unless it is None. Returns the exit code;
    see the top of this file."""
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
        logging.set_verbosity(logging.WARNING)  # jax tells of every backend that it looks for
    sys.exit(run(CONFIG.value.to_dict(), OUTPUT.value, _PRINT.value))


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    flags.register_multi_flags_validator(
        ["output", "print"],
        lambda values: values["output"] is not None or values["print"],
        message="give --print for the config as text, --output=FILE for the plot of its schedules, or both",
    )
    app.run(main, flags_parser=parse_flags)
