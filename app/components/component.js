// In front of the script of every component: what all of them do the same way.
const $ = (selector) => element.querySelector(selector);

// Shows how far work is, of a snapshot's phase, message, share_done and left_s: in the banner what has failed, else in
// the bar and in the note. A bar with data-stays keeps its place between two pieces of work.
function showWork(value, note) {
  const failed = value.phase === "error", busy = value.phase === "waiting" || value.phase === "running";
  $(".banner").hidden = !failed;
  $(".banner").textContent = failed ? value.message : "";
  const bar = $(".progress"), percent = failed ? 0 : 100 * (value.share_done || 0);
  bar.hidden = !busy && bar.dataset.stays === undefined;
  bar.setAttribute("aria-valuenow", String(Math.round(percent)));
  bar.firstElementChild.style.width = percent + "%";
  const left = value.left_s;
  const toGo = left === null || left === undefined ? ""
    : " · " + (left < 60 ? Math.ceil(left) + " s" : Math.ceil(left / 60) + " min") + " left";
  $(note).textContent = failed ? "" : (value.message || "") + toGo;
  return { failed, busy };
}
