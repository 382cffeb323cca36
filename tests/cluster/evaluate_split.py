"""Prints the evaluators' metrics of one model, and the number of images that this process decoded for each.

python tests/cluster/evaluate_split.py --distributed=ADDRESS

The last line of the output: {"metrics": {key: value}, "decoded": {evaluator: count}, "problems": the messages
if the last process can't decode its images}.
"""

import json
import sys

import jax
from absl import flags

from big_ssl.data import decode
from big_ssl.evals import suite
from big_ssl.parallel import distributed
from big_ssl.parallel import mesh as mesh_lib
from big_ssl.training import evaluation, loop
from big_ssl.training import state as state_lib
from configs.clip import get_config

DATA = dict(kind="emoji", styles=("fxemoji",))
SPLIT = dict(train=DATA | dict(concepts="seen"), test=DATA | dict(concepts="unseen"), label="category")
EVALS = dict(
    zero_shot=dict(kind="zero_shot", data=DATA, label="category", templates="{}"),
    knn=dict(kind="knn", **SPLIT, ks=(1, 20), pixels=True),
    retrieval=dict(kind="retrieval", data=DATA, captions=("label",)),
    linear_probe=dict(kind="linear_probe", **SPLIT, grid=(0.1, 1.0), iterations=20),
    linear_sweep=dict(kind="linear_sweep", **SPLIT, steps=3, batch_size=300, rates=(0.01, 0.1), blocks=(1,)),
)


class _Counted:
    """decode.decode_rgb, counting."""

    def __init__(self):
        self.count, self._decode_rgb = 0, decode.decode_rgb
        decode.decode_rgb = self

    def __call__(self, *arguments):
        self.count += 1
        return self._decode_rgb(*arguments)


def _damaged(*_):
    raise decode.BadImage("cut short")


def main(address):
    flags.FLAGS.mark_as_parsed()
    distributed.start(address)
    config = get_config("tiny").to_dict() | dict(evals=EVALS)
    config["checkpoint"].update(best="")
    config["streams"]["pairs"]["batch_size"] = 4
    setup = loop.set_up(config)
    mesh_lib.warm_up_collectives(setup.mesh)
    predictor, variables = evaluation.predictor(config, setup), state_lib.evaluation_variables(setup.init())
    evaluators = evaluation.evaluators(config, predictor)
    metrics, decoded, decode_count = {}, {}, _Counted()
    for name, evaluator in evaluators.items():
        decode_count.count = 0
        metrics |= evaluator.metrics(predictor.for_evaluation(variables))
        decoded[name] = decode_count.count
    if jax.process_index() == jax.process_count() - 1:
        decode.decode_rgb = _damaged
    asked = {"zero_shot": suite.build(EVALS)["zero_shot"]}
    _, problems = evaluation.Evaluation(asked, 3, [], 0).metrics(predictor.for_evaluation(variables))
    print(json.dumps(dict(metrics=metrics, decoded=decoded, problems=problems)))
    distributed.shutdown(0)


if __name__ == "__main__":
    main(sys.argv[1].removeprefix("--distributed="))
