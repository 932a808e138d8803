"""HTML pages: one file each, pictures inline, nothing loaded from anywhere, all text escaped.

Their content security policy has the hashes of the styles and scripts that are ours: nothing else is ever run.
"""

import base64
import gzip
import hashlib
import re
from datetime import datetime, timezone
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from nnunet_ext import __version__
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import write_atomically


def render_html(template: str, **values: Any) -> str:
    """Fills a template of this folder; `page.html.j2` is the page that the others change a part of."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FunctionLoader(_text),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["anchor"] = anchor
    style, script = _text("page.css"), _text("viewer.js")
    allowed = [f"default-src 'none'; img-src data:; style-src {_hash(style.encode())}"]
    niivue = None
    if any(section.viewer and section.viewer.cases for section in values["sections"]):
        niivue = _niivue()
        allowed.append(f"script-src {_hash(script.encode())} {niivue['hash']}")
    return environment.get_template(template).render(
        version=__version__,
        date=f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        policy=Markup("; ".join(allowed)),
        style=Markup(style),
        viewer_script=Markup(script),
        niivue=niivue,
        names={picture.name for section in values["sections"] for picture in section.pictures},
        **values,
    )


@cache
def _niivue() -> dict[str, str]:
    """The viewer's library, packed: a third of its size, and no text that could end the script element."""
    library = files("nnunet_ext.report").joinpath("niivue/niivue.umd.js").read_bytes()
    return {
        "version": _text("niivue/README.md").split()[1].rstrip(","),
        "licence": _text("niivue/LICENSE"),
        "packed": base64.b64encode(gzip.compress(library, 9, mtime=0)).decode(),
        "hash": _hash(library),
    }


def anchor(text: str) -> str:
    """What a link to the heading or case is called: "Dice by class" -> "dice-by-class"."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _text(name: str) -> str:
    return files("nnunet_ext.report").joinpath(name).read_text(encoding="utf-8")


def _hash(content: bytes) -> str:
    """As a content security policy names an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"


def write_html(html: str, output: Path) -> None:
    """Writes the page atomically.

    Raises:
        ConfigurationError: `output` cannot be written.
    """
    if output.is_dir() or not output.parent.is_dir():
        raise ConfigurationError(f"{output} cannot be written: give a file in a folder that exists.")
    try:
        write_atomically(output, lambda file: file.write(html.encode(errors="surrogateescape")))
    except OSError as error:
        raise ConfigurationError(f"{output} cannot be written ({error}). Choose another place with -o.") from error
