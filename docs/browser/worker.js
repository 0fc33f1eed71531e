// Upscaling beside the page, which stays responsive. Messages in: {load: {...}} once, then {image: {...}}, one at a time.
import { load, upscale } from "./upscale.js";

let network = null;

self.onmessage = async ({ data }) => {
  try {
    if (data.load) await start(data.load);
    else await enlarge(data.image);
  } catch (error) {
    self.postMessage({ error: error.message ?? String(error) });
  }
};

async function start({ model, runtime, device }) {
  const answer = await fetch(model);
  if (!answer.ok) throw new Error(`${model}: the server answers ${answer.status}. Write the file with safmn export.`);
  const bytes = new Uint8Array(await answer.arrayBuffer());
  network = await load(bytes, runtime, device, (note) => self.postMessage({ note }));
  self.postMessage({ ready: { device: network.device, scale: network.scale, halo: network.halo } });
}

/** 8-bit RGBA in and out. */
async function enlarge({ pixels, width, height, side }) {
  const area = width * height;
  const planes = new Float32Array(3 * area);
  for (let i = 0; i < area; i++) {
    for (let plane = 0; plane < 3; plane++) planes[plane * area + i] = pixels[4 * i + plane] / 255;
  }
  const made = await upscale(network, planes, width, height, side, (done, of) => {
    self.postMessage({ progress: { done, of } });
  });
  const large = made.length / 3;
  const result = new Uint8ClampedArray(4 * large).fill(255);
  for (let i = 0; i < large; i++) {
    for (let plane = 0; plane < 3; plane++) result[4 * i + plane] = Math.round(made[plane * large + i] * 255);
  }
  const size = { width: width * network.scale, height: height * network.scale };
  self.postMessage({ result: { pixels: result, ...size } }, [result.buffer]);
}
