"""Writes the page: one HTML file with all its pictures in it."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from nnunet_ext.report.commands import predict_command, preprocess_command, report_command, train_commands
from nnunet_ext.report.facts import facts, fold_notes, headline
from nnunet_ext.report.html import render_html, write_html
from nnunet_ext.report.model_folder import ModelFolder
from nnunet_ext.report.parts import Section
from nnunet_ext.report.score_sections import surface_sections
from nnunet_ext.report.sections import make_sections


def write_page(
    model: ModelFolder,
    output: Path,
    viewer_mb: float = 0,
    measures: Sequence[str] = (),
    tolerance: float = 1.0,
    processes: int = 1,
) -> None:
    """Draws all figures, which takes some seconds, and writes the page atomically.

    Args:
        model: the model.
        output: the page.
        viewer_mb: what volumes to be looked through may take of the page, in megabytes; 0 for none.
        measures: `hd95`, `nsd`, which are computed from the label maps.
        tolerance: of the NSD, mm.
        processes: worker processes that compute them.

    Raises:
        ConfigurationError: `output` cannot be written, or a label map that a measure needs is missing.
    """
    surfaces = partial(surface_sections, measures=measures, tolerance=tolerance, processes=processes)
    options = ["--viewer-mb", f"{viewer_mb:g}"]
    if measures:
        options += ["--measures", *measures, "--tolerance", f"{tolerance:g}"]
    write_html(render(model, viewer_mb, surfaces, options), output)


def render(
    model: ModelFolder,
    viewer_mb: float = 0,
    surfaces: Callable[[ModelFolder], list[Section]] | None = None,
    options: Sequence[str] = (),
) -> str:
    """The page as HTML; `options` are those of the command that makes it again."""
    return render_html(
        "report.html.j2",
        title=f"{model.trainer} on {model.dataset}",
        headline=headline(model),
        notes=[*fold_notes(model), *model.notes],
        facts=facts(model),
        sections=make_sections(model, viewer_mb, surfaces),
        preprocess=preprocess_command(model),
        train=train_commands(model),
        predict=predict_command(model),
        plans_name=model.plans_name,
        dataset=model.dataset,
        command=report_command(model, options),
    )
