"""What the method is compared with: other vectors of the same cells, judged in the same folds."""

from dorl_jax.baselines.making import BASELINES, BaselineSettings, baselines, read_baseline

__all__ = ["BASELINES", "BaselineSettings", "baselines", "read_baseline"]
