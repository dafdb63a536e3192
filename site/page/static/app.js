// The page: what its controls say becomes recipes, and their pictures appear one by one.

import { complete } from "./complete.js";
import { Engine, Model } from "./engine.js";
import { BytePairs } from "./reader.js";
import { describe, fileName, SEEDS } from "./recipe.js";

const $ = (id) => document.getElementById(id);
const form = $("form");
const SLIDES = { captions: $("share"), noise: $("turn") }; // modes with one picture and a slider
const LINKED = "generator caption seed count truncation word others towards share seed_b turn".split(" ");

let engine, bytePairs, catalogue, model; // the last: its facts and how to draw with it
let latest = 0; // the number of the drawing that was asked for last: an earlier one stops
let ended = Promise.resolve(); // when the drawing before has stopped

const mode = () => form.elements.mode.value;
const typed = (id) => $(id).value.trim().replace(/\s+/g, " ");

// ---------------------------------------------------------------- from controls to recipes

function seedOf(id) {
  const seed = Number($(id).value);
  if ($(id).value !== "" && Number.isInteger(seed) && seed >= 0 && seed < SEEDS) return seed;
  throw new Error(`A seed is a whole number from 0 to ${SEEDS - 1}.`);
}

function captionOf(id, which) {
  model.reader.read(typed(id), which); // throws for one that says nothing
  return typed(id);
}

// The pictures that are asked for, {recipe, label}.
function wanted() {
  const caption = captionOf("caption", "The caption");
  const plain = { caption, seed: seedOf("seed"), truncation: $("truncation").valueAsNumber };
  if (mode() === "captions") {
    const recipe = { ...plain, towards: captionOf("towards", "The second caption"), share: $("share").valueAsNumber };
    return [{ recipe, label: describe(recipe) }];
  }
  if (mode() === "noise") {
    const recipe = { ...plain, seed_b: seedOf("seed_b"), turn: $("turn").valueAsNumber };
    return [{ recipe, label: describe(recipe) }];
  }
  if (mode() === "word") {
    const word = $("word").value;
    const others = typed("others").split(",").map((other) => other.trim()).filter(Boolean);
    if (!others.length) throw new Error(`Write what may stand in the place of “${word}”.`);
    const changed = (other) => caption.replace(spot(word), () => other);
    return [word, ...others.filter((other) => other !== word)]
      .map((other) => ({ recipe: { ...plain, caption: changed(other) }, label: other }));
  }
  return Array.from({ length: $("count").valueAsNumber }, (_, i) => {
    const recipe = { ...plain, seed: (plain.seed + i) % SEEDS };
    return { recipe, label: `seed ${recipe.seed}` };
  });
}

// Where a word stands in a caption.
function spot(word) {
  return new RegExp(`(?<![\\p{L}\\p{N}])${word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")}(?![\\p{L}\\p{N}])`, "iu");
}

// ---------------------------------------------------------------- drawing

function say(text) {
  $("status").textContent = text;
}

function failed(error) {
  say("");
  $("error").textContent = error.message;
  $("error").hidden = false;
}

// Draw what the controls ask for, after the drawing before has stopped; -> whether it was drawn to its end.
function draw() {
  const number = ++latest;
  $("pictures").ariaBusy = true;
  ended = ended.then(async () => {
    const done = number === latest && (await drawing(number));
    if (number === latest) $("pictures").ariaBusy = false;
    return done;
  });
  return ended;
}

async function drawing(number) {
  $("error").hidden = true;
  try {
    if (model?.facts.name !== $("generator").value) await load();
    if (number !== latest) return false;
    const pictures = wanted();
    history.replaceState(null, "", `#${linked()}`);
    const frames = framed(pictures);
    const start = performance.now();
    for (const [i, { recipe }] of pictures.entries()) {
      const picture = await model.draw(recipe);
      if (number !== latest) return false;
      fill(frames[i], recipe, picture);
      if (pictures.length > 1) say(`${i + 1} of ${pictures.length}`);
    }
    const seconds = ((performance.now() - start) / 1000).toFixed(2);
    if (!playing()) say(`${pictures.length === 1 ? "1 picture" : `${pictures.length} pictures`} in ${seconds} s`);
    return true;
  } catch (error) {
    failed(error);
    return false;
  }
}

