// The page: the pen on the left sheet, the portrait on the right one, and the tools.

const settings = JSON.parse(document.getElementById("settings").textContent);
const element = (id) => document.getElementById(id);
const [lines, portrait] = [element("lines"), element("portrait")];
const fed = canvasOf(settings.size); // what the network is given
fed.id = "fed";
const fedContext = fed.getContext("2d", { willReadFrequently: true });

const history = new History();
const tools = { tool: "pen", pen: 4, eraser: 18, twin: false, whole: false };
let hand = null; // what the pointer that is down is doing
let seen = null; // where the eraser is shown
let ghost = null; // the outline of a photograph

// Says something to people who hear the page, and to those who see it.
let silence = 0;
function say(text) {
  element("said").textContent = text;
  element("said").dataset.shown = "";
  clearTimeout(silence);
  silence = setTimeout(() => delete element("said").dataset.shown, 4000);
}

// --- The portrait: while one is being drawn, only the newest lines wait.

const worker = startWorker();
let [ready, busy, stale] = [false, false, false];

function startWorker() {
  const old = !window.DecompressionStream || !window.WebAssembly || !window.Worker;
  if (old) {
    fail("This browser is too old to draw here. Chrome 90, Firefox 114, Safari 16.4 and newer ones can.");
    return null;
  }
  const texts = [...document.querySelectorAll("script[type='text/base64']")];
  const packed = Object.fromEntries(texts.map((script) => [script.dataset.name, script.textContent.trim()]));
  texts.forEach((script) => script.remove()); // megabytes that are needed only once
  const code = new Blob([settings.worker], { type: "text/javascript" });
  const started = new Worker(URL.createObjectURL(code));
  started.onmessage = ({ data }) => hear(data);
  started.onerror = () => fail("The portrait cannot be drawn: this browser does not start the network.");
  started.postMessage({ start: { ...settings.network, ...packed } });
  return started;
}

function fail(why) {
  element("state").textContent = why;
  document.body.dataset.portrait = "failed";
}

function hear(message) {
  busy = false;
  if (message.failed) {
    fail(`The portrait cannot be drawn: ${message.failed}`);
    return;
  }
  if (message.ready) {
    ready = true;
    document.body.dataset.network = "ready";
    element("state").textContent = "The portrait appears here while you draw";
  } else if (!isEmpty(history.now) || hand) {
    portrait.getContext("2d").putImageData(imageOf(message.portrait, settings.size), 0, 0);
    portrait.style.filter = `brightness(${255 / paperOf(message.portrait[0])})`; // seen on this page's own paper
    document.body.dataset.portrait = "drawn";
    portrait.setAttribute("aria-label", `Portrait drawn from ${described()}`);
    portrait.dataset.milliseconds = Math.round(message.milliseconds);
  }
  delete document.body.dataset.busy;
  if (stale) send();
}

// The commonest light tone.
function paperOf(plane) {
  const counts = new Uint32Array(256);
  for (const level of plane) counts[level] += 1;
  return 128 + counts.subarray(128).indexOf(counts.subarray(128).reduce((a, b) => Math.max(a, b)));
}

function ask() {
  stale = true;
  if (ready && !busy) send();
}

function send() {
  stale = false;
  const current = handStrokes();
  if (isEmpty(history.now) && !current.length) {
    delete document.body.dataset.portrait;
    portrait.setAttribute("aria-label", "The portrait: nothing is drawn yet");
    return;
  }
  fedContext.fillStyle = "#fff";
  fedContext.fillRect(0, 0, settings.size, settings.size);
  paint(fedContext, history.now, current);
  const line = Uint8Array.from(grayOf(fedContext));
  busy = true;
  document.body.dataset.busy = "";
  worker.postMessage({ line }, [line.buffer]);
}

// --- The sheet with the lines

let planned = 0;
function render() {
  if (!planned) planned = requestAnimationFrame(renderNow);
}

function renderNow() {
  planned = 0;
  const side = Math.min(2048, Math.round(lines.clientWidth * window.devicePixelRatio)) || 1;
  if (lines.width !== side) lines.width = lines.height = side;
  const context = lines.getContext("2d");
  context.clearRect(0, 0, side, side);
  paint(context, history.now, handStrokes(), "#1c1b1a");
  if (seen && tools.tool === "eraser") {
    context.setTransform(side / PAGE, 0, 0, side / PAGE, 0, 0);
    context.beginPath();
    context.arc(...seen, tools.eraser, 0, 2 * Math.PI);
    context.strokeStyle = "#8a6d5a";
    context.lineWidth = 1.5;
    context.stroke();
    context.resetTransform();
  }
}

