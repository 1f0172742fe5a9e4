"""The published data sets as TFDS builders.

Importing this module makes them known to TensorFlow Datasets:

    import tensorflow_datasets as tfds
    import dorl_jax.data.tfds_builders

    builder = tfds.builder("matek19", data_dir="built")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir="downloads/matek19"))
    cells = tfds.data_source("matek19", split="train", data_dir="built")

The archives have to be downloaded by hand; `MANUAL_DOWNLOAD_INSTRUCTIONS` of a builder says what. TensorFlow is not
needed: the files are ArrayRecord.
"""

from dorl_jax.data.building import register_set
from dorl_jax.data.sets import SETS

BUILDERS = {name: register_set(data_set, __name__) for name, data_set in SETS.items()}
