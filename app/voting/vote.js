// The raters' page. It shows the next pair at once and keeps each vote on the device until the server has acknowledged
// it, so no vote waits for the network and none is lost by it. All text goes in as textContent: titles, rubrics and
// prompts are never read as HTML.
const $ = (selector) => document.querySelector(selector);
const study = location.pathname.replace(/\/+$/, "").split("/").pop();

const AHEAD = 3; // pairs that are fetched and decoded before they are needed
const LOCK_MS = 300; // a new pair takes no answer before: the second half of a double click is none
const ASK_MS = 20000; // without an answer for so long there is no connection
const HUB_MS = 60000; // how often an idle page asks what is on the Hub
const MAX_ZOOM = 8;
const CHOICES = {
  left: { label: "A is better", short: "A", keys: ["ArrowLeft"], shown: "←", past: "A" },
  tie: { label: "Tie", keys: ["ArrowDown"], shown: "↓" },
  "both bad": { label: "Both bad", keys: [" "], shown: "Space" },
  right: { label: "B is better", short: "B", keys: ["ArrowRight"], shown: "→", past: "B" },
};

let about = null; // the study, as invited
const rater = { code: "", done: 0, total: 0, last: null, hub: null, savedUs: 0, ahead: [], answered: new Set() };
const queue = new Map(); // unacknowledged votes by ticket, in the order in which they were given
const now = { showing: null, answers: {}, step: 0, shownMs: 0, seenMs: 0, sinceMs: null, ready: false };
let sending = false, undoing = false, over = "", retryTimer = 0;
let failures = 0, trouble = null; // requests that failed in a row, and how the last of them did

// What is kept on the device. A page in a frame, or one that was told to forget, may have no storage.
const kept = {
  read(key) { try { return localStorage.getItem(key); } catch { return null; } },
  write(key, value) { try { localStorage.setItem(key, value); return true; } catch { return false; } },
  remove(key) { try { localStorage.removeItem(key); } catch { /* nothing was kept */ } },
  keys() { try { return Object.keys(localStorage); } catch { return []; } },
};
const codeKey = `srpo-vote/${study}/code`;
// Each vote has an entry of its own, so that two tabs of one rater cannot overwrite each other's.
const voteKey = (ticket) => `srpo-vote/${study}/vote/${rater.code}/${ticket}`;

// The server

class Trouble extends Error {
  constructor(status, sentence, retryMs) {
    super(sentence);
    this.status = status;
    this.retryMs = retryMs;
    this.passes = status === 0 || status === 429 || status >= 500; // trying again may help
  }
}

async function ask(path, body) {
  let answer, content = null;
  try {
    answer = await fetch(`${study}/${path}`, {
      cache: "no-store",
      signal: AbortSignal.timeout(ASK_MS),
      ...(body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), keepalive: true }),
    });
    content = await answer.json();
  } catch {
    if (!answer || answer.ok) throw new Trouble(0, "There is no connection to the server.", 0);
  }
  if (answer.ok) return content;
  const retryMs = 1000 * Number(answer.headers.get("Retry-After") || 0);
  throw new Trouble(answer.status, (content && content.sentence) || "The server cannot answer at the moment.", retryMs);
}

// Longer each time, never two raters at the same moment, and no sooner than the server asked for.
function patience(error) {
  return Math.max(error.retryMs, Math.min(15000, 500 * 2 ** Math.min(failures++, 5))) * (1 + Math.random() / 2);
}

function stand(standing) {
  if (!standing) return;
  Object.assign(rater, { done: standing.place.done, total: standing.place.total, last: standing.place.last, hub: standing.hub });
  const known = new Set(rater.ahead.map((showing) => showing.ticket));
  for (const showing of standing.place.ahead)
    if (!known.has(showing.ticket) && !rater.answered.has(showing.ticket)) rater.ahead.push(showing);
  const number = (showing) => parseInt(showing.ticket, 10);
  const [first, ...rest] = rater.ahead;
  rater.ahead = now.showing && first === now.showing ? [first, ...rest.sort((a, b) => number(a) - number(b))]
    : rater.ahead.sort((a, b) => number(a) - number(b));
  preload();
}

