// Ctrl/Cmd + Enter generates from anywhere in the Compare tab, and draws from inside the grid; the button in the masthead
// changes between light and dark.
(() => {
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
    event.preventDefault();
    event.stopPropagation();
    const field = document.activeElement;
    if (field && field.blur) { field.blur(); field.focus(); } // so that a number being typed is taken over
    setTimeout(() => {
      const button = document.querySelector(field && field.closest("#grid-panel") ? "#draw" : "#generate");
      if (button && !button.disabled && button.checkVisibility()) button.click();
    }, 60);
  }, true);
  document.addEventListener("click", (event) => {
    if (!event.target.closest || !event.target.closest("#theme-switch")) return;
    document.body.classList.toggle("dark");
  });
})();
