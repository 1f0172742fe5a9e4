"""AnnData `.h5ad`, which scanpy opens."""

import json
from pathlib import Path

import pyarrow as pa

from dorl_jax.errors import InputError
from dorl_jax.exports.names import distinct_names
from dorl_jax.files import replacing
from dorl_jax.vectors import Vectors


def write_h5ad(vectors: Vectors, path: Path) -> None:
    """One observation a cell: `obs` the columns, `obsm["X_dorl"]` the vectors, `uns["dorl_jax"]` where they come from.

    `X` is empty, for a cell here has no genes: point scanpy at the vectors (`sc.pp.neighbors(cells,
    use_rep="X_dorl")`). The provenance is JSON text: HDF5 has no null and no list of mixed values. Times become texts;
    lists and bytes are left out.

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
    obs = pd.DataFrame(index=pd.Index(vectors.ids.astype(object), name="id"))
    names = [name for name in vectors.columns.column_names if name != "id"]
    # HDF5 takes a slash for a path, and anndata this name for itself.
    usable = distinct_names([name.replace("/", "_") for name in names], ("_index",), str)
    for name, new in zip(names, usable, strict=True):
        column = vectors.columns[name]
        kind = column.type
        if pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
            column, kind = column.cast(pa.string()), pa.string()  # which .h5ad has no type for
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind):
            # Scanpy colours by categories; a missing text is a missing category.
            obs[new] = pd.Categorical(column.to_pandas())
        elif column.null_count and pa.types.is_boolean(kind):
            obs[new] = pd.array(column.to_pylist(), "boolean")
        elif column.null_count and pa.types.is_integer(kind):
            # As floating point, which knows NaN, large ones would be rounded.
            obs[new] = pd.array(column.to_pylist(), "UInt64" if pa.types.is_unsigned_integer(kind) else "Int64")
        elif pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
            obs[new] = column.to_pandas().to_numpy()
    cells = anndata.AnnData(obs=obs, obsm={"X_dorl": vectors.values})
    cells.uns["dorl_jax"] = json.dumps(vectors.provenance)
    with replacing(path) as partial:
        cells.write_h5ad(partial, compression="gzip")
