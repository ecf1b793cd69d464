// The drawing on the page: {strokes, picture, wiped}. `picture` is a line picture that was opened, a canvas, or null;
// `wiped` are the eraser's strokes on it. A drawing is never changed, only replaced, so undo keeps the old ones.

const EMPTY = { strokes: [], picture: null, wiped: [] };
const MOST_STEPS = 300;
const STORED = "dist_sketch.drawing";

function isEmpty(drawing) {
  return !drawing.strokes.length && !drawing.picture;
}

class History {
  constructor() {
    [this.now, this.past, this.future] = [EMPTY, [], []];
  }

  change(drawing) {
    this.past = [...this.past, this.now].slice(-MOST_STEPS);
    [this.now, this.future] = [drawing, []];
  }

  undo() {
    if (!this.past.length) return false;
    this.future.push(this.now);
    this.now = this.past.pop();
    return true;
  }

  redo() {
    if (!this.future.length) return false;
    this.past.push(this.now);
    this.now = this.future.pop();
    return true;
  }
}

// Rubs out what lies in a circle: whole strokes, or what is inside. Gives the same drawing where nothing is hit.
function erased(drawing, centre, radius, whole) {
  const strokes = drawing.strokes.flatMap((stroke) =>
    whole ? (touches(stroke, centre, radius) ? [] : [stroke]) : cut(stroke, centre, radius),
  );
  const same = strokes.length === drawing.strokes.length && strokes.every((s, i) => s === drawing.strokes[i]);
  if (!drawing.picture || whole) return same ? drawing : { ...drawing, strokes };
  const dot = { points: [[...centre, 0.5]], width: 2 * radius, pen: true };
  return { ...drawing, strokes, wiped: [...drawing.wiped, dot] };
}

function flipped({ strokes, picture, wiped }) {
  return { strokes: strokes.map(mirrored), picture: picture && mirroredPicture(picture), wiped: wiped.map(mirrored) };
}

// Keeps the drawing in this browser. A browser may refuse that, above all for a file on a disk: then it is not kept.
function store(drawing) {
  const short = (stroke) => ({
    ...stroke,
    points: stroke.points.map(([x, y, p]) => [Number(x.toFixed(1)), Number(y.toFixed(1)), Number(p.toFixed(2))]),
  });
  const kept = {
    strokes: drawing.strokes.map(short),
    picture: drawing.picture && drawing.picture.toDataURL(),
    wiped: drawing.wiped.map(short),
  };
  try {
    if (isEmpty(drawing)) localStorage.removeItem(STORED);
    else localStorage.setItem(STORED, JSON.stringify(kept));
  } catch {
    // There is nothing to do about it, and the drawing is still on the page.
  }
}

// The drawing that was kept, or an empty one. What is not ours, or damaged, counts as none.
async function stored() {
  const isStroke = (s) =>
    s.points.length && Number.isFinite(s.width) && s.points.every((p) => p.length === 3 && p.every(Number.isFinite));
  try {
    const { strokes, picture, wiped } = JSON.parse(localStorage.getItem(STORED));
    if (![...strokes, ...wiped].every(isStroke)) return EMPTY;
    return { strokes, wiped, picture: picture && squareOf(await bitmapOf(picture)) };
  } catch {
    return EMPTY;
  }
}
