"""A report as one HTML page with its pictures in it, and as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from dorl_jax.data.check.pictures import contact_sheet, copies_sheet, histograms
from dorl_jax.data.check.report import Report
from dorl_jax.data.listing import Listing
from dorl_jax.data.taxonomy import Taxonomy
from dorl_jax.data.trees import PAGE, PAGE_DATA, PAGE_SHEET
from dorl_jax.files import replacing, write_text
from dorl_jax.html import page_templates, png_uri


def write_report(report: Report, listings: Sequence[Listing], taxonomy: Taxonomy, out: Path) -> Path:
    """Write `check.html` (nothing is loaded from elsewhere), `check.json` and `contact_sheet.png` into a folder.

    Args:
      report: of these listings.
      listings: the laboratories, for their pictures.
      taxonomy: the common classes.
      out: folder, made if it is not there.

    Returns:
      The path of the page.
    """
    sheet = _png(contact_sheet(listings, taxonomy))
    copies = _png(copies_sheet(report.copies, listings)) if report.copies else None
    with replacing(out / PAGE_SHEET) as partial:
        partial.write_bytes(sheet)
    write_text(out / PAGE_DATA, json.dumps(report.as_tree(), indent=1, ensure_ascii=False) + "\n")
    page = (
        page_templates(Path(__file__).parent)
        .get_template("check.html.jinja")
        .render(
            report=report,
            sheet=png_uri(sheet),
            copies=png_uri(copies) if copies else None,
            histograms=histograms(report),
        )
    )
    write_text(out / PAGE, page)
    return out / PAGE


def _png(picture: UInt8[np.ndarray, "h w 3"]) -> bytes:
    _, data = cv2.imencode(".png", picture[..., ::-1])
    return data.tobytes()
