// The page of a training run: the validation faces of each epoch, and a page that loads itself again while the run goes
// on. Scrolling and the chosen epoch stay as they are; whoever looks at the newest epoch goes on to the next one.
(() => {
  const key = `dist_sketch ${location.pathname}`;
  let kept = {};
  try { kept = JSON.parse(sessionStorage.getItem(key)) ?? {}; } catch { /* the browser keeps nothing for this page */ }
  history.scrollRestoration = "manual";
  const moments = JSON.parse(document.getElementById("moments")?.textContent ?? "[]");
  const slider = document.getElementById("moment"), faces = document.getElementById("faces"), play = document.getElementById("play");
  const newest = moments.length - 1;
  const chosen = () => (slider ? Number(slider.value) : -1);

  // A file holds rows of line | drawn | real, one row a face; their number follows from its shape.
  async function show(index) {
    slider.value = index;
    slider.nextElementSibling.textContent = moments[index].text;
    const sheet = new Image();
    sheet.src = moments[index].src;
    try { await sheet.decode(); } catch { /* the file is gone: what is there stays */ return; }
    if (chosen() !== index) return;
    const rows = Math.max(1, Math.round((3 * sheet.naturalHeight) / sheet.naturalWidth));
    const cells = [...Array(rows).keys()].map(row => {
      const face = document.createElement("div");
      face.className = "face three";
      face.dataset.face = `face ${row + 1}`;
      ["line", "drawn", "real"].forEach((role, column) => {
        const cell = document.createElement("div"), image = new Image();
        cell.className = "pane";
        cell.style.cssText = `--column: ${column}; --row: ${row}; --columns: 3; --rows: ${rows}`;
        image.src = sheet.src;
        image.alt = `${role} of face ${row + 1}`;
        Object.assign(image.dataset, { role, caption: role, crop: `${column} ${row} 3 ${rows}` });
        cell.append(image);
        face.append(cell);
      });
      return face;
    });
    faces.replaceChildren(...cells);
    dispatchEvent(new Event("pictures"));
  }

  let playing = 0;
  const stop = () => { clearInterval(playing); playing = 0; if (play) play.textContent = "▶ play"; };
  if (slider) {
    slider.oninput = () => show(chosen());
    slider.onpointerdown = stop;
    play.onclick = () => {
      if (playing) return stop();
      play.textContent = "❚❚ stop";
      const next = () => show(chosen() < newest ? chosen() + 1 : 0);
      next();
      playing = setInterval(next, 600);
    };
    const before = moments.findIndex(moment => moment.src === kept.moment);
    show(kept.moment && before >= 0 ? before : newest).then(() => scrollTo(0, kept.scroll ?? 0));
  }
  document.querySelectorAll("details").forEach((box, i) => { box.open = kept.open?.includes(i) ?? box.open; });
  scrollTo(0, kept.scroll ?? 0);
  addEventListener("pagehide", () => {
    const open = [...document.querySelectorAll("details")].flatMap((box, i) => (box.open ? [i] : []));
    const moment = slider && chosen() < newest ? moments[chosen()].src : null;
    try { sessionStorage.setItem(key, JSON.stringify({ scroll: scrollY, moment, open })); } catch { /* as above */ }
  });

  const written = document.getElementById("written"), silent = document.getElementById("silent");
  const ago = () => {
    const age_s = Date.now() / 1000 - written.dataset.at, minutes = Math.floor(age_s / 60);
    written.textContent = minutes < 1 ? "less than a minute ago" : minutes < 120 ? `${minutes} min ago` : `${Math.floor(minutes / 60)} h ago`;
    silent.hidden = !written.dataset.silentS || age_s < written.dataset.silentS;
  };
  ago();
  setInterval(ago, 5000);
  const again_s = Number(document.body.dataset.reloadS);
  if (again_s) {
    setInterval(() => {
      const busy = document.hidden || playing || document.getElementById("viewer")?.open || slider?.matches(":active");
      if (!busy) location.reload();
    }, 1000 * again_s);
  }
})();
