// The page: pick or photograph pictures, classify the chosen one by labels, search all of them by a text or a picture.

import { createEngine, dot, median, softmax } from "./client.js";
import { fillSelect, showCredits, showFacts, showGallery, showScores } from "./view.js";

const $ = (id) => document.getElementById(id);
const MAX_SCORES = 10;
const KEPT_TIMES = 50;

const engine = createEngine(showProgress);
const state = {
  contract: null, loaded: {}, pictures: [], current: null, order: null, texts: new Map(), banks: new Map(),
  times: { prepare: [], image: [], text: [] }, failed: 0,
};
let queue = Promise.resolve();

const opened = open();
opened.then(() => need("image")).catch(fail);
// For the console, and for tests.
window.mobileclip = { engine, state, add, ready: (tower) => opened.then(() => need(tower)) };

async function open() {
  const { contract, backends } = await engine.call("open");
  state.contract = contract;
  $("model").textContent = contract.model;
  const wish = new URLSearchParams(location.search);
  for (const tower of ["image", "text"]) {
    const precisions = contract.programs.filter((p) => p.tower === tower && p.format === "onnx").map((p) => p.precision);
    fillSelect($(`${tower}-precision`), precisions, wish.get(tower));
    $(`${tower}-precision`).onchange = () => reload(tower);
  }
  fillSelect($("backend"), backends, wish.get("backend"), { wasm: "WebAssembly", webgpu: "WebGPU" });
  $("backend").onchange = () => { reload("image"); reload("text"); };
  const banks = (contract.prompt_banks ?? []).map((bank) => bank.name);
  $("banks").hidden = banks.length === 0;
  fillSelect($("bank"), [...banks, ""], null, Object.fromEntries([...banks.map((name) => [name, `bank “${name}”`]), ["", "my own labels"]]));
  showLabelFields();
  $("made-from").hidden = !contract.attributions?.length;
  showCredits($("credits"), contract.attributions ?? []);
  listen();
  $("query").disabled = false;
}

function listen() {
  for (const id of ["files", "camera"]) {
    $(id).onchange = () => { add([...$(id).files]); $(id).value = ""; };
  }
  $("search").onsubmit = (event) => { event.preventDefault(); search().catch(fail); };
  $("query").oninput = debounce(() => search().catch(fail), 350);
  $("labels").oninput = $("template").oninput = debounce(() => classify().catch(fail), 500);
  $("bank").onchange = () => { showLabelFields(); classify().catch(fail); };
  $("similar").onclick = () => { $("query").value = ""; rank([...state.current.features], "most similar first"); };
  $("clear").onclick = clear;
  document.onpaste = (event) => add([...event.clipboardData.files]);
  document.ondragover = (event) => { event.preventDefault(); document.body.classList.add("dropping"); };
  document.ondragleave = () => document.body.classList.remove("dropping");
  document.ondrop = (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    add([...event.dataTransfer.files]);
  };
}

/** Load a tower once; a change of program or backend asks again. */
function need(tower) {
  state.loaded[tower] ??= load(tower);
  return state.loaded[tower];
}

async function load(tower) {
  const precision = $(`${tower}-precision`).value;
  if (!precision) throw new Error(`This bundle has no ${tower} program for browsers.`);
  const loaded = await engine.call("load", tower, precision, $("backend").value);
  state[tower] = { ...loaded, wished: precision };
  state.times[tower] = [];
  $(`${tower}-precision`).value = loaded.precision;
  $("progress").hidden = true;
  tellReplaced();
  refresh();
  return loaded;
}

async function reload(tower) {
  if (!state.loaded[tower]) return;
  delete state.loaded[tower];
  try {
    await need(tower);
    if (tower === "text") state.texts.clear();
    else await Promise.all(state.pictures.map(enqueue));
    await classify();
    await search();
  } catch (error) {
    fail(error);
  }
}

async function add(files) {
  const pictures = files.map((file) => ({ file, url: "", features: null }));
  state.pictures.push(...pictures);
  refresh();
  await Promise.all(pictures.map(enqueue));
}

/** One picture at a time, in the order they came. */
function enqueue(picture) {
  picture.features = null;
  queue = queue.then(() => embed(picture)).catch(fail);
  return queue;
}

async function embed(picture) {
  await need("image");
  if (!state.pictures.includes(picture)) return;
  try {
    const { features, thumbnail, prepareMs, runMs } = await engine.encodeImage(picture.file);
    if (!state.pictures.includes(picture)) return; // cleared meanwhile
    picture.url ||= URL.createObjectURL(thumbnail);
    picture.features = features;
    remember("prepare", prepareMs);
    remember("image", runMs);
  } catch (error) {
    if (!state.pictures.includes(picture)) return;
    drop(picture);
    if (error.unreadable) state.failed += 1;
    else fail(error);
  }
  if (!state.current && picture.features) choose(picture).catch(fail);
  refresh();
}

async function choose(picture) {
  URL.revokeObjectURL($("picture").src);
  state.current = picture;
  $("picture").src = URL.createObjectURL(picture.file);
  $("picture").alt = picture.file.name;
  $("picture").hidden = $("similar").hidden = false;
  refresh();
  await classify();
}

