"""Plans a run without the TPU: whether a config fits into memory, how fast it is and what it costs.

    pip install libtpu
    python -m big_ssl.plan --config=configs/align_l2.py --topology=v5e:16x16 --json=plan.json
    python -m big_ssl.plan --config=configs/align_l2.py --topology=2xv5p:4x8x8 --search

Compiles the real training step with the TPU's own compiler. It needs no dataset, no vocabulary
and no workdir. docs/plan.md explains each number. Any value of the config can be set:
--config.mesh.fsdp=32. --search tries values of mesh.fsdp, and of remat and grad_accum if the config has them.

Exit code 0: it fits. 1: it does not fit; the output lists changes. 2: a flag or the config is wrong.
"""

import json
import sys

from absl import app, flags

from big_ssl import io
from big_ssl.command_line import CONFIG, parse_flags
from big_ssl.config import ConfigError, validate
from big_ssl.planning import topology
from big_ssl.planning.planner import make_plan
from big_ssl.planning.report import print_plan
from big_ssl.planning.search import search
from big_ssl.training import stages
from big_ssl.training.requirements import RequirementsError

_TOPOLOGY = flags.DEFINE_string("topology", None, "The TPU: v5e:16x16, v5p:4x8x8, 2xv5e:16x16 ...")
_JSON = flags.DEFINE_string("json", None, "A file to write the plan to as JSON.")
_STAGE = flags.DEFINE_string("stage", "", "Which of the config's stages to plan; the first by default.")
_SEARCH = flags.DEFINE_bool("search", False, "Look for the fastest setting that fits.")


def run(config, name: str, json_file: str | None = None, searching: bool = False, stage: str = "") -> int:
    """Plans a run, prints the plan and writes it.

    Args:
      config: the training config.
      name: the topology's.
      json_file: where to write the plan, None for nowhere.
      searching: whether to search the fastest setting.
      stage: the stage to plan, "" for the first.

    Returns:
      The exit code; see the top of this file.
    """
    try:
        chips = topology.parse(name)
        validate(config)
        config = _config_of_stage(config, stage)
        if json_file:
            io.make_folder(io.as_path(json_file).parent)
        devices = topology.devices(chips)
        if searching:
            config, plan = search(config, chips, devices)
        else:
            plan = make_plan(config, chips, devices)
    except (ConfigError, OSError, RequirementsError, topology.TopologyError) as error:
        print(error, file=sys.stderr)
        return 2
    print_plan(plan, config)
    if json_file:
        io.write_atomically(json_file, f"{json.dumps(plan.record, indent=2)}\n".encode())
    return 0 if plan.record["fits"] else 1


def _config_of_stage(config, name):
    try:
        return stages.named(stages.resolve(config), name).config
    except ValueError as error:
        raise ConfigError(str(error)) from error


def main(argv) -> None:
    del argv
    sys.exit(run(CONFIG.value.to_dict(), str(_TOPOLOGY.value), _JSON.value, _SEARCH.value, _STAGE.value))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "topology"])
    app.run(main, flags_parser=parse_flags)
