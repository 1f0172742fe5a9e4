"""What pages of results share: templates that escape what they are told, and pictures within the page."""

import base64
from pathlib import Path

import jinja2


def page_templates(folder: Path) -> jinja2.Environment:
    """The templates in a folder. All values are escaped, and one that is missing is an error."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def png_uri(png: bytes) -> str:
    """A picture as the address of itself, so that nothing is loaded from elsewhere."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