function described() {
  const { strokes, picture } = history.now;
  const count = `${strokes.length} ${strokes.length === 1 ? "stroke" : "strokes"}`;
  return picture ? `a picture of lines and ${count}` : count;
}

// After each change: the drawing is shown, kept, and given to the network.
let keeping = 0;
function refresh() {
  const empty = isEmpty(history.now);
  document.body.toggleAttribute("data-begun", !empty || hand !== null);
  element("undo").disabled = !history.past.length;
  element("redo").disabled = !history.future.length;
  for (const id of ["clear", "flip", "save"]) element(id).disabled = empty;
  lines.setAttribute("aria-label", empty ? "Your drawing: empty" : `Your drawing: ${described()}`);
  clearTimeout(keeping);
  keeping = setTimeout(() => store(history.now), 400);
  render();
  ask();
}

function change(drawing, words = "") {
  history.change(drawing);
  if (words) say(words);
  refresh();
}

// --- The pen

function pointOf(event) {
  const box = lines.getBoundingClientRect();
  const scale = PAGE / box.width;
  return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale, event.pressure || 0.5];
}

// The strokes that the hand has begun, with the twin on the other side of the face.
function handStrokes() {
  if (!hand || hand.erases) return [];
  const stroke = { points: hand.points, width: tools.pen, pen: hand.pen };
  return tools.twin ? [stroke, mirrored(stroke)] : [stroke];
}

function erase(points) {
  for (const [x, y] of points) {
    const [fromX, fromY] = hand.last ?? [x, y];
    const steps = Math.max(1, Math.ceil(Math.hypot(x - fromX, y - fromY) / (tools.eraser / 2)));
    for (let i = 1; i <= steps; i += 1) {
      const centre = [fromX + ((x - fromX) * i) / steps, fromY + ((y - fromY) * i) / steps];
      history.now = erased(history.now, centre, tools.eraser, tools.whole);
    }
    hand.last = [x, y];
  }
}

lines.addEventListener("pointerdown", (event) => {
  if (hand || event.button > 0 && event.button !== 5) return; // 5: a pen that is turned round
  event.preventDefault();
  try {
    lines.setPointerCapture(event.pointerId);
  } catch {
    // The pointer is already gone; what it has drawn counts.
  }
  const erases = tools.tool === "eraser" || event.button === 5;
  hand = { pointer: event.pointerId, pen: event.pointerType === "pen", erases, before: history.now, points: [] };
  follow(event);
});

function follow(event) {
  const all = event.getCoalescedEvents?.() ?? [];
  const points = (all.length ? all : [event]).map(pointOf);
  if (hand.erases) {
    erase(points);
    seen = points.at(-1).slice(0, 2);
  } else {
    hand.points.push(...points);
  }
  document.body.setAttribute("data-begun", "");
  render();
  ask();
}

lines.addEventListener("pointermove", (event) => {
  if (hand?.pointer === event.pointerId) follow(event);
  else if (!hand && event.pointerType !== "touch") seen = pointOf(event).slice(0, 2);
  if (tools.tool === "eraser") render();
});

function lift(event) {
  if (hand?.pointer !== event.pointerId) return;
  const drawn = handStrokes();
  const { before, erases } = hand;
  const after = history.now;
  hand = null;
  history.now = before;
  if (event.type === "pointercancel" || (erases && after === before)) refresh();
  else change(erases ? after : { ...before, strokes: [...before.strokes, ...drawn] });
}
lines.addEventListener("pointerup", lift);
lines.addEventListener("pointercancel", lift);
lines.addEventListener("pointerleave", () => {
  seen = null;
  render();
});
lines.addEventListener("contextmenu", (event) => event.preventDefault());

// --- The tools

function choose(tool) {
  tools.tool = tool;
  for (const name of ["pen", "eraser"]) element(name).setAttribute("aria-pressed", String(name === tool));
  document.body.dataset.tool = tool;
  const slider = element("size");
  [slider.min, slider.max, slider.step] = tool === "pen" ? [2, 12, 0.5] : [6, 60, 1];
  resize(tools[tool]);
}

function resize(size) {
  const slider = element("size");
  slider.value = size;
  tools[tools.tool] = Number(slider.value);
  element("size-name").textContent = tools.tool === "pen" ? "Thickness" : "Eraser size";
  const share = (slider.value - slider.min) / (slider.max - slider.min);
  slider.setAttribute("aria-valuetext", `${Math.round(100 * share)} percent`);
  element("dot").style.setProperty("--share", share.toFixed(2));
  render();
}