const wanted = () => AHEAD + 1 + Math.min(queue.size, 16);

// Sends what waits, one vote after the other, and whatever the rater asked for after it.
async function pump() {
  if (sending || over) return;
  sending = true;
  clearTimeout(retryTimer);
  try {
    do {
      while (queue.size && !over) await sendNext();
      if (over) return;
      if (undoing) await takeBack();
      else if (!rater.ahead.length && rater.done < rater.total) await more();
      [failures, trouble] = [0, null];
    } while (queue.size || undoing); // what was asked for meanwhile
  } catch (error) {
    if (!(error instanceof Trouble)) throw error;
    trouble = error;
    retryTimer = setTimeout(pump, patience(error));
  } finally {
    sending = false;
    draw();
  }
}

async function sendNext() {
  const vote = queue.values().next().value;
  vote.tried = true;
  drawSaved();
  const { code, ticket, answers, dwell_s } = vote;
  try {
    const { standing } = await ask("vote", { code, ticket, answers, dwell_s, count: wanted() });
    settle(vote);
    if (standing) rater.savedUs = standing.now_us;
    else rater.done += 1; // the study has just ended: stored all the same
    stand(standing);
  } catch (error) {
    if (!(error instanceof Trouble) || error.passes) throw error;
    settle(vote);
    rater.answered.delete(ticket); // the pair will be asked about again
    refuse(error, "A vote could not be stored.");
  }
  [failures, trouble] = [0, null];
}

async function more() {
  try {
    stand(await ask("place", { code: rater.code, count: wanted() }));
  } catch (error) {
    if (!(error instanceof Trouble) || error.passes) throw error;
    refuse(error);
  }
}

// The ticket says which vote is meant: sent a second time, the wish takes no other one back.
async function takeBack() {
  try {
    const { showing, standing } = await ask("undo", { code: rater.code, ticket: rater.last, count: wanted() });
    undoing = false;
    rater.savedUs = standing ? standing.now_us : rater.savedUs;
    again(showing);
    stand(standing);
  } catch (error) {
    if (!(error instanceof Trouble) || error.passes) throw error;
    undoing = false;
    refuse(error);
  }
}

function settle(vote) {
  queue.delete(vote.ticket);
  kept.remove(voteKey(vote.ticket));
}

// A refusal that no trying again will change.
function refuse(error, lost = "") {
  const text = `${error.message} ${lost}`.trim();
  if (error.status !== 410) return alertFor(text);
  for (const vote of [...queue.values()]) settle(vote); // a closed study takes none of them
  over = text;
}

// Answers

const allowed = () => now.showing && now.ready && !undoing && !over && performance.now() - now.shownMs > LOCK_MS;

function choose(answer) {
  if (!allowed()) return;
  now.answers[about.criteria[now.step].key] = answer;
  const open = about.criteria.findIndex((criterion) => !(criterion.key in now.answers));
  if (open >= 0) {
    now.step = open;
    return draw();
  }
  const vote = { code: rater.code, ticket: now.showing.ticket, answers: now.answers, dwell_s: dwell(), showing: now.showing };
  queue.set(vote.ticket, vote);
  kept.write(voteKey(vote.ticket), JSON.stringify({ ...vote, showing: undefined }));
  rater.answered.add(vote.ticket);
  rater.ahead.shift();
  alertFor("");
  next();
  pump();
}

function undo() {
  if (undoing || over) return;
  const given = about.criteria.filter((criterion) => criterion.key in now.answers);
  if (now.showing && given.length) { // within the pair: one question back
    const last = given[given.length - 1];
    delete now.answers[last.key];
    now.step = about.criteria.indexOf(last);
    return draw();
  }
  const last = [...queue.values()].pop();
  if (last && !last.tried && last.showing) { // it never left this device
    settle(last);
    return again(last.showing);
  }
  if (!queue.size && !rater.last) return;
  undoing = true; // once everything before it is stored, or the server would take back another one
  draw();
  pump();
}

