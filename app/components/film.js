// Shows a run's samples (see services/run_view.Film): one of them large beside its beginning, with a slider through
// time, and all of them as a strip. The slider follows the run until the viewer moves it back.
const slider = $(".film-time input");
const view = { film: null, row: 0, at: 0, follows: true, timer: null };
const PLAY_MS = 450;

function setImage(image, source, alt) {
  if (image.getAttribute("src") !== source) image.src = source;
  image.alt = alt;
}

function said(update) {
  return update === 0 ? "before training" : "update " + update;
}

function show() {
  const { prompts, updates, pictures, best } = view.film;
  const row = prompts[view.row];
  slider.max = String(updates.length - 1);
  slider.value = String(view.at);
  const update = updates[view.at];
  slider.setAttribute("aria-valuetext", said(update));
  const alt = (of) => row.prompt + ", seed " + row.seed + ", " + said(of);
  $(".first figcaption").textContent = said(updates[0]);
  setImage($(".first img"), pictures[0][view.row], alt(updates[0]));
  $(".now figcaption").textContent = said(update) + (update === best ? " · best" : "");
  setImage($(".now img"), pictures[view.at][view.row], alt(update));
  $(".film-prompt").textContent = "“" + row.prompt + "”, seed " + row.seed;
  for (const button of element.querySelectorAll(".film-strip button"))
    button.setAttribute("aria-pressed", String(Number(button.dataset.row) === view.row && Number(button.dataset.at) === view.at));
}

function cell(row, at) {
  const place = document.createElement("td"), button = document.createElement("button"), image = document.createElement("img");
  button.type = "button";
  Object.assign(button.dataset, { row, at });
  image.loading = "lazy";
  setImage(image, view.film.pictures[at][row], "");
  button.setAttribute("aria-label", view.film.prompts[row].prompt + ", " + said(view.film.updates[at]));
  button.append(image);
  place.append(button);
  return place;
}

function drawStrip(before) {
  const { run, prompts, updates, best } = view.film;
  const same = before && before.run === run && before.prompts.length === prompts.length &&
    before.updates.every((update, index) => update === updates[index]);
  const head = $(".film-strip thead tr"), body = $(".film-strip tbody");
  if (!same) {
    head.replaceChildren();
    body.replaceChildren(...prompts.map(() => document.createElement("tr")));
  }
  for (let at = head.children.length; at < updates.length; at++) {
    head.append(document.createElement("th"));
    prompts.forEach((_, row) => body.children[row].append(cell(row, at)));
  }
  [...head.children].forEach((th, at) => {
    th.scope = "col";
    th.textContent = updates[at] === best ? updates[at] + " ★" : String(updates[at]);
    th.classList.toggle("best", updates[at] === best);
  });
  if (view.follows) $(".film-strip").scrollLeft = $(".film-strip").scrollWidth;
}

function play(on) {
  clearInterval(view.timer);
  view.timer = null;
  $(".play").setAttribute("aria-pressed", String(on));
  $(".play").textContent = on ? "❚❚ Pause" : "▶ Play";
  if (!on) return;
  if (view.at === view.film.updates.length - 1) view.at = 0;
  show();
  view.timer = setInterval(() => {
    if (view.at >= view.film.updates.length - 1) return play(false);
    view.at += 1;
    view.follows = view.at === view.film.updates.length - 1;
    show();
  }, PLAY_MS);
}

function receive() {
  const film = props.value;
  if (!film || !film.updates) return;
  $(".film").hidden = !film.updates.length;
  const before = view.film;
  if (!before || before.run !== film.run) {
    play(false);
    Object.assign(view, { row: 0, at: 0, follows: true });
  }
  view.film = film;
  if (!film.updates.length) return;
  $(".film").style.setProperty("--ratio", String(film.ratio));
  view.row = Math.min(view.row, film.prompts.length - 1);
  if ((view.follows && !view.timer) || view.at >= film.updates.length) view.at = film.updates.length - 1;
  drawStrip(before);
  show();
}

slider.addEventListener("input", () => {
  play(false);
  view.at = Number(slider.value);
  view.follows = view.at === view.film.updates.length - 1;
  show();
});
$(".play").addEventListener("click", () => play(!view.timer));
$(".film-strip").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  play(false);
  view.row = Number(button.dataset.row);
  view.at = Number(button.dataset.at);
  view.follows = view.at === view.film.updates.length - 1;
  show();
});
watch("value", receive);
receive();
