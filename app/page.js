// Ctrl/Cmd + Enter generates from anywhere in the Compare tab, draws from inside the grid, and recovers in the Recoveries
// tab; the button in the masthead changes between light and dark. A page that nobody touches draws a few frames a second.
(() => {
  // Gradio's counters of seconds go on at every frame after what they counted is done, for as long as the page is open:
  // on a laptop that is a twentieth of a core taken from the training that the page watches.
  const AWAKE_MS = 3000, CALM_MS = 250;
  const draw = window.requestAnimationFrame.bind(window), forget = window.cancelAnimationFrame.bind(window);
  const calm = new Map(); // frames of a page at rest, by numbers below zero: what they wait for, and how it is forgotten
  let touched = performance.now(), last = 0;
  for (const kind of ["pointermove", "pointerdown", "click", "keydown", "input", "wheel", "touchmove", "scroll"]) {
    addEventListener(kind, () => { touched = performance.now(); }, {capture: true, passive: true});
  }
  window.requestAnimationFrame = (callback) => {
    if (performance.now() - touched < AWAKE_MS) return draw(callback);
    const frame = --last;
    calm.set(frame, [clearTimeout, setTimeout(() => {
      calm.set(frame, [forget, draw((now) => { calm.delete(frame); callback(now); })]);
    }, CALM_MS)]);
    return frame;
  };
  window.cancelAnimationFrame = (frame) => {
    if (!calm.has(frame)) return forget(frame);
    const [end, waiting] = calm.get(frame);
    calm.delete(frame);
    end(waiting);
  };
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    event.stopPropagation();
    const field = document.activeElement;
    if (field && field.blur) { field.blur(); field.focus(); } // so that a number being typed is taken over
    setTimeout(() => {
      const starts = field && field.closest("#grid-panel") ? "#draw" : "#generate, #recover";
      const button = [...document.querySelectorAll(starts)].find((start) => start.checkVisibility());
      if (button && !button.disabled) button.click();
    }, 60);
  }, true);
  document.addEventListener("click", (event) => {
    if (!event.target.closest || !event.target.closest("#theme-switch")) return;
    document.body.classList.toggle("dark");
  });
})();
