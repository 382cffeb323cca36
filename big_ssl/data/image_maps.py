"""Images whose maps, of classes or depths, lie in files of matching names."""

import re
from collections.abc import Mapping, Sequence

from big_ssl import io
from big_ssl.data import decode
from big_ssl.data.records import IMAGE, Record


class ImageMaps(Sequence[Record]):
    """Images with maps of classes (ADE20K, Cityscapes) or of depths (NYUv2) in files of matching names.

    A record has IMAGE and the bytes of each map: a PNG of 8 or 16 bits, or a .npy. The fields `mask` and
    `depth` decode them. An image whose map is missing is replaced as it is read.

    Args:
      images: the files of images, with {} for what differs: "ADE20K/images/training/{}.jpg". Several {} may
        differ, and folders: "nyu/{}/rgb_{}.jpg".
      maps: {key: the files of these maps, with the same {}}: {"mask": "ADE20K/annotations/training/{}.png"},
        {"depth": "nyu/{}/sync_depth_{}.png"}.
      orientation, alpha: see decode.Options; maps are those of the image as it is stored.

    Raises:
      ValueError: if a pattern has no {}, or maps have another number of them, or no file matches.
    """

    def __init__(self, images: str, maps: Mapping[str, str], orientation: str = "stored", alpha: str = ""):
        self.decode_options = decode.Options(orientation, alpha)
        count = images.count("{}")
        if not count:
            raise ValueError(f"image_maps: images is {images!r}; it must have {{}} for what differs")
        for key, pattern in maps.items():
            if pattern.count("{}") != count:
                raise ValueError(
                    f"image_maps: maps.{key} is {pattern!r}; it must have {{}} {count} times, as images"
                )
        root = io.as_path(images[: images.index("{}")].rpartition("/")[0] or ".")
        matches = re.compile("(.+)".join(map(re.escape, str(io.as_path(images)).split("{}"))))
        walked = root.walk() if root.is_dir() else ()
        files = sorted(str(folder / name) for folder, _, names in walked for name in names)
        matched = [(file, match.groups()) for file in files if (match := matches.fullmatch(file))]
        if not matched:
            raise ValueError(f"image_maps: no file is {images}")
        self._files = [file for file, _ in matched]
        self._maps = [{key: _filled(pattern, parts) for key, pattern in maps.items()} for _, parts in matched]

    def __len__(self):
        return len(self._files)

    def __getitem__(self, index):
        maps = {key: io.as_path(file).read_bytes() for key, file in self._maps[index].items()}
        return {IMAGE: io.as_path(self._files[index]).read_bytes()} | maps

    def record_name(self, index: int) -> str:
        """The file of an image."""
        return self._files[index]


def _filled(pattern, parts):
    """The pattern with its {} replaced by the parts."""
    first, *others = pattern.split("{}")
    return first + "".join(part + other for part, other in zip(parts, others, strict=True))
