// All that decides a picture besides the weights, as galiplib.sampling.recipe.Recipe has it: caption, seed, truncation,
// towards and share (a second caption), seed_b and turn (a second noise).

import { arc, noiseOfSeed } from "./noise.js";

export const SEEDS = 2 ** 32;
const DEFAULTS = { truncation: 1, towards: "", share: 0, seed_b: null, turn: 0 };

// A recipe's noise (Z,).
export function noiseOf(recipe, size) {
  const noise = noiseOfSeed(recipe.seed, size);
  const turned = recipe.turn ? arc(noise, noiseOfSeed(recipe.seed_b, size), recipe.turn) : noise;
  return turned.map((value) => (recipe.truncation ?? 1) * value);
}

// Its sentence (E,), by `encode`: caption -> sentence; between two captions on the straight line, and beyond.
export async function sentenceOf(recipe, encode) {
  if (!recipe.share) return encode(recipe.caption);
  const [from, to] = [await encode(recipe.caption), await encode(recipe.towards)];
  return from.map((value, i) => value + recipe.share * (to[i] - value));
}

// What differs from the defaults, without caption and seed.
export function settingsOf(recipe) {
  return Object.fromEntries(Object.entries(DEFAULTS).filter(([name, value]) => (recipe[name] ?? value) !== value)
    .map(([name]) => [name, recipe[name]]));
}

// The picture in words, for who can't see it.
export function describe(recipe) {
  const { caption, towards, share = 0, seed, seed_b, turn = 0 } = recipe;
  const percent = (part) => `${Math.round(100 * part)}%`;
  const mixed = share === 1 ? towards : `${percent(1 - share)} ${caption}, ${percent(share)} ${towards}`;
  const noise = turn ? `seeds ${seed} and ${seed_b}, ${percent(turn)} of the way` : `seed ${seed}`;
  return `${share ? mixed : caption}; ${noise}`;
}

// A file's name that tells caption and seed, and whatever else is set.
export function fileName(recipe) {
  const words = (recipe.caption.toLowerCase().match(/[a-z0-9]+/g) ?? []).join("_").slice(0, 60);
  const { towards, ...numbers } = settingsOf(recipe);
  const others = Object.entries(numbers).map(([name, value]) => `_${name}${value}`).join("");
  return `${words || "picture"}_seed${recipe.seed}${others}.png`;
}
