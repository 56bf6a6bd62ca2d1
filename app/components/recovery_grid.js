// Draws a grid of recoveries (see services/recoveries.Recoveries) and keeps what belongs to the viewer alone: the cell
// that is enlarged, the level that is pointed at, the difference. All text goes in as textContent.
const section = $(".recovery"), dialog = $("dialog");
const view = { value: null, differs: false, open: null };

function node(tag, text, className) {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function setImage(image, source, alt) {
  image.hidden = !source;
  if (source && image.getAttribute("src") !== source) image.src = source;
  if (!source) image.removeAttribute("src");
  image.alt = source ? alt : "";
}

const sigma = (value) => String(Number(value.toPrecision(4)));
const levelName = (column) => "σ " + sigma(view.value.sigmas[column]);
const spaced = (name) => name.replace("Δσ ", "Δσ\u00a0");
const rowName = (row) => row.name + (view.value.models.length > 1 && row.name !== "Noisy input" ? ", " + row.model : "");
const told = (row, column, cell) => rowName(row) + " at " + levelName(column) + (cell.note ? ", " + cell.note : "");

// One table for as long as rows and levels stay; a cell is filled where its picture has changed.
function drawTable() {
  const value = view.value, table = $("table");
  $(".recovery-table").hidden = !value.rows.length;
  const shape = JSON.stringify([value.sigmas, value.rows.map((row) => [row.name, row.model])]);
  if (table.dataset.shape !== shape) {
    table.dataset.shape = shape;
    const heads = value.sigmas.map((_, column) => {
      const head = node("th", levelName(column));
      head.scope = "col";
      head.dataset.column = column;
      if (sigma(value.sigmas[column]) !== value.levels[column]) head.append(node("small", "given " + value.levels[column]));
      return head;
    });
    const corner = node("th", "Method");
    corner.scope = "col";
    table.querySelector("thead tr").replaceChildren(corner, ...heads);
    table.querySelector("tbody").replaceChildren(...value.rows.map((row, down) => {
      const line = node("tr"), head = node("th", spaced(row.name));
      const colour = [...new Set(value.rows.map((other) => other.name))].indexOf(row.name); // as the curves count them
      head.scope = "row";
      head.style.setProperty("--line-colour", `var(--curve-${colour})`);
      if (rowName(row) !== row.name) head.append(node("small", row.model));
      line.append(head, ...row.cells.map((_, column) => {
        const place = node("td");
        place.dataset.row = down;
        place.dataset.column = column;
        place.append(node("span", "", "tile blank"));
        return place;
      }));
      return line;
    }));
  }
  for (const place of table.querySelectorAll("td")) {
    const row = value.rows[place.dataset.row], cell = row.cells[place.dataset.column];
    const shown = typeof cell === "string" ? cell : cell ? cell.picture : "";
    if ((place.dataset.shown || "") === shown) continue;
    place.dataset.shown = shown;
    place.replaceChildren(typeof cell === "string" ? node("span", cell, "tile blank none") : filled(row, Number(place.dataset.column), cell));
  }
}

function filled(row, column, cell) {
  const button = node("button"), tile = node("span", "", "tile");
  button.type = "button";
  const picture = node("img"), over = node("img", "", "over");
  setImage(picture, cell.picture, told(row, column, cell));
  setImage(over, view.value.original, "");
  tile.append(picture, over);
  button.append(tile, node("small", cell.psnr === null ? "equal" : cell.psnr.toFixed(1) + " dB"));
  if (cell.note) button.append(node("em", cell.note));
  return button;
}

function draw() {
  const value = view.value;
  section.classList.toggle("differs", view.differs);
  for (const button of element.querySelectorAll(".difference")) button.setAttribute("aria-pressed", String(view.differs));
  $(".recovery-legend").hidden = !view.differs;
  if (!value) return;
  const source = value.original || value.preview;
  section.classList.toggle("filled", Boolean(source || value.rows.length));
  section.style.setProperty("--ratio", String(value.width / value.height));
  $(".recovery-head").hidden = !source;
  setImage($(".recovery-head img"), source, "The original: " + value.prompt);
  $(".recovery-head figcaption").textContent = value.original ? "Original" : "Being painted";
  $(".recovery-prompt").textContent = "“" + value.prompt + "”";
  $(".recovery-facts").textContent = value.width + " × " + value.height + " · recovered by " + value.models.join(" and ");
  $(".recovery-notice").hidden = !value.notice;
  $(".recovery-notice").textContent = value.notice || "";
  drawTable();
  drawDialog();
}

function highlight(column) {
  for (const place of element.querySelectorAll("[data-column]"))
    place.classList.toggle("on", column !== null && Number(place.dataset.column) === column);
}

// The dialog

function opened() {
  if (!view.open || !view.value) return null;
  const row = view.value.rows[view.open.row], cell = row && row.cells[view.open.column];
  return cell && typeof cell === "object" ? { row, cell, column: view.open.column } : null;
}

function drawDialog() {
  const found = opened();
  if (!found) return dialog.open && dialog.close();
  const { row, column, cell } = found;
  dialog.querySelector(".recovery-dialog-head b").textContent = rowName(row) + ", " + levelName(column);
  const facts = [cell.psnr === null ? "equal to the original" : cell.psnr.toFixed(1) + " dB PSNR"];
  if (cell.note) facts.push(cell.note);
  dialog.querySelector(".recovery-dialog-head span").textContent = facts.join(" · ");
  setImage(dialog.querySelector(".picture"), cell.picture, told(row, column, cell));
  setImage(dialog.querySelector(".over"), view.value.original, "");
  dialog.querySelector("figcaption").textContent = view.differs ? "Difference to the original" : "Recovered";
  setImage(dialog.querySelector(".original"), view.value.original, "The original: " + view.value.prompt);
  const save = dialog.querySelector(".save");
  save.href = cell.picture;
  save.download = decodeURIComponent(cell.picture.split("/").pop());
  if (!dialog.open) dialog.showModal();
}

// The next cell that is there, in a direction.
function move(across, down) {
  let { row, column } = view.open;
  for (;;) {
    row += down;
    column += across;
    const cell = view.value.rows[row] && view.value.rows[row].cells[column];
    if (cell === undefined) return;
    if (cell && typeof cell === "object") break;
  }
  view.open = { row, column };
  highlight(column);
  drawDialog();
}

function toggleDifference() {
  view.differs = !view.differs;
  draw();
}

function receive() {
  const value = props.value;
  if (!value || !value.phase) return;
  section.dataset.phase = value.phase;
  const { failed, busy } = showWork(value, ".recovery-note");
  const status = $(".sr-only[role=status]");
  if (status.dataset.phase !== value.phase) {
    status.dataset.phase = value.phase;
    status.textContent = failed ? "" : busy ? "Recovering" : value.message;
  }
  if (failed) return; // what is shown stays
  view.value = value;
  draw();
}

element.addEventListener("click", (event) => {
  const place = event.target.closest("td");
  if (place && event.target.closest("button")) {
    view.open = { row: Number(place.dataset.row), column: Number(place.dataset.column) };
    return drawDialog();
  }
  if (event.target.closest(".difference")) return toggleDifference();
  if (event.target.closest(".step")) return move(Number(event.target.closest(".step").dataset.step), 0);
  if (event.target.closest(".push")) {
    const { row, column } = opened();
    const model = Math.max(0, view.value.models.indexOf(row.model));
    dialog.close();
    return trigger("apply", { level: column, model });
  }
  if (event.target.closest(".close") || event.target === dialog) dialog.close(); // the dialog itself: beside its content
});
dialog.addEventListener("close", () => {
  const cell = view.open && $(`td[data-row="${view.open.row}"][data-column="${view.open.column}"] button`);
  view.open = null;
  if (cell) cell.focus();
});
dialog.addEventListener("keydown", (event) => {
  const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (!ways[event.key] || !view.open) return;
  event.preventDefault();
  move(...ways[event.key]);
});
for (const kind of ["pointerover", "focusin"])
  $("table").addEventListener(kind, (event) => {
    const place = event.target.closest("[data-column]");
    highlight(place ? Number(place.dataset.column) : null);
  });
$("table").addEventListener("pointerleave", () => highlight(null));
// The curves of the same grid point at a level by its sigma.
for (const kind of ["hover", "click", "unhover"])
  document.addEventListener("curves-" + kind, (event) => {
    if (!event.target.closest("#recovery-curves") || !view.value) return;
    const column = view.value.sigmas.findIndex((value) => Math.abs(value - event.detail.x) < 1e-5);
    highlight(column < 0 ? null : column);
    if (kind === "click" && column >= 0) $(".recovery-table").scrollIntoView({ block: "nearest", behavior: "smooth" });
  });
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest && event.target.closest("input:not([type=range]), textarea, select, [contenteditable]");
  if (!element.isConnected || !element.checkVisibility() || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "d" || event.key === "D") toggleDifference();
});
watch("value", receive);
draw();
receive();
