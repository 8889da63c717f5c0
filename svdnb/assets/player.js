(id) => {
  "use strict";
  const prefersReducedMotion = matchMedia("(prefers-reduced-motion: reduce)").matches;

  // A notebook may show one output twice, so several players can have the same id.
  for (const root of document.querySelectorAll(`#${id}:not([data-ready])`)) {
    root.dataset.ready = "true";
    const videos = [...root.querySelectorAll("video")];
    if (videos.length === 0) continue;
    const grid = root.getAttribute("role") === "group";
    playInView(root, grid ? together(root, videos) : alone(videos[0]));
  }

  // A notebook holds many players: those out of sight pause, and resume when they are seen.
  function playInView(root, player) {
    let playWhenSeen = !prefersReducedMotion;
    new IntersectionObserver((entries) => {
      const seen = entries[entries.length - 1].isIntersecting;
      if (seen && playWhenSeen) {
        playWhenSeen = false;
        player.play();
      } else if (!seen && player.isPlaying()) {
        playWhenSeen = true;
        player.pause();
      }
    }).observe(root);
  }

  function start(video) {
    video.play().catch(() => {}); // The browser may forbid it; the controls are there.
  }

  function alone(video) {
    return {
      play: () => start(video),
      pause: () => video.pause(),
      isPlaying: () => !video.paused,
    };
  }

  // The longest video is the clock. The others follow it and hold their last frame.
  function together(root, videos) {
    const fpsOf = (video) => Number(video.dataset.fps);
    const secondsOf = (video) => Number(video.dataset.frames) / fpsOf(video);
    const clock = videos.reduce((a, b) => (secondsOf(b) > secondsOf(a) ? b : a));
    const fps = Math.max(...videos.map(fpsOf));
    const lastFrame = Math.round(secondsOf(clock) * fps) - 1;
    let playing = false;
    let at = 0; // the frame shown, counted from 0

    function play() {
      if (at === lastFrame) videos.forEach((video) => (video.currentTime = 0));
      playing = true;
      videos.forEach(start);
      follow();
    }

    function follow() {
      if (!playing) return;
      for (const video of videos) {
        const due = Math.min(clock.currentTime, secondsOf(video));
        const late = Math.abs(video.currentTime - due) > 0.5 / fps;
        if (video !== clock && late && !video.seeking) video.currentTime = due;
      }
      at = Math.min(lastFrame, Math.floor(clock.currentTime * fps + 0.01));
      paint();
      requestAnimationFrame(follow);
    }

    function jump(wanted) {
      playing = false;
      at = Math.max(0, Math.min(lastFrame, wanted));
      for (const video of videos) {
        video.pause();
        settle(video);
      }
      paint();
    }

    // One seek at a time, with a pause after each: if a second seek follows at once, Chromium
    // sometimes keeps showing the frame of the first.
    const busy = new Set();
    function settle(video) {
      const lastMiddle = secondsOf(video) - 0.5 / fpsOf(video);
      // The middle of a frame: its edge could show the neighbour.
      const due = Math.min((at + 0.5) / fps, lastMiddle);
      const there = Math.abs(video.currentTime - due) < 0.001;
      if (playing || there || video.seeking || busy.has(video)) return;
      busy.add(video);
      video.currentTime = due;
    }
    function settleLater(video) {
      setTimeout(() => {
        busy.delete(video);
        settle(video);
      }, 50);
    }

    const pause = () => jump(at);
    const toggle = () => (playing ? pause() : play());
    const step = (by) => jump(at + by);

    const bar = document.createElement("div");
    bar.className = "svdnb-controls";
    const playButton = addButton(bar, toggle);
    label(addButton(bar, () => step(-1)), "Previous frame", "Left arrow", "M2 2h3v12H2zM14 2v12L6 8z");
    label(addButton(bar, () => step(1)), "Next frame", "Right arrow", "M11 2h3v12h-3zM2 2v12l8-6z");
    const slider = document.createElement("input");
    slider.type = "range";
    slider.min = 0;
    slider.max = lastFrame;
    slider.setAttribute("aria-label", "Frame");
    slider.addEventListener("input", () => jump(Number(slider.value)));
    const readout = document.createElement("output");
    bar.append(slider, readout);
    root.append(bar);

    let painted = "";
    function paint() {
      if (painted === `${at} ${playing}`) return;
      painted = `${at} ${playing}`;
      slider.value = at;
      readout.textContent = `Frame ${at + 1} of ${lastFrame + 1}`;
      slider.setAttribute("aria-valuetext", `${readout.textContent}, ${(at / fps).toFixed(2)} s`);
      if (playing) label(playButton, "Pause", "Space", "M3 2h4v12H3zM9 2h4v12H9z");
      else label(playButton, "Play", "Space", "M4 2l10 6-10 6z");
    }

    const keys = {
      " ": toggle,
      ArrowLeft: () => step(-1),
      ArrowRight: () => step(1),
      Home: () => jump(0),
      End: () => jump(lastFrame),
    };
    root.tabIndex = 0;
    root.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab would take the arrows.
    root.addEventListener("keydown", (event) => {
      const action = keys[event.key];
      const pressesButton = event.key === " " && event.target.closest("button");
      if (!action || pressesButton || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      event.stopPropagation();
      action();
    });

    for (const video of videos) {
      video.controls = false;
      video.loop = false;
      video.addEventListener("click", toggle);
      video.addEventListener("seeked", () => settleLater(video));
    }
    clock.addEventListener("ended", () => playing && play());
    clock.addEventListener("pause", () => playing && !clock.ended && pause()); // a media key
    paint();
    return { play, pause, isPlaying: () => playing };
  }

  function addButton(bar, action) {
    const button = document.createElement("button");
    button.type = "button";
    button.addEventListener("click", action);
    bar.append(button);
    return button;
  }

  function label(button, name, key, drawing) {
    button.setAttribute("aria-label", name);
    button.title = `${name} (${key})`;
    button.innerHTML = `<svg viewBox="0 0 16 16" aria-hidden="true"><path d="${drawing}"/></svg>`;
  }
}