function again(showing) {
  rater.answered.delete(showing.ticket);
  const number = parseInt(showing.ticket, 10);
  rater.ahead = [showing, ...rater.ahead.filter((other) => parseInt(other.ticket, 10) !== number)];
  preload();
  next();
}

// The time for which the pair was in sight: a hidden page does not count.
function tick() {
  if (now.sinceMs !== null) now.seenMs += performance.now() - now.sinceMs;
  now.sinceMs = now.ready && document.visibilityState === "visible" ? performance.now() : null;
}

function dwell() {
  tick();
  return Math.round(now.seenMs) / 1000;
}

// Pictures

const pictures = new Map(); // by ticket: a promise of the decoded pictures of a trial

function preload() {
  const near = rater.ahead.slice(0, AHEAD + 1);
  for (const ticket of pictures.keys())
    if (!near.some((showing) => showing.ticket === ticket)) pictures.delete(ticket);
  for (const showing of near)
    if (!pictures.has(showing.ticket))
      pictures.set(showing.ticket, Promise.all([showing.left, showing.right].filter(Boolean).map((file, index) => decoded(file, showing, index))));
}

async function decoded(file, showing, index) {
  for (let tries = 0; ; tries++) {
    const image = new Image();
    image.draggable = false;
    image.alt = about.mode === "pairwise" ? `Picture ${"AB"[index]}` : "The picture";
    image.src = `${study}/pictures/${file}`;
    try {
      await image.decode();
      return image;
    } catch {
      if (!rater.ahead.includes(showing)) return image; // nobody waits for it any more
      await new Promise((go) => setTimeout(go, Math.min(10000, 500 * 2 ** tries)));
    }
  }
}

async function next() {
  const showing = rater.ahead[0] || null;
  Object.assign(now, { showing, answers: {}, step: 0, ready: false, seenMs: 0, sinceMs: null });
  preload();
  zoomTo(1);
  draw();
  if (!showing) return;
  const images = await pictures.get(showing.ticket);
  if (now.showing !== showing) return;
  $("#prompt").textContent = showing.prompt;
  $("#prompt").scrollTop = 0;
  $("#prompt").classList.toggle("long", $("#prompt").scrollHeight > $("#prompt").clientHeight + 4);
  const frames = [...document.querySelectorAll(".frame")];
  frames.forEach((frame, index) => frame.replaceChildren(...(images[index] ? [images[index]] : [])));
  Object.assign(now, { ready: true, shownMs: performance.now(), sinceMs: null });
  tick();
  draw();
  setTimeout(draw, LOCK_MS + 10);
}

// Zoom: one for both pictures. x and y are shifts as shares of a frame.

const zoom = { scale: 1, x: 0, y: 0 };

function zoomTo(scale, at = { x: 0, y: 0 }) {
  const old = zoom.scale;
  zoom.scale = Math.min(MAX_ZOOM, Math.max(1, scale));
  const move = (shift, point) => point - ((point - shift) * zoom.scale) / old; // what is under the pointer stays there
  panTo(move(zoom.x, at.x), move(zoom.y, at.y));
}

function panTo(x, y) {
  const most = (zoom.scale - 1) / 2;
  const within = (shift) => Math.min(most, Math.max(-most, shift)) || 0;
  Object.assign(zoom, { x: within(x), y: within(y) });
  const style = document.documentElement.style;
  style.setProperty("--zoom", zoom.scale);
  style.setProperty("--x", zoom.x);
  style.setProperty("--y", zoom.y);
  $("#pictures").classList.toggle("zoomed", zoom.scale > 1);
  $('[data-zoom="fit"]').textContent = Math.round(100 * zoom.scale) + " %";
}