// A frame for each picture; those that are there already stay until theirs comes.
function framed(pictures) {
  const box = $("pictures");
  box.className = mode() in SLIDES ? "single" : "several";
  while (box.children.length > pictures.length) box.lastChild.remove();
  while (box.children.length < pictures.length) box.append($("frame").content.cloneNode(true));
  box.style.setProperty("--side", `${model.facts.image_size * (mode() in SLIDES ? 5 : 3)}px`);
  return pictures.map(({ label }, i) => {
    const frame = box.children[i];
    frame.querySelector("span").textContent = label;
    return frame;
  });
}

function fill(frame, recipe, picture) {
  const [image, link] = [frame.querySelector("img"), frame.querySelector("a")];
  URL.revokeObjectURL(image.src);
  image.src = link.href = URL.createObjectURL(picture);
  image.alt = `${describe(recipe)}, drawn by ${model.facts.title}`;
  image.hidden = link.hidden = false;
  link.download = fileName(recipe);
  link.ariaLabel = `Save: ${describe(recipe)}`;
}

// ---------------------------------------------------------------- there and back

const playing = () => $("play").ariaPressed === "true";

async function play() {
  if (playing()) return stop();
  const slider = SLIDES[mode()];
  $("play").ariaPressed = true;
  $("play").textContent = "Stop";
  for (let step = 0; step <= 40 && playing(); step++) {
    slider.value = 1 - Math.abs(1 - step / 20);
    shown(slider);
    const due = new Promise((resolve) => setTimeout(resolve, 80)); // 12 pictures a second at most
    if (!(await draw())) break;
    await due;
  }
  stop();
}

function stop() {
  $("play").ariaPressed = false;
  $("play").textContent = "There and back";
}

// ---------------------------------------------------------------- generators

async function arrived(file) {
  const response = await fetch(file, { cache: "no-cache" }).catch(() => null); // asks whether it is still the same
  if (response?.ok) return response;
  throw new Error(`${file} did not arrive: check the connection and the server, then press Draw.`);
}

async function merges() {
  const packed = (await arrived("merges.txt.gz")).body.pipeThrough(new DecompressionStream("gzip"));
  return new BytePairs((await new Response(packed).text()).split("\n"));
}

async function load() {
  const facts = await (await arrived(`${$("generator").value}.json`)).json();
  const { generator, shared, text } = facts;
  const files = { generator, shared, text, runtime: model ? undefined : catalogue.runtime };
  const max = Object.values(files).reduce((sum, file) => sum + (file?.bytes ?? 0), 0);
  Object.assign($("progress"), { hidden: false, max, value: 0 });
  say(`Loading ${facts.title}, ${(max / 1e6).toFixed(1)} MB …`);
  try {
    engine ??= new Engine();
    const loading = engine.call("load", files, (bytes) => ($("progress").value += bytes));
    [bytePairs] = await Promise.all([bytePairs ?? merges(), loading]);
  } finally {
    $("progress").hidden = true;
  }
  const before = model?.facts.examples ?? [""];
  model = new Model(facts, bytePairs, engine);
  $("about").textContent = facts.about;
  $("licence").textContent = `${facts.title}: ${facts.licence}`;
  if (["", ...before].includes(typed("caption"))) $("caption").value = facts.examples[0];
  if (["", ...before].includes(typed("towards"))) $("towards").value = facts.examples[1];
  const button = (text) => Object.assign(document.createElement("button"), { type: "button", textContent: text });
  $("examples").replaceChildren(...facts.examples.map(button));
  read();
}

