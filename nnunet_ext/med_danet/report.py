"""What Med-DANet's validation adds to the page: risk and worth of routing, what slices got, a strip of each case."""

from typing import Any

from nnunet_ext.files import read_json
from nnunet_ext.med_danet.accounting import skipped_foreground, skipped_text
from nnunet_ext.med_danet.evidence import EVIDENCE_FILE, risk_lines
from nnunet_ext.med_danet.strip import strip_figure
from nnunet_ext.report.model_folder import Fold, ModelFolder
from nnunet_ext.report.parts import Picture, Section, Table, counted, percent, significant

METHOD = "med_danet"
FILE = "med_danet_spent.json"
STRIPS = 6  # a fold

_TEXT = (
    "The decision network sends each slice to skip (background) or to one candidate. Tiles are routed on their own, "
    "and every tile and mirrored pass counts. GMACs are true multiply-adds (1e9) of decisions and chosen "
    "candidates; beside them what the largest candidate and nnU-Net's 2D U-Net, at the plan's in-plane strides, would "
    "have spent on the same slices."
)


def section(model: ModelFolder) -> Section | None:
    """Activation ratios by content and by case, GMACs, and strips; None where no fold has a routed validation."""
    pictures: list[Picture] = []
    tables: list[Table] = []
    risks: list[str] = []
    left_out = 0
    for fold in model.folds:
        worth = _read(fold, model, EVIDENCE_FILE)
        if worth is not None:
            try:
                risks += [f"Fold {fold.name}: {line}" for line in risk_lines(worth)]
                tables.append(_worth(fold.name, worth))
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                model.notes.append(f"fold_{fold.name}/{EVIDENCE_FILE} is damaged and was left out ({error!r}).")
        report = _read(fold, model, f"validation/{FILE}")
        if report is None:
            continue
        try:
            made = _tables(fold.name, report)
            strips = [_strip(fold.name, case, report["choices"]) for case in _spread(report["cases"])]
            skipped = skipped_foreground(report["cases"])  # files of older releases do not say it
            lost = f"Fold {fold.name}, validation with all tiles and mirrored passes: {skipped_text(skipped)}"
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            model.notes.append(f"fold_{fold.name}/validation/{FILE} is damaged and was left out ({error!r}).")
            continue
        risks.append(lost)
        tables += made
        pictures += strips
        left_out += len(report["cases"]) - len(strips)
    if not tables:
        return None
    text = [*risks, _TEXT]
    if left_out:
        text.append(f"Strips of {counted(left_out, 'further case')} are left out; {FILE} has their numbers.")
    return Section("Routing", text, pictures, tables)


def _read(fold: Fold, model: ModelFolder, file: str) -> dict[str, Any] | None:
    path = fold.folder / file
    if fold.method != METHOD or not path.is_file():
        return None
    try:
        report = read_json(path)
    except (OSError, ValueError) as error:
        model.notes.append(f"fold_{fold.name}/{file} cannot be read and was left out ({error}).")
        return None
    return report if isinstance(report, dict) else {}


def _spread(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most `STRIPS` cases, from the cheapest to the dearest per slice, at even distances."""
    ordered = sorted(cases, key=lambda case: case["gmacs"] / max(1, case["slices"]))
    if len(ordered) <= STRIPS:
        return ordered
    return [ordered[round(n * (len(ordered) - 1) / (STRIPS - 1))] for n in range(STRIPS)]


def _shares(counts: list[int]) -> list[str]:
    return [percent(count / max(1, sum(counts)), 1) for count in counts]


def _tables(fold: str, report: dict[str, Any]) -> list[Table]:
    head = [*report["choices"], "slices"]
    kinds = [[kind, *_shares(counts), f"{sum(counts):,}"] for kind, counts in report["by_content"].items()]
    kinds.append(["all", *_shares(report["counts"]), f"{report['slices']:,}"])
    note = "All counts slices that only fill up tiles, too. A slice that holds several labels is in several rows."
    cases = [_case(case["case"], case) for case in report["cases"]]
    return [
        Table(f"Activation by content, fold {fold}", ["Slices with", *head], kinds, note),
        Table(
            f"Activation and cost by case, fold {fold}",
            ["Case", *head, "GMACs", "largest candidate", "nnU-Net's 2D U-Net"],
            [*cases, _case("all", report)],
        ),
    ]


def _worth(fold: str, report: dict[str, Any]) -> Table:
    rows = [[row["way"], f"{row['dice']:.4f}", significant(row["gmacs_per_slice"])] for row in report["ways"]]
    note = (
        f"{report['slices']:,} slices of the validation's tiles, not mirrored; decisions are in the cost of routing. "
        f"Where routing is not above the mixtures, the choice among candidates has brought nothing."
    )
    return Table(f"Does routing pay, fold {fold}", ["What the slices get", "Dice", "true GMACs a slice"], rows, note)


def _case(name: str, row: dict[str, Any]) -> list[str]:
    costs = [significant(row[key]) for key in ("gmacs", "gmacs_unrouted", "gmacs_unet")]
    return [name, *_shares(row["counts"]), f"{row['slices']:,}", *costs]


def _strip(fold: str, case: dict[str, Any], choices: list[str]) -> Picture:
    figure = strip_figure(case["votes"], case["foreground"], choices)
    shares = ", ".join(f"{name} {share}" for name, share in zip(choices, _shares(case["counts"]), strict=True))
    saved = case["gmacs_unrouted"] / case["gmacs"]
    found = skipped_foreground([case])
    lost, slices = found["skipped_with_foreground"], found["slices_with_foreground"]
    caption = (
        f"{case['case']} (fold {fold}): {lost} of {slices} slices with foreground skipped, {significant(saved)} times "
        f"fewer GMACs than the largest candidate"
    )
    return Picture.of(figure, caption, f"Foreground and choices by slice. {shares}.")
