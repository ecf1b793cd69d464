// Strokes and what is done with them. A stroke is {points: [[x, y, pressure], ...], width, pen}, in units of which the
// page has PAGE on each side; `pen` says that the pressure was measured. Strokes are never changed, only replaced, so
// a drawing of an earlier moment stays what it was.

const PAGE = 512;
const shapes = new WeakMap(); // stroke -> its outline, which takes longer than filling it

// The outline of a stroke that is drawn to its end, as points [x, y].
function outlineOf(stroke) {
  return getStroke(stroke.points, {
    size: stroke.width,
    thinning: 0.4,
    smoothing: 0.5,
    streamline: stroke.drawn ? 0 : 0.4, // what was not drawn by a hand here needs no steadying
    simulatePressure: !stroke.pen,
    last: true,
  });
}

// The same as the text of an SVG path: curves through the middles between neighbouring points.
function pathOf(stroke) {
  const points = outlineOf(stroke);
  if (!points.length) return "";
  const text = (n) => n.toFixed(2);
  const pieces = points.map(([x, y], i) => {
    const [nextX, nextY] = points[(i + 1) % points.length];
    return `${text(x)} ${text(y)} ${text((x + nextX) / 2)} ${text((y + nextY) / 2)}`;
  });
  const [first, second] = [points[0], points[1 % points.length]];
  return `M${text((first[0] + second[0]) / 2)} ${text((first[1] + second[1]) / 2)}Q${[...pieces.slice(1), pieces[0]].join(" ")}Z`;
}

function shapeOf(stroke) {
  if (!shapes.has(stroke)) shapes.set(stroke, new Path2D(pathOf(stroke)));
  return shapes.get(stroke);
}

// Draws {strokes, picture, wiped}, and the strokes under the hand, on a canvas of any size: black on nothing.
function paint(context, drawing, current = [], ink = "#000", paper = "#fff") {
  const side = context.canvas.width;
  context.save();
  if (drawing.picture) {
    context.imageSmoothingQuality = "high";
    context.drawImage(drawing.picture, 0, 0, side, side);
    context.fillStyle = paper;
    context.scale(side / PAGE, side / PAGE);
    for (const stroke of drawing.wiped) context.fill(shapeOf(stroke));
  } else {
    context.scale(side / PAGE, side / PAGE);
  }
  context.fillStyle = ink;
  for (const stroke of drawing.strokes) context.fill(shapeOf(stroke));
  for (const stroke of current) context.fill(new Path2D(pathOf(stroke)));
  context.restore();
}

function distanceToSegment([x, y], [x0, y0], [x1, y1]) {
  const [dx, dy] = [x1 - x0, y1 - y0];
  const length = dx * dx + dy * dy;
  const t = length ? Math.max(0, Math.min(1, ((x - x0) * dx + (y - y0) * dy) / length)) : 0;
  return Math.hypot(x - x0 - t * dx, y - y0 - t * dy);
}

function touches(stroke, centre, radius) {
  const near = radius + stroke.width / 2;
  if (stroke.points.length === 1) return distanceToSegment(centre, stroke.points[0], stroke.points[0]) < near;
  return stroke.points.some((point, i) => i > 0 && distanceToSegment(centre, stroke.points[i - 1], point) < near);
}

// What is left of a stroke outside a circle: no, one or several strokes.
function cut(stroke, centre, radius) {
  if (!touches(stroke, centre, radius)) return [stroke];
  const between = (from, to, t) => from.map((value, i) => value + t * (to[i] - value));
  const inside = ([x, y]) => Math.hypot(x - centre[0], y - centre[1]) < radius;
  const pieces = [[]];
  stroke.points.forEach((point, i) => {
    if (i) {
      const from = stroke.points[i - 1];
      const crossings = crossingsOf(from, point, centre, radius).map((t) => between(from, point, t));
      crossings.forEach((crossing, k) => {
        // Two crossings of one segment: it goes in at the first and out at the second.
        if (inside(from) !== (k > 0)) pieces.push([crossing]);
        else pieces.at(-1).push(crossing);
      });
    }
    if (!inside(point)) pieces.at(-1).push(point);
  });
  return pieces.filter((points) => points.length > 1).map((points) => ({ ...stroke, points }));
}

// Where the segment crosses the circle, as shares of its length.
function crossingsOf([x0, y0], [x1, y1], [cx, cy], radius) {
  const [dx, dy, fx, fy] = [x1 - x0, y1 - y0, x0 - cx, y0 - cy];
  const [a, b, c] = [dx * dx + dy * dy, 2 * (fx * dx + fy * dy), fx * fx + fy * fy - radius * radius];
  const root = Math.sqrt(b * b - 4 * a * c);
  if (!a || !(root > 0)) return [];
  return [(-b - root) / (2 * a), (-b + root) / (2 * a)].filter((t) => t > 0 && t < 1);
}

function mirrored(stroke) {
  return { ...stroke, points: stroke.points.map(([x, y, pressure]) => [PAGE - x, y, pressure]) };
}

// The strokes of a drawing as a file that any program for vectors opens.
function svgOf(drawing, picture) {
  const paths = (strokes, ink) => strokes.map((stroke) => `<path fill="${ink}" d="${pathOf(stroke)}"/>`).join("\n");
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${PAGE}" height="${PAGE}" viewBox="0 0 ${PAGE} ${PAGE}">`,
    `<rect width="${PAGE}" height="${PAGE}" fill="#fff"/>`,
    ...(picture ? [`<image width="${PAGE}" height="${PAGE}" href="${picture}"/>`, paths(drawing.wiped, "#fff")] : []),
    paths(drawing.strokes, "#000"),
    "</svg>\n",
  ].join("\n");
}

// The strokes of an example: each path of an SVG, as points that lie 5 units apart.
function strokesOf(svg) {
  return [...svg.querySelectorAll("path")].map((path) => {
    const length = path.getTotalLength();
    const steps = Math.max(1, Math.ceil(length / 5));
    const points = Array.from({ length: steps + 1 }, (_, i) => {
      const { x, y } = path.getPointAtLength((i * length) / steps);
      return [x, y, 0.5];
    });
    return { points, width: Number(path.getAttribute("stroke-width")), pen: true, drawn: true };
  });
}
