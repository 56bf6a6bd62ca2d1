// Ctrl/Cmd + Enter generates from anywhere in the Compare tab, draws from inside the grid, and recovers in the Recoveries
// tab; the button in the masthead changes between light and dark. A page at rest asks the browser for no frames.
(() => {
  // Gradio counts the seconds until its page is there, and goes on counting at every frame for as long as the page is
  // open. Frames are numbered in the order in which they are asked for: where ours and one more were asked for at each of
  // thirty in a row, that one is the counter's. A counter of something that is under way would be a third.
  const ALONE = 30, GIVE_UP = 3600; // frames
  let last = 0, alone = 0, looks = 0;
  const look = () => {
    const frame = requestAnimationFrame(look);
    alone = frame - last === 2 ? alone + 1 : 0;
    last = frame;
    looks += 1;
    if (alone === ALONE) cancelAnimationFrame(frame - 1);
    if (alone === ALONE || looks === GIVE_UP) cancelAnimationFrame(frame);
  };
  requestAnimationFrame(look);
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
