// Looks through the volumes that lie in the page, with NiiVue. Without WebGL2 or gzip the button stays hidden, and the
// page has its pictures.
"use strict";
for (const viewer of document.querySelectorAll(".viewer")) {
  const supported = "DecompressionStream" in window && document.createElement("canvas").getContext("webgl2");
  const button = viewer.querySelector(".open");
  const message = viewer.querySelector(".message");
  if (!supported) {
    message.textContent = "This browser has no WebGL2, so the volumes cannot be looked through here.";
    continue;
  }
  button.hidden = false;
  button.addEventListener("click", () => {
    button.disabled = true;
    message.textContent = "Loading";
    open(viewer).then(
      () => { button.hidden = true; message.textContent = ""; viewer.dataset.state = "open"; },
      (error) => { message.textContent = "The volumes cannot be shown: " + error.message; viewer.dataset.state = "failed"; });
  });
}

async function loadNiivue() {
  if (window.niivue) return;
  const packed = Uint8Array.from(atob(document.getElementById("niivue-packed").textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();  // its hash stands in the page's content security policy
  document.head.append(script);
}

async function open(viewer) {
  await loadNiivue();
  const cases = JSON.parse(viewer.querySelector(".cases").textContent);
  const control = (name) => viewer.querySelector(`[name=${name}]`);
  const sliders = ["x", "y", "z"].map(control);
  viewer.querySelector(".controls").hidden = false;
  const panels = [];
  for (const layer of cases[0].layers) {
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    const frame = document.createElement("div");
    const canvas = document.createElement("canvas");
    caption.textContent = layer.title;
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", layer.title + ", one or three slices; the sliders move them");
    frame.append(canvas);
    figure.append(caption, frame);
    viewer.querySelector(".panels").append(figure);
    const panel = new niivue.Niivue({
      isResizeCanvas: true, isRadiologicalConvention: true, isNearestInterpolation: true,
      crosshairColor: [1, 1, 1, 1], dragAndDropEnabled: false, logLevel: "error", sagittalNoseLeft: true,
      fontColor: [1, 1, 1, 1], textHeight: 0.08, multiplanarForceRender: false,
    });
    await panel.attachToCanvas(canvas);
    panel.onLocationChange = () => follow(panel);
    panels.push(panel);
  }

  // All panels show the place of the one that was moved, and the sliders say it.
  function follow(moved) {
    const { shape } = cases[control("case").value];
    const place = Array.from(moved.scene.crosshairPos);
    for (const panel of panels) {
      if (panel !== moved) {
        panel.scene.crosshairPos = place.slice();
        panel.drawScene();
      }
    }
    sliders.forEach((slider, axis) => {
      slider.value = Math.min(shape[axis], Math.floor(place[axis] * shape[axis]) + 1);
      slider.nextElementSibling.textContent = `${slider.value} of ${shape[axis]}`;
    });
  }

  function go(place) {
    panels[0].scene.crosshairPos = place;
    panels[0].drawScene();
    follow(panels[0]);
  }

  function show() {
    const shown = cases[control("case").value];
    const layers = shown.layers;
    viewer.querySelector(".remark").textContent = shown.remark;
    panels.forEach((panel, number) => {
      while (panel.volumes.length) panel.removeVolume(panel.volumes[0]);
      panel.opts.textHeight = shown.sides_known ? 0.08 : 0;
      panel.addVolume(niivue.NVImage.loadFromBase64({
        base64: shown.image, name: "image.nii.gz", cal_min: shown.window[0], cal_max: shown.window[1] }));
      const over = niivue.NVImage.loadFromBase64({ base64: layers[number].volume, name: "labels.nii.gz" });
      const channel = (c) => [0, ...layers[number].colours.map((colour) => colour[c])];
      over.setColormapLabel({ R: channel(0), G: channel(1), B: channel(2) });
      panel.addVolume(over);
    });
    for (const [name, at] of [["black", 0], ["white", 1]]) {
      [control(name).min, control(name).max] = shown.limits;
      control(name).step = (shown.limits[1] - shown.limits[0]) / 255;
      control(name).value = shown.window[at];
    }
    sliders.forEach((slider, axis) => { slider.max = shown.shape[axis]; });
    setWindow();
    setOpacity();
    setPlane();
    go(shown.start.slice());
  }

  function setWindow() {
    const low = Number(control("black").value);
    const high = Math.max(Number(control("white").value), low + Number(control("white").step));
    for (const panel of panels) {
      [panel.volumes[0].cal_min, panel.volumes[0].cal_max] = [low, high];
      panel.updateGLVolume();
    }
    const digits = high - low < 20 ? 2 : 0;
    control("black").nextElementSibling.textContent = low.toFixed(digits);
    control("white").nextElementSibling.textContent = high.toFixed(digits);
  }

  function setOpacity() {
    for (const panel of panels) panel.setOpacity(1, control("opacity").value / 100);
    control("opacity").nextElementSibling.textContent = control("opacity").value + " %";
  }

  function setPlane() {
    const plane = Number(control("plane").value);
    for (const panel of panels) {
      panel.opts.crosshairWidth = plane === 3 ? 0.15 : 0;  // in one plane it would hide voxels for nothing
      panel.setSliceType(plane);
    }
  }

  control("case").addEventListener("change", show);
  control("plane").addEventListener("change", setPlane);
  control("opacity").addEventListener("input", setOpacity);
  control("black").addEventListener("input", setWindow);
  control("white").addEventListener("input", setWindow);
  sliders.forEach((slider, axis) => slider.addEventListener("input", () => {
    const place = Array.from(panels[0].scene.crosshairPos);
    place[axis] = (slider.value - 0.5) / slider.max;
    go(place);
  }));
  viewer.panels = panels;  // for tests
  show();
}
