// What a person takes along: pictures, strokes, or something to send.

const SAVED_PX = 1024;

function savedPicture(kind) {
  const both = kind === "both";
  const canvas = canvasOf(both ? 2 * SAVED_PX : SAVED_PX, SAVED_PX);
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.imageSmoothingQuality = "high";
  if (kind !== "portrait") {
    const sheet = canvasOf(SAVED_PX);
    paint(sheet.getContext("2d"), history.now);
    context.drawImage(sheet, 0, 0);
  }
  if (kind !== "line") context.drawImage(portrait, both ? SAVED_PX : 0, 0, SAVED_PX, SAVED_PX);
  return canvas;
}

async function fileOf(kind) {
  if (kind === "svg") {
    const { picture } = history.now;
    return new File([svgOf(history.now, picture && picture.toDataURL())], "line.svg", { type: "image/svg+xml" });
  }
  return new File([await pngOf(savedPicture(kind))], `${kind}.png`, { type: "image/png" });
}

for (const button of document.querySelectorAll("[data-save]")) {
  button.addEventListener("click", async () => {
    const file = await fileOf(button.dataset.save);
    element("save-dialog").close();
    download(file, file.name);
    say(`Saved as ${file.name}`);
  });
}

element("share").hidden = !navigator.canShare?.({ files: [new File([], "both.png", { type: "image/png" })] });
element("share").addEventListener("click", async () => {
  const files = [await fileOf("both")];
  element("save-dialog").close();
  await navigator.share({ files, title: "A portrait" }).catch(() => {}); // the person thought better of it
});

