"""HTML pages: one file each, pictures inline, nothing loaded from anywhere, all text escaped."""

from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path
from typing import Any

from nnunet_ext import __version__
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import write_atomically


def render_html(template: str, **values: Any) -> str:
    """Fills a template of this folder; `page.html.j2` is the page that the others change a part of."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(lambda name: files("nnunet_ext.report").joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    date = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"
    return environment.get_template(template).render(version=__version__, date=date, **values)


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
