// Noise removal as `infer` does it (dist_sketch/model/denoise.py, where each step says why), on square drawings. A test
// compares the two. Planes are arrays of size * size gray levels; the constants are those of the Python module.

const [SIDE, MARGIN, FADED, GRAIN, GLARE, STEP, NARROW, TEXTURE, FRINGE] = [128, 2, 10, 4, 0.25, 24, 12, 24, 0.2];

function denoised(planes, size, { gray, filter, strength, shadows }) {
  let clean = planesOf(planes, gray).map((plane) => filtered(plane, size, filter, strength));
  if (shadows) clean = flattened(clean, size);
  return clean.map((plane) => Uint8ClampedArray.from(plane)); // it rounds, half to even
}

function planesOf(planes, gray) {
  const [red, green, blue] = planes;
  if (!green || red.every((level, i) => level === green[i] && level === blue[i])) return [Float32Array.from(red)];
  if (!gray) return planes.map((plane) => Float32Array.from(plane));
  return [Float32Array.from(red, (level, i) => Math.round(level * 0.299 + green[i] * 0.587 + blue[i] * 0.114))];
}

function filtered(plane, size, name, strength) {
  if (name === "none" || strength < 1e-6) return plane;
  if (name === "median") return despeckled(plane, size, strength);
  const unit = plane.map((level) => level / 255);
  const filters = { tv: totalVariation, nlm: nonLocalMeans, bilateral };
  return filters[name](unit, size, strength).map((level) => level * 255);
}

// --- Filters of scikit-image

// Chambolle's algorithm, as denoise_tv_chambolle.
function totalVariation(image, size, strength) {
  const [weight, tau] = [0.05 * strength, 0.25];
  const count = size * size;
  const [down, right] = [new Float32Array(count), new Float32Array(count)];
  let out = image;
  let [first, before] = [0, 0];
  for (let round = 0; round < 200; round += 1) {
    let energy = 0;
    if (round) {
      out = image.map((level, i) => {
        const above = i >= size ? down[i - size] : 0;
        const left = i % size ? right[i - 1] : 0;
        const divergence = above + left - down[i] - right[i];
        energy += divergence * divergence;
        return level + divergence;
      });
    }
    for (let i = 0; i < count; i += 1) {
      const rise = i < count - size ? out[i + size] - out[i] : 0;
      const run = i % size < size - 1 ? out[i + 1] - out[i] : 0;
      const slope = Math.sqrt(rise * rise + run * run);
      energy += weight * slope;
      down[i] = (down[i] - tau * rise) / (1 + (slope * tau) / weight);
      right[i] = (right[i] - tau * run) / (1 + (slope * tau) / weight);
    }
    energy /= count;
    if (!round) first = energy;
    else if (Math.abs(before - energy) < 2e-4 * first) break;
    before = energy;
  }
  return out;
}

// As denoise_nl_means in its fast mode, with patches of 5 px at a distance of up to 5 px.
function nonLocalMeans(image, size, strength) {
  const [half, reach] = [2, 5];
  const pad = half + reach + 1;
  const wide = size + 2 * pad;
  const scale = (0.06 * strength * 5) ** 2;
  const source = (i) => (i < 0 ? -i : i >= size ? 2 * (size - 1) - i : i); // reflected
  const padded = new Float32Array(wide * wide); // 32 bits, because sums in more bits differ from those of scikit-image
  for (let i = 0; i < padded.length; i += 1) {
    padded[i] = image[source(Math.floor(i / wide) - pad) * size + source((i % wide) - pad)];
  }
  const [sums, weights, integral] = [0, 1, 2].map(() => new Float32Array(wide * wide));
  for (let downward = -reach; downward <= reach; downward += 1) {
    for (let rightward = 0; rightward <= reach; rightward += 1) {
      const shift = downward * wide + rightward;
      const [top, bottom] = [Math.max(1, 1 - downward), Math.min(wide, wide - downward)];
      integral.fill(0);
      for (let y = top; y < bottom; y += 1) {
        for (let x = 1; x < wide - rightward; x += 1) {
          const i = y * wide + x;
          integral[i] = (padded[i] - padded[i + shift]) ** 2 + integral[i - wide] + integral[i - 1] - integral[i - wide - 1];
        }
      }
      const alpha = rightward ? 1 : 0.5; // within one column each pair is met twice
      const [from, to] = [Math.max(half, half - downward), Math.min(wide - half, wide - half - downward)];
      for (let y = from; y < to; y += 1) {
        for (let x = half; x < wide - half - rightward; x += 1) {
          const i = y * wide + x;
          const [up, low] = [i - half * wide, i + half * wide];
          const distance = Math.max(0, integral[low + half] + integral[up - half] - integral[low - half] - integral[up + half]) / scale;
          if (distance > 5) continue;
          const weight = alpha * Math.exp(-distance);
          weights[i] += weight;
          weights[i + shift] += weight;
          sums[i] += weight * padded[i + shift];
          sums[i + shift] += weight * padded[i];
        }
      }
    }
  }
  return image.map((_, i) => {
    const at = (Math.floor(i / size) + pad) * wide + (i % size) + pad;
    return sums[at] / weights[at];
  });
}

