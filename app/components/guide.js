// Draws a step's figure (see services/guide.Figure). It asks for itself (`submit`) when it comes into view with nothing
// to show, and again while the answer is "later". All text goes in as textContent.
const figure = $(".guide-figure");
const view = { inView: false, asked: false, chosen: null, again: null };
const AGAIN_MS = 1000;

function node(tag, text, className) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function ask() {
  if (!props.asks || !view.inView || view.asked) return;
  view.asked = true;
  trigger("submit");
}

function picture(shot) {
  const frame = document.createElement("div");
  frame.className = "guide-frame";
  if (!shot.picture) return frame;
  const image = document.createElement("img");
  image.decoding = "sync"; // a picture that follows a slider takes the place of the one before without a flash
  image.src = shot.picture;
  image.alt = shot.alt;
  frame.append(image);
  return frame;
}

function drawShot(shot, choosable) {
  const place = document.createElement("figure"), caption = document.createElement("figcaption");
  place.classList.toggle("live", shot.live);
  place.classList.toggle("chosen", shot.chosen);
  if (shot.is_photo !== null) place.dataset.photo = String(shot.is_photo);
  caption.append(node("b", shot.name), node("span", shot.note));
  place.append(picture(shot), caption);
  if (!choosable || !shot.picture) return place;
  const button = document.createElement("button");
  button.type = "button";
  button.dataset.seed = String(shot.seed);
  button.setAttribute("aria-pressed", String(shot.seed === view.chosen));
  button.setAttribute("aria-label", "Take this picture along: " + [shot.alt, shot.name, shot.note].filter(Boolean).join(", "));
  button.append(place.firstChild);
  place.prepend(button);
  return place;
}

// What is as it was stays, so that nothing loads or flashes again.
function drawShots(shots, list) {
  const chooses = ["done", "stopped"].includes(figure.dataset.phase);
  const keys = list.map((shot) => JSON.stringify([shot, chooses && shot.seed, shot.seed === view.chosen]));
  const places = list.map((shot, index) => {
    const shown = shots.children[index];
    if (shown && shown.dataset.key === keys[index]) return shown;
    const place = drawShot(shot, chooses && shot.seed !== null);
    place.dataset.key = keys[index];
    return place;
  });
  places.forEach((place, index) => {
    if (!shots.children[index]) shots.append(place);
    else if (shots.children[index] !== place) shots.children[index].replaceWith(place);
  });
  while (shots.children.length > places.length) shots.lastChild.remove();
  shots.style.setProperty("--columns", String(Math.min(list.length, props.columns || list.length)));
  shots.dataset.count = String(list.length);
}

function drawRows(rows) {
  const box = $(".guide-rows");
  while (box.children.length > rows.length) box.lastChild.remove();
  rows.forEach((row, index) => {
    if (!box.children[index]) {
      const made = document.createElement("div");
      made.className = "guide-row";
      made.append(node("p", "", "guide-row-name"), node("div", "", "guide-shots"));
      box.append(made);
    }
    const [name, shots] = box.children[index].children;
    name.textContent = row.name;
    name.hidden = !row.name;
    drawShots(shots, row.shots);
  });
}

function drawBars(bars) {
  $(".guide-bars").replaceChildren(...bars.map((bar) => {
    const line = document.createElement("div"), track = document.createElement("span"), fill = document.createElement("i");
    line.className = "guide-bar";
    track.className = "track";
    fill.style.left = 100 * Math.max(0, bar.start) + "%";
    fill.style.width = 100 * Math.max(0, Math.min(1, bar.end) - Math.max(0, bar.start)) + "%";
    fill.style.background = "var(--curve-" + bar.colour + ")";
    track.append(fill);
    line.append(node("span", bar.name, "label"), track, node("b", bar.value));
    return line;
  }));
}

function receive() {
  const value = props.value || {};
  clearTimeout(view.again);
  view.asked = false;
  figure.classList.toggle("stale", value.stale !== undefined || value.phase === "later");
  if (!value.phase) return ask();
  figure.dataset.phase = value.phase;
  if (showWork(value, ".guide-note").failed) return; // what is shown stays
  if (value.phase === "later") {
    view.again = setTimeout(ask, AGAIN_MS);
    return;
  }
  if (value.phase === "waiting" || view.chosen === null) view.chosen = value.chosen;
  drawRows(value.rows);
  drawBars(value.bars);
  if ($(".guide-said").textContent !== value.said) $(".guide-said").textContent = value.said;
}

figure.setAttribute("aria-label", props.name);
$(".progress").setAttribute("aria-label", "Progress: " + props.name);
const blank = { name: "", note: "", picture: null, seed: null, is_photo: null, live: false, chosen: false };
drawRows([{ name: "", shots: Array.from({ length: props.blanks }, () => blank) }]);
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-seed]");
  if (!button) return;
  view.chosen = Number(button.dataset.seed);
  for (const other of element.querySelectorAll("button[data-seed]"))
    other.setAttribute("aria-pressed", String(other === button));
  trigger("select", { seed: view.chosen });
});
new IntersectionObserver((entries) => {
  view.inView = entries[entries.length - 1].isIntersecting;
  const value = props.value || {};
  if (!value.phase || value.phase === "later") ask();
}).observe(figure);
watch("value", receive);
receive();
