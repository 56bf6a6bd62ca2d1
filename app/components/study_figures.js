// Draws the figures of a report with the page's own colours. A colour that Python gives as var(--name) is looked up at
// every drawing, so that the figures follow the switch between light and dark.

function coloured(part, style) {
  if (typeof part === "string") return part.replace(/var\((--[a-z0-9-]+)\)/g, (_, name) => style.getPropertyValue(name).trim());
  if (Array.isArray(part)) return part.map((entry) => coloured(entry, style));
  if (part && typeof part === "object")
    return Object.fromEntries(Object.entries(part).map(([name, entry]) => [name, coloured(entry, style)]));
  return part;
}

function place(figure) {
  let node = $(`figure[data-key="${CSS.escape(figure.key)}"]`);
  if (!node) {
    node = document.createElement("figure");
    node.dataset.key = figure.key;
    for (const tag of ["figcaption", "div", "small"]) node.append(document.createElement(tag));
    node.children[1].setAttribute("role", "img");
  }
  const [caption, plot, axis] = node.children;
  caption.textContent = figure.title;
  plot.setAttribute("aria-label", figure.says);
  axis.textContent = figure.axis;
  return node;
}

const touch = matchMedia("(hover: none)").matches; // there the tools would lie on the legend all the time
let drawing = 0;
async function draw() {
  const mine = ++drawing;
  const figures = (props.value || {}).figures || [];
  const nodes = figures.map(place);
  for (const gone of [...$("div").children].filter((node) => !nodes.includes(node)))
    if (window.Plotly) window.Plotly.purge(gone.children[1]);
  $("div").replaceChildren(...nodes);
  $(".study-figures").dataset.drawn = "0";
  if (!figures.length || !element.offsetWidth) return;
  let Plotly;
  try {
    Plotly = await library(props.value.plotly);
  } catch (error) {
    $(".banner").hidden = false;
    $(".banner").textContent = "The figures cannot be drawn, as the page got no plotly.min.js: reload it.";
    return;
  }
  if (mine !== drawing) return; // newer ones came while the library was fetched
  const style = getComputedStyle(element);
  const axis = { gridcolor: "var(--line)", zerolinecolor: "var(--line-strong)", linecolor: "var(--line)" };
  for (const [index, figure] of figures.entries()) {
    if (mine !== drawing) return;
    const layout = { ...figure.layout, paper_bgcolor: "transparent", plot_bgcolor: "transparent", autosize: true,
      margin: { ...figure.layout.margin, b: 26 },
      font: { family: style.fontFamily, size: 12, color: "var(--ink)" },
      hoverlabel: { bgcolor: "var(--paper)", bordercolor: "var(--line)", font: { color: "var(--ink)" } },
      xaxis: { ...figure.layout.xaxis, ...axis }, yaxis: { ...figure.layout.yaxis, ...axis, zeroline: false } };
    await Plotly.react(nodes[index].children[1], coloured(figure.data, style), coloured(layout, style),
      { displaylogo: false, displayModeBar: touch ? false : "hover", responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] });
  }
  $(".study-figures").dataset.drawn = String(figures.length);
}

new MutationObserver(draw).observe(document.body, { attributes: true, attributeFilter: ["class"] });
let width = element.offsetWidth; // figures that came while their panel was hidden are drawn when it opens
new ResizeObserver(() => {
  if (element.offsetWidth === width) return;
  width = element.offsetWidth;
  if (width) draw();
}).observe(element);
watch("value", draw);
draw();