// As denoise_bilateral with a window of 5 px. Its table of distances has 6 columns and is read as if it had 5.
function bilateral(image, size, strength) {
  const [window, sigma, bins] = [5, 0.1 * strength, 10000];
  const brightest = image.reduce((a, b) => Math.max(a, b));
  if (image.every((level) => level === brightest)) return image;
  const near = Array.from({ length: window * window }, (_, k) => {
    const [row, column] = [Math.floor(k / 6) - 3, (k % 6) - 3];
    return Math.exp((-0.5 * (row * row + column * column)) / 1.5 ** 2);
  });
  const alike = Float32Array.from({ length: bins + 1 }, (_, k) => Math.exp(-0.5 * ((k * brightest) / bins / sigma) ** 2));
  const inside = (i) => Math.max(0, Math.min(size - 1, i));
  return image.map((level, i) => {
    const [y, x] = [Math.floor(i / size), i % size];
    let [sum, total] = [0, 0];
    for (let k = 0; k < window * window; k += 1) {
      const other = image[inside(y + Math.floor(k / window) - 2) * size + inside(x + (k % window) - 2)];
      const weight = near[k] * alike[Math.floor((Math.abs(other - level) * bins) / brightest)];
      sum += weight * other;
      total += weight;
    }
    return sum / total;
  });
}

// --- Specks

