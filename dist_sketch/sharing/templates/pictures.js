// Pictures that a person opens or saves. None of them leaves the page.

const MOST_PX = 1024; // of a picture that is kept
const GHOST_PX = 512;

// The pixels of a file or a data: address, turned as its camera was held.
async function bitmapOf(source) {
  const image = new Image();
  const address = typeof source === "string" ? source : URL.createObjectURL(source);
  try {
    image.src = address;
    await image.decode();
    return image;
  } finally {
    if (address !== source) URL.revokeObjectURL(address);
  }
}

function canvasOf(width, height = width) {
  return Object.assign(document.createElement("canvas"), { width, height });
}

// The whole picture in the middle of a square, gray, on white where it is clear. As in `infer --fit pad`, the margins
// have the median tone of the picture's border: white ones beside gray paper would look like a drawn edge.
function squareOf(image) {
  const scale = Math.min(1, MOST_PX / Math.max(image.width, image.height));
  const [width, height] = [image.width, image.height].map((side) => Math.max(1, Math.round(side * scale)));
  const side = Math.max(width, height);
  const [left, top] = [(side - width) >> 1, (side - height) >> 1];
  const canvas = canvasOf(side);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#fff";
  context.fillRect(0, 0, side, side);
  context.drawImage(image, left, top, width, height);
  const inner = grayOf(context, left, top, width, height);
  const edge = (i) => i % width === 0 || i % width === width - 1 || i < width || i >= width * (height - 1);
  const border = inner.filter((_, i) => edge(i)).sort();
  const gray = new Uint8ClampedArray(side * side).fill(border[border.length >> 1]);
  for (let y = 0; y < height; y += 1) gray.set(inner.subarray(y * width, (y + 1) * width), (top + y) * side + left);
  context.putImageData(imageOf([gray], side), 0, 0);
  return canvas;
}

// The luma of the pixels (ITU-R 601), rounded as Pillow does.
function grayOf(context, left = 0, top = 0, width = context.canvas.width, height = context.canvas.height) {
  const { data } = context.getImageData(left, top, width, height);
  const gray = new Uint8ClampedArray(width * height);
  for (let i = 0; i < gray.length; i += 1) {
    gray[i] = (data[4 * i] * 19595 + data[4 * i + 1] * 38470 + data[4 * i + 2] * 7471 + 32768) >> 16;
  }
  return gray;
}

// One plane of gray, or three of red, green and blue, as pixels of a canvas.
function imageOf(planes, side) {
  const image = new ImageData(side, side);
  for (let i = 0; i < side * side; i += 1) {
    for (let c = 0; c < 3; c += 1) image.data[4 * i + c] = planes[c % planes.length][i];
    image.data[4 * i + 3] = 255;
  }
  return image;
}

// What a picture looks like, by the rules of `infer`: "blank", "inverted" (light on black), "photo", or "line".
function lookOf(gray) {
  const counts = new Float64Array(256);
  for (const level of gray) counts[level] += 1;
  const mean = gray.reduce((sum, level) => sum + level, 0) / gray.length;
  const spread = Math.sqrt(gray.reduce((sum, level) => sum + (level - mean) ** 2, 0) / gray.length);
  const quantile = (share, of = counts) => {
    let [level, sum] = [0, of[0]];
    while (sum < share * gray.length) sum += of[(level += 1)];
    return level;
  };
  const isOnPaper = (of) => {
    const light = Math.ceil(0.8 * quantile(0.95, of));
    return of.slice(light).reduce((sum, count) => sum + count, 0) >= 0.5 * gray.length;
  };
  if (spread < 2) return "blank";
  if (quantile(0.5) < 64 && isOnPaper(counts.slice().reverse())) return "inverted";
  return isOnPaper(counts) ? "line" : "photo";
}

function inverted(canvas) {
  const context = canvas.getContext("2d");
  const gray = grayOf(context).map((level) => 255 - level);
  context.putImageData(imageOf([gray], canvas.width), 0, 0);
  return canvas;
}

function mirroredPicture(picture) {
  const canvas = canvasOf(picture.width);
  const context = canvas.getContext("2d");
  context.setTransform(-1, 0, 0, 1, picture.width, 0);
  context.drawImage(picture, 0, 0);
  return canvas;
}

// The outline of a photograph, to be traced: where it is darker than its wider surroundings (a difference of
// Gaussians). The photograph's middle is taken as a square, because that is the page's shape.
function ghostOf(image) {
  const canvas = canvasOf(GHOST_PX);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const side = Math.min(image.width, image.height);
  const [left, top] = [(image.width - side) / 2, (image.height - side) / 2];
  context.imageSmoothingQuality = "high";
  context.drawImage(image, left, top, side, side, 0, 0, GHOST_PX, GHOST_PX);
  const gray = Float32Array.from(grayOf(context));
  const [near, wide] = [blurred(gray, GHOST_PX, 2), blurred(gray, GHOST_PX, 3.5)];
  const depth = wide.map((level, i) => Math.max(0, level - near[i]));
  const deep = depth.slice().sort()[Math.floor(0.97 * depth.length)] || 1;
  const ghost = new ImageData(GHOST_PX, GHOST_PX);
  depth.forEach((value, i) => ghost.data.set([70, 110, 170, 190 * Math.min(1, Math.max(0, (value / deep - 0.25) * 1.6))], 4 * i));
  context.putImageData(ghost, 0, 0);
  return canvas;
}

// Convolves a square with a Gaussian, first along its rows, then along its columns; the edge is repeated.
function blurred(plane, side, sigma) {
  const reach = Math.ceil(3 * sigma);
  const kernel = Array.from({ length: 2 * reach + 1 }, (_, i) => Math.exp(-((i - reach) ** 2) / (2 * sigma * sigma)));
  const total = kernel.reduce((sum, weight) => sum + weight);
  const rows = (from) => {
    const to = new Float32Array(from.length); // turned on its side, so that the second time goes along the columns
    for (let y = 0; y < side; y += 1) {
      for (let x = 0; x < side; x += 1) {
        let sum = 0;
        kernel.forEach((weight, k) => (sum += weight * from[y * side + Math.min(side - 1, Math.max(0, x + k - reach))]));
        to[x * side + y] = sum / total;
      }
    }
    return to;
  };
  return rows(rows(plane));
}

async function pngOf(canvas) {
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

function download(blob, name) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
