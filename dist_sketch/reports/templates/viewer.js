// Every picture enlarges on a click. The pictures of one face lie in an element with data-face: in the viewer ← and →
// go through them, then to the difference of a drawn and the real one, and to a slider between these two; ↑ and ↓ go
// to other faces. data-role says what a picture is (line, drawn, real), data-large where a sharper copy may lie, and
// data-crop ("column row columns rows") which part of the file is shown.
(() => {
  const dialog = document.createElement("dialog");
  dialog.id = "viewer";
  dialog.innerHTML = `
    <header><strong></strong> <span></span><button type="button" data-do="close" aria-label="Close">×</button></header>
    <nav></nav>
    <div class="stage"><div class="pane"><img alt=""></div><div class="pane"><img alt=""></div></div>
    <label class="cut">drawn <input type="range" min="0" max="100" value="50" aria-label="Between drawn and real"> real</label>
    <footer>
      <button type="button" data-do="ArrowUp">↑ face before</button><button type="button" data-do="ArrowDown">↓ next face</button>
      <button type="button" data-do="PageUp">earlier epoch (Page ↑)</button><button type="button" data-do="PageDown">later epoch (Page ↓)</button>
      <span>Keys: ← → picture, ↑ ↓ face, Esc</span>
    </footer>`;
  document.body.append(dialog);
  const [name, caption] = dialog.querySelectorAll("header strong, header span");
  const nav = dialog.querySelector("nav"), stage = dialog.querySelector(".stage"), cut = dialog.querySelector(".cut input");
  const panes = [...dialog.querySelectorAll(".pane")];
  const moment = () => document.getElementById("moment"); // the page of a run has faces of many epochs
  let place = 0, wanted = "", drawn = ""; // number of the face, and the labels of what is shown

  const isPicture = image => image instanceof HTMLImageElement && !dialog.contains(image);
  const group = image => image.closest("[data-face]") ?? image;
  const groups = () => [...new Set([...document.images].filter(isPicture).map(group))].filter(g => g.checkVisibility());
  const label = image => image.dataset.caption ?? image.alt;

  function views(face) {
    const images = face instanceof HTMLImageElement ? [face] : [...face.querySelectorAll("img")];
    const rank = image => ({ line: 0, real: 2 })[image.dataset.role] ?? 1;
    images.sort((a, b) => rank(a) - rank(b));
    const found = images.map(image => ({ label: label(image), images: [image] }));
    const real = images.find(image => image.dataset.role === "real");
    const ours = images.filter(image => image.dataset.role === "drawn");
    const mine = ours.find(image => label(image) === drawn) ?? ours.at(-1);
    if (real && mine) {
      found.push({ label: "difference", images: [mine, real], kind: "difference" });
      found.push({ label: "slider", images: [mine, real], kind: "slider" });
    }
    return found;
  }

  function put(pane, image) {
    const [column, row, columns, rows] = (image?.dataset.crop ?? "0 0 1 1").split(" ").map(Number);
    const picture = pane.firstElementChild;
    pane.hidden = !image;
    if (!image) return;
    pane.style.cssText = `--column: ${column}; --row: ${row}; --columns: ${columns}; --rows: ${rows}`;
    picture.onload = fit;
    picture.onerror = () => { picture.onerror = null; picture.src = image.src; }; // the sharper copy is gone
    picture.src = image.dataset.large ?? image.src;
    picture.alt = image.alt;
  }

  function fit() {
    const { naturalWidth, naturalHeight } = panes[0].firstElementChild;
    const style = panes[0].style;
    const width = naturalWidth / style.getPropertyValue("--columns"), height = naturalHeight / style.getPropertyValue("--rows");
    const around = getComputedStyle(dialog);
    const free = dialog.clientHeight - parseFloat(around.paddingTop) - parseFloat(around.paddingBottom);
    const others = [...dialog.children].filter(e => e !== stage).reduce((sum, e) => sum + e.offsetHeight, 0) + 24;
    const across = dialog.clientWidth - parseFloat(around.paddingLeft) - parseFloat(around.paddingRight);
    const scale = Math.min(across / width, Math.max(free - others, 160) / height);
    if (!(scale > 0 && scale < Infinity)) return;
    stage.style.width = `${Math.floor(width * scale)}px`;
    stage.style.height = `${Math.floor(height * scale)}px`;
  }

  function show() {
    const all = groups(), face = all[place = (place + all.length) % all.length], list = views(face);
    const now = list.find(view => view.label === wanted) ?? list[0];
    if (now.images[0].dataset.role === "drawn") drawn = label(now.images[0]);
    const named = face.dataset.face ?? "";
    name.textContent = named;
    caption.textContent = [now.kind === "difference" ? `${drawn} and real: the darker, the more they differ`
      : now.kind === "slider" ? `${drawn} | real` : now.label, moment()?.nextElementSibling.textContent].filter(Boolean).join(" · ");
    nav.replaceChildren(...(list.length < 2 ? [] : list.map(view => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = view.label;
      button.ariaPressed = String(view === now);
      button.onclick = () => { wanted = view.label; show(); };
      return button;
    })));
    stage.dataset.kind = now.kind ?? "";
    cut.parentElement.hidden = now.kind !== "slider";
    panes.forEach((pane, i) => put(pane, now.images[i]));
    for (const button of dialog.querySelectorAll("[data-do^=Page]")) button.hidden = !moment();
    fit();
  }

  function step(by) {
    const list = views(groups()[place]), labels = list.map(view => view.label);
    wanted = labels[(Math.max(0, labels.indexOf(wanted)) + by + labels.length) % labels.length];
    show();
  }

  function obey(key) {
    if (key === "close") dialog.close();
    else if (key === "ArrowLeft" || key === "ArrowRight") step(key === "ArrowLeft" ? -1 : 1);
    else if (key === "ArrowUp" || key === "ArrowDown") { place += key === "ArrowUp" ? -1 : 1; show(); }
    else if ((key === "PageUp" || key === "PageDown") && moment()) {
      moment()[key === "PageUp" ? "stepDown" : "stepUp"]();
      moment().dispatchEvent(new Event("input"));
    } else return false;
    return true;
  }

  function open(image) {
    place = groups().indexOf(group(image));
    wanted = label(image);
    dialog.showModal();
    show();
  }

  document.addEventListener("click", event => {
    if (isPicture(event.target)) open(event.target);
    else if (event.target === dialog) dialog.close();
    else if (dialog.contains(event.target) && event.target.dataset.do) obey(event.target.dataset.do);
  });
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (dialog.open ? event.target !== cut && obey(event.key)
      : isPicture(event.target) && ["Enter", " "].includes(event.key) && (open(event.target), true)) event.preventDefault();
  });
  function slide(value) {
    cut.value = value;
    stage.style.setProperty("--cut", `${cut.value}%`);
  }
  cut.oninput = () => slide(cut.value);
  stage.onpointermove = stage.onpointerdown = event => {
    if (stage.dataset.kind !== "slider" || (event.type === "pointermove" && event.pointerType !== "mouse" && !event.buttons)) return;
    const box = stage.getBoundingClientRect();
    slide(100 * (event.clientX - box.left) / box.width);
  };
  addEventListener("resize", () => dialog.open && fit());
  addEventListener("pictures", () => dialog.open && show()); // they have been replaced by those of another epoch
  const reachable = () => groups().forEach(g => { (g instanceof HTMLImageElement ? g : g.querySelector("img")).tabIndex = 0; });
  addEventListener("pictures", reachable);
  reachable();
})();
