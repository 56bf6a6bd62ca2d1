// Plays a sampling run (see services/recoveries.Film): one picture holds all, a column for each level, and is drawn in
// parts. Slider and play belong to the browser.
const slider = $("input");
const view = { film: null, sheet: null, at: 0, timer: null };
const PLAY_MS = 160;

function node(tag, text) {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  return made;
}

function show() {
  const { film, sheet } = view;
  const { width, height } = film;
  const sigma = film.sigmas[view.at];
  element.querySelectorAll("canvas").forEach((canvas, row) => {
    const pen = canvas.getContext("2d");
    pen.drawImage(sheet, view.at * width, row * height, width, height, 0, 0, width, height);
    canvas.setAttribute("aria-label", film.rows[row] + " at σ " + sigma.toFixed(3) + ": " + film.prompt);
  });
  slider.value = String(view.at);
  const said = "σ " + sigma.toFixed(3) + ", step " + film.steps[view.at] + " of " + film.num_steps;
  slider.setAttribute("aria-valuetext", said);
  $("output").textContent = said;
}

function play(on) {
  clearInterval(view.timer);
  view.timer = null;
  $(".play").setAttribute("aria-pressed", String(on));
  $(".play").textContent = on ? "❚❚ Pause" : "▶ Play";
  if (!on) return;
  const last = view.film.sigmas.length - 1;
  if (view.at === last) view.at = 0;
  show();
  view.timer = setInterval(() => {
    if (!element.isConnected || view.at >= last) return play(false);
    view.at += 1;
    show();
  }, PLAY_MS);
}

async function open(film) {
  const sheet = new Image();
  sheet.src = film.sprite;
  await sheet.decode();
  play(false);
  Object.assign(view, { film, sheet, at: 0 });
  $(".recovery-frames").replaceChildren(...film.rows.map((row) => {
    const figure = node("figure"), canvas = node("canvas");
    Object.assign(canvas, { width: film.width, height: film.height });
    canvas.setAttribute("role", "img");
    figure.append(canvas, node("figcaption", row));
    return figure;
  }));
  slider.max = String(film.sigmas.length - 1);
  $(".recovery-facts").textContent = "“" + film.prompt + "”. Direct-Align recovers the finished picture from each level, by a step " +
    "Δσ of " + film.d_sigma + " and the noise the run began from.";
  $(".recovery-scene").hidden = false;
  show();
}

function receive() {
  const value = props.value;
  if (!value || !value.phase) return;
  $(".recovery-film").dataset.phase = value.phase;
  showWork(value, ".recovery-note");
  if (value.sprite && (!view.film || view.film.sprite !== value.sprite)) open(value);
}

slider.addEventListener("input", () => {
  play(false);
  view.at = Number(slider.value);
  show();
});
$(".play").addEventListener("click", () => play(!view.timer));
watch("value", receive);
receive();
