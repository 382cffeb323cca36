"""The report of a finished run, from what training left in memory and in its workdir."""

import jax

from big_ssl.evals.report import write_report
from big_ssl.training import state as state_lib

# The task, by what a run has: {a predictor's method that an objective provides, or "teacher": paragraph}.
_TASKS = {
    "encode_text": (
        "An image encoder and a text encoder learn together to embed images and texts in one space: every "
        "training step pulls an image and its own text together, and pushes the image away from the other "
        "texts of the batch. After training, comparing an image with every candidate name and taking the "
        "closest names it (zero-shot: nothing is trained for the test), and the same comparison finds images "
        "for any text. Evaluation uses images outside the training set."
    ),
    "teacher": (
        "Self-distillation trains the image encoder without labels or texts: a student sees crops of an "
        "image, some with masked patches, and learns to predict the output of its teacher, a moving average "
        "of the student, for other crops and for the masked patches. Outputs have no given meaning; similar "
        "images should get similar ones. Evaluation uses the frozen features on labelled images: the classes "
        "of the nearest training images, and linear classifiers."
    ),
    "classify": (
        "A linear classifier on the image encoder learns the classes of labelled images. Evaluation counts "
        "how often its largest logit is that of the right class."
    ),
    "detect": (
        "A head on the image encoder learns where objects are in an image, and which class each has. "
        "Evaluation is COCO's: average precision, of boxes that overlap the annotated ones by half (AP50), "
        "and averaged over stricter overlaps (AP)."
    ),
    "segment": (
        "A head on the image encoder learns the class of each pixel. Evaluation counts how far predicted and "
        "true regions of each class coincide, over all pixels of the set."
    ),
    "depth": (
        "A head on the image encoder learns how far away each pixel is. Evaluation compares its depths with "
        "measured ones, image by image."
    ),
}


def write_run_report(config, workdir, command: str, result):
    """Writes workdir/report/index.html and returns its path; on processes other than 0, None.

    Args:
      config: the run's.
      workdir: the run's.
      command: makes the report again.
      result: of training.loop.train. All processes take part in the evaluators' sections, whose computations
        run on all devices.
    """
    sections = []
    if result.evaluators:
        predictor = result.predictor.for_evaluation(state_lib.evaluation_variables(result.state))
        for evaluator in result.evaluators.values():
            sections += evaluator.sections(predictor)
    if jax.process_index() != 0:
        return None
    return write_report(
        workdir,
        title=config["name"],
        facts=_facts(config, result),
        command=command,
        task=_task(result.setup.system),
        sections=sections,
    )


def _task(system):
    available = {method for method in _TASKS if method != "teacher" and system.provider(method)}
    available |= {"teacher"} if system.has_teacher else set()
    return [paragraph for key, paragraph in _TASKS.items() if key in available]


def _facts(config, result):
    sizes = {
        name: sum(leaf.size for leaf in jax.tree.leaves(encoder))
        for name, encoder in result.state.params["encoders"].items()
    }
    batch = sum(stream["batch_size"] for stream in config["streams"].values())
    return {
        "parameters": " + ".join(f"{size / 1e6:.1f}M {name}" for name, size in sizes.items()),
        "steps": f"{config['total_steps']:,}",
        "examples seen": f"{config['total_steps'] * batch:,}",
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
