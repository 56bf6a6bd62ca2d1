// Draws charts (see app/curves.py) with Plotly, which is fetched from this app when there is something to draw. What
// belongs to the viewer alone stays here: zoom, scale, smoothing. All text goes in as textContent or through `plain`.
// A chart that nobody sees is drawn when it comes into sight: what the page draws is taken from the run that it watches.
const view = { log: false, smoothing: 0, value: null };
const inSight = new Set(); // figures
let due = new Map(); // how each figure is brought up to date, for those that are not
const touched = matchMedia("(hover: none)").matches; // by fingers, which hover over nothing
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;"); // Plotly reads some tags in its texts

// Exponential moving average without the bias of its first values; gaps stay gaps.
function smoothed(values) {
  let sum = 0, weight = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = view.smoothing * sum + (1 - view.smoothing) * value;
    weight = view.smoothing * weight + (1 - view.smoothing);
    return sum / weight;
  });
}

function traces(chart, colours) {
  const drawn = [];
  for (const line of chart.lines) {
    const colour = colours.line[line.colour % colours.line.length];
    const smooths = view.smoothing > 0 && !line.points && line.y.length > 2;
    const few = line.points || line.y.length < 2;
    const trace = (y, more) => ({
      x: line.x, y, type: "scatter", mode: few ? "lines+markers" : "lines", name: plain(line.name), connectgaps: false,
      line: { color: colour, width: 2, dash: line.dash }, marker: { color: colour, size: 7 },
      hovertemplate: "%{y:.5g}", ...more,
    });
    if (smooths) drawn.push(trace(line.y, { opacity: 0.25, hoverinfo: "skip", hovertemplate: null, showlegend: false }));
    const spread = line.low && line.low.some((low) => low !== null);
    const ends = (other) => other.map((end, index) => end === null ? 0 : Math.abs(end - line.y[index]));
    const error = spread && {
      error_y: { type: "data", symmetric: false, array: ends(line.high), arrayminus: ends(line.low), thickness: 1, width: 3,
        color: colour },
    };
    drawn.push(trace(smooths ? smoothed(line.y) : line.y, error || {}));
  }
  return drawn;
}

function layout(chart, colours, run) {
  const above = chart.lines.every((line) => line.y.every((y) => y === null || y > 0));
  const log = view.log && above;
  const xs = chart.lines.flatMap((line) => [line.x[0], line.x[line.x.length - 1]]);
  const axis = { gridcolor: colours.grid, zerolinecolor: colours.grid, linecolor: colours.grid, automargin: true };
  const marks = chart.marks.map((mark) => ({ ...mark, colour: mark.kind === "warning" ? colours.warning : colours.ink }));
  return {
    autosize: true, height: chart.small ? 190 : 260, // as in curves.css
    dragmode: touched ? false : "zoom", // where a finger that is drawn over a chart scrolls the page
    margin: { l: 8, r: 10, t: 24, b: 8 },
    paper_bgcolor: "transparent", plot_bgcolor: "transparent", hovermode: "x unified",
    font: { family: colours.font, size: 12, color: colours.soft },
    hoverlabel: { bgcolor: colours.paper, bordercolor: colours.grid, font: { color: colours.ink } },
    // By the container's lower edge: its room is reserved beyond the axis, however many rows it takes.
    legend: { orientation: "h", xref: "container", x: 0, yref: "container", y: 0, yanchor: "bottom", font: { color: colours.ink } },
    showlegend: chart.legend && chart.lines.length > 1,
    uirevision: run,
    xaxis: { ...axis, uirevision: run, ...(chart.x_title
      ? { title: { text: plain(chart.x_title), standoff: 6 }, autorange: chart.falling ? "reversed" : true, hoverformat: ".4~f" }
      : { dtick: Math.max(...xs) <= 10 ? 1 : null, hoverformat: ",d", autorangeoptions: { include: [0, 1] } }) },
    yaxis: { ...axis, type: log ? "log" : "linear", uirevision: run + (log ? " log" : ""),
      title: view.log && !above ? { text: "linear: some values ≤ 0", font: { size: 11 } } : undefined },
    shapes: marks.map((mark) => ({ type: "line", x0: mark.x, x1: mark.x, yref: "paper", y0: 0, y1: 1,
      line: { color: mark.colour, width: 1, dash: "dot" } })),
    annotations: marks.map((mark) => ({ x: mark.x, yref: "paper", y: 1, yanchor: "bottom", text: plain(mark.text),
      hovertext: plain(mark.hint), showarrow: false, font: { color: mark.colour, size: 11 } })),
  };
}

