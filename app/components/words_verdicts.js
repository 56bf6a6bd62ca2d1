// Draws what a check of words has found (see words.Perceived in Python). All text goes in as textContent.
const view = { value: null, matrix: "correlation" };
const NOTES = {
  correlation: "How alike two words' scores run over all pictures: +1 together, −1 against each other.",
  told_apart: "How often a row's own picture scores higher under the row's word than a picture of the column's: 0.5 means that the reward takes one for the other.",
};
const number = (value) => value.toFixed(2).replace("-", "−");
const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3);

function cell(tag, text, className, scope) {
  const node = document.createElement(tag);
  node.textContent = text;
  if (className) node.className = className;
  if (scope) node.setAttribute("scope", scope);
  return node;
}

function pictures(sources, name) {
  const place = cell("td", "", "thumbs");
  place.append(...sources.map((source, index) => {
    const image = document.createElement("img");
    image.src = source;
    image.alt = name + ": " + view.value.prompts[index];
    return image;
  }));
  return place;
}

function interval([middle, low, high]) {
  const place = cell("td", "", "auc"), scale = cell("span", "", "scale");
  for (const [className, from, to] of [["range", low, high], ["middle", middle, middle], ["chance", 0.5, 0.5]]) {
    const part = cell("i", "", className);
    part.style.left = 100 * from + "%";
    part.style.width = 100 * (to - from) + "%";
    scale.append(part);
  }
  place.append(scale, cell("span", number(middle) + " (" + number(low) + " to " + number(high) + ")", "number"));
  return place;
}

function drawVerdicts() {
  const { value } = view;
  const rows = value.rows.map((row) => {
    const line = document.createElement("tr"), verdict = cell("td", "", "verdict");
    line.dataset.kind = row.kind;
    verdict.append(cell("span", row.verdict, "pill " + row.kind), cell("small", row.reason));
    const content = cell("td", signed(row.content[0]), "content");
    content.append(cell("small", signed(row.content[1]) + " to " + signed(row.content[2])));
    line.append(cell("th", row.word, row.side, "row"), verdict, interval(row.separation), content, pictures(row.pictures, row.word));
    return line;
  });
  const without = document.createElement("tr");
  without.append(cell("th", "no word", "", "row"), cell("td", "The same prompts and noise."), cell("td", ""), cell("td", ""),
    pictures(value.without, "no word"));
  $(".verdicts tbody").replaceChildren(without, ...rows);
}

function drawMatrix() {
  const { value } = view, table = value[view.matrix], words = value.rows.map((row) => row.word);
  for (const button of element.querySelectorAll("[data-matrix]"))
    button.setAttribute("aria-pressed", String(button.dataset.matrix === view.matrix));
  $(".matrix-note").textContent = NOTES[view.matrix];
  $(".matrix thead tr").replaceChildren(cell("th", ""), ...value.rows.map((row) => cell("th", row.word, row.side, "col")));
  $(".matrix tbody").replaceChildren(...value.rows.map((row, index) => {
    const line = document.createElement("tr");
    line.append(cell("th", row.word, row.side, "row"), ...table[index].map((one, other) => {
      const same = index === other, place = cell("td", same ? "" : number(one));
      const strength = view.matrix === "correlation" ? one : (one - 0.5) * 2;
      if (!same) place.style.backgroundColor =
        `color-mix(in srgb, var(${strength < 0 ? "--right" : "--left"}) ${(38 * Math.min(1, Math.abs(strength))).toFixed(1)}%, transparent)`;
      place.title = row.word + " and " + words[other];
      return place;
    }));
    return line;
  }));
}

function receive() {
  const value = props.value;
  if (!value || !value.phase) return;
  $(".words-verdicts").dataset.phase = value.phase;
  const { failed } = showWork(value, ".grid-note");
  if (failed || !value.rows.length) return; // what is shown stays
  view.value = value;
  $(".words-verdicts").style.setProperty("--ratio", String(value.ratio));
  $(".verdicts").hidden = $(".matrix").hidden = false;
  drawVerdicts();
  drawMatrix();
}

for (const button of element.querySelectorAll("[data-matrix]"))
  button.addEventListener("click", () => { view.matrix = button.dataset.matrix; drawMatrix(); });
watch("value", receive);
receive();
