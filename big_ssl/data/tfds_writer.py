"""Writes datasets in the layout of TFDS, in array_record shards, which sources.TfdsPairs reads."""

import contextlib
import tempfile
from collections.abc import Mapping
from io import StringIO
from typing import Any

from big_ssl.io import is_remote, upload


def write(
    folder: str,
    name: str,
    description: str,
    features: Mapping[str, Any],
    splits: Mapping[str, Any],
    beam_options=None,
) -> dict[str, int]:
    """Writes a dataset to folder/name. TFDS shuffles by key and chooses the number of shards.

    Args:
      folder: may lie in a bucket: array_record writes only to disks, so the dataset is then made in a
        temporary folder and copied.
      name, description: of the dataset.
      features: {key: feature of tfds.features}.
      splits: {split: (key, example) pairs, or a Beam transform that makes them}.
      beam_options: Beam's PipelineOptions for such transforms.

    Returns:
      {split: number of records}.
    """
    import tensorflow_datasets as tfds  # slow to import, and needed only here

    with tfds.core.registered.skip_registration():

        class Builder(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                made = tfds.features.FeaturesDict(dict(features))
                return tfds.core.DatasetInfo(builder=self, description=description, features=made)

            def _split_generators(self, dl_manager):
                return dict(splits)

            def _generate_examples(self):
                """Never called, since the splits are iterators; TFDS requires the method."""
                raise NotImplementedError

    Builder.name = name
    config = tfds.download.DownloadConfig(beam_options=beam_options)
    tfds.disable_progress_bar()
    with contextlib.ExitStack() as stack:
        scratch = lambda: stack.enter_context(tempfile.TemporaryDirectory())  # noqa: E731
        local = scratch() if is_remote(folder) else folder
        builder = Builder(data_dir=local, file_format="array_record")
        # TFDS reports a download, and makes a folder for it.
        stack.enter_context(contextlib.redirect_stdout(StringIO()))
        builder.download_and_prepare(download_dir=scratch(), download_config=config)
        if local != folder:
            upload(local, folder)
    return {split: info.num_examples for split, info in builder.info.splits.items()}
