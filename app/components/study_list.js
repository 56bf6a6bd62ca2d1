// Draws the list of studies (see study_view.Row in Python). Titles are what anybody may have typed: textContent alone.
const STATES = { preparing: "being prepared", open: "open", closed: "ended" };

function part(tag, text, className) {
  const node = document.createElement(tag);
  node.textContent = text;
  if (className) node.className = className;
  return node;
}

function line(row, selected) {
  const item = document.createElement("li"), button = document.createElement("button"), head = part("span", "", "head");
  button.type = "button";
  button.dataset.study = row.id;
  if (row.id === selected) button.setAttribute("aria-current", "true");
  head.append(part("b", row.title + (row.version > 1 ? " · version " + row.version : "")), part("i", STATES[row.state], "pill " + row.state));
  const votes = row.state === "preparing" ? "" : " · " + row.votes.toLocaleString("en") + " of " + row.wanted.toLocaleString("en") + " votes";
  const day = new Date(row.created_us / 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  button.append(head, part("small", row.size + votes), part("small", day));
  button.addEventListener("click", () => trigger("select", { study: row.id }));
  item.append(button);
  return item;
}

function receive() {
  const { rows, selected } = props.value || {};
  if (!rows) return;
  $(".none").hidden = rows.length > 0;
  const held = element.contains(document.activeElement) ? document.activeElement.dataset.study : null;
  $("ul").replaceChildren(...rows.map((row) => line(row, selected)));
  if (held) element.querySelector(`button[data-study="${CSS.escape(held)}"]`)?.focus();
}
watch("value", receive);
receive();
