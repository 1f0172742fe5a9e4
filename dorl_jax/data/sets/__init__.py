"""Published data sets of blood cells by their names."""

from dorl_jax.data.sets.acevedo20 import ACEVEDO20
from dorl_jax.data.sets.base import DataSet, Difference, count_differences, differences_table
from dorl_jax.data.sets.bccd import BCCD
from dorl_jax.data.sets.lisc import LISC
from dorl_jax.data.sets.matek19 import MATEK19
from dorl_jax.data.sets.mll23 import MLL23
from dorl_jax.data.sets.private import INT20, SYSU3H
from dorl_jax.data.sets.raabin_wbc import RAABIN_WBC
from dorl_jax.data.sets.zheng18 import CELLAVISION_BLOG, JIANGXI_TECOM
from dorl_jax.errors import InputError, name_some, suggest

SETS = {
    data_set.name: data_set
    for data_set in (
        MATEK19,
        ACEVEDO20,
        RAABIN_WBC,
        MLL23,
        LISC,
        BCCD,
        JIANGXI_TECOM,
        CELLAVISION_BLOG,
        INT20,
        SYSU3H,
    )
}


def find_set(name: str) -> DataSet:
    """The data set of this name.

    Raises:
      InputError: there is none; the message names the nearest.
    """
    if name not in SETS:
        raise InputError(f"unknown data set {name!r}{suggest(name, SETS)}; there are: {name_some(SETS, 20)}")
    return SETS[name]


__all__ = ["SETS", "DataSet", "Difference", "count_differences", "differences_table", "find_set"]
