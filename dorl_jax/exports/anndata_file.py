"""AnnData `.h5ad`, which scanpy opens."""

import json
from pathlib import Path

import pyarrow as pa

from dorl_jax.errors import InputError
from dorl_jax.files import replacing
from dorl_jax.vectors import Vectors


def write_h5ad(vectors: Vectors, path: Path) -> None:
    """One observation a cell: `obs` the columns, `obsm["X_dorl"]` the vectors, `uns["dorl_jax"]` where they come from.

    `X` is empty, for a cell here has no genes: point scanpy at the vectors (`sc.pp.neighbors(cells,
    use_rep="X_dorl")`). The provenance is JSON text: HDF5 has no null and no list of mixed values.

    Raises:
      InputError: the package anndata is not installed.
    """
    try:
        import anndata
        import pandas as pd
    except ImportError as error:
        raise InputError(
            "writing .h5ad needs a package that is not installed: pip install 'dorl-jax[anndata]'"
        ) from error
    columns = vectors.columns
    plain = [name for name in columns.column_names if name != "id" and not pa.types.is_nested(columns[name].type)]
    obs = columns.select(plain).to_pandas()
    obs.index = pd.Index(vectors.ids.astype(object), name="id")
    for name in plain:
        kind = columns[name].type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind):
            # Scanpy colours by categories; a missing text is a missing category.
            obs[name] = pd.Categorical(obs[name])
        elif columns[name].null_count and pa.types.is_boolean(kind):
            obs[name] = obs[name].astype("boolean")
    cells = anndata.AnnData(obs=obs, obsm={"X_dorl": vectors.values})
    cells.uns["dorl_jax"] = json.dumps(vectors.provenance)
    with replacing(path) as partial:
        cells.write_h5ad(partial, compression="gzip")
