// The networks, beside the page, which so stays awake while they draw. A message {id, call, values} is answered by
// {id, result} or {id, error}; `load` says on the way how many bytes have arrived, {id, progress}.

import * as ort from "./ort.js";

ort.env.logLevel = "error"; // a warning about an unknown processor is no error of the page

let networks; // {generator, text} of the model in use

// The bytes of a file {file, bytes}; throws Error if they don't arrive, or not all of them.
async function fetched({ file, bytes }, say) {
  const help = "check the connection and the server, then press Draw.";
  const lost = (why) => new Error(`${file} did not arrive (${why}): ${help}`);
  const response = await fetch(file, { cache: "no-cache" }).catch(() => null); // asks whether it is still the same
  if (!response) throw lost("no answer");
  if (!response.ok) throw lost(`the server says ${response.status}`);
  const [parts, reader] = [[], response.body.getReader()];
  let arrived = 0;
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      parts.push(part.value);
      arrived += part.value.length;
      say(part.value.length);
    }
  } catch {
    throw lost("it broke off");
  }
  if (arrived !== bytes) throw lost(`${arrived} bytes of ${bytes}`);
  return new Blob(parts);
}

async function unpacked(blob) {
  return new Response(blob.stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

// A model, or a part of one, as write_packed of make_page.py stored it: all even bytes before all odd ones.
async function model(blob) {
  const bytes = new Uint8Array(await unpacked(blob));
  const whole = new Uint8Array(bytes.length);
  const odd = Math.ceil(bytes.length / 2);
  for (let i = 0; i < odd; i++) whole[2 * i] = bytes[i];
  for (let i = odd; i < bytes.length; i++) whole[2 * (i - odd) + 1] = bytes[i];
  return whole;
}

// Parts of a model behind one another are the model: protocol buffers merge what is repeated.
async function opened(parts, { file }) {
  try {
    const whole = await new Blob(await Promise.all(parts.map(model))).arrayBuffer();
    return await ort.InferenceSession.create(whole, { executionProviders: ["wasm"] });
  } catch (error) {
    throw new Error(`${file} can't be opened (${error.message}).`);
  }
}

const calls = {
  // A model's networks in place of the ones before; with the first of them the runtime.
  async load({ generator, shared, text, runtime }, say) {
    const wanted = [generator, shared, text, runtime].map((file) => file && fetched(file, say)); // some there are not
    const [drawing, common, reading, started] = await Promise.all(wanted);
    if (started) {
      ort.env.wasm.wasmBinary = await unpacked(started);
      ort.env.wasm.numThreads = 1; // more would need headers that simple servers don't send
    }
    const before = networks ? Object.values(networks) : [];
    const parts = common ? [drawing, common] : [drawing];
    networks = { text: await opened([reading], text), generator: await opened(parts, generator) };
    for (const network of before) await network.release();
  },

  // Token ids -> a sentence (E,).
  async sentence(ids) {
    const tokens = new ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]);
    return (await networks.text.run({ tokens })).sentence.data;
  },

  // Noise (Z,) and sentence (E,) -> bytes (H, W, 3), as galiplib.images.to_uint8 makes them.
  async picture({ noise, sentence }) {
    const row = (values) => new ort.Tensor("float32", values, [1, values.length]);
    const { pictures } = await networks.generator.run({ noise: row(noise), sentence: row(sentence) });
    const [, , height, width] = pictures.dims;
    const pixels = new Uint8ClampedArray(3 * height * width); // clamps, and rounds halves to even
    for (let i = 0; i < pixels.length; i++) {
      pixels[i] = (pictures.data[(i % 3) * height * width + Math.floor(i / 3)] + 1) * 127.5;
    }
    return { pixels, width, height };
  },
};

self.onmessage = async ({ data: { id, call, values } }) => {
  try {
    const result = await calls[call](values, (progress) => self.postMessage({ id, progress }));
    self.postMessage({ id, result });
  } catch (error) {
    self.postMessage({ id, error: error.message });
  }
};