// What can be said of the captions as they stand, and which words of the first may be changed.
function read() {
  if (!model) return;
  const notes = (mode() === "captions" ? ["caption", "towards"] : ["caption"]).flatMap((id) => {
    try {
      return model.reader.read(typed(id)).notes;
    } catch (error) {
      return error.message;
    }
  });
  $("unread").textContent = [...new Set(notes)].join(" ");
  const caption = typed("caption");
  const phrases = model.facts.sets.flat().filter((phrase) => spot(phrase).test(caption));
  const words = caption.match(/[\p{L}\p{N}'’-]+/gu) ?? [];
  const single = words.filter((word) => !phrases.some((phrase) => spot(word).test(phrase)));
  const [choices, chosen] = [[...new Set([...phrases, ...single])], $("word").value];
  $("word").replaceChildren(...choices.map((choice) => new Option(choice)));
  if (choices.includes(chosen)) $("word").value = chosen;
  else replacements();
}

// What usually stands in the place of the word to be changed.
function replacements() {
  const word = $("word").value.toLowerCase();
  const alike = model.facts.sets.find((set) => set.includes(word)) ?? [];
  $("others").value = alike.filter((other) => other !== word).join(", ");
}

// ---------------------------------------------------------------- controls

// The controls that count as the end of an address, and back.
function linked() {
  const initial = (control) => control.defaultValue ?? (control.id === "generator" ? control.options[0].value : "");
  const set = LINKED.map($).filter((control) => !control.closest("[hidden]") && control.value !== initial(control));
  const values = set.map((control) => [control.id, control.value]);
  return new URLSearchParams(mode() === "pictures" ? values : [["mode", mode()], ...values]);
}

function restore() {
  for (const [id, value] of new URLSearchParams(location.hash.slice(1))) {
    if (id === "word") $(id).replaceChildren(new Option(value)); // until the caption has been read
    else if (id === "mode") form.elements.mode.value = value;
    else if (LINKED.includes(id)) $(id).value = value;
  }
  if (!$("generator").value) $("generator").selectedIndex = 0; // there is none of that name
}

// A slider's number beside its name.
function shown(slider) {
  const percent = slider === $("share") || slider === $("turn");
  const value = percent ? `${Math.round(100 * slider.value)}%` : slider.value;
  document.querySelector(`output[for=${slider.id}]`).textContent = value;
}

function arrange() {
  const parts = document.querySelectorAll("[data-mode]");
  for (const part of parts) part.hidden = !part.dataset.mode.split(" ").includes(mode());
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (catalogue) draw();
  else start();
});
form.addEventListener("input", ({ target }) => {
  if (target.type === "range") shown(target);
  if (Object.values(SLIDES).includes(target)) draw();
  if (target === $("caption") || target === $("towards")) read();
});
form.addEventListener("change", ({ target }) => {
  if (target.name === "mode") arrange();
  if (target === $("word")) replacements();
  if (target.type !== "text" && !Object.values(SLIDES).includes(target)) draw();
});
$("dice").addEventListener("click", () => {
  $("seed").value = Math.floor(Math.random() * 10_000);
  draw();
});
$("examples").addEventListener("click", ({ target }) => {
  if (target.type !== "button") return;
  $("caption").value = target.textContent;
  read();
  draw();
});
$("play").addEventListener("click", play);

async function start() {
  try {
    catalogue = await (await arrived("models.json")).json();
  } catch (error) {
    return failed(error);
  }
  $("generator").replaceChildren(...catalogue.models.map(({ name, title }) => new Option(title, name)));
  if (catalogue.home) Object.assign($("home"), { href: catalogue.home, hidden: false });
  restore();
  arrange();
  document.querySelectorAll("input[type=range]").forEach(shown);
  for (const id of ["caption", "towards"]) complete($(id), () => model?.facts.words ?? []);
  return draw();
}

if (!$("page").hidden) start();
