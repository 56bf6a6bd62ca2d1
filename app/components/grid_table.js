// Draws a grid (see grid.Grid in Python). All text goes in as textContent.

function cell(tag, text, scope) {
  const node = document.createElement(tag);
  node.textContent = text;
  if (scope) node.setAttribute("scope", scope);
  return node;
}

function picture(source, row, model, ratio, saves) {
  const place = document.createElement("td");
  if (!source) {
    place.append(cell("span", ""));
    place.firstChild.className = "blank";
    place.firstChild.style.aspectRatio = ratio;
    return place;
  }
  const image = document.createElement("img");
  image.src = source;
  image.alt = model + ", seed " + row.seed + ": " + row.prompt;
  image.style.aspectRatio = ratio;
  place.append(image);
  if (!saves) return place;
  const link = document.createElement("a");
  link.href = source;
  link.download = decodeURIComponent(source.split("/").pop());
  link.title = "Save this picture with its settings";
  image.replaceWith(link);
  link.append(image);
  return place;
}

function receive() {
  const value = props.value;
  if (!value || !value.phase) return;
  $(".grid-table").dataset.phase = value.phase;
  const { failed } = showWork(value, ".grid-note");
  if (failed) return; // the table that is shown stays
  const table = $("table");
  table.hidden = false;
  const ratio = String(value.width / value.height);
  const corner = cell("th", "Prompt and seed", "col");
  table.querySelector("thead tr").replaceChildren(corner, ...value.models.map((name) => cell("th", name, "col")));
  const drawn = JSON.stringify(value.rows);
  if (table.dataset.drawn === drawn) return;
  table.dataset.drawn = drawn;
  table.querySelector("tbody").replaceChildren(...value.rows.map((row) => {
    const line = document.createElement("tr");
    const head = cell("th", row.prompt, "row");
    head.append(cell("small", "seed " + row.seed));
    line.append(head, ...row.pictures.map((source, index) => picture(source, row, value.models[index], ratio, value.saves !== false)));
    return line;
  }));
}
watch("value", receive);
receive();