function pointIn(frame, event) {
  const box = frame.getBoundingClientRect();
  return { x: (event.clientX - box.left) / box.width - 0.5, y: (event.clientY - box.top) / box.height - 0.5 };
}

for (const frame of document.querySelectorAll(".frame")) {
  const held = new Map(); // pointers that are down, by id
  let tapMs = 0, moved = 0;
  const spread = ([a, b]) => Math.hypot(a.x - b.x, a.y - b.y);
  const middle = (points) => ({ x: (points[0].x + points[1].x) / 2, y: (points[0].y + points[1].y) / 2 });
  frame.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomTo(zoom.scale * Math.exp(-event.deltaY / (event.ctrlKey ? 100 : 400)), pointIn(frame, event));
  }, { passive: false });
  frame.addEventListener("pointerdown", (event) => {
    frame.setPointerCapture(event.pointerId);
    held.set(event.pointerId, pointIn(frame, event));
    moved = 0;
  });
  frame.addEventListener("pointermove", (event) => {
    if (!held.has(event.pointerId)) return;
    const before = [...held.values()], point = pointIn(frame, event), from = held.get(event.pointerId);
    held.set(event.pointerId, point);
    const after = [...held.values()];
    moved += Math.hypot(point.x - from.x, point.y - from.y);
    if (after.length === 2 && spread(before) > 0) {
      const [old, fresh] = [middle(before), middle(after)];
      zoomTo((zoom.scale * spread(after)) / spread(before), fresh);
      panTo(zoom.x + fresh.x - old.x, zoom.y + fresh.y - old.y);
    } else if (after.length === 1) {
      panTo(zoom.x + point.x - from.x, zoom.y + point.y - from.y);
    }
    $("#pictures").classList.add("dragging");
  });
  const release = (event) => {
    const tapped = held.delete(event.pointerId) && event.type === "pointerup" && moved < 0.02 && !held.size;
    if (!held.size) $("#pictures").classList.remove("dragging");
    if (!tapped) return;
    if (event.timeStamp - tapMs < 350) {
      zoomTo(zoom.scale > 1 ? 1 : 3, pointIn(frame, event));
      tapMs = 0;
    } else {
      tapMs = event.timeStamp;
    }
  };
  frame.addEventListener("pointerup", release);
  frame.addEventListener("pointercancel", release);
}

// Drawing

function show(screen) {
  if (document.body.dataset.screen === screen) return;
  document.body.dataset.screen = screen;
  for (const part of document.querySelectorAll(".screen")) part.hidden = part.id !== screen;
  document.getElementById(screen).focus({ preventScroll: true }); // whoever listens begins at its beginning
  window.scrollTo(0, 0);
}

function node(tag, text, className) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function alertFor(text) {
  for (const place of [$("#vote-alert"), $("#welcome-alert")]) {
    place.textContent = text;
    place.hidden = !text;
  }
}

