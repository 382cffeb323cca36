"""Makes photographs.parquet, the backgrounds of composited scenes, from packages that ship photographs.

    pip download --no-deps -d DIR scikit-image==0.26.0 scikit-learn==1.9.1
    pip download --no-deps -d DIR --python-version 3.11 --only-binary=:all: scipy==1.9.3
    cd DIR && apt-get download lomiri-wallpapers-16.04
    cd big_ssl/data/embedded && python make_photographs.py --packages=DIR --output=photographs.parquet

Only photographs are here whose own licence the package states, see ATTRIBUTION.md.
"""

import bz2
import io
import pathlib
import subprocess
import tarfile
import zipfile

import numpy as np
import pyarrow
import pyarrow.parquet
from absl import app, flags
from PIL import Image

from big_ssl.data import decode

PACKAGES = flags.DEFINE_string("packages", None, "the folder of the downloaded packages", required=True)
OUTPUT = flags.DEFINE_string("output", None, "the .parquet to write", required=True)

# The stored photograph's shorter side.
SIDE = 320

_SKIMAGE, _SKLEARN = (
    ("scikit_image-*.whl", "skimage/data/"),
    ("scikit_learn-*.whl", "sklearn/datasets/images/"),
)
_SCIPY, _LOMIRI = (
    ("scipy-*.whl", "scipy/misc/"),
    ("lomiri-wallpapers-16.04_*.deb", "./usr/share/backgrounds/"),
)
_PUBLIC_DOMAIN = "public domain"

# (split, package, file, author, licence). No photograph is in both splits.
PHOTOGRAPHS = (
    ("train", _LOMIRI, "Picture_0B_by_freespace.jpg", 'Trevor "Freespace"', "CC-BY-4.0"),
    ("train", _LOMIRI, "Picture_1A_by_freespace.jpg", 'Trevor "Freespace"', "CC-BY-4.0"),
    ("train", _LOMIRI, "aitzgorri_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi", "CC-BY-4.0"),
    ("train", _LOMIRI, "friends_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi", "CC-BY-4.0"),
    ("train", _LOMIRI, "seeding_by_Clements_Engelhardt.jpg", "Clemens Engelhardt", "CC0-1.0"),
    ("train", _LOMIRI, "sunset_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi", "CC-BY-4.0"),
    ("train", _SKIMAGE, "astronaut.png", "NASA", _PUBLIC_DOMAIN),
    ("train", _SKIMAGE, "brick.png", "CC0Textures", "CC0-1.0"),
    ("train", _SKIMAGE, "camera.png", "Lav Varshney", "CC0-1.0"),
    ("train", _SKIMAGE, "chelsea.png", "Stefan van der Walt", "CC0-1.0"),
    ("train", _SKIMAGE, "coins.png", "Brooklyn Museum", "no known copyright restrictions"),
    ("train", _SKIMAGE, "grass.png", "linolafett", "CC0-1.0"),
    ("train", _SKIMAGE, "hubble_deep_field.jpg", "NASA", _PUBLIC_DOMAIN),
    ("train", _SKIMAGE, "retina.jpg", "Mikael Häggström", "CC0-1.0"),
    ("train", _SKIMAGE, "rocket.jpg", "SpaceX", _PUBLIC_DOMAIN),
    ("train", _SKLEARN, "flower.jpg", "vultilion", "CC-BY-2.0"),
    ("test", _LOMIRI, "Wine_by_Jakkub_Mede.jpg", "Jakub Mede", "CC-BY-4.0"),
    ("test", _LOMIRI, "life_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi", "CC-BY-4.0"),
    ("test", _LOMIRI, "picosdeeuropa_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi", "CC-BY-4.0"),
    ("test", _SCIPY, "face.dat", "public-domain-image.com", _PUBLIC_DOMAIN),
    ("test", _SKIMAGE, "coffee.png", "Rachel Michetti", "CC0-1.0"),
    ("test", _SKIMAGE, "gravel.png", "CC0Textures", "CC0-1.0"),
    ("test", _SKLEARN, "china.jpg", "danielbuechele", "CC-BY-2.0"),
)


def read(packages: pathlib.Path, pattern: str, member: str) -> bytes:
    """A file of a wheel or of a Debian package."""
    (package,) = packages.glob(pattern)
    if package.suffix == ".whl":
        return zipfile.ZipFile(package).read(member)
    tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        file = archive.extractfile(member)
        if file is None:
            raise ValueError(f"{package}: {member} is no file")
        return file.read()


def photograph(name: str, content: bytes) -> Image.Image:
    """The RGB image, upright, with its shorter side SIDE."""
    if name == "face.dat":  # bare pixels, see scipy.misc.face
        pixels = np.frombuffer(bz2.decompress(content), np.uint8).reshape(768, 1024, 3)
        image = Image.fromarray(pixels)
    else:
        image = decode.decode_rgb(content, lambda image: image)
    scale = SIDE / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def row(packages: pathlib.Path, photo: tuple) -> dict:
    """The file's row of one of PHOTOGRAPHS."""
    split, (pattern, folder), name, author, licence = photo
    buffer = io.BytesIO()
    photograph(name, read(packages, pattern, folder + name)).save(buffer, "webp", quality=80, method=6)
    texts = dict(name=name.split(".")[0], split=split, author=author, license=licence)
    return texts | dict(package=pattern.split("*")[0].rstrip("_-"), webp=buffer.getvalue())


def main(argv):
    del argv
    packages = pathlib.Path(PACKAGES.value)
    rows = [row(packages, photo) for photo in PHOTOGRAPHS]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), OUTPUT.value)


if __name__ == "__main__":
    app.run(main)
