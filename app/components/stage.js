// Draws a comparison (see compare.Comparison in Python) and keeps what belongs to the viewer alone: the view, the flip,
// the chosen seed. All text goes in as textContent: prompts and names are never read as HTML.
const stage = $(".stage");
const minus = (text) => text.replace("-", "−");
const narrow = window.innerWidth < 640; // two pictures side by side would be small: begin with one above the other
const view = { mode: narrow ? "slider" : "side", flipped: false, seed: null, shown: null, votes: {} };

const say = {
  score: (value) => minus(value.toFixed(4)),
  share: (value) => (100 * value).toFixed(1) + " %",
  verdict: (value) => value,
};
const sayDifference = {
  score: (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(4),
  share: (value) => (value < 0 ? "−" : "+") + (100 * Math.abs(value)).toFixed(1) + " points",
};

function setImage(image, source, alt) {
  image.hidden = !source;
  if (source && image.getAttribute("src") !== source) image.src = source;
  if (!source) image.removeAttribute("src");
  image.alt = source ? alt : "";
}

function cell(tag, text, className) {
  const node = document.createElement(tag);
  node.textContent = text;
  if (className) node.className = className;
  return node;
}

function current(value) {
  const pairs = value.pairs || [];
  return pairs.find((pair) => pair.seed === view.seed) || pairs[pairs.length - 1] || null;
}

function draw() {
  const value = view.shown;
  stage.dataset.mode = view.mode;
  for (const button of element.querySelectorAll("[data-set-mode]"))
    button.setAttribute("aria-pressed", String(button.dataset.setMode === view.mode));
  $(".flip").setAttribute("aria-pressed", String(view.flipped));
  if (!value) return;

  const pair = current(value);
  const live = value.previews || null;
  stage.classList.toggle("live", Boolean(live));
  stage.classList.toggle("flipped", view.flipped);
  stage.classList.toggle("filled", Boolean(live || pair));
  stage.style.setProperty("--ratio", value.width && value.height ? value.width / value.height : 1);

  const order = view.flipped ? ["right", "left"] : ["left", "right"];
  const sources = live
    ? { left: live[0], right: live[1] }
    : pair ? { left: pair.left, right: pair.right } : { left: "", right: "" };
  const names = { left: value.names[0], right: value.names[1] };
  const alt = (side) => names[side] + ", seed " + (live || !pair ? value.seed : pair.seed) + ": " + value.prompt;
  ["left", "right"].forEach((place, index) => {
    const side = order[index];
    const figure = $(".side." + place);
    figure.dataset.side = side;
    figure.querySelector(".name").textContent = names[side];
    figure.querySelector(".tag").textContent = live ? "predicted clean picture" : "";
    setImage(figure.querySelector("img"), sources[side], alt(side));
  });
  const [first, second] = order;
  $(".over .left-name").textContent = names[first];
  $(".over .right-name").textContent = names[second];
  $(".over .left-name").dataset.side = first;
  $(".over .right-name").dataset.side = second;
  setImage($(".over .top"), sources[first], alt(first));
  setImage($(".over .under"), sources[second], alt(second));
  const percent = (share) => (100 * share).toFixed(1) + " %";
  setImage($(".map img"), live || !pair ? "" : pair.difference, "Difference map of " + names.left + " and " + names.right);
  $(".map .tag").textContent =
    live ? "drawn when both pictures are finished" : pair ? "mean " + percent(pair.mean_difference) + " of full range" : "";
  $(".map .end").textContent = pair ? percent(pair.scale_end) : "";
  drawQuick(value, live ? null : pair, order, names);
  drawStrip(value, pair, live);
  drawText(value, pair, live);
  drawScores(value, live ? null : pair, names);
}

// The question under a finished pair. An answer names a side of the pair itself, wherever the flip has put it.
function drawQuick(value, pair, order, names) {
  const quick = $(".quick");
  quick.hidden = !props.asks || !pair || value.is_one_model;
  if (quick.hidden) return;
  const said = view.votes[pair.id] || {};
  quick.dataset.pair = pair.id;
  ["left", "right"].forEach((place, index) => {
    const button = quick.querySelectorAll("button")[index];
    button.dataset.answer = order[index];
    button.replaceChildren(cell("span", names[order[index]], "name"), cell("small", place));
    button.firstChild.dataset.side = order[index];
  });
  for (const button of quick.querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(said.answer === button.dataset.answer));
    button.disabled = Boolean(said.asked);
  }
  quick.querySelector("p").textContent = said.message || "One click is stored with the settings as a quick vote. Not blind: the sides have names here.";
}

function drawStrip(value, pair, live) {
  const strip = $(".strip");
  strip.hidden = value.num_seeds < 2 || !value.pairs.length;
  if (strip.hidden) return strip.replaceChildren();
  strip.replaceChildren(...value.pairs.map((entry) => {
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", String(!live && entry === pair));
    for (const side of ["left", "right"]) {
      const image = document.createElement("img");
      image.src = entry[side];
      image.alt = "";
      button.append(image);
    }
    button.append(cell("span", "seed " + entry.seed));
    button.addEventListener("click", () => { view.seed = entry.seed; draw(); });
    return button;
  }));
}

