"""Writes the page: one HTML file with all its pictures in it."""

from pathlib import Path

from nnunet_ext.report.commands import predict_command, preprocess_command, report_command, train_commands
from nnunet_ext.report.facts import facts, fold_notes, headline
from nnunet_ext.report.html import render_html, write_html
from nnunet_ext.report.model_folder import ModelFolder
from nnunet_ext.report.sections import make_sections


def write_page(model: ModelFolder, output: Path, viewer_mb: float = 0) -> None:
    """Draws all figures, which takes some seconds, and writes the page atomically.

    `viewer_mb`: what volumes to be looked through may take of the page, in megabytes; 0 for none.

    Raises:
        ConfigurationError: `output` cannot be written.
    """
    write_html(render(model, viewer_mb), output)


def render(model: ModelFolder, viewer_mb: float = 0) -> str:
    """The page as HTML."""
    return render_html(
        "report.html.j2",
        title=f"{model.trainer} on {model.dataset}",
        headline=headline(model),
        notes=[*fold_notes(model), *model.notes],
        facts=facts(model),
        sections=make_sections(model, viewer_mb),
        preprocess=preprocess_command(model),
        train=train_commands(model),
        predict=predict_command(model),
        plans_name=model.plans_name,
        dataset=model.dataset,
        command=report_command(model),
    )
