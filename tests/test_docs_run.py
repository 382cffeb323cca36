"""Every command and every piece of Python of the documentation runs, with small models.

The pages are read in order, in one folder: a later command finds what an earlier one wrote. The tables below
state what takes the place of the demos' models, of the reader's data and of published weights.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import jax
import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

import big_ssl
from big_ssl.config import validate
from configs import dinov2, hybrid_clip_dinov2
from tests import commands, documentation
from tests.documentation import PAGES, ROOT
from tests.parity import goldens
from tests.test_docs import STANDS_FOR, folder_like_a_checkout, text_of

pytestmark = pytest.mark.slow

SAMPLE = "tests/data/openclipart_sample.parquet"
WORDNET_IDS = [f"n{number:08}" for number in (1440764, 1443537, 1484850, 1491361, 1494475, 1496331)]
WORDNET_IDS += ["n01498041", "n01514668", "n01514859", "n01518878"]

# (pattern of a command, what replaces it): small models in place of the demos' and the papers' ones.
TINY = (
    (r"(--config=configs/\w+\.py:[^\s,]+),demo\b", r"\1,tiny"),
    (r"(--config=configs/\w+\.py):demo\b", r"\1:tiny"),
    # One for all models, which is from scratch and on drawings.
    (
        r"(--config=configs/dinov2_continue\.py):vitb14",
        r"""\1:tiny --config.init_from.exclude="('heads/',)" """
        "--config.streams.images.data.source.kind=image_folder",
    ),
    (r"(--config=configs/\w+\.py)(?=\s|$)", r"\1:tiny"),
    (r"(--config=configs/\w+\.py:v\w+)(?=\s|$)", r"\1,tiny"),
    (r"total_steps=\d+", "total_steps=8"),
    (r"(?<=,)eval_every=\d+", "eval_every=4"),
    # One template in place of 80, for a thousand classes.
    (r"(--checkpoint=MODEL --eval=zero_shot)", r"\1 --eval.templates={}"),
    (r"--eval=knn", "--eval=knn --eval.ks=(2,)"),
    (r"--eval=linear_probe", "--eval=linear_probe --eval.grid=(1.0,) --eval.iterations=20"),
    (
        r"--eval=linear_sweep",
        "--eval=linear_sweep --eval.steps=2 --eval.batch_size=8 --eval.blocks=(1,) --eval.rates=(1e-3,)",
    ),
    # In place of the options of the page's first command.
    (r"(?<=big_ssl\.curate) --source.kind=parquet --texts=title --output=DIR",
     f" --source.kind=parquet --source.path={SAMPLE} --texts=title,description --sides=width,height "
     "--limits.min_side=32 --limits.languages=() --output=runs/without_duplicates"),
    # A run with a classifier of ten classes, which the README's commands train.
    (r"--checkpoint=RUN\b", "--checkpoint=runs/mixture_demo"),
)  # fmt: skip
# (pattern of a command, what runs before it).
BEFORE = {
    "--input=dinov2-base": (
        "python -m big_ssl.convert --input=runs/dinov2_demo --to=hf_dinov2 --output=dinov2-base"
    ),
}


@dataclasses.dataclass
class Site:
    """Where the commands run: a folder, the variables exported so far, and the pages that have run."""

    folder: pathlib.Path
    variables: dict[str, str]
    pages: set[str]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with what a reader brings: images, data sets with labels, public weights."""
    folder = folder_like_a_checkout(tmp_path_factory.mktemp("site"))
    images(folder / "my_images", 8)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            images(folder / "SET" / part / name, 6)
    for name in WORDNET_IDS:
        images(folder / "IMAGENET" / "val" / name, 1)
    images(folder / "photos", 2)
    for name, photo in zip(("a.jpg", "b.png"), sorted((folder / "photos").iterdir()), strict=True):
        Image.open(photo).save(folder / name)
    for name in ("DIR", "MODEL"):
        goldens.write_talking(folder / name)
    np.savez(folder / "evaluation.npz", embeddings=np.eye(3, 12, dtype=np.float32))
    return Site(folder, {}, set())


def images(folder, count):
    """Writes images of 48 x 40 random pixels."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(str(folder)))
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(folder / f"{i}.png")


def tiny(command: str) -> str:
    """A command with small models."""
    for pattern, replacement in (*STANDS_FOR, *TINY):
        command = re.sub(pattern, replacement, command)
    return command


def run(command: str, site: Site) -> None:
    """Runs one command of a page in the site's folder. Raises AssertionError with its output."""
    words = documentation.command_words(tiny(command))
    for pattern, before in BEFORE.items():
        if pattern in command:
            run(before, site)
    if words[0] == "export":
        site.variables.update(word.split("=", 1) for word in words[1:])
    elif words[0] == "make":
        for line in made(words):
            run(line, site)
    elif words[0].startswith("launch/"):
        check(command, subprocess.run(words, cwd=site.folder, env=environment(site), **CAPTURED))
    else:
        variables = dict(JAX_COMPILATION_CACHE_DIR=str(jax.config.jax_compilation_cache_dir))
        check(command, commands.execute(words[1:], 600, site.folder, **variables))


