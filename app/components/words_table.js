// Draws what a reward sees (see words.Seen in Python) and keeps what belongs to the viewer alone: the chosen picture, the
// pair of words, the quantity of the heat map. All text goes in as textContent.
const view = { value: null, picture: 0, show: "difference", plus: null, minus: null };
const dash = (text) => text.replace("-", "−");
const score = (value) => dash(value.toFixed(3));
const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3);

function cell(tag, text, className, scope) {
  const node = document.createElement(tag);
  node.textContent = text;
  if (className) node.className = className;
  if (scope) node.setAttribute("scope", scope);
  return node;
}

function image(picture) {
  const made = document.createElement("img");
  made.src = picture.path;
  made.alt = picture.label + ": " + picture.prompt;
  return made;
}

const ratio = () => String(view.value.width / view.value.height);
const largest = (rows) => Math.max(1e-9, ...rows.flat().map(Math.abs));

function choose(index) {
  view.picture = index;
  draw();
}

function drawStrip() {
  const { pictures } = view.value;
  $(".strip").hidden = !pictures.length;
  const known = [...$(".strip").querySelectorAll("img")].map((one) => one.getAttribute("src")).join("\n");
  if (known !== pictures.map((picture) => picture.path).join("\n"))
    $(".strip").replaceChildren(...pictures.map((picture, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(image(picture), cell("span", picture.label));
      button.addEventListener("click", () => choose(index));
      return button;
    }));
  [...$(".strip").children].forEach((button, index) => button.setAttribute("aria-pressed", String(index === view.picture)));
}

function drawOne() {
  const { value, picture } = view, shown = value.pictures[picture];
  const figure = $(".words-one figure"), large = figure.querySelector("img");
  if (large.getAttribute("src") !== shown.path) large.src = shown.path;
  large.alt = shown.label + ": " + shown.prompt;
  figure.querySelector("figcaption").textContent = shown.label + " · " + shown.prompt;
  const end = largest(value.difference);
  $(".words-bars tbody").replaceChildren(...value.words.map((word, index) => {
    const line = document.createElement("tr"), bar = document.createElement("i"), place = cell("td", "", "bar");
    const difference = value.difference[picture][index], share = (50 * Math.abs(difference)) / end;
    bar.className = difference < 0 ? "down" : "up";
    bar.style.width = share + "%";
    bar.style.left = difference < 0 ? 50 - share + "%" : "50%";
    place.append(bar);
    line.append(cell("th", word, value.sides[index], "row"), place, cell("td", score(value.under[picture][index])),
      cell("td", score(value.without[picture])), cell("td", signed(difference), "strong"),
      cell("td", String(value.rank[picture][index])));
    return line;
  }));
}

function fill(select, words, kept) {
  select.replaceChildren(...words.map((word) => cell("option", word)));
  select.value = words.includes(kept) ? kept : words[0];
  return select.value;
}

function drawForms() {
  const { value, picture } = view, [positive, negative] = value.paired;
  view.plus = fill($(".plus"), positive, view.plus);
  view.minus = fill($(".minus"), negative, view.minus);
  const [p, m] = [positive.indexOf(view.plus), negative.indexOf(view.minus)];
  const rows = value.forms.map((form) => [form.label, form.formula, form.values.map((pairs) => pairs[p][m])]);
  rows.unshift(["Plain", "f · C(prompt)", value.without]);
  rows.push(["Relative to noise", value.noise_formula, value.against_noise]);
  $(".words-forms tbody").replaceChildren(...rows.map(([label, formula, values]) => {
    const line = document.createElement("tr");
    const mean = values.reduce((sum, one) => sum + one, 0) / values.length;
    line.append(cell("th", label, "", "row"), cell("td", formula, "formula"), cell("td", signed(values[picture]), "strong"),
      cell("td", signed(mean)));
    return line;
  }));
}

function heat(value, end) {
  if (view.show === "rank") return "transparent";
  const share = Math.min(1, Math.abs(value) / end);
  return `color-mix(in srgb, var(${value < 0 ? "--right" : "--left"}) ${(38 * share).toFixed(1)}%, transparent)`;
}

function drawHeat() {
  const { value } = view, rows = value[view.show], end = largest(rows);
  for (const button of element.querySelectorAll("[data-show]"))
    button.setAttribute("aria-pressed", String(button.dataset.show === view.show));
  const heads = value.words.map((word, index) => cell("th", word, value.sides[index], "col"));
  $(".words-heat thead tr").replaceChildren(cell("th", "Picture", "", "col"), ...heads);
  $(".words-heat tbody").replaceChildren(...value.pictures.map((picture, index) => {
    const line = document.createElement("tr"), head = cell("th", "", "", "row"), button = document.createElement("button");
    button.type = "button";
    button.append(image(picture), cell("span", picture.label));
    button.setAttribute("aria-pressed", String(index === view.picture));
    button.addEventListener("click", () => choose(index));
    head.append(button);
    line.append(head, ...rows[index].map((one) => {
      const place = cell("td", view.show === "rank" ? String(one) : view.show === "under" ? score(one) : signed(one));
      place.style.backgroundColor = heat(one, end);
      return place;
    }));
    return line;
  }));
}

function draw() {
  const { value } = view;
  $(".words-table").style.setProperty("--ratio", ratio());
  view.picture = Math.min(view.picture, Math.max(0, value.pictures.length - 1));
  drawStrip();
  const scored = value.words.length > 0;
  for (const part of [".words-one", ".words-forms", ".words-heat"]) $(part).hidden = !scored;
  if (!scored) return;
  drawOne();
  drawForms();
  drawHeat();
}

function receive() {
  const value = props.value;
  if (!value || !value.phase) return;
  $(".words-table").dataset.phase = value.phase;
  const { failed } = showWork(value, ".grid-note");
  if (failed || (!value.pictures.length && view.value)) return; // what is shown stays
  view.value = value;
  draw();
}

for (const button of element.querySelectorAll("[data-show]"))
  button.addEventListener("click", () => { view.show = button.dataset.show; drawHeat(); });
for (const which of ["plus", "minus"])
  $("." + which).addEventListener("change", (event) => { view[which] = event.target.value; drawForms(); });
watch("value", receive);
receive();