const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const clock = (us) => new Date(us / 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
const reason = () => (trouble.status ? "The server is busy" : "No connection");

function savedText() {
  if (queue.size)
    return trouble ? `${reason()}: ${plural(queue.size, "vote")} kept on this device, sent as soon as it can be` : "Saving …";
  if (!rater.done) return "Each vote is saved as you give it";
  const hub = rater.hub;
  if (!hub) return "Saved";
  if (hub.until_us && hub.until_us >= rater.savedUs) return `Saved here, and to the Hub at ${clock(hub.until_us)}`;
  if (hub.problem) return `Saved here. ${hub.problem}`;
  return hub.until_us ? `Saved here; to the Hub at ${clock(hub.until_us)}, the last ones follow` : "Saved here; the Hub follows";
}

function drawSaved() {
  const text = savedText();
  for (const place of [$("#saved"), $("#end-saved")]) if (place.textContent !== text) place.textContent = text;
  $("#end-saved").hidden = !rater.hub; // without a Hub it says no more than the line above it
  $("#saved").dataset.state = queue.size && trouble ? "waiting" : queue.size ? "saving" : "saved";
  document.body.dataset.unsaved = queue.size;
}

function draw() {
  if (!about || !rater.code || ["welcome", "granted", "problem", "loading"].includes(document.body.dataset.screen)) return;
  drawSaved();
  const done = Math.min(rater.total, rater.done + queue.size);
  if (over || (!now.showing && !rater.ahead.length && !queue.size && !undoing && rater.total && rater.done >= rater.total)) return drawEnd();
  if (!now.showing && rater.ahead.length) return void next();
  show("vote");
  $("#count").textContent = `${done} of ${rater.total}`;
  const bar = $(".progress i");
  bar.setAttribute("aria-valuemax", rater.total);
  bar.setAttribute("aria-valuenow", done);
  bar.firstElementChild.style.width = (rater.total ? (100 * done) / rater.total : 0) + "%";
  const waiting = undoing ? (trouble ? `${reason()}: this goes on by itself.` : "Taking back …")
    : now.showing ? (now.ready ? "" : "Fetching the pictures …")
      : trouble ? `${reason()}: the next pictures come by themselves, and your votes are kept here.`
        : queue.size ? "Saving your votes …" : "Fetching …";
  $("#waiting").hidden = !waiting;
  if ($("#waiting").textContent !== waiting) $("#waiting").textContent = waiting;
  const criterion = about.criteria[now.step];
  $("#question span").textContent = about.mode === "pairwise" ? criterion.question : `${criterion.title}: how good is this picture?`;
  $("#rubric-open").hidden = !criterion.rubric.length;
  $("#undo").disabled = undoing || !(queue.size || rater.last || Object.keys(now.answers).length);
  drawSteps();
  const usable = Boolean(allowed());
  for (const button of $("#answers").children) {
    button.disabled = !usable;
    button.setAttribute("aria-pressed", String(now.answers[criterion.key] === button.dataset.answer));
  }
}

function drawSteps() {
  const steps = $("#steps");
  steps.hidden = about.criteria.length < 2;
  if (steps.hidden) return;
  if (!steps.children.length)
    steps.append(...about.criteria.map((criterion, step) => {
      const button = node("button", "");
      button.type = "button";
      button.append(node("span", criterion.title), node("i", String(step + 1)), node("em", ""));
      button.setAttribute("aria-label", criterion.title);
      button.addEventListener("click", () => { now.step = step; draw(); });
      return button;
    }));
  about.criteria.forEach((criterion, step) => {
    const button = steps.children[step], answer = now.answers[criterion.key];
    button.toggleAttribute("aria-current", false);
    if (step === now.step) button.setAttribute("aria-current", "step");
    button.querySelector("em").textContent = answer ? `: ${(CHOICES[answer] && CHOICES[answer].past) || answer}` : "";
  });
}

function drawEnd() {
  show("end");
  const counted = rater.done === rater.total ? `All ${rater.total} of your votes are stored, and each counts once.`
    : rater.done ? `${plural(rater.done, "vote")} of yours ${rater.done === 1 ? "is" : "are"} stored, and counted once.` : "No vote of yours is stored.";
  $("#end-text").textContent = over ? `${over} ${counted}` : `You have answered everything. ${counted}`;
  $("#end-undo").hidden = Boolean(over) || !rater.last;
}

function drawAbout() {
  document.title = about.title;
  for (const place of document.querySelectorAll(".title")) place.textContent = about.title;
  $("#instructions").textContent = about.instructions;
  $("#instructions").hidden = !about.instructions;
  const pairs = about.mode === "pairwise";
  const asked = about.criteria.length > 1 ? `, each with ${about.criteria.length} questions` : "";
  $("#task").textContent = pairs
    ? `You will see ${plural(about.trials, "pair")} of pictures${asked}.`
    : `You will see ${plural(about.trials, "picture")}, one at a time${asked}.`;
  document.querySelector(".criteria").replaceChildren(...about.criteria.map((criterion) => {
    const box = document.createElement(criterion.rubric.length ? "details" : "div");
    box.append(node(criterion.rubric.length ? "summary" : "span", pairs ? criterion.question : criterion.title), ...criterion.rubric.map((line) => node("p", line)));
    return box;
  }));
  $("#pictures").dataset.mode = about.mode;
  document.querySelector('[data-side="right"]').hidden = !pairs;
  document.querySelector('[data-side="left"] figcaption').hidden = !pairs;
  const order = pairs ? ["left", "tie", "both bad", "right"] : about.choices;
  const narrow = matchMedia("(max-width: 700px)").matches;
  $("#answers").replaceChildren(...order.map((answer, index) => {
    const choice = CHOICES[answer] || { label: answer, shown: String(index + 1) };
    const button = node("button", (narrow && choice.short) || choice.label);
    button.type = "button";
    button.dataset.answer = answer;
    button.append(" ", node("kbd", choice.shown));
    button.addEventListener("click", () => choose(answer));
    return button;
  }));
  const keys = order.map((answer, index) => [(CHOICES[answer] || { shown: String(index + 1) }).shown, (CHOICES[answer] || { label: answer }).label]);
  keys.push(["U", "take back the last answer (or Backspace)"], ["R", "what to look for"], ["+ − 0", "zoom in, out, whole picture (or the wheel, or a double click)"], ["Shift ← ↑ → ↓", "move while zoomed (or drag)"], ["?", "this list"]);
  $("#keys dl").replaceChildren(...keys.flatMap(([key, says]) => {
    const term = document.createElement("dt");
    term.append(node("kbd", key));
    return [term, node("dd", says)];
  }));
}

function drawCode() {
  for (const place of document.querySelectorAll(".code")) place.textContent = rater.code;
}

// Coming and going

async function open() {
  show("loading");
  try {
    about = await ask("study");
  } catch (error) {
    if (!(error instanceof Trouble)) throw error;
    $("#problem-text").textContent = error.message;
    if (error.passes) retryTimer = setTimeout(open, patience(error));
    return show("problem");
  }
  failures = 0;
  drawAbout();
  if (!about.open) {
    $("#problem h1").textContent = about.title;
    $("#problem-text").textContent = about.message;
    $("#again").hidden = about.ended;
    return show("problem");
  }
  rater.code = kept.read(codeKey) || "";
  drawCode();
  $("#known").hidden = !rater.code;
  $("#start").textContent = rater.code ? "Start as another rater" : "Start";
  $("#start").classList.toggle("primary", !rater.code);
  show("welcome");
}

// What the rater's buttons on the first screens do: once, and with a sentence where it fails.
async function attempt(button, work) {
  if (button.disabled) return;
  button.disabled = true;
  alertFor("");
  try {
    for (;;) {
      try {
        return await work();
      } catch (error) {
        if (!(error instanceof Trouble)) throw error;
        alertFor(error.passes ? `${error.message} This goes on by itself.` : error.message);
        if (!error.passes) return undefined;
        await new Promise((go) => setTimeout(go, patience(error)));
      }
    }
  } finally {
    button.disabled = false;
    failures = 0;
  }
}

const claim = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

async function start() {
  const standing = await ask("join", { claim });
  alertFor("");
  enter(standing);
  $("#kept").textContent = remember() ? "This device remembers it." : "This device does not remember it: write it down.";
  show("granted");
}

const remember = () => kept.write(codeKey, rater.code);

async function goOn(code) {
  const standing = await ask("place", { code, count: wanted() });
  alertFor("");
  enter(standing);
  remember();
  vote();
}

function enter(standing) {
  rater.code = standing.place.code;
  rater.savedUs = standing.now_us;
  Object.assign(rater, { ahead: [], answered: new Set() });
  drawCode();
  const prefix = voteKey("");
  const found = kept.keys().filter((key) => key.startsWith(prefix)).sort((a, b) => parseInt(a.slice(prefix.length), 10) - parseInt(b.slice(prefix.length), 10));
  for (const key of found) { // left over from a page that was closed without a connection
    try {
      const vote = JSON.parse(kept.read(key));
      queue.set(vote.ticket, { ...vote, tried: true });
      rater.answered.add(vote.ticket);
    } catch {
      kept.remove(key);
    }
  }
  stand(standing);
}

function vote() {
  show("vote");
  next();
  pump();
}

$("#again").addEventListener("click", () => { clearTimeout(retryTimer); open(); });
$("#start").addEventListener("click", (event) => attempt(event.currentTarget, start));
$("#go-on").addEventListener("click", (event) => attempt(event.currentTarget, () => goOn(rater.code)));
$("#return").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt($("#return button"), () => goOn($("#code").value));
});
$("#begin").addEventListener("click", vote);
$("#copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(rater.code);
    $("#copied").textContent = "Copied";
  } catch { // not given to every page: the code is marked, so that the device's own way works
    getSelection().selectAllChildren($("#own-code"));
    $("#copied").textContent = "Marked: copy it with your device's own command";
  }
});
$("#undo").addEventListener("click", undo);
$("#end-undo").addEventListener("click", () => { show("vote"); undo(); });
$("#help").addEventListener("click", () => $("#keys").showModal());
$("#rubric-open").addEventListener("click", openRubric);
for (const button of document.querySelectorAll("[data-zoom]"))
  button.addEventListener("click", () => zoomBy(button.dataset.zoom));
