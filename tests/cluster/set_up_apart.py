"""Two processes; process 1 lacks something that its config requires, in one case after another.

python tests/cluster/set_up_apart.py FOLDER --distributed=ADDRESS

FOLDER/first is a finished run. Each process runs in its own folder, FOLDER/<process>, so that a relative path
may exist for process 0 only. The last line of the output: {case: [exit code, stderr]}, and "init_from",
whether a run that starts from another has its weights, on this process's devices.
"""

import contextlib
import io
import json
import os
import pathlib
import shutil
import sys

import jax
import numpy as np
from absl import flags
from PIL import Image

from big_ssl import main
from big_ssl.parallel import distributed
from big_ssl.training import initial, loop, trained
from tests.training.micro import get_config

ROOT = pathlib.Path(__file__).parents[2]


def _config(**changes):
    return get_config().to_dict() | changes


def _cases(first):
    """{what process 1 lacks: (config, workdir)}; first: the workdir of a run to start from."""
    vocabulary = _config()["tokenizer"] | dict(vocabulary="words.txt")
    images = dict(kind="image_folder", path="images")
    evals = dict(x=dict(kind="zero_shot", data=images, templates="{}"))
    steps = 9 + jax.process_index()
    return {
        "vocabulary": (_config(tokenizer=vocabulary), first),
        "evaluator": (_config(evals=evals), first),
        "weights": (_config(init_from=dict(path="weights", exclude=(), remap=())), f"{first}_second"),
        "workdir": (_config(), "run"),
        "config": (_config(total_steps=steps), first),
    }


def _run(config, workdir):
    stderr = io.StringIO()
    with contextlib.redirect_stderr(stderr):
        code = main.run(config, workdir, "micro.py", "command")
    return code, stderr.getvalue()


def _prepare(first):
    """Makes the files that process 0 has."""
    shutil.copy(ROOT / "big_ssl/data/embedded/emoji_wordpiece.txt", "words.txt")
    for name in "ab":
        os.makedirs(f"images/{name}")
        Image.new("RGB", (8, 8)).save(f"images/{name}/1.png")
    os.symlink(first, "weights")


def _starts_from(first):
    """Whether weights and copies are the first run's, on this process's devices."""
    rules = dict(path=first, exclude=(), remap=(("encoders/image/", "encoders/image/", first),))
    config = _config(init_from=rules)
    setup = loop.set_up(config)
    state = initial.replace(setup.init(), initial.read(config, setup.abstract_state))
    expected = trained.load(first)[1]["params"]

    def same(array, source):
        return all(np.array_equal(shard.data, source[shard.index]) for shard in array.addressable_shards)

    return all(jax.tree.leaves(jax.tree.map(same, state.params, expected)))


def start(folder, address):
    flags.FLAGS.mark_as_parsed()
    distributed.start(address)
    own, first = f"{folder}/{jax.process_index()}", f"{folder}/first"
    os.makedirs(own)
    os.chdir(own)
    # The successful cases first: a process that failed alone has read less, and orbax counts its reads.
    results: dict = dict(init_from=_starts_from(first))
    results["second"] = _run(_config(init_from=dict(path=first, exclude=(), remap=())), f"{folder}/second")
    if jax.process_index() == 0:
        _prepare(first)
    distributed.all_hosts_agree(True)  # a barrier: the files exist
    for name, (config, workdir) in _cases(first).items():
        results[name] = _run(config, workdir)
    print(json.dumps(results))
    distributed.shutdown(0)


if __name__ == "__main__":
    start(sys.argv[1], sys.argv[2].removeprefix("--distributed="))