function drawText(value, pair, live) {
  const facts = $(".facts");
  facts.hidden = !value.prompt;
  facts.replaceChildren(cell("q", value.prompt || ""));
  const seed = live || !pair ? value.seed : pair.seed;
  const parts = [value.width + " × " + value.height];
  if (seed !== null && seed !== undefined) parts.unshift("seed " + seed);
  facts.append(cell("span", parts.join(" · ")));
  if (value.notice) facts.append(cell("em", value.notice));
  const saves = $(".saves");
  saves.hidden = Boolean(live) || !pair;
  if (saves.hidden) return;
  const link = (label, source) => {
    const anchor = cell("a", label);
    anchor.href = source;
    anchor.download = decodeURIComponent(source.split("/").pop());
    return anchor;
  };
  saves.replaceChildren(
    cell("span", "Save PNG with its settings:"),
    link(value.names[0], pair.left), link(value.names[1], pair.right), link("Difference map", pair.difference),
  );
}

function drawScores(value, pair, names) {
  const note = $(".scores-note");
  note.hidden = !pair || !value.scores_note;
  note.textContent = value.scores_note || "";
  const box = $(".scores");
  box.hidden = !pair || !pair.rows.length;
  if (box.hidden) return;
  const many = value.pairs.length > 1;
  const heads = [cell("th", "Score"), cell("th", names.left, "left"), cell("th", names.right, "right"),
    cell("th", "right − left")];
  if (many) heads.push(cell("th", "mean of " + value.pairs.length + " seeds"), cell("th", "right higher"));
  heads.forEach((head) => head.setAttribute("scope", "col"));
  box.querySelector("thead tr").replaceChildren(...heads);
  box.querySelector("tbody").replaceChildren(...pair.rows.map((row, index) => {
    const line = document.createElement("tr");
    const name = cell("th", row.name);
    name.setAttribute("scope", "row");
    name.title = row.hint;
    name.append(cell("small", row.hint));
    line.append(name, cell("td", say[row.kind](row.left)), cell("td", say[row.kind](row.right)));
    if (row.kind === "verdict") {
      line.className = "verdict";
      line.append(cell("td", row.left === row.right ? "same" : "differs"));
      if (many) line.append(cell("td", ""), cell("td", ""));
      return line;
    }
    line.append(cell("td", sayDifference[row.kind](row.right - row.left), "signed"));
    if (many) {
      const gaps = value.pairs.map((entry) => entry.rows[index].right - entry.rows[index].left);
      line.append(cell("td", sayDifference[row.kind](gaps.reduce((sum, gap) => sum + gap, 0) / gaps.length), "signed"));
      line.append(cell("td", gaps.filter((gap) => gap > 0).length + " of " + gaps.length));
    }
    return line;
  }));
}

function receive() {
  const value = props.value;
  if (!value || !value.phase) return;
  const { failed, busy } = showWork(value, ".stage-note");
  if ($(".sr-only").dataset.phase !== value.phase) {
    $(".sr-only").dataset.phase = value.phase;
    $(".sr-only").textContent = failed ? "" : busy ? "Generating" : value.message;
  }
  stage.dataset.phase = value.phase;
  if (failed) return; // what is on the stage stays there
  if (value.phase === "running" && value.previews) view.seed = null; // follow the seed under way
  view.shown = value;
  draw();
}

for (const button of element.querySelectorAll("[data-set-mode]"))
  button.addEventListener("click", () => { view.mode = button.dataset.setMode; draw(); });
$(".flip").addEventListener("click", () => { view.flipped = !view.flipped; draw(); });
const range = $(".over input");
range.addEventListener("input", () => stage.style.setProperty("--cut", range.value + "%"));
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest && event.target.closest("input:not([type=range]), textarea, select, [contenteditable]");
  if (!element.isConnected || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "f" || event.key === "F") { view.flipped = !view.flipped; draw(); }
  const modes = { 1: "side", 2: "slider", 3: "difference" };
  if (modes[event.key]) { view.mode = modes[event.key]; draw(); }
});
$(".quick").addEventListener("click", (event) => {
  const button = event.target.closest("button"), pair = $(".quick").dataset.pair;
  if (!button || button.disabled) return;
  const answer = button.dataset.answer;
  const before = view.votes[pair] || {};
  view.votes[pair] = { ...before, answer: before.stored ? before.answer : answer, asked: true, message: "Saving …" };
  draw();
  trigger("select", { pair, answer });
});
watch("voted", () => {
  const said = props.voted || {}, known = view.votes[said.pair];
  if (!known) return;
  view.votes[said.pair] = { ...known, asked: false, stored: said.stored, message: said.message };
  if (!said.stored) delete view.votes[said.pair].answer;
  draw();
});
watch("value", receive);
draw();
receive();
