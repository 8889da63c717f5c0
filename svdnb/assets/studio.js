// Give ipywidgets' sliders names for screen readers, and mark a range of values on some of them.
// ranges maps a slider's class to [from, to], in the slider's own units.
(ranges) => {
  "use strict";
  let framesLeft = 600; // about ten seconds

  function begin() {
    const roots = [...document.querySelectorAll(".svdnb-studio:not([data-named])")];
    const built = roots.filter((root) => root.querySelector(".noUi-handle"));
    for (const root of built) {
      root.dataset.named = "true";
      update(root);
      new MutationObserver(() => update(root)).observe(root, { childList: true, subtree: true });
    }
    if (built.length === 0 && framesLeft-- > 0) requestAnimationFrame(begin);
  }

  function update(root) {
    root.querySelectorAll(".widget-slider").forEach(name);
    for (const [slider, [from, to]] of Object.entries(ranges)) {
      root.querySelectorAll(`.${slider} .noUi-base`).forEach((track) => mark(track, from, to));
    }
  }

  function name(slider) {
    const text = slider.querySelector(".widget-label")?.textContent ?? "";
    const handles = slider.querySelectorAll(".noUi-handle");
    handles.forEach((handle, place) => {
      const which = handles.length > 1 ? [" minimum", " maximum"][place] : "";
      handle.setAttribute("aria-label", text + which);
    });
    const readout = slider.querySelector(".widget-readout");
    readout?.setAttribute("role", "textbox");
    readout?.setAttribute("aria-label", `${text}, typed`);
  }

  function mark(track, from, to) {
    const handle = track.querySelector(".noUi-handle");
    const [low, high] = ["aria-valuemin", "aria-valuemax"].map((end) => +handle.getAttribute(end));
    const share = (value) => `${(100 * (value - low)) / (high - low)}%`;
    track.style.setProperty("--from", share(from));
    track.style.setProperty("--to", share(to));
  }

  begin();
}
