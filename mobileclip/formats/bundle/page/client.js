// The page's side of the engine: each call is a promise.

/**
 * @param {(progress: {tower: string, share: number, bytes: number}) => void} onProgress
 * @returns {object} `call(name, ...arguments)`, and shorthands for the ones apps need
 */
export function createEngine(onProgress) {
  const worker = new Worker(new URL("engine.js", import.meta.url), { type: "module" });
  const waiting = new Map();
  let next = 0;
  worker.onmessage = ({ data }) => {
    if (data.progress) return onProgress(data.progress);
    const { resolve, reject } = waiting.get(data.id);
    waiting.delete(data.id);
    if (data.error) reject(Object.assign(new Error(data.error), { unreadable: data.unreadable }));
    else resolve(data.value);
  };
  worker.onerror = (event) => {
    const error = new Error(`The engine does not start in this browser: ${event.message ?? "module workers are missing"}.`);
    for (const { reject } of waiting.values()) reject(error);
    waiting.clear();
  };
  const call = (name, ...args) => new Promise((resolve, reject) => {
    waiting.set(next, { resolve, reject });
    worker.postMessage({ id: next++, call: name, args });
  });
  return { call, encodeImage: (blob) => call("encodeImage", blob), encodeTexts: (texts) => call("encodeTexts", texts) };
}

/** Dot product of a row of a matrix with a vector. */
export function dot(matrix, row, vector) {
  let sum = 0;
  for (let i = 0, from = row * vector.length; i < vector.length; i++) sum += matrix[from + i] * vector[i];
  return sum;
}

export function softmax(values) {
  const largest = Math.max(...values);
  const powers = values.map((value) => Math.exp(value - largest));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted.length ? sorted[Math.floor(sorted.length / 2)] : NaN;
}
