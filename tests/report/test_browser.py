"""The pages in a real browser: no complaint, nothing loaded, nothing too wide, volumes that can be seen."""

import base64
import io

import numpy as np
import pytest
from matplotlib.image import imread
from report.chromium import Browser, chromium
from report.folders import Model, e2enet_model, store, three_cases

from nnunet_ext.cli import main as cli

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="no Chromium, in which the pages are looked at"),
]
SCREENS = {
    "wide": {"width": 1280},
    "narrow": {"width": 420},
    "dark": {"width": 1280, "dark": True},
    "print": {"width": 794, "media": "print"},
}
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A report and a comparison."""
    root = tmp_path_factory.mktemp("pages")
    models = [e2enet_model(root), e2enet_model(root / "other")]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in models[0].environment.items():
            patch.setenv(name, value)
        assert cli.main(["report", str(models[0].path), "-o", str(root / "report.html")]) == 0
        words = [f"ours={models[0].path}", f"theirs={models[1].path}", "-o", str(root / "compare.html"), "-np", "1"]
        assert cli.main(["compare", *words]) == 0
    return root


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


def opened(browser, path, **screen):
    browser.problems.clear()
    browser.requests.clear()
    browser.look(**{"width": 1280, **screen})
    browser.open(path)


def start_viewer(browser):
    browser.run("document.querySelector('.viewer .open').click()")
    browser.until("!!document.querySelector('.viewer').dataset.state")
    assert browser.run("document.querySelector('.viewer').dataset.state") == "open"


def set_to(browser, name, value):
    """As a reader does it."""
    browser.run(
        f"for (const what of ['input', 'change']) {{ const c = document.querySelector('.viewer [name={name}]');"
        f"c.value = {value}; c.dispatchEvent(new Event(what)); }}"
    )


def panel(browser, number=0):
    """What a panel of the viewer shows, `[H, W, 3]`."""
    # Drawn anew and read at once: WebGL keeps no frame.
    uri = browser.run(
        f"(() => {{ const panel = document.querySelector('.viewer').panels[{number}]; panel.drawScene();"
        f"return panel.canvas.toDataURL(); }})()"
    )
    return imread(io.BytesIO(base64.b64decode(uri.split(",")[1])))[..., :3]


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("name", ["report", "compare"])
def test_a_page_fits_and_nothing_is_wrong(name, screen, browser, pages):
    opened(browser, pages / f"{name}.html", **SCREENS[screen])
    if screen != "print":
        start_viewer(browser)
    assert browser.run(WIDER) <= 0
    assert browser.problems == []
    assert all(request.startswith(("file:", "data:")) for request in browser.requests)
    assert len([request for request in browser.requests if request.startswith("file:")]) == 1


def test_long_names_do_not_widen_the_page(browser, tmp_path, monkeypatch):
    model = Model(tmp_path)
    monkeypatch.setenv("nnUNet_raw", model.environment["nnUNet_raw"])
    case = "a_name_of_a_case_without_any_blank_" * 3
    model.fold("0", {case: three_cases()["fair"]})
    assert cli.main(["report", str(model.path), "-o", str(tmp_path / "page.html")]) == 0
    opened(browser, tmp_path / "page.html", **SCREENS["narrow"])
    start_viewer(browser)
    assert browser.run(WIDER) <= 0


def test_the_check_sees_what_is_too_wide_and_what_is_forbidden(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        "<p style='width: 2000px'>x</p><script>1</script><img src='https://example.com/x.png'>"
    )
    opened(browser, page)
    assert browser.run(WIDER) > 0 and len(browser.problems) == 2


def test_keys_move_through_the_slices(browser, pages):
    opened(browser, pages / "report.html")
    start_viewer(browser)
    place = "document.querySelector('.viewer').panels.map(p => Math.round(p.scene.crosshairPos[2] * 12))"
    before = browser.run(place)
    browser.run("document.querySelector('.viewer [name=z]').focus()")
    browser.press("ArrowRight", 39)
    assert browser.run(place) == [k + 2 for k in before], "one of six slices, in every panel"
    assert browser.run("document.querySelector('[name=z] + output').textContent").endswith("of 6")


def test_panels_show_colours_and_their_opacity(browser, pages):
    opened(browser, pages / "report.html")
    start_viewer(browser)
    saturation = {}
    for percent in (0, 50, 100):
        set_to(browser, "opacity", percent)
        picture = panel(browser)
        saturation[percent] = (picture.max(-1) - picture.min(-1)).mean()
    assert saturation[0] < 0.01 < saturation[50] < saturation[100]


def test_without_webgl_the_pictures_stay(browser, pages):
    script = browser.call(
        "Page.addScriptToEvaluateOnNewDocument", source="HTMLCanvasElement.prototype.getContext = () => null;"
    )
    try:
        opened(browser, pages / "report.html")
        assert browser.run("document.querySelector('.viewer .open').hidden")
        assert "no WebGL2" in browser.run("document.querySelector('.viewer .message').textContent")
        assert browser.run("document.querySelectorAll('img.scan').length") == 3
    finally:
        browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script["identifier"])


def test_however_a_scan_is_stored_the_viewer_shows_the_same(browser, tmp_path, monkeypatch):
    """By pixels, in all three planes; the inner class is at the patient's right and front, that is at the left."""
    reference = np.zeros((6, 12, 10), int)
    reference[1:5, 3:9, 2:8] = 1
    reference[1:4, 3:6, 2:5] = 2
    seen = {}
    for axes in ("LPS", "RAS", "oblique"):
        model = Model(tmp_path / axes)
        model.fold("0", {"case": (reference, reference)})
        for variable, value in model.environment.items():
            monkeypatch.setenv(variable, value)
        for path in model.root.rglob("*.nii.gz"):
            store(path, axes)
        page = tmp_path / f"{axes}.html"
        assert cli.main(["report", str(model.path), "-o", str(page)]) == 0
        opened(browser, page)
        start_viewer(browser)
        for plane in range(3):
            set_to(browser, "plane", plane)
            seen[axes, plane] = panel(browser)
    for (axes, plane), picture in seen.items():
        assert np.abs(picture - seen["LPS", plane]).max() < 0.02, (axes, plane)
    for plane in range(3):
        picture = seen["LPS", plane]
        inner = (picture[..., 2] > picture[..., 0] + 0.1).nonzero()[1]  # bluish, where the outer class is orange
        labelled = (picture.max(-1) - picture.min(-1) > 0.1).nonzero()[1]
        assert len(inner) and inner.mean() < labelled.mean() - 5
