// The page's side of worker.js, and a model: what reads captions and draws pictures.

import { Reader } from "./reader.js";
import { noiseOf, sentenceOf, settingsOf } from "./recipe.js";
import { toPng } from "./png.js";

export class Engine {
  constructor() {
    this.waiting = new Map();
    this.worker = new Worker("worker.js", { type: "module" });
    this.worker.onmessage = ({ data }) => {
      const call = this.waiting.get(data.id);
      if ("progress" in data) return call.say(data.progress);
      this.waiting.delete(data.id);
      return "error" in data ? call.reject(new Error(data.error)) : call.resolve(data.result);
    };
    this.worker.onerror = () => {
      const error = new Error("The page's worker could not be started: reload the page.");
      for (const call of this.waiting.values()) call.reject(error);
    };
  }

  call(call, values, say = () => {}) {
    return new Promise((resolve, reject) => {
      const id = (this.count = (this.count ?? 0) + 1);
      this.waiting.set(id, { resolve, reject, say });
      this.worker.postMessage({ id, call, values });
    });
  }
}

// A generator and its CLIP, by the facts that build.py noted of them.
export class Model {
  constructor(facts, bytePairs, engine) {
    this.facts = facts;
    this.engine = engine;
    this.reader = new Reader(bytePairs, facts.vocabulary, facts.context_length);
    this.sentences = new Map();
  }

  // Caption -> sentence (E,), computed once.
  sentence(caption) {
    if (!this.sentences.has(caption)) {
      this.sentences.set(caption, this.engine.call("sentence", this.reader.read(caption).tokens));
    }
    return this.sentences.get(caption);
  }

  // A recipe -> its picture as a PNG (Blob), which `galip replay` makes again.
  async draw(recipe) {
    const sentence = await sentenceOf(recipe, (caption) => this.sentence(caption));
    const noise = noiseOf(recipe, this.facts.noise_inputs);
    const { pixels, width, height } = await this.engine.call("picture", { noise, sentence });
    const { checkpoint, weights } = this.facts;
    const settings = JSON.stringify(settingsOf(recipe));
    const origin = { checkpoint, weights, averaged: "yes", settings, precision: "fp32", engine: "onnx" };
    return toPng(pixels, width, height, { caption: recipe.caption, seed: recipe.seed, ...origin });
  }
}
