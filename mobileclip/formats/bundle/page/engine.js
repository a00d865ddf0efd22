// The student in a worker: fetches and checks its programs, runs them in ONNX Runtime Web, and tests itself.
//
// Messages are { id, call, arguments }; answers { id, value } or { id, error, unreadable }; { progress } comes in between.

import { createCleaner } from "./cleaning.js";
import { decode, goldenPicture, toInput } from "./pixels.js";
import { createTokenizer } from "./tokenizer.js";

const ROOT = new URL("../", import.meta.url);
const RUNTIMES = { wasm: "./ort/ort.wasm.min.mjs", webgpu: "./ort/ort.webgpu.min.mjs" };
const TEXTS_AT_ONCE = 8;
const MIN_COSINE = 0.999;

let contract = null;
let golden = null;
let tokenize = null;
const runtimes = new Map();
const sessions = new Map();

const calls = {
  /** The contract, and whether WebGPU is there. */
  async open() {
    [contract, golden] = await Promise.all([json("contract.json"), json("golden.json")]);
    const adapter = await self.navigator.gpu?.requestAdapter().catch(() => null);
    return { contract, backends: adapter ? ["webgpu", "wasm"] : ["wasm"] };
  },

  /** Load a program and test it. Where this browser refuses it, or computes something else, the bundle's next one of
   *  that tower is taken; `refused` says which were not, and why. */
  async load(tower, precision, backend) {
    const programs = contract.programs.filter((p) => p.tower === tower && p.format === "onnx");
    const wished = programs.find((p) => p.precision === precision);
    if (!wished) throw new Error(`This bundle has no ${precision} ${tower} program for this page.`);
    if (tower === "text") tokenize ??= await openTokenizer();
    const refused = [];
    for (const program of [wished, ...programs.filter((p) => p !== wished)]) {
      const loaded = await start(program, backend, refused);
      if (loaded) return { tower, precision: program.precision, ...loaded, refused };
    }
    throw new Error(`No ${tower} program runs here (${refused.join("; ")}).`);
  },

  /** A picture file to its unit-norm embedding and a thumbnail. */
  async encodeImage(blob) {
    const started = performance.now();
    const { rgb, thumbnail } = await decode(blob, contract.image).catch(unreadable);
    const decoded = performance.now();
    const features = await run("image", toInput(rgb));
    return { features, thumbnail, prepareMs: decoded - started, runMs: performance.now() - decoded };
  },

  /** Texts to their unit-norm embeddings, one row each. */
  async encodeTexts(texts) {
    const started = performance.now();
    const tokens = texts.map(tokenize);
    const features = await encodeTokens(tokens);
    return { features, runMs: (performance.now() - started) / Math.max(1, texts.length) };
  },

  tokens: (texts) => texts.map((text) => [...tokenize(text)]),
  pixels: async (blob) => [...(await decode(blob, contract.image)).rgb],
  labels: async (bank) => openBank(contract.prompt_banks.find((b) => b.name === bank)),
};

// One call at a time: a runtime does not take two at once.
let turn = Promise.resolve();
self.onmessage = ({ data }) => {
  turn = turn.then(() => answer(data));
};

async function answer({ id, call, args }) {
  try {
    self.postMessage({ id, value: await calls[call](...args) });
  } catch (error) {
    self.postMessage({ id, error: String(error.message ?? error), unreadable: error instanceof Unreadable });
  }
}

/** What is thrown of a file that is no picture for this browser; all else is the program's. */
class Unreadable extends Error {}

function unreadable(error) {
  throw new Unreadable(String(error.message ?? error));
}

async function get(path) {
  const response = await fetch(new URL(path, ROOT), { cache: "no-cache" });
  if (!response.ok) throw new Error(`${path} is not there (${response.status}).`);
  return response;
}

async function json(path) {
  return (await get(path)).json();
}

/** A program in its session, tested; falls back to WebAssembly where WebGPU is worse, and is null where both are. */
async function start(program, backend, refused) {
  const { tower, precision } = program;
  const bytes = await fetchProgram(program);
  for (const candidate of backend === "webgpu" ? ["webgpu", "wasm"] : ["wasm"]) {
    try {
      const started = performance.now();
      await sessions.get(tower)?.session.release();
      sessions.delete(tower);
      const opened = await openSession(bytes, candidate);
      sessions.set(tower, { ...opened, program });
      const loadMs = performance.now() - started;
      const test = tower === "image" ? await testImage(program) : await testText(program);
      if (!(test.cosine >= floor(program))) throw new Error(`self-test gave cosine ${test.cosine.toFixed(4)}`);
      return { backend: candidate, threads: opened.threads, loadMs, test };
    } catch (error) {
      refused.push(`${precision} on ${candidate}: ${error.message ?? error}`);
    }
  }
  sessions.delete(tower);
  return null;
}

/** The bytes of a program, checked against the contract where the browser can hash (https or localhost). */
async function fetchProgram(program) {
  const bytes = new Uint8Array(program.bytes);
  const reader = (await get(program.path)).body.getReader();
  let at = 0;
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    if (at + part.value.length > bytes.length) throw new Error(`${program.path} is longer than its contract says.`);
    bytes.set(part.value, at);
    at += part.value.length;
    self.postMessage({ progress: { tower: program.tower, share: at / program.bytes, bytes: program.bytes } });
  }
  if (at !== bytes.length || !(await isPromised(bytes, program.sha256))) {
    throw new Error(`${program.path} is not the file its contract was written for.`);
  }
  return bytes;
}

