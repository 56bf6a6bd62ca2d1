// Ctrl/Cmd + Enter generates from anywhere in the Compare tab, draws from inside the grid, and recovers in the Recoveries
// tab; the button in the masthead changes between light and dark.
(() => {
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
