// Upscaling with a file of `safmn export`, in tiles that give the same image as the whole picture at once.
//
//   const network = await load(modelBytes, runtimeFolder, "auto", say);
//   const planes = await upscale(network, rgbPlanes, width, height, 640, progress);

/** How far WebGPU's result may be from WebAssembly's on a small image; above this it is not used. */
const TOLERANCE = 1e-3;

/**
 * Loads a network.
 * @param {Uint8Array} bytes The .onnx file.
 * @param {string} runtime Address of the folder `dist` of the npm package onnxruntime-web.
 * @param {"auto"|"webgpu"|"wasm"} device "auto": WebGPU where it works, otherwise WebAssembly.
 * @param {(line: string) => void} say Gets a line for each thing that a user should know.
 * @returns {Promise<{session, ort, scale: number, window: number, halo: number|null, device: string}>}
 *   halo: LR pixels around a tile that its pixels depend on; null: the whole image.
 */
export async function load(bytes, runtime, device, say) {
  const facts = metadata(bytes);
  for (const key of ["scale", "window", "tile_halo"]) {
    if (!(key in facts)) throw new Error(`the model says no ${key}: write it with safmn export`);
  }
  const scale = Number(facts.scale);
  const window = Number(facts.window);
  const halo = facts.tile_halo === "whole frame" ? null : Math.ceil(Number(facts.tile_halo) / window) * window;
  const ort = await import(new URL("ort.webgpu.min.mjs", runtime).href);
  ort.env.wasm.wasmPaths = runtime;
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, 8) : 1;
  ort.env.logLevel = "error";
  if (!self.crossOriginIsolated) {
    say("one thread: the server does not send the headers Cross-Origin-Opener-Policy and Cross-Origin-Embedder-Policy");
  }
  const wasm = await ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
  const threads = `WebAssembly, threads: ${ort.env.wasm.numThreads}`;
  const network = { session: wasm, ort, scale, window, halo, device: threads };
  if (device === "wasm") return network;
  try {
    if (!navigator.gpu || !(await navigator.gpu.requestAdapter())) throw new Error("this browser offers no WebGPU here");
    const session = await ort.InferenceSession.create(bytes, { executionProviders: ["webgpu"] });
    const error = await difference({ ...network, session }, network);
    if (!(error <= TOLERANCE)) throw new Error(`WebGPU differs from WebAssembly by ${error.toPrecision(2)}`);
    await wasm.release();
    return { ...network, session, device: "WebGPU" };
  } catch (error) {
    if (device === "webgpu") throw error;
    say(`WebAssembly is used: ${error.message}`);
    return network;
  }
}

/**
 * Upscales an image.
 * @param {Float32Array} planes R, G, B of width * height values in [0, 1].
 * @param {number} side The largest side of what the network gets at once, with the halo. More needs more memory.
 * @param {(done: number, of: number) => void} progress Is called after each tile.
 * @returns {Promise<Float32Array>} The planes of the result, clamped to [0, 1].
 */
export async function upscale(network, planes, width, height, side, progress = () => {}) {
  const { scale } = network;
  const rows = tiles(height, side, network);
  const columns = tiles(width, side, network);
  const result = new Float32Array(3 * width * scale * height * scale);
  let done = 0;
  for (const row of rows) {
    for (const column of columns) {
      const piece = cut(planes, width, height, row, column);
      const made = await run(network, piece, column.to - column.from, row.to - row.from);
      paste(made, row, column, result, width, height, scale);
      progress(++done, rows.length * columns.length);
    }
  }
  return result;
}

/**
 * The tiles along one axis. A tile writes [start, end) and reads [from, to). It reads from a multiple of the window,
 * and up to the halo beyond what it writes, so that what it writes is the whole image's.
 */
export function tiles(length, side, { window, halo }) {
  if (halo === null || length <= side) return [{ start: 0, end: length, from: 0, to: length }];
  const core = Math.max(Math.floor((side - 2 * halo) / window) * window, window);
  const found = [];
  for (let start = 0; start < length; start += core) {
    const end = Math.min(start + core, length);
    found.push({ start, end, from: Math.max(start - halo, 0), to: Math.min(end + halo, length) });
  }
  return found;
}

/** The pixels that a tile reads. */
function cut(planes, width, height, row, column) {
  const wide = column.to - column.from;
  const high = row.to - row.from;
  const piece = new Float32Array(3 * high * wide);
  for (let plane = 0; plane < 3; plane++) {
    for (let y = 0; y < high; y++) {
      const at = (plane * height + row.from + y) * width + column.from;
      piece.set(planes.subarray(at, at + wide), (plane * high + y) * wide);
    }
  }
  return piece;
}

/** Writes a tile's own pixels into the result, clamped. */
function paste(made, row, column, result, width, height, scale) {
  const wide = (column.to - column.from) * scale;
  const high = (row.to - row.from) * scale;
  const left = (column.start - column.from) * scale;
  const count = (column.end - column.start) * scale;
  for (let plane = 0; plane < 3; plane++) {
    for (let y = row.start * scale; y < row.end * scale; y++) {
      const from = (plane * high + y - row.from * scale) * wide + left;
      const to = (plane * height * scale + y) * width * scale + column.start * scale;
      for (let x = 0; x < count; x++) result[to + x] = Math.min(Math.max(made[from + x], 0), 1);
    }
  }
}

/** One call of the network. */
async function run({ session, ort }, planes, width, height) {
  const input = new ort.Tensor("float32", planes, [1, 3, height, width]);
  const { output } = await session.run({ input });
  const made = (await output.getData()).slice();
  output.dispose();
  return made;
}

/** The largest difference of two networks on a small soft image whose sides are no multiples of the window. */
async function difference(network, other) {
  const [width, height] = [83, 61];
  const planes = Float32Array.from({ length: 3 * width * height }, (_, i) => {
    const [x, y] = [i % width, Math.floor(i / width)];
    return 0.5 + 0.25 * Math.sin(x / 3 + y / 17) + 0.2 * Math.cos(y / 5 - x / 11);
  });
  const [one, two] = [await run(network, planes, width, height), await run(other, planes, width, height)];
  return one.reduce((worst, value, i) => Math.max(worst, Math.abs(value - two[i]) || (value === two[i] ? 0 : Infinity)), 0);
}

/**
 * What an .onnx file says about itself: the field metadata_props (14) of its protocol buffer, which onnxruntime-web
 * does not show.
 */
export function metadata(bytes) {
  const facts = {};
  const text = new TextDecoder();
  for (const [field, value] of fields(bytes)) {
    if (field !== 14) continue;
    const entry = Object.fromEntries(fields(value)); // 1: key, 2: value
    facts[text.decode(entry[1])] = text.decode(entry[2]);
  }
  return facts;
}

/** The fields of a message: [number, bytes or null]. */
function* fields(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      if (at >= bytes.length) throw new Error("this is no .onnx file");
      const byte = bytes[at++];
      value += (byte & 127) * factor;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = varint();
    const kind = tag % 8;
    let value = null;
    if (kind === 0) varint();
    else if (kind === 1) at += 8;
    else if (kind === 5) at += 4;
    else if (kind === 2) {
      const length = varint();
      value = bytes.subarray(at, at + length);
      at += length;
    } else throw new Error("this is no .onnx file");
    yield [Math.floor(tag / 8), value];
  }
}