// A button that the mouse has pressed does not keep the keyboard: the next Space is an answer.
document.addEventListener("click", (event) => {
  const button = event.target.closest("#vote button");
  if (button && event.detail > 0) button.blur();
});

function openRubric() {
  const criterion = about.criteria[now.step];
  $("#rubric-title").textContent = criterion.title;
  $("#rubric div").replaceChildren(...criterion.rubric.map((line) => node("p", line)));
  $("#rubric").showModal();
}

function zoomBy(way) {
  zoomTo(way === "fit" ? 1 : zoom.scale * (way === "in" ? 1.5 : 1 / 1.5));
}

const PAN = { ArrowLeft: [0.1, 0], ArrowRight: [-0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] };

document.addEventListener("keydown", (event) => {
  if (document.body.dataset.screen !== "vote" || document.querySelector("dialog[open]")) return;
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea")) return;
  const onButton = event.target.matches("button:focus-visible"); // whoever tabs presses buttons by Space and Enter
  if (onButton && [" ", "Enter"].includes(event.key)) return;
  if (event.shiftKey && PAN[event.key]) {
    event.preventDefault();
    return panTo(zoom.x + PAN[event.key][0], zoom.y + PAN[event.key][1]);
  }
  const answer = about.mode === "pairwise"
    ? Object.keys(CHOICES).find((name) => CHOICES[name].keys.includes(event.key))
    : about.choices[Number(event.key) - 1];
  const others = { u: undo, Backspace: undo, "?": () => $("#keys").showModal(), r: () => $("#rubric-open").hidden || openRubric(),
    "+": () => zoomBy("in"), "=": () => zoomBy("in"), "-": () => zoomBy("out"), 0: () => zoomBy("fit") };
  const other = others[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!answer && !other) return;
  event.preventDefault();
  if (event.repeat) return; // a key that is held down is one answer
  if (answer) choose(answer);
  else other();
});

document.addEventListener("visibilitychange", () => { tick(); if (document.visibilityState === "visible") pump(); });
addEventListener("online", () => { clearTimeout(retryTimer); pump(); });
addEventListener("beforeunload", (event) => { if (queue.size) event.preventDefault(); });
setInterval(async () => {
  if (!rater.hub || document.visibilityState !== "visible" || queue.size || sending || over) return;
  try {
    rater.hub = (await ask("place", { code: rater.code, count: 0 })).hub;
    drawSaved();
  } catch { /* the next vote or the next minute will tell */ }
}, HUB_MS);

open();