CAPTURED = dict(capture_output=True, text=True, timeout=600)


def check(command, result):
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr[-3000:]}"


def environment(site):
    return os.environ | site.variables | dict(PYTHON=sys.executable, PYTHONPATH=str(ROOT))


def made(words) -> Iterator[str]:
    """The commands of big_ssl that a target of the Makefile runs; those of pip and pytest are left out."""
    result = subprocess.run([*words, "--dry-run"], cwd=ROOT, **CAPTURED)
    check(words, result)
    for line in result.stdout.splitlines():
        if match := re.search(r"-m (big_ssl\..*)", line):
            yield f"python -m {match[1]}"


def readme(site):
    rng = np.random.default_rng(0)
    return dict(images=rng.integers(0, 256, (2, 40, 48, 3), np.uint8))


def curate(site):
    """A model, and as many images as the sample has."""
    count = pyarrow.parquet.read_metadata(ROOT / SAMPLE).num_rows
    images = np.random.default_rng(0).integers(0, 256, (count, 24, 24, 3), np.uint8)
    return dict(np=np, model=big_ssl.load(site.folder / "MODEL"), images=images)


def self_supervised(site):
    return dict(config=dinov2.get_config("vitl16_short,tiny").to_dict(), RUN="runs/dinov2_demo")


def contributing(site):
    """The imports that the page leaves out."""
    names: dict = {}
    exec(
        "import dataclasses, numpy as np, flax.linen as nn\n"
        "from typing import ClassVar, Literal\n"
        "from big_ssl.data.fields.base import Field, required\n"
        "from big_ssl.data.records import BadValue\n"
        "from big_ssl.objectives.base import *\n"
        "from big_ssl.objectives.base import Context, EncoderCall, Inputs, StatelessObjective, Sum\n",
        names,
    )
    return names | dict(invariance=lambda a, b: ((a - b) ** 2).sum(-1).mean())


# {page: what gives the names that its Python uses}.
NAMES = {
    "README.md": readme,
    "docs/curate.md": curate,
    "docs/self_supervised.md": self_supervised,
    "CONTRIBUTING.md": contributing,
}


def check_invariance(names):
    """The example of an objective has the contract's parts, and a loss of zero for equal crops."""
    objective = names["build"](8, context=None)
    crops = np.ones((3, 2, 5), np.float32)
    inputs = dict(crops=dict(pooled=crops))
    parameters = objective.head.init(jax.random.key(0), inputs)
    features = objective.head.apply(parameters, inputs)
    total, metrics, _ = objective.loss(features, {}, {}, 0)
    assert (float(total.value), float(total.count), metrics) == (0, 3, {})
    assert names["Age"]().load(dict(age=7), None) == 7
    with pytest.raises(names["BadValue"], match="'age' is 200"):
        names["Age"]().load(dict(age=200), None)


def check_gram(names):
    validate(names["config"])


# {page: what must hold after its Python}.
AFTER = {"CONTRIBUTING.md": check_invariance, "docs/self_supervised.md": check_gram}


def run_page(page, site):
    """Runs a page's blocks in order, once."""
    if page in site.pages:
        return
    site.pages.add(page)
    site.variables.clear()
    names: dict = {}
    for block in documentation.blocks(page, text_of(page)):
        if block.reason:
            continue
        if block.kind == "python":
            if not names:
                names = NAMES[page](site)
            with contextlib.chdir(site.folder):
                exec(compile(block.text, block.place, "exec"), names)
        else:
            for command in block.commands:
                run(command, site)
    if page in AFTER:
        AFTER[page](names)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs(page, site):
    run_page("README.md", site)
    run_page(page, site)


def test_the_readmes_excerpt_is_in_the_config():
    """Its dots stand for more keys."""
    block = documentation.blocks("README.md", text_of("README.md"))[0]
    names: dict = {}
    exec(block.text.replace(", ...", ""), names)
    objectives = hybrid_clip_dinov2.get_config().to_dict()["streams"]["pairs"]["objectives"]
    assert names["objectives"].keys() == objectives.keys()
    for name, excerpt in names["objectives"].items():
        for key, value in excerpt.items():
            stored = objectives[name][key]
            assert value.items() <= stored.items() if isinstance(value, dict) else value == stored, (
                name,
                key,
            )
