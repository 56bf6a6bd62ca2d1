// Edits a set of control words (see WordSet in srpo/rewards/word_sets.py). The set lives here while it is edited, and
// goes to Python with every event as this component's value; Python judges it. All text goes in as textContent.
// The curve is k+[index] - k-[index] over draws whose indices and noise levels Python has sent: its formula is that of
// net_weight_curve in srpo/objectives/levels.py.
const SVG = "http://www.w3.org/2000/svg";
const BOX = { left: 44, right: 548, top: 12, bottom: 262 };
const LAST_INDEX = 999;
const MAX_K = 10;
const state = { set: null, recipes: [], forms: {}, range: null, dragged: null };

function node(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function drawn(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

const recipe = () => state.recipes.find((one) => one.key === state.set.levels) || state.recipes[0];
const line = ([first, last], index) => first + (last - first) * (index / LAST_INDEX);

function netWeights() {
  const { denoise_index, inversion_index } = recipe(), { k_positive, k_negative } = state.set;
  return denoise_index.map((index, place) =>
    line(k_positive, index) - (inversion_index ? line(k_negative, inversion_index[place]) : 0));
}

function edited() {
  props.value = { set: JSON.parse(JSON.stringify(state.set)) };
  trigger("change");
}

function change(changes) {
  state.set = { ...state.set, ...changes };
  draw();
  edited();
}

// Chips

function button(text, label, press, disabled = false) {
  const made = node("button", text);
  made.type = "button";
  made.title = label;
  made.setAttribute("aria-label", label);
  made.disabled = disabled;
  made.addEventListener("click", press);
  return made;
}

function chip(side, word, place, words) {
  const item = node("li", undefined, "chip");
  item.classList.toggle("off", !word.enabled);
  const label = node("label"), on = node("input");
  on.type = "checkbox";
  on.checked = word.enabled;
  on.setAttribute("aria-label", word.word + " takes part");
  on.addEventListener("change", () => replace(side, place, { enabled: on.checked }));
  label.append(on, node("span", word.word));
  const weight = node("input", undefined, "weight");
  Object.assign(weight, { type: "number", min: 0.1, max: 10, step: 0.1, value: word.weight });
  weight.setAttribute("aria-label", "Weight of " + word.word);
  weight.title = "How often its turn comes, beside the others of its side";
  weight.addEventListener("change", () => replace(side, place, { weight: Number(weight.value) }));
  const move = (to) => () => {
    const moved = [...words];
    moved.splice(to, 0, ...moved.splice(place, 1));
    change({ [side]: moved });
    focusOn(side, to, to < place ? "earlier" : "later");
  };
  const earlier = button("‹", "Earlier turn for " + word.word, move(place - 1), place === 0);
  const later = button("›", "Later turn for " + word.word, move(place + 1), place === words.length - 1);
  earlier.dataset.move = "earlier";
  later.dataset.move = "later";
  const gone = button("×", "Remove " + word.word, () => {
    change({ [side]: words.filter((_, other) => other !== place) });
    $(`[data-side="${side}"] .add input`).focus();
  });
  item.append(label, node("span", "×", "times"), weight, earlier, later, gone);
  return item;
}

function focusOn(side, place, which) {
  const item = $(`[data-side="${side}"] .chips`).children[place];
  const chosen = item.querySelector(`[data-move="${which}"]:not(:disabled)`) || item.querySelector("[data-move]:not(:disabled)");
  if (chosen) chosen.focus();
}

function replace(side, place, changes) {
  change({ [side]: state.set[side].map((word, other) => (other === place ? { ...word, ...changes } : word)) });
}

for (const side of ["positive", "negative"]) {
  const box = $(`[data-side="${side}"] .add`), field = box.querySelector("input");
  const add = () => {
    const word = field.value.trim();
    if (!word || !state.set) return;
    field.value = "";
    change({ [side]: [...state.set[side], { word, weight: 1, enabled: true }] });
    field.focus();
  };
  box.querySelector("button").addEventListener("click", add);
  field.addEventListener("keydown", (event) => { if (event.key === "Enter" && !event.ctrlKey && !event.metaKey) add(); });
}

// The curve

function place(sigma, k) {
  const [low, high] = recipe().ends, { from, to } = state.range;
  return [
    BOX.left + ((sigma - low) / (high - low)) * (BOX.right - BOX.left),
    BOX.bottom - ((k - from) / (to - from)) * (BOX.bottom - BOX.top),
  ];
}

function fitRange() {
  const values = [0, ...state.set.k_positive, ...state.set.k_negative, ...netWeights(), ...(recipe().factor || [])]
    .filter(Number.isFinite);
  const low = Math.min(...values), high = Math.max(...values), margin = Math.max(0.05, 0.12 * (high - low));
  state.range = { from: low - margin, to: high + margin };
}

function points(sigmas, values) {
  return sigmas.map((sigma, index) => place(sigma, values[index]).map((part) => part.toFixed(2)).join(",")).join(" ");
}

function ticks(from, to, count) {
  const rough = (to - from) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((part) => part * power).find((part) => part >= rough);
  const found = [];
  for (let tick = Math.ceil(from / step) * step; tick <= to + 1e-9; tick += step) found.push(Number(tick.toFixed(6)));
  return found;
}

const minus = (text) => text.replace("-", "−");

function drawCurve() {
  const one = recipe();
  if (!one || [...state.set.k_positive, ...state.set.k_negative].some((end) => !Number.isFinite(end))) return;
  if (!state.dragged) fitRange();
  const svg = $("svg"), parts = [], [low, high] = one.ends, { from, to } = state.range;
  for (const tick of ticks(from, to, 5)) {
    const [x, y] = place(low, tick);
    parts.push(drawn("line", { class: tick === 0 ? "zero" : "grid", x1: BOX.left, x2: BOX.right, y1: y, y2: y }));
    const text = drawn("text", { class: "tick", x: x - 8, y: y + 4, "text-anchor": "end" });
    text.textContent = minus(String(tick));
    parts.push(text);
  }
  for (const tick of ticks(low, high, 6)) {
    const [x] = place(tick, from);
    const text = drawn("text", { class: "tick", x, y: BOX.bottom + 18, "text-anchor": "middle" });
    text.textContent = String(tick);
    parts.push(drawn("line", { class: "grid", x1: x, x2: x, y1: BOX.top, y2: BOX.bottom }), text);
  }
  const name = drawn("text", { class: "tick", x: (BOX.left + BOX.right) / 2, y: BOX.bottom + 36, "text-anchor": "middle" });
  name.textContent = "noise level σ (1 = noise)";
  parts.push(name);
  const weights = netWeights();
  if (one.factor) parts.push(drawn("polyline", { class: "factor", points: points(one.sigma, one.factor) }));
  const lines = one.inversion_index ? ["k_positive", "k_negative"] : ["k_positive"];
  for (const key of lines)
    parts.push(drawn("polyline", { class: "k " + key, points: points([low, high], state.set[key]) }));
  const curve = drawn("polyline", { class: "weight-curve", points: points(one.sigma, weights) });
  curve.dataset.sigma = JSON.stringify(one.sigma);
  curve.dataset.weights = JSON.stringify(weights);
  parts.push(curve);
  for (const key of lines) for (const end of [0, 1]) parts.push(handle(key, end));
  const focused = svg.contains(document.activeElement) ? document.activeElement.dataset.handle : null;
  svg.replaceChildren(...parts);
  if (focused) svg.querySelector(`[data-handle="${focused}"]`)?.focus();
  note(weights);
}

function handle(key, end) {
  const value = state.set[key][end], [x, y] = place(recipe().ends[end], value);
  const made = drawn("circle", { class: "handle " + key, cx: x, cy: y, r: key === "k_positive" ? 9 : 5, tabindex: 0, role: "slider",
    "aria-valuemin": -MAX_K, "aria-valuemax": MAX_K, "aria-valuenow": value,
    "aria-label": (key === "k_positive" ? "k plus" : "k minus") + (end ? " at the noisiest level" : " at the cleanest level") });
  made.dataset.handle = key + end;
  return made;
}

function note(weights) {
  const one = recipe(), zero = weights.findIndex((weight, index) => index && (weights[index - 1] < 0) !== (weight < 0));
  const say = (value) => minus((Math.abs(value) < 0.0005 ? 0 : value).toFixed(3));
  const last = weights.length - 1;
  let said = `${say(weights[0])} at σ ${one.sigma[0].toFixed(3)}, ${say(weights[last])} at σ ${one.sigma[last].toFixed(3)}`;
  if (weights.every((weight) => Math.abs(weight) < 0.0005)) said = "0 at every level: the general reward cancels";
  else if (zero > 0) {
    const [a, b] = [weights[zero - 1], weights[zero]], share = a / (a - b);
    said += `; 0 at σ ${(one.sigma[zero - 1] + share * (one.sigma[zero] - one.sigma[zero - 1])).toFixed(3)}`;
  }
  said += one.inversion_index ? ". The difference of the words always weighs about 2." : ". No inversion branch: k⁻ takes no part.";
  if (one.factor) said += " Dotted: λ(σ), by which each loss is multiplied.";
  $(".net-note").textContent = said;
}

function setEnd(key, end, value) {
  const ends = [...state.set[key]];
  ends[end] = Math.max(-MAX_K, Math.min(MAX_K, Math.round(value * 1000) / 1000));
  state.set = { ...state.set, [key]: ends };
  drawEnds();
  drawCurve();
}

const svg = $("svg");
svg.addEventListener("pointerdown", (event) => {
  const name = event.target.dataset && event.target.dataset.handle;
  if (!name) return;
  event.preventDefault();
  svg.setPointerCapture(event.pointerId);
  state.dragged = { key: name.slice(0, -1), end: Number(name.slice(-1)) };
  event.target.focus();
});
svg.addEventListener("pointermove", (event) => {
  if (!state.dragged) return;
  const inside = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
  const { from, to } = state.range;
  const k = from + ((BOX.bottom - inside.y) / (BOX.bottom - BOX.top)) * (to - from);
  setEnd(state.dragged.key, state.dragged.end, Math.round(k * 100) / 100);
});
for (const name of ["pointerup", "pointercancel"])
  svg.addEventListener(name, () => {
    if (!state.dragged) return;
    state.dragged = null;
    drawCurve();
    edited();
  });
svg.addEventListener("keydown", (event) => {
  const name = event.target.dataset && event.target.dataset.handle;
  const steps = { ArrowUp: 0.01, ArrowRight: 0.01, ArrowDown: -0.01, ArrowLeft: -0.01, PageUp: 0.1, PageDown: -0.1 };
  if (!name || !(event.key in steps)) return;
  event.preventDefault();
  const key = name.slice(0, -1), end = Number(name.slice(-1));
  setEnd(key, end, state.set[key][end] + steps[event.key]);
  edited();
});
for (const field of element.querySelectorAll(".ends input"))
  field.addEventListener("input", () => {
    const value = field.value === "" ? NaN : Number(field.value), { line: key, end } = field.dataset;
    const ends = [...state.set[key]];
    ends[Number(end)] = Number.isFinite(value) ? value : null; // an empty field is for Python to refuse
    state.set = { ...state.set, [key]: ends };
    drawCurve();
    edited();
  });

// The rest of the form

function drawEnds() {
  for (const field of element.querySelectorAll(".ends input")) {
    const value = state.set[field.dataset.line][Number(field.dataset.end)];
    if (document.activeElement !== field) field.value = value === null ? "" : String(value);
    field.closest("label").hidden = field.dataset.line === "k_negative" && !recipe().inversion_index;
  }
}

function draw() {
  const { set, recipes, forms } = state;
  for (const side of ["positive", "negative"])
    $(`[data-side="${side}"] .chips`).replaceChildren(...set[side].map((word, index) => chip(side, word, index, set[side])));
  if (document.activeElement !== $(".set-name")) $(".set-name").value = set.name;
  if (document.activeElement !== $(".template")) $(".template").value = set.template;
  $(".set-about").textContent = set.description;
  $(".form").replaceChildren(...Object.entries(forms).map(([key, label]) => {
    const option = node("option", label);
    option.value = key;
    option.selected = key === set.form;
    return option;
  }));
  $(".recipes").replaceChildren(...recipes.map((one) => {
    const made = node("button", one.label);
    made.type = "button";
    made.setAttribute("aria-pressed", String(one.key === set.levels));
    made.addEventListener("click", () => {
      change({ levels: one.key, form: one.form, k_positive: one.k_positive, k_negative: one.k_negative });
      $(`.recipes button[aria-pressed="true"]`).focus();
    });
    return made;
  }));
  drawEnds();
  drawCurve();
}

$(".set-name").addEventListener("input", (event) => { state.set = { ...state.set, name: event.target.value }; edited(); });
$(".template").addEventListener("input", (event) => { state.set = { ...state.set, template: event.target.value }; edited(); });
$(".form").addEventListener("change", (event) => change({ form: event.target.value }));

function receive() {
  const value = props.value;
  if (!value || !value.set) return;
  state.set = JSON.parse(JSON.stringify(value.set));
  if (value.recipes) Object.assign(state, { recipes: value.recipes, forms: value.forms });
  if (!state.recipes.length) return;
  $(".words-editor").dataset.ready = "true";
  draw();
  trigger("change");
}
watch("value", receive);
receive();
