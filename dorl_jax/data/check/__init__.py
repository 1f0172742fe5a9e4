"""Whether cells are fit for use: everything decoded once, counted, compared and shown on one page."""

from dorl_jax.data.check.checking import check_listings
from dorl_jax.data.check.page import write_report
from dorl_jax.data.check.report import Report
from dorl_jax.data.check.text import format_report

__all__ = ["Report", "check_listings", "format_report", "write_report"]
