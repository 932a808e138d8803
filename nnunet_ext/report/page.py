"""Writes the page: one HTML file with all its pictures in it."""

from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path
from typing import IO

from nnunet_ext import __version__
from nnunet_ext.errors import ConfigurationError
from nnunet_ext.files import write_atomically
from nnunet_ext.report.commands import predict_command, preprocess_command, report_command, train_commands
from nnunet_ext.report.facts import facts, fold_notes, headline
from nnunet_ext.report.model_folder import ModelFolder
from nnunet_ext.report.sections import make_sections


def write_page(model: ModelFolder, output: Path) -> None:
    """Draws all figures, which takes some seconds, and writes the page atomically.

    Raises:
        ConfigurationError: `output` cannot be written.
    """
    if output.is_dir() or not output.parent.is_dir():
        raise ConfigurationError(f"{output} cannot be written: give a file in a folder that exists.")
    html = render(model).encode(errors="surrogateescape")

    def write(file: IO[bytes]) -> None:
        file.write(html)

    try:
        write_atomically(output, write)
    except OSError as error:
        raise ConfigurationError(f"{output} cannot be written ({error}). Choose another place with -o.") from error


def render(model: ModelFolder) -> str:
    """The page as HTML: one file, images inline, nothing loaded from anywhere, all text escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        files("nnunet_ext.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    )
    sections = make_sections(model)
    return template.render(
        title=f"{model.trainer} on {model.dataset}",
        headline=headline(model),
        notes=[*fold_notes(model), *model.notes],
        facts=facts(model),
        sections=sections,
        preprocess=preprocess_command(model),
        train=train_commands(model),
        predict=predict_command(model),
        plans_name=model.plans_name,
        dataset=model.dataset,
        report=report_command(model),
        version=__version__,
        date=f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
    )
