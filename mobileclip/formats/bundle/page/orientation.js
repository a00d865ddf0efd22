// WebP pictures turned upright: browsers follow the EXIF of JPEG and PNG themselves, and leave that of WebP alone.

const ORIENTATION = 0x0112;
// By orientation: the canvas matrix for a picture of this width and height.
const MATRICES = {
  2: (w) => [-1, 0, 0, 1, w, 0],
  3: (w, h) => [-1, 0, 0, -1, w, h],
  4: (w, h) => [1, 0, 0, -1, 0, h],
  5: () => [0, 1, 1, 0, 0, 0],
  6: (w, h) => [0, 1, -1, 0, h, 0],
  7: (w, h) => [0, -1, -1, 0, h, w],
  8: (w) => [0, -1, 1, 0, 0, w],
};

/** Orientation that a WebP file's EXIF states, 2-8; 1 where it states none, or the file is no WebP. */
export async function webpOrientation(blob) {
  const head = await view(blob, 0, 12);
  if (name(head, 0) !== "RIFF" || name(head, 8) !== "WEBP") return 1;
  for (let at = 12; at + 8 <= blob.size;) {
    const chunk = await view(blob, at, 8);
    const size = chunk.getUint32(4, true);
    if (name(chunk, 0) === "EXIF") return orientation(await view(blob, at + 8, size));
    at += 8 + size + (size & 1);
  }
  return 1;
}

/** The picture as it is meant to be seen; the one that was given is closed. */
export function upright(bitmap, orientation) {
  const { width, height } = bitmap, isTurned = orientation >= 5;
  const canvas = new OffscreenCanvas(isTurned ? height : width, isTurned ? width : height);
  const context = canvas.getContext("2d");
  context.setTransform(...MATRICES[orientation](width, height));
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return canvas.transferToImageBitmap();
}

function orientation(exif) {
  try {
    const start = name(exif, 0) === "Exif" ? 6 : 0;
    const little = exif.getUint16(start) === 0x4949;
    const table = start + exif.getUint32(start + 4, little);
    for (let i = 0, at = table + 2; i < exif.getUint16(table, little); i++, at += 12) {
      if (exif.getUint16(at, little) !== ORIENTATION) continue;
      const found = exif.getUint16(at + 8, little);
      return found in MATRICES ? found : 1;
    }
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // a table that ends early states nothing
  }
  return 1;
}

async function view(blob, at, size) {
  return new DataView(await blob.slice(at, at + size).arrayBuffer());
}

function name(data, at) {
  return data.byteLength < at + 4 ? "" : String.fromCharCode(...[0, 1, 2, 3].map((i) => data.getUint8(at + i)));
}
