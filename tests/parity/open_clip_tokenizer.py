"""open_clip's tokenizer, without the rest of open_clip: that would need torchvision and timm."""

import gzip
import importlib.util
import pathlib
import tempfile


def simple_tokenizer(merges=None):
    """open_clip's SimpleTokenizer over a file of merges, or its own. Raises ImportError where
    open_clip_torch, ftfy or regex is not installed."""
    package = importlib.util.find_spec("open_clip")
    if package is None:
        raise ImportError("open_clip_torch is not installed")
    path = pathlib.Path(package.submodule_search_locations[0]) / "tokenizer.py"
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if merges is None:
        return module.SimpleTokenizer()
    with tempfile.NamedTemporaryFile(suffix=".gz") as file:  # it reads gzipped files only
        file.write(gzip.compress(pathlib.Path(merges).read_text(encoding="utf-8").rstrip("\n").encode()))
        file.flush()
        return module.SimpleTokenizer(file.name)
