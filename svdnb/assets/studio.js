// ipywidgets gives its sliders no name that can be read out, and no way to mark a part of the track.
(bands) => {
  "use strict";
  let patience = 600; // animation frames: some ten seconds

  function begin() {
    const roots = [...document.querySelectorAll(".svdnb-studio:not([data-named])")];
    const built = roots.filter((root) => root.querySelector(".noUi-handle"));
    for (const root of built) {
      root.dataset.named = "true";
      name(root);
      new MutationObserver(() => name(root)).observe(root, { childList: true, subtree: true });
    }
    if (built.length === 0 && patience-- > 0) requestAnimationFrame(begin);
  }

  function name(root) {
    for (const slider of root.querySelectorAll(".widget-slider")) {
      const text = slider.querySelector(".widget-label")?.textContent ?? "";
      const handles = slider.querySelectorAll(".noUi-handle");
      handles.forEach((handle, place) => {
        const which = handles.length > 1 ? [" minimum", " maximum"][place] : "";
        set(handle, "aria-label", text + which);
      });
      const readout = slider.querySelector(".widget-readout");
      if (readout) {
        set(readout, "role", "textbox");
        set(readout, "aria-label", `${text}, typed`);
      }
    }
    for (const [slider, [from, to]] of Object.entries(bands)) {
      for (const track of root.querySelectorAll(`.${slider} .noUi-base`)) {
        track.style.setProperty("--from", `${from}%`);
        track.style.setProperty("--to", `${to}%`);
      }
    }
  }

  function set(element, attribute, value) {
    if (element.getAttribute(attribute) !== value) element.setAttribute(attribute, value);
  }

  begin();
}