async function isPromised(bytes, sha256) {
  if (!self.crypto?.subtle) return true;
  const digest = new Uint8Array(await self.crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("") === sha256;
}

async function openSession(bytes, backend) {
  if (!runtimes.has(backend)) {
    const ort = await import(RUNTIMES[backend]);
    ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
    ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, self.navigator.hardwareConcurrency ?? 1) : 1;
    ort.env.logLevel = "error";
    runtimes.set(backend, ort);
  }
  const ort = runtimes.get(backend);
  const session = await ort.InferenceSession.create(bytes, { executionProviders: [backend], logSeverityLevel: 3 });
  return { ort, session, threads: ort.env.wasm.numThreads };
}

/** Rows, one after the other in `data`, to their embeddings; a program that takes more rows gets empty ones. */
async function run(tower, data) {
  const { ort, session, program: { input, output } } = sessions.get(tower);
  const [batch, ...row] = input.shape, width = row.reduce((product, size) => product * size, 1);
  const count = data.length / width, rows = batch === "batch" ? count : Math.ceil(count / batch) * batch;
  const filled = rows === count ? data : new data.constructor(rows * width);
  if (rows !== count) filled.set(data);
  const features = new Float32Array(rows * output.shape[1]), step = batch === "batch" ? rows : batch;
  for (let first = 0; first < rows; first += step) {
    const part = filled.subarray(first * width, (first + step) * width);
    const results = await session.run({ [input.name]: new ort.Tensor(input.dtype, part, [step, ...row]) });
    features.set(results[output.name].data, first * output.shape[1]);
  }
  return features.subarray(0, count * output.shape[1]);
}

async function encodeTokens(rows) {
  const length = contract.text.context_length, dim = contract.embed_dim;
  const features = new Float32Array(rows.length * dim);
  for (let first = 0; first < rows.length; first += TEXTS_AT_ONCE) {
    const part = rows.slice(first, first + TEXTS_AT_ONCE);
    const data = new Int32Array(part.length * length);
    part.forEach((row, i) => data.set(row, i * length));
    features.set(await run("text", data), first * dim);
  }
  return features;
}

async function openTokenizer() {
  if (contract.text.tokenizer !== "clip-bpe") throw new Error("This student's tokenizer does not run in a browser.");
  const [description, tables] = await Promise.all([json("tokenizer/tokenizer.json"), json("page/cleaning.json")]);
  const clean = createCleaner(tables), encode = createTokenizer(description);
  return (text) => encode(clean(text));
}

/** Labels and embeddings of a prompt bank; int8 and float16 rows are widened. */
async function openBank(bank) {
  const about = await json(bank.path.replace(/\.safetensors$/, ".json"));
  const buffer = await (await get(bank.path)).arrayBuffer();
  const view = new DataView(buffer);
  const start = 8 + Number(view.getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, start - 8)));
  const [from] = header.embeddings.data_offsets;
  const count = about.labels.length * contract.embed_dim;
  const scale = header.scales ? (i) => view.getFloat32(start + header.scales.data_offsets[0] + 4 * i, true) : () => 1;
  const read = {
    F32: (i) => view.getFloat32(start + from + 4 * i, true),
    F16: (i) => half(view.getUint16(start + from + 2 * i, true)),
    I8: (i) => view.getInt8(start + from + i) * scale(Math.floor(i / contract.embed_dim)),
  }[header.embeddings.dtype];
  return { labels: about.labels, features: unitRows(Float32Array.from({ length: count }, (_, i) => read(i))) };
}

function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  return sign * (exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15));
}

function unitRows(rows) {
  const dim = contract.embed_dim;
  for (let first = 0; first < rows.length; first += dim) {
    const row = rows.subarray(first, first + dim);
    const length = Math.hypot(...row);
    row.forEach((value, i) => { row[i] = value / length; });
  }
  return rows;
}

async function testImage(program) {
  const features = await run("image", toInput(goldenPicture(contract.image.size)));
  return { cosine: smallestCosine(features, golden.programs?.[program.path] ?? golden.image_features) };
}

async function testText(program) {
  const rows = golden.texts.map(tokenize);
  const equal = rows.filter((row, i) => row.every((id, j) => id === golden.tokens[i][j])).length;
  if (equal !== rows.length) throw new Error(`the tokenizer gave ${rows.length - equal} wrong rows`);
  return { cosine: smallestCosine(await encodeTokens(rows), golden.programs?.[program.path] ?? golden.text_features), tokens: equal };
}

/** What a right program reaches: its own answers again, but for other kernels. Exports of before hold only the
 *  student's; then it is its proof on many samples, with room for another picture. */
function floor(program) {
  if (golden.programs?.[program.path]) return MIN_COSINE;
  return Math.min(MIN_COSINE, 1 - 4 * (1 - (program.figures.cosine_min ?? 1)));
}

function smallestCosine(features, wanted) {
  const dim = contract.embed_dim;
  return Math.min(...wanted.map((row, i) => {
    const own = features.subarray(i * dim, (i + 1) * dim);
    const dot = row.reduce((sum, value, j) => sum + value * own[j], 0);
    return dot / (Math.hypot(...row) * Math.hypot(...own));
  }));
}