function middleOf(values) {
  const sorted = Float64Array.from(values).sort();
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

// Calls with each neighbour of a pixel that is at most `reach` px away, the pixel itself among them.
function around(i, size, reach, visit) {
  const [y, x] = [Math.floor(i / size), i % size];
  for (let row = Math.max(0, y - reach); row <= Math.min(size - 1, y + reach); row += 1) {
    for (let column = Math.max(0, x - reach); column <= Math.min(size - 1, x + reach); column += 1) {
      visit(row * size + column);
    }
  }
}

// The connected parts of what is marked, as lists of pixels; neighbours also touch at their corners.
function partsOf(marked, size) {
  const known = new Uint8Array(marked.length);
  const parts = [];
  for (let begin = 0; begin < marked.length; begin += 1) {
    if (!marked[begin] || known[begin]) continue;
    const part = [begin];
    known[begin] = 1;
    for (let k = 0; k < part.length; k += 1) {
      around(part[k], size, 1, (i) => {
        if (!marked[i] || known[i]) return;
        known[i] = 1;
        part.push(i);
      });
    }
    parts.push(part);
  }
  return parts;
}

// The median of the square around each pixel, as far as it lies in the picture; of two middle levels the upper one.
function medianOf(plane, size, reach) {
  const median = new Float32Array(plane.length);
  for (let y = 0; y < size; y += 1) {
    const [top, bottom] = [Math.max(0, y - reach), Math.min(size - 1, y + reach)];
    const levels = new Int32Array(256); // how often each is in the square, which moves to the right
    const count = (x, change) => {
      for (let row = top; row <= bottom; row += 1) levels[plane[row * size + x]] += change;
    };
    for (let x = 0; x < reach; x += 1) count(x, 1);
    for (let x = 0; x < size; x += 1) {
      if (x + reach < size) count(x + reach, 1);
      if (x - reach > 0) count(x - reach - 1, -1);
      const width = Math.min(size - 1, x + reach) - Math.max(0, x - reach) + 1;
      let level = 256; // searched from above, because most of a page is light
      for (let left = ((bottom - top + 1) * width) / 2; left > 0; left -= levels[level]) level -= 1;
      median[y * size + x] = level;
    }
  }
  return median;
}

function despeckled(plane, size, strength) {
  const scale = Math.max(1, size / SIDE);
  const reach = roundedEven(2 * scale);
  const median = medianOf(plane, size, reach);
  const depth = median.map((level, i) => level - plane[i]);
  const grain = 1.4826 * middleOf(depth.map(Math.abs));
  const ink = depth.map((value) => Number(value > Math.max(8, 2 * grain)));
  const isCore = (i) => depth[i] > Math.max(16, 3 * grain);
  const limit = 6 * strength * scale * scale;
  const parts = partsOf(ink, size);
  const large = new Uint8Array(plane.length);
  const areas = parts.map((part) => part.filter(isCore).length);
  parts.forEach((part, k) => areas[k] > limit && part.forEach((at) => around(at, size, reach, (i) => (large[i] = 1))));
  const clean = plane.slice();
  parts.forEach((part, k) => {
    const core = part.filter(isCore);
    if (!core.length || areas[k] > limit || part.some((i) => large[i])) return;
    const span = (of) => Math.max(...core.map(of)) - Math.min(...core.map(of)) + 1;
    const length = Math.max(span((i) => i % size), span((i) => Math.floor(i / size)));
    if (length > Math.max(1.25 * Math.sqrt(limit), 1)) return;
    let darkest = 255; // of the neighbours that are no ink
    part.forEach((at) => around(at, size, 1, (i) => (darkest = Math.min(darkest, ink[i] ? 255 : plane[i]))));
    const [page, dark] = [Math.max(...part.map((i) => median[i])), Math.min(...part.map((i) => plane[i]))];
    if (darkest > (page + dark) / 2) part.forEach((i) => (clean[i] = median[i]));
  });
  return clean;
}

// --- The page

function roundedEven(value) {
  const below = Math.floor(value);
  return value - below === 0.5 ? below + (below % 2) : Math.round(value);
}

// Convolves `count` values that lie `stride` apart with a Gaussian; the edge is repeated, or reflected.
function smoothed(values, sigma, { reflect = false, from = 0, stride = 1, count = values.length } = {}) {
  const reach = Math.floor(4 * sigma + 0.5);
  const kernel = Array.from({ length: 2 * reach + 1 }, (_, k) => Math.exp((-0.5 * (k - reach) ** 2) / (sigma * sigma)));
  const total = kernel.reduce((a, b) => a + b);
  const padded = Float64Array.from({ length: count + 2 * reach }, (_, k) => {
    let i = Math.max(0, Math.min(count - 1, k - reach));
    if (reflect) {
      i = (k - reach + 2 * count) % (2 * count);
      i = Math.min(i, 2 * count - 1 - i);
    }
    return values[from + stride * i];
  });
  const result = new Float64Array(count);
  for (let i = 0; i < count; i += 1) {
    for (let k = 0; k < kernel.length; k += 1) result[i] += (kernel[k] / total) * padded[i + k];
  }
  return result;
}

function pageTone(plane) {
  const counts = new Float64Array(256);
  for (const level of plane) counts[Math.max(0, Math.min(255, roundedEven(level)))] += 1;
  const light = counts.slice(128).reduce((a, b) => a + b) >= 0.1 * plane.length ? 128 : 0;
  const smooth = smoothed(counts.slice(light), 4, { reflect: true });
  const mode = light + smooth.indexOf(smooth.reduce((a, b) => Math.max(a, b)));
  return middleOf(plane.filter((level) => Math.abs(level - mode) <= 20));
}

function flattened(planes, size) {
  const mean = planes[0].map((_, i) => planes.reduce((sum, plane) => sum + plane[i], 0) / planes.length);
  const page = pageTone(mean);
  const shadow = edgeShadow(mean, page, size);
  const gain = mean.map((_, i) => page / Math.max(page - shadow[i], 1));
  const depth = mean.map((level, i) => page - level * gain[i]);
  const flat = planes.map((plane) => plane.map((level, i) => level * gain[i]));
  return withoutFringe(flat, depth, size).map((plane) => {
    const top = pageTone(plane) + GRAIN;
    const share = plane.filter((level) => level > top).length / plane.length;
    return share < GLARE ? plane.map((level) => Math.min(level, top)) : plane;
  });
}

// Where the pixel lies that is `inwards` from a side (0 to 3, counted as numpy.rot90 turns) and `along` it.
function placeAt(side, inwards, along, size) {
  const last = size - 1;
  if (side === 0) return inwards * size + along;
  if (side === 1) return along * size + last - inwards;
  if (side === 2) return (last - inwards) * size + last - along;
  return (last - along) * size + inwards;
}

function edgeShadow(gray, page, size) {
  const scale = Math.max(1, size / SIDE);
  const low = Math.max(16, roundedEven(size / scale));
  const small = averaged(gray, size, low);
  const total = new Float32Array(low * low);
  const rows = Math.max(8, Math.floor(low / 3));
  for (let side = 0; side < 4; side += 1) {
    const depth = (row, column) => page - small[placeAt(side, row, Math.max(0, Math.min(low - 1, column)), low)];
    const [middle, spread] = [[], []];
    for (let i = 0; i < rows * low; i += 1) {
      const [row, column] = [Math.floor(i / low), i % low];
      const beside = Float32Array.from({ length: 9 }, (_, k) => depth(row, column + k - 4)).sort();
      middle.push(beside[4]);
      spread.push(beside[6] - beside[2]);
    }
    const tone = Array.from({ length: rows }, (_, row) => smoothed(middle, 1, { from: row * low, count: low }));
    const shade = tone.map((row) => row.slice().fill(0));
    const known = [];
    for (let x = 0; x < low; x += 1) {
      const end = tone.findIndex((row) => row[x] < FADED);
      const inside = tone.slice(0, Math.max(end, 0)).map((row) => row[x]);
      let [steepest, texture] = [0, 0];
      inside.forEach((_, y) => {
        if (y < MARGIN) return;
        texture += spread[y * low + x];
        if (y < rows - 2) steepest = Math.max(steepest, Math.abs(tone[y][x] - tone[y + 2][x]));
      });
      const outline = end <= NARROW ? Math.max(STEP, 0.45 * Math.max(0, ...inside)) : STEP;
      if (end >= 0 && steepest < outline && texture / Math.max(end - MARGIN, 1) < TEXTURE) known.push(x);
      let least = Infinity;
      inside.forEach((value, y) => (shade[y][x] = least = Math.min(least, Math.max(value, 0))));
    }
    if (!known.length) continue;
    for (let x = 0, next = 0; x < low; x += 1) {
      while (next < known.length && known[next] < x) next += 1;
      const right = known[Math.min(next, known.length - 1)];
      const left = known[next] === x ? x : known[Math.max(0, next - 1)];
      const share = right > left ? Math.max(0, (x - left) / (right - left)) : 0;
      const outside = Math.max(known[0] - x, x - known.at(-1), 0);
      const faded = Math.max(1 - outside / rows, 0);
      for (let y = 0; y < rows; y += 1) {
        total[placeAt(side, y, x, low)] += faded * (shade[y][left] + share * (shade[y][right] - shade[y][left]));
      }
    }
  }
  const across = Float32Array.from(total);
  for (let x = 0; x < low; x += 1) {
    smoothed(total, 0.7, { from: x, stride: low, count: low }).forEach((value, y) => (across[y * low + x] = value));
  }
  for (let y = 0; y < low; y += 1) total.set(smoothed(across, 0.7, { from: y * low, count: low }), y * low);
  return enlarged(total.map((value, i) => Math.min(value, Math.max(page - small[i], 0))), low, size);
}

// As torch's interpolate with mode "area".
function averaged(plane, size, low) {
  const small = new Float32Array(low * low);
  for (let i = 0; i < small.length; i += 1) {
    const [top, left] = [Math.floor(i / low), i % low].map((k) => Math.floor((k * size) / low));
    const [bottom, right] = [Math.floor(i / low) + 1, (i % low) + 1].map((k) => Math.ceil((k * size) / low));
    let sum = 0;
    for (let y = top; y < bottom; y += 1) for (let x = left; x < right; x += 1) sum += plane[y * size + x];
    small[i] = sum / ((bottom - top) * (right - left));
  }
  return small;
}

// As torch's interpolate with mode "bilinear".
function enlarged(small, low, size) {
  const between = (k) => {
    const at = Math.max(0, ((k + 0.5) * low) / size - 0.5);
    const below = Math.floor(at);
    return [below, Math.min(below + 1, low - 1), at - below];
  };
  return Float32Array.from({ length: size * size }, (_, i) => {
    const [[top, bottom, down], [left, right, across]] = [between(Math.floor(i / size)), between(i % size)];
    const row = (y) => small[y * low + left] * (1 - across) + small[y * low + right] * across;
    return row(top) * (1 - down) + row(bottom) * down;
  });
}

function withoutFringe(planes, depth, size) {
  const scale = Math.max(1, size / SIDE);
  const [margin, reach] = [roundedEven(MARGIN * scale), roundedEven(3 * scale)];
  const clean = planes.map((plane) => plane.slice());
  const tones = planes.map(pageTone);
  for (let side = 0; side < 4; side += 1) {
    const isInk = (row, column) => depth[placeAt(side, row, column, size)] > FADED;
    const rows = Array.from({ length: margin }, (_, row) => row);
    const below = Array.from({ length: size }, (_, x) => rows.some((row) => isInk(margin + row, x)));
    const inner = below.map((_, x) => below.slice(Math.max(0, x - reach), x + reach + 1).some(Boolean));
    const marked = inner.map((hidden, x) => !hidden && rows.some((row) => isInk(row, x)));
    const share = FRINGE * inner.filter((hidden) => !hidden).length;
    const everywhere = marked.filter(Boolean).length > share;
    clean.forEach((plane, k) => {
      for (let x = 0; x < size; x += 1) {
        const ink = plane[placeAt(side, margin, x, size)];
        for (const row of rows) {
          const i = placeAt(side, row, x, size);
          if (inner[x]) plane[i] = everywhere ? ink : plane[i];
          else if (isInk(row, x)) plane[i] = tones[k];
        }
      }
    });
  }
  return clean;
}
