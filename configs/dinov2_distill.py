"""DINOv2's small models: taught by a frozen ViT-g (Oquab et al. 2023, arXiv 2304.07193, section 5).

    python -m big_ssl.main --config=configs/dinov2_distill_vits14.py --workdir=gs://bucket/dinov2_vits14 \
        --config.init_from.path=gs://bucket/dinov2_vitg14 \
        --config.streams.images.data.source.data_dir=gs://bucket/tensorflow_datasets

The teacher is an encoder of the config, frozen, and filled with its heads from a run's average; the student's
own average, `ema`, teaches nothing and is what the run is for. No masks, no skipped branches; iBOT's term is
on all patches of the large crops. The files dinov2_distill_*.py choose a student. Presets: `demo`, from the
demo of configs/dinov2_vitg14.py (--config.init_from.path), and `tiny`, whose teacher knows nothing.

No code was published for this: batch 2,048 and the rate 1e-3 are said to be for these runs; all else is
as when the teacher was trained.
"""

import functools

from ml_collections import ConfigDict

from big_ssl import recipe
from big_ssl.models import vit
from configs import dinov2
from configs.rehearsal import rehearsal

# With plain feed-forward layers, as released.
STUDENTS = {"vits14": "S/14", "vitb14": "B/14", "vitl14": "L/14"}
_NO_SKIPPING = dict(drop_path=0.0, drop_path_groups=1)
# From a run of configs/dinov2_vitg14.py: its tower and heads are the teacher's, the student has none yet.
_FROM_TEACHER = dict(
    skip=("encoders/image/", "/projection/"),
    copy=(("encoders/image/", "encoders/teacher/"), ("/projection/", "/teacher_projection/")),
)


def full(student: str) -> dict:
    """Of 142M pictures no number is given for these: as many steps as the teacher had."""
    config = _taught(dinov2.full("vitg14"))
    config.update(name=f"dinov2_distill_{student}", remat="full")  # many pictures on a device
    config["encoders"]["image"].update(vit.VARIANTS[STUDENTS[student]], feed_forward="mlp")
    config["learning_rate"].update(peak=1e-3)
    images = config["streams"]["images"]
    images.update(batch_size=2_048)
    images["objectives"]["koleo"].update(group_size=64)
    # Without masks the groups are the examples, 64 a device.
    images["objectives"]["ibot"].update(chunk=4)
    config["requires"].update(weights=True)
    return config


def demo(student: str) -> dict:
    """A thinner student of the demo's teacher."""
    config = _taught(dinov2.demo("vitg14"))
    config.update(name=f"dinov2_distill_{student}_demo")
    config["encoders"]["image"].update(width=64, heads=2)
    config["requires"].update(weights=True)
    return config


def tiny(student: str) -> dict:
    """The demo's code path in seconds, from no weights."""
    config = _taught(dinov2.tiny("vitg14"))
    config.update(name=f"dinov2_distill_{student}_tiny", init_from=dict(path="", skip=(), copy=()))
    config["encoders"]["image"].update(width=16)
    return config


def _taught(config):
    """The run of a teacher made into that of a student like it: the same objectives, without masks."""
    tower = config["encoders"]["image"] | _NO_SKIPPING
    config["encoders"] = dict(image=dict(tower), teacher=dict(tower))
    config.update(masks={}, init_from=dict(path="", **_FROM_TEACHER))
    config["rates"] = (("/teacher", 0.0), *config["rates"])
    objectives = config["streams"]["images"]["objectives"]
    for name in ("dino", "ibot"):
        objectives[name].update(teacher="teacher", masked=False)
    objectives["koleo"].update(masked=False)
    return config


def get_config(student: str, arg: str) -> ConfigDict:
    """One student's recipe; arg: a preset, KEY=VALUE changes, or both (big_ssl/recipe.py)."""
    presets = {"": full, "demo": demo, "tiny": tiny, "rehearsal": lambda student: rehearsal(full(student))}
    built = {name: functools.partial(make, student) for name, make in presets.items()}
    return recipe.choose(f"dinov2_distill_{student}", arg, built)
