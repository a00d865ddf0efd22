// A picture file to the input of the image program, as the contract says: upright, on white, brought to size, RGB in 0-1.

import { upright, webpOrientation } from "./orientation.js";
import { fit } from "./resize.js";

const THUMBNAIL_PX = 256;

/**
 * @param {Blob} blob an encoded picture
 * @param {object} how the contract's `image`
 * @returns {Promise<{rgb: Uint8ClampedArray, thumbnail: Blob}>} RGB [size, size, 3], and a small JPEG to show
 */
export async function decode(blob, how) {
  // Color profiles are left alone, as Pillow leaves them.
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "premultiply" };
  const turn = await webpOrientation(blob);
  const bitmap = turn === 1
    ? await createImageBitmap(blob, options)
    : upright(await createImageBitmap(blob, { ...options, imageOrientation: "none" }), turn);
  const { width, height } = bitmap;
  let canvas = null, context = null;
  /** RGBA of some rows: a strip at a time, for whole photos exceed what some phones allow a canvas. */
  const rows = (first, count) => {
    if (canvas?.height !== count) {
      canvas = new OffscreenCanvas(width, count);
      context = canvas.getContext("2d", { willReadFrequently: true });
    }
    context.fillStyle = "#fff";
    context.fillRect(0, 0, width, count);
    context.drawImage(bitmap, 0, -first);
    return context.getImageData(0, 0, width, count).data;
  };
  try {
    return { rgb: fit({ width, height, rows }, how), thumbnail: await shrink(bitmap) };
  } finally {
    bitmap.close();
  }
}

/** A gallery of whole photos would not fit into a phone's memory. */
function shrink(bitmap) {
  const factor = Math.min(1, THUMBNAIL_PX / Math.min(bitmap.width, bitmap.height));
  const canvas = new OffscreenCanvas(Math.max(1, bitmap.width * factor), Math.max(1, bitmap.height * factor));
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.8 });
}

/** RGB [size, size, 3] to float32 [3, size, size] in 0-1. */
export function toInput(rgb) {
  const area = rgb.length / 3;
  const out = new Float32Array(rgb.length);
  for (let i = 0; i < area; i++) for (let c = 0; c < 3; c++) out[c * area + i] = rgb[i * 3 + c] / 255;
  return out;
}

/** The picture of golden.json, which needs no file. */
export function goldenPicture(size) {
  const rgb = new Uint8ClampedArray(size * size * 3);
  for (let row = 0, i = 0; row < size; row++) {
    for (let column = 0; column < size; column++) {
      for (let channel = 0; channel < 3; channel++) rgb[i++] = (5 * column + 3 * row + 80 * channel) % 256;
    }
  }
  return rgb;
}
