// Draws portraits in a thread of its own, so that the pen never waits. The page sends {start} once, then {line}, one at
// a time; it gets {ready}, then {portrait} for each line, or {failed: a sentence}.

let session = null;
let ort = null;
let settings = null;

// The bytes of a text in base64 that holds gzip. fetch() could do this, but the page allows no connections.
async function unpacked(text) {
  const letters = atob(text);
  const packed = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i += 1) packed[i] = letters.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

async function start({ generator, script, wasm, from, ...rest }) {
  settings = rest;
  if (from) {
    ort = await import(`${from}${script}`);
    ort.env.wasm.wasmPaths = from;
  } else {
    const code = new Blob([await unpacked(script)], { type: "text/javascript" });
    ort = await import(URL.createObjectURL(code));
    ort.env.wasm.wasmBinary = await unpacked(wasm);
  }
  ort.env.wasm.numThreads = 1; // more need headers that a file on a disk does not have
  ort.env.logLevel = "error";
  session = await ort.InferenceSession.create(await unpacked(generator), { graphOptimizationLevel: "all" });
  await draw(new Uint8Array(settings.size ** 2).fill(255)); // the first drawing takes longer
}

// A gray picture of size x size -> the finished portrait: 1 or 3 planes of bytes.
async function draw(line) {
  const { size, channels } = settings;
  const values = new Float32Array(channels * line.length);
  for (let c = 0; c < channels; c += 1) line.forEach((level, i) => (values[c * line.length + i] = level / 127.5 - 1));
  const feeds = { line: new ort.Tensor("float32", values, [1, channels, size, size]) };
  const { sketch } = await session.run(feeds);
  const planes = Array.from({ length: channels }, (_, c) => {
    const plane = sketch.data.subarray(c * line.length, (c + 1) * line.length);
    return Uint8ClampedArray.from(plane, (value) => (value + 1) * 127.5); // it rounds, half to even
  });
  return denoised(planes, size, settings.denoise);
}

self.onmessage = async ({ data }) => {
  try {
    if (data.start) {
      await start(data.start);
      self.postMessage({ ready: true });
    } else {
      const begun = performance.now();
      const portrait = await draw(data.line);
      self.postMessage({ portrait, milliseconds: performance.now() - begun });
    }
  } catch (error) {
    self.postMessage({ failed: String(error?.message ?? error) });
  }
};
