"""What Med-Tuning adds to the page: what is tuned, from which weights, and the slice filters that were learned."""

from typing import Any

import numpy as np

from nnunet_ext.files import read_json
from nnunet_ext.med_tuning.filters import change, kernel
from nnunet_ext.med_tuning.slice_filter_figure import slice_filter_figure
from nnunet_ext.report.model_folder import ModelFolder
from nnunet_ext.report.parts import MISSING, Picture, Section, Table, significant

METHOD = "med_tuning"
FILE = "med_tuning.json"

_FILTERS = (
    "The frequency branch of a Med-Adapter multiplies the spectrum along the slices by W_F. That is a circular "
    "convolution along the slices, shared by all channels and positions: a curve is its kernel (the inverse transform "
    "of W_F), beside the weight of the slice itself. At the start the slice itself has weight 1 and all others 0; the "
    "branch hands on the magnitude of the result. Offsets beyond 16 slices are not drawn."
)


def section(model: ModelFolder) -> Section | None:
    """Parameters by part and slice filters, as the last epoch of each fold left them."""
    folds: dict[str, dict[str, Any]] = {}
    kernels: dict[str, list[np.ndarray]] = {}
    changes: dict[str, list[float]] = {}
    for fold in model.folds:
        path = fold.folder / FILE
        if fold.method != METHOD or not path.is_file():
            continue
        try:
            content = read_json(path)
            facts = _facts(content)
            spectra = {name: _spectrum(values["W_F"]) for name, values in content["filters"].items()}
            found = {name: values for name, values in spectra.items() if len(values) > 1}  # 2d has one slice
            if folds and found.keys() != changes.keys():
                raise ValueError("other adapters than in the folds before")
        except (OSError, LookupError, TypeError, ValueError, AttributeError) as error:
            model.notes.append(f"fold_{fold.name}/{FILE} is damaged and was left out ({type(error).__name__}: {error})")
            continue
        folds[fold.name] = facts
        for number, (name, spectrum) in enumerate(found.items(), start=1):
            kernels.setdefault(f"adapter {number}", []).append(kernel(spectrum))
            changes.setdefault(name, []).append(change(spectrum))
    if not folds:
        return None
    tables = [_tuned_table(folds)]
    if not kernels:
        return Section("Tuning", tables=tables)
    numbered = zip(changes.values(), kernels, strict=True)
    rows = [[title, *(significant(value) for value in values)] for values, title in numbered]
    head = ["Largest |W_F - 1|", *(f"fold {name}" for name in folds)]
    tables.append(Table("How far the slice filters are from their start", head, rows))
    alt = "; ".join(f"{title} {row[1]}" for title, row in zip(kernels, rows, strict=True))
    which = "fold" if len(folds) == 1 else "folds"
    picture = Picture.of(
        slice_filter_figure(kernels),
        f"Slice filter of each adapter, {which} {', '.join(folds)}",
        f"Small plots of the kernels. Largest change of W_F: {alt}.",
    )
    return Section("Tuning", [_FILTERS], [picture], tables)


def _facts(content: dict[str, Any]) -> dict[str, Any]:
    parts = {str(name): (int(c["total"]), int(c["trainable"])) for name, c in content["parts"].items()}
    weights = content["weights"]
    return {
        "what": f"{content['tuning']} on {content['backbone']}",
        "weights": MISSING if weights is None else f"{weights['source']}, SHA256 {str(weights['sha256'])[:12]}",
        "parts": parts,
        "total": sum(total for total, _ in parts.values()),
        "trainable": sum(trainable for _, trainable in parts.values()),
    }


def _spectrum(values: Any) -> np.ndarray:
    spectrum = np.asarray(values, float)
    if spectrum.ndim != 1 or not len(spectrum) or not np.isfinite(spectrum).all():
        raise ValueError("a filter must be a list of numbers")
    return spectrum


def _tuned_table(folds: dict[str, dict[str, Any]]) -> Table:
    first = next(iter(folds.values()))
    rows = [
        [name, facts["what"], facts["weights"]]
        + [f"{facts['parts'][part][1]:,} of {facts['parts'][part][0]:,}" for part in first["parts"]]
        + [f"{100 * facts['trainable'] / max(1, facts['total']):.2f} %"]
        for name, facts in folds.items()
        if facts["parts"].keys() == first["parts"].keys()
    ]
    head = ["Fold", "Tuning", "Pretrained weights", *(f"{part}, trainable of all" for part in first["parts"]), "share"]
    return Table("Trainable parameters", head, rows, words=3)
