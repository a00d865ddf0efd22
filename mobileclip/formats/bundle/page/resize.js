// Pillow's resize, bit for bit: two passes of 8-bit fixed-point sums whose filter is widened where the picture shrinks.
//
// A canvas scales with another filter in every browser, and none is the one the student was trained with.

const PRECISION = 22;
const FILTERS = {
  bilinear: { support: 1, weigh: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, weigh: cubic },
};

function cubic(x) {
  const a = -0.5;
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/**
 * @param {{width: number, height: number, rows: (first: number, count: number) => Uint8ClampedArray}} picture RGBA rows
 * @param {number} size width and height of the result
 * @param {"bilinear" | "bicubic" | "nearest"} interpolation
 * @returns {Uint8ClampedArray} RGB, [size, size, 3]
 */
export function squash(picture, size, interpolation) {
  const { width, height } = picture;
  if (interpolation === "nearest") return nearest(picture, size);
  const filter = FILTERS[interpolation];
  if (!filter) throw new Error(`interpolation: got '${interpolation}', want bilinear, bicubic or nearest.`);
  const across = width === size ? null : kernel(width, size, filter);
  // Pillow 13 starts with the rows where that is cheaper, and rounds to 8 bits between the two passes.
  if (height > size && height + size > 2 * width) {
    const out = new Uint8ClampedArray(size * size * 3);
    horizontal(shortened(picture, kernel(height, size, filter), size), width, size, across, out, size);
    return out;
  }
  const narrow = new Uint8ClampedArray(height * size * 3);
  const strip = Math.max(1, Math.floor(2 ** 22 / width));
  for (let first = 0; first < height; first += strip) {
    const count = Math.min(strip, height - first);
    horizontal(picture.rows(first, count), width, count, across, narrow.subarray(first * size * 3), size);
  }
  return height === size ? narrow : vertical(narrow, kernel(height, size, filter), size);
}

/** For each output position the first input position and the fixed-point weights. */
function kernel(input, output, { support, weigh }) {
  const scale = input / output;
  const stretch = Math.max(scale, 1);
  const reach = support * stretch;
  return Array.from({ length: output }, (_, position) => {
    const center = (position + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - reach + 0.5));
    const last = Math.min(input, Math.trunc(center + reach + 0.5));
    const weights = Float64Array.from({ length: last - first }, (_, i) => weigh((i + first - center + 0.5) / stretch));
    const sum = weights.reduce((a, b) => a + b, 0);
    return { first, weights: Int32Array.from(weights, (w) => fixed(sum === 0 ? w : w / sum)) };
  });
}

function fixed(weight) {
  return Math.trunc(weight * 2 ** PRECISION + (weight < 0 ? -0.5 : 0.5));
}

function horizontal(rgba, width, count, across, out, size) {
  for (let y = 0; y < count; y++) {
    const row = y * width * 4;
    for (let x = 0, to = y * size * 3; x < size; x++, to += 3) {
      if (across === null) {
        for (let c = 0; c < 3; c++) out[to + c] = rgba[row + x * 4 + c];
        continue;
      }
      const { first, weights } = across[x];
      let r = 1 << (PRECISION - 1), g = r, b = r;
      for (let i = 0, from = row + first * 4; i < weights.length; i++, from += 4) {
        const w = weights[i];
        r += rgba[from] * w;
        g += rgba[from + 1] * w;
        b += rgba[from + 2] * w;
      }
      out[to] = r >> PRECISION;
      out[to + 1] = g >> PRECISION;
      out[to + 2] = b >> PRECISION;
    }
  }
}

/** RGBA [size, width, 4]: every output row from the input rows under its filter. */
function shortened({ width, rows }, down, size) {
  const stride = width * 4;
  const out = new Uint8ClampedArray(size * stride);
  for (let y = 0; y < size; y++) {
    const { first, weights } = down[y];
    const rgba = rows(first, weights.length);
    for (let x = 0; x < stride; x++) {
      let sum = 1 << (PRECISION - 1);
      for (let i = 0, from = x; i < weights.length; i++, from += stride) sum += rgba[from] * weights[i];
      out[y * stride + x] = sum >> PRECISION;
    }
  }
  return out;
}

function vertical(narrow, down, size) {
  const out = new Uint8ClampedArray(size * size * 3);
  const stride = size * 3;
  for (let y = 0; y < size; y++) {
    const { first, weights } = down[y];
    for (let x = 0; x < stride; x++) {
      let sum = 1 << (PRECISION - 1);
      for (let i = 0, from = first * stride + x; i < weights.length; i++, from += stride) sum += narrow[from] * weights[i];
      out[y * stride + x] = sum >> PRECISION;
    }
  }
  return out;
}

function nearest({ width, height, rows }, size) {
  const out = new Uint8ClampedArray(size * size * 3);
  for (let y = 0; y < size; y++) {
    const row = rows(Math.floor((y + 0.5) * height / size), 1);
    for (let x = 0; x < size; x++) {
      const from = Math.floor((x + 0.5) * width / size) * 4;
      for (let c = 0; c < 3; c++) out[(y * size + x) * 3 + c] = row[from + c];
    }
  }
  return out;
}
