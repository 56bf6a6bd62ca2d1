// Draws a study's title and its four steps. A press on a step that is open shows it.
const LABELS = { plan: "Plan", pictures: "Pictures", voting: "Voting", results: "Results" };

function receive() {
  const value = props.value || {};
  $(".study-head").hidden = !value.title;
  if (!value.title) return;
  $("h2").textContent = value.title;
  $(".about").textContent = value.about;
  const held = element.contains(document.activeElement) ? document.activeElement.dataset.step : null;
  $("ol").replaceChildren(...value.steps.map((step, index) => {
    const item = document.createElement("li"), button = document.createElement("button"), number = document.createElement("i");
    button.type = "button";
    button.disabled = !step.is_open;
    button.dataset.step = step.name;
    if (step.name === value.shown) button.setAttribute("aria-current", "step");
    item.classList.toggle("is-in", step.name === value.is_in);
    number.textContent = String(index + 1);
    button.append(number, LABELS[step.name]);
    button.addEventListener("click", () => trigger("select", { step: step.name }));
    item.append(button);
    return item;
  }));
  if (held) element.querySelector(`button[data-step="${held}"]`).focus();
}
watch("value", receive);
receive();