function figure(chart) {
  let place = $(`figure[data-key="${CSS.escape(chart.key)}"]`);
  if (!place) {
    place = document.createElement("figure");
    place.dataset.key = chart.key;
    for (const tag of ["figcaption", "div"]) place.append(document.createElement(tag));
    place.firstChild.append(document.createElement("b"), document.createElement("small"));
    place.lastChild.className = "plot";
    place.lastChild.setAttribute("role", "img");
    sight.observe(place);
  }
  place.classList.toggle("small", chart.small);
  place.querySelector("b").textContent = chart.title;
  place.querySelector("small").textContent = chart.hint;
  const last = chart.lines.map((line) => line.name + " " + line.y.findLast((y) => y !== null));
  place.lastChild.setAttribute("aria-label", chart.title + ", last values: " + last.join(", "));
  return place;
}

// Other parts of the page may follow the place that is pointed at.
function tell(kind, event) {
  const x = kind === "unhover" ? null : event.points[0].x;
  element.dispatchEvent(new CustomEvent("curves-" + kind, { detail: { x }, bubbles: true }));
}

async function draw() {
  const value = view.value;
  if (!value || !value.charts) return;
  $(".curves-bar").hidden = !value.charts.length;
  $(".zooms").hidden = touched;
  $(".over").hidden = value.charts.some((chart) => chart.x_title);
  const figures = value.charts.map(figure);
  const shown = [...$(".charts").children];
  if (figures.length !== shown.length || figures.some((place, index) => place !== shown[index])) {
    const gone = shown.filter((place) => !figures.includes(place));
    $(".charts").replaceChildren(...figures);
    for (const place of gone) {
      sight.unobserve(place);
      inSight.delete(place);
      window.Plotly && window.Plotly.purge(place.lastChild);
    }
  }
  if (!figures.length) return;
  let Plotly;
  try {
    Plotly = await library(props.plotly);
  } catch (error) {
    $(".banner").hidden = false;
    $(".banner").textContent = "The curves cannot be drawn, as the page got no plotly.min.js: reload it.";
    return;
  }
  if (value !== view.value) return; // newer points came while the library was fetched
  const style = getComputedStyle(element);
  const colour = (name) => style.getPropertyValue(name).trim();
  const colours = {
    line: [0, 1, 2, 3, 4, 5, 6, 7].map((number) => colour("--curve-" + number)), ink: colour("--ink"), soft: colour("--soft"),
    grid: colour("--line"), paper: colour("--paper"), warning: colour("--right"), font: style.fontFamily,
  };
  const config = { displaylogo: false, responsive: true, displayModeBar: touched ? false : "hover", // it would cover the marks
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"] };
  const points = String(Math.max(0, ...value.charts.flatMap((chart) => chart.lines.map((line) => line.y.length))));
  due = new Map(value.charts.map((chart, index) => [figures[index], async () => {
    const plot = figures[index].lastChild;
    await Plotly.react(plot, traces(chart, colours), layout(chart, colours, value.run), config);
    $(".curves").dataset.drawn = points;
    if (plot.dataset.tells) return;
    plot.dataset.tells = "yes";
    for (const kind of ["hover", "click", "unhover"]) plot.on("plotly_" + kind, (event) => tell(kind, event));
  }]));
  for (const place of figures) if (inSight.has(place)) await bringUpToDate(place);
}

async function bringUpToDate(place) {
  const work = due.get(place);
  due.delete(place);
  if (work) await work();
}

const sight = new IntersectionObserver((changes) => {
  for (const { target, isIntersecting } of changes) {
    inSight[isIntersecting ? "add" : "delete"](target);
    if (isIntersecting) bringUpToDate(target);
  }
}, { rootMargin: "200px" });
window.addEventListener("beforeprint", () => [...due.keys()].forEach(bringUpToDate));

function receive() {
  if (!props.value || !props.value.charts) return;
  view.value = props.value;
  draw();
}

$(".log").addEventListener("click", () => {
  view.log = !view.log;
  $(".log").setAttribute("aria-pressed", String(view.log));
  draw();
});
$(".smooth input").addEventListener("input", (event) => {
  view.smoothing = Number(event.target.value);
  $(".smooth output").textContent = view.smoothing ? view.smoothing.toFixed(2) : "off";
  draw();
});
new MutationObserver(draw).observe(document.body, { attributes: true, attributeFilter: ["class"] });
// A chart drawn while its tab was hidden has no width yet.
let width = element.offsetWidth;
new ResizeObserver(() => {
  if (!element.offsetWidth || element.offsetWidth === width) return;
  width = element.offsetWidth;
  requestAnimationFrame(() => {
    for (const plot of element.querySelectorAll(".js-plotly-plot")) window.Plotly.Plots.resize(plot);
  });
}).observe(element);
watch("value", receive);
receive();
