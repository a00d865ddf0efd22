// Pillow's resize, bit for bit: two passes of 8-bit fixed-point sums whose filter is widened where the picture shrinks.
//
// A canvas scales with another filter in every browser, and none is the one the student was trained with.

const PRECISION = 22;
/** Pixels that are taken out of the image at a time. */
const STRIP = 2 ** 22;
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
 * @param {{width: number, height: number, rows: (first: number, count: number) => Uint8ClampedArray}} image RGBA rows
 * @param {object} how the contract's `image`: size, interpolation, resize and fill
 * @returns {Uint8ClampedArray} RGB, [size, size, 3]
 */
export function fit(image, how) {
  const { size, interpolation } = how;
  const place = placement(image, how);
  const [columns, lines] = [place.width, place.height].map((scaled) => Math.min(scaled, size));
  const filter = FILTERS[interpolation];
  if (!filter && interpolation !== "nearest") {
    throw new Error(`interpolation: got '${interpolation}', want bilinear, bicubic or nearest.`);
  }
  const pixels = filter
    ? filtered(image, place, columns, lines, filter)
    : nearest(image, place, columns, lines);
  if (columns === size && lines === size) return pixels;
  const canvas = new Uint8ClampedArray(size * size * 3).fill(how.fill ?? 0);
  const left = Math.floor((size - columns) / 2), top = Math.floor((size - lines) / 2);
  for (let y = 0; y < lines; y++) {
    canvas.set(pixels.subarray(y * columns * 3, (y + 1) * columns * 3), ((top + y) * size + left) * 3);
  }
  return canvas;
}

/** The scaled image, and the corner from which at most size x size of it are used. */
export function placement({ width, height }, { size, resize = "squash" }) {
  if (resize === "squash") return { width: size, height: size, left: 0, top: 0 };
  if (resize === "longest") {
    const ratio = Math.max(width / size, height / size);
    const [w, h] = [width, height].map((side) => Math.max(1, halfToEven(side / ratio)));
    return { width: w, height: h, left: 0, top: 0 };
  }
  if (resize !== "shortest") throw new Error(`resize: got '${resize}', want squash, shortest or longest.`);
  const long = Math.trunc(size * Math.max(width, height) / Math.min(width, height));
  const start = halfToEven((long - size) / 2);
  return height > width
    ? { width: size, height: long, left: 0, top: start }
    : { width: long, height: size, left: start, top: 0 };
}

/** Python's round. */
function halfToEven(value) {
  const down = Math.floor(value), rest = value - down;
  return rest === 0.5 ? down + (down % 2) : Math.round(value);
}

/** Both passes, with 8 bits between them, in the order of Pillow 13. */
function filtered(image, place, columns, lines, filter) {
  const { width, height } = image;
  const across = width === place.width ? null : kernel(width, place.width, filter, place.left, columns);
  const down = height === place.height ? null : kernel(height, place.height, filter, place.top, lines);
  const shrunk = height - place.height, verticalFirst = shrunk > 0 && shrunk > 2 * (width - place.width);
  if (verticalFirst) {
    const low = downFirst(image, down);
    return horizontal(low, 3, { width, count: lines, across, columns, left: place.left });
  }
  const narrow = new Uint8ClampedArray(height * columns * 3);
  const strip = Math.max(1, Math.floor(STRIP / width));
  for (let first = 0; first < height; first += strip) {
    const count = Math.min(strip, height - first);
    narrow.set(
      horizontal(image.rows(first, count), 4, { width, count, across, columns, left: place.left }), first * columns * 3,
    );
  }
  if (down) return vertical(narrow, 3, { width: columns, down, first: 0 });
  return narrow.subarray(place.top * columns * 3, (place.top + lines) * columns * 3);
}

/** The vertical pass from RGBA rows, a strip at a time. */
function downFirst({ width, rows }, down) {
  const low = new Uint8ClampedArray(down.length * width * 3);
  const last = (line) => down[line].first + down[line].weights.length;
  for (let line = 0, next; line < down.length; line = next) {
    const { first } = down[line];
    for (next = line + 1; next < down.length && (last(next) - first) * width <= STRIP; next++);
    const part = down.slice(line, next);
    low.set(vertical(rows(first, last(next - 1) - first), 4, { width, down: part, first }), line * width * 3);
  }
  return low;
}

/** For `count` output positions from `start` on the first input position and the fixed-point weights. */
function kernel(input, output, { support, weigh }, start, count) {
  const scale = input / output;
  const stretch = Math.max(scale, 1);
  const reach = support * stretch;
  return Array.from({ length: count }, (_, position) => {
    const center = (start + position + 0.5) * scale;
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

/** Rows of `step` bytes a pixel to RGB rows of `columns` pixels. */
function horizontal(pixels, step, { width, count, across, columns, left }) {
  const out = new Uint8ClampedArray(count * columns * 3);
  for (let y = 0; y < count; y++) {
    const row = y * width * step;
    for (let x = 0, to = y * columns * 3; x < columns; x++, to += 3) {
      if (across === null) {
        for (let c = 0; c < 3; c++) out[to + c] = pixels[row + (left + x) * step + c];
        continue;
      }
      const { first, weights } = across[x];
      let r = 1 << (PRECISION - 1), g = r, b = r;
      for (let i = 0, from = row + first * step; i < weights.length; i++, from += step) {
        const w = weights[i];
        r += pixels[from] * w;
        g += pixels[from + 1] * w;
        b += pixels[from + 2] * w;
      }
      out[to] = r >> PRECISION;
      out[to + 1] = g >> PRECISION;
      out[to + 2] = b >> PRECISION;
    }
  }
  return out;
}

/** Rows of `step` bytes a pixel, from row `first` on, to one RGB row for each kernel of `down`. */
function vertical(pixels, step, { width, down, first: start }) {
  const out = new Uint8ClampedArray(down.length * width * 3), stride = width * step;
  down.forEach(({ first, weights }, y) => {
    for (let x = 0, to = y * width * 3; x < width; x++) {
      for (let c = 0; c < 3; c++, to++) {
        let sum = 1 << (PRECISION - 1);
        for (let i = 0, from = (first - start) * stride + x * step + c; i < weights.length; i++, from += stride) {
          sum += pixels[from] * weights[i];
        }
        out[to] = sum >> PRECISION;
      }
    }
  });
  return out;
}

function nearest({ width, height, rows }, place, columns, lines) {
  const out = new Uint8ClampedArray(lines * columns * 3);
  const across = centers(width, place.width).slice(place.left), down = centers(height, place.height).slice(place.top);
  for (let y = 0; y < lines; y++) {
    const row = rows(down[y], 1);
    for (let x = 0; x < columns; x++) {
      for (let c = 0; c < 3; c++) out[(y * columns + x) * 3 + c] = row[across[x] * 4 + c];
    }
  }
  return out;
}

/** The input position of each output position; summed up, as Pillow does, for the rounding decides between two. */
function centers(input, output) {
  const step = input / output;
  let at = step / 2;
  return Array.from({ length: output }, () => {
    const found = Math.min(Math.trunc(at), input - 1);
    at += step;
    return found;
  });
}