function step(direction) {
  const slider = element("size");
  resize(Number(slider.value) + (direction * (slider.max - slider.min)) / 10);
}

const actions = {
  pen: () => choose("pen"),
  eraser: () => choose("eraser"),
  undo: () => {
    if (hand) return;
    say(history.undo() ? `Undone: ${described()}` : "There is nothing to undo");
    refresh();
  },
  redo: () => {
    if (hand) return;
    say(history.redo() ? `Done again: ${described()}` : "There is nothing to do again");
    refresh();
  },
  clear: () => !isEmpty(history.now) && change(EMPTY, "A clean sheet. Undo brings the drawing back"),
  flip: () => !isEmpty(history.now) && change(flipped(history.now), "Mirrored"),
  faces: () => element("faces-dialog").showModal(),
  begin: () => element("faces-dialog").showModal(),
  photo: () => (ghost ? hidePhoto() : element("photo-file").click()),
  open: () => element("line-file").click(),
  save: () => !isEmpty(history.now) && element("save-dialog").showModal(),
  about: () => element("about-dialog").showModal(),
};
for (const [id, act] of Object.entries(actions)) element(id).addEventListener("click", act);
element("size").addEventListener("input", () => resize(element("size").value));
element("twin").addEventListener("change", () => {
  tools.twin = element("twin").checked;
  document.body.toggleAttribute("data-twin", tools.twin);
});
for (const radio of document.querySelectorAll("input[name=erases]")) {
  radio.addEventListener("change", () => (tools.whole = radio.value === "whole"));
}

const keys = { p: "pen", e: "eraser", z: "undo", y: "redo", c: "clear", m: "flip", f: "faces", t: "photo", o: "open", s: "save", "?": "about" };
document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]") || event.altKey) return;
  const key = event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey) {
    if (key !== "z" && key !== "y") return;
    event.preventDefault();
    actions[key === "y" || event.shiftKey ? "redo" : "undo"]();
  } else if (key === "[" || key === "]") {
    step(key === "[" ? -1 : 1);
  } else if (key === "x") {
    element("twin").click();
  } else if (keys[key]) {
    event.preventDefault();
    if (key === "e" && tools.tool === "eraser") choose("pen");
    else actions[keys[key]]();
  }
});

// --- Beginnings: an example, a photograph to trace, a picture of lines

for (const button of document.querySelectorAll("[data-face]")) {
  button.addEventListener("click", () => {
    element("faces-dialog").close();
    const strokes = strokesOf(button.querySelector("svg"));
    change({ ...EMPTY, strokes }, `${button.textContent.trim()}: ${strokes.length} strokes to begin with`);
  });
}

function showPhoto(image) {
  ghost = ghostOf(image);
  element("ghost").width = element("ghost").height = ghost.width;
  element("ghost").getContext("2d").drawImage(ghost, 0, 0);
  document.body.setAttribute("data-ghost", "");
  element("photo").setAttribute("aria-pressed", "true");
  say("The outline of your photograph lies under the sheet: trace it. The photograph stays on this device");
}

function hidePhoto() {
  ghost = null;
  element("ghost").width = 1; // which also clears it
  document.body.removeAttribute("data-ghost");
  element("photo").setAttribute("aria-pressed", "false");
  say("The outline of the photograph is gone");
}

async function opened(input) {
  const [file] = input.files;
  input.value = ""; // so that the same file can be chosen again
  try {
    return file && (await bitmapOf(file));
  } catch {
    say(`${file.name}: is not a picture that this browser can open`);
    return null;
  }
}

element("photo-file").addEventListener("change", async ({ target }) => {
  const image = await opened(target);
  if (image) showPhoto(image);
});

element("line-file").addEventListener("change", async ({ target }) => {
  const image = await opened(target);
  if (!image) return;
  const picture = squareOf(image);
  const look = lookOf(grayOf(picture.getContext("2d")));
  if (look === "blank") say("That picture has one tone everywhere: there are no lines in it");
  else if (look === "photo") showPhoto(image);
  else if (look === "line") change({ ...EMPTY, picture }, "The lines are on the sheet. You can draw on");
  else change({ ...EMPTY, picture: inverted(picture) }, "The lines were light on black; now they are dark on white");
});

for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", ({ target }) => target === dialog && dialog.close()); // outside of its contents
}

// --- Beginning

portrait.width = portrait.height = settings.size;
portrait.after(fed);
new ResizeObserver(render).observe(lines);
choose("pen");
refresh();
stored().then((drawing) => {
  if (isEmpty(drawing) || !isEmpty(history.now) || hand) return;
  history.now = drawing;
  say("Your last drawing is back on the sheet");
  refresh();
});