async function classify() {
  const picture = state.current;
  if (!picture?.features) return;
  const { labels, features } = await classes();
  if (picture !== state.current) return;
  const shares = softmax(labels.map((_, i) => state.contract.logit_scale * dot(features, i, picture.features)));
  const rows = labels.map((label, i) => ({ label, share: shares[i] })).sort((a, b) => b.share - a.share);
  showScores($("scores"), rows.slice(0, MAX_SCORES));
}

/** Labels with their embeddings: a prompt bank's, or those typed. */
async function classes() {
  const bank = $("bank").value;
  if (bank) {
    if (!state.banks.has(bank)) state.banks.set(bank, await engine.call("labels", bank));
    return state.banks.get(bank);
  }
  const labels = [...new Set($("labels").value.split(/[\n,]/).map((label) => label.trim()).filter(Boolean))];
  const template = $("template").value.includes("{}") ? $("template").value : "{}";
  const rows = await textFeatures(labels.map((label) => template.replaceAll("{}", () => label)));
  const features = new Float32Array(labels.length * state.contract.embed_dim);
  rows.forEach((row, i) => features.set(row, i * row.length));
  return { labels, features };
}

async function search() {
  const query = $("query").value.trim();
  if (!query) {
    state.order = null;
    return refresh();
  }
  const [features] = await textFeatures([query]);
  if ($("query").value.trim() === query) rank(features, "best match first");
}

function rank(features, words) {
  state.order = { features, words };
  refresh();
}

/** Cosines of all pictures with what they are ranked by. */
function cosines({ features }) {
  return new Map(state.pictures.filter((p) => p.features).map((p) => [p, dot(features, 0, p.features)]));
}

/** Embeddings of texts, each computed once. */
async function textFeatures(texts) {
  await need("text");
  const missing = texts.filter((text) => !state.texts.has(text));
  if (missing.length) {
    const { features, runMs } = await engine.encodeTexts(missing);
    const dim = state.contract.embed_dim;
    missing.forEach((text, i) => state.texts.set(text, features.slice(i * dim, (i + 1) * dim)));
    remember("text", runMs);
    refresh();
  }
  return texts.map((text) => state.texts.get(text));
}

function refresh() {
  const { pictures, order, image } = state;
  const scores = order ? cosines(order) : new Map();
  const sorted = order ? [...pictures].sort((a, b) => (scores.get(b) ?? -2) - (scores.get(a) ?? -2)) : pictures;
  showGallery($("gallery"), sorted, { current: state.current, scores, choose: (p) => { choose(p).catch(fail); bringUp(); } });
  $("empty").hidden = pictures.length > 0;
  $("clear").hidden = pictures.length === 0;
  const waiting = pictures.filter((p) => !p.features).length;
  const counted = `${pictures.length} picture${pictures.length === 1 ? "" : "s"}`;
  const lost = state.failed ? `; ${state.failed} could not be read` : "";
  if (pictures.length) $("found").textContent = (waiting ? `${waiting} of ${counted} to go` : `${counted}${order ? `, ${order.words}` : ""}`) + lost;
  else if (lost) $("found").textContent = `Nothing to show${lost}`;
  if (image) {
    const speed = state.times.image.length ? `, ${median(state.times.image).toFixed(0)} ms a picture` : "";
    $("status").textContent = `${image.backend === "webgpu" ? "WebGPU" : "WebAssembly"} on this device${speed}`;
    showFacts($("facts"), state, median);
  }
}

/** On a phone the answer is below the gallery. */
function bringUp() {
  if (matchMedia("(max-width: 52rem)").matches) $("answer").scrollIntoView({ behavior: "smooth" });
}

function drop(picture) {
  URL.revokeObjectURL(picture.url);
  state.pictures = state.pictures.filter((other) => other !== picture);
}

function clear() {
  for (const picture of [...state.pictures]) drop(picture);
  Object.assign(state, { current: null, order: null, failed: 0 });
  $("picture").hidden = $("similar").hidden = true;
  $("scores").replaceChildren();
  $("query").value = "";
  $("found").textContent = "Pictures stay on this device: nothing is uploaded.";
  refresh();
  $("files").focus(); // the button is gone, and with it the place of the keyboard
}

function showLabelFields() {
  $("own").hidden = $("prompt").hidden = Boolean($("bank").value);
}

function showProgress({ tower, share, bytes }) {
  $("progress").hidden = false;
  $("progress").value = share;
  $("status").textContent = share < 1 ? `Loading the ${tower} program, ${(bytes / 1e6).toFixed(1)} MB …` : `Starting the ${tower} program …`;
}

function fail(error) {
  $("progress").hidden = true;
  $("alert").hidden = false;
  $("alert").textContent = error.message ?? String(error);
  if (!state.image) $("status").textContent = "No program runs";
}

/** One sentence for each program that was asked for and did not run. */
function tellReplaced() {
  const replaced = [state.image, state.text].filter((loaded) => loaded && loaded.precision !== loaded.wished);
  $("alert").hidden = replaced.length === 0;
  $("alert").textContent = replaced
    .map((p) => `The ${p.wished} ${p.tower} program does not run in this browser; ${p.precision} runs in its place.`)
    .join(" ");
}

function remember(kind, ms) {
  state.times[kind] = [...state.times[kind], ms].slice(-KEPT_TIMES);
}

function debounce(action, ms) {
  let timer = 0;
  return () => { clearTimeout(timer); timer = setTimeout(action, ms); };
}
