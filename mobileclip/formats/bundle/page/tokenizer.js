// CLIP's tokenizer, read from the export's tokenizer.json: the reference for apps that carry no tokenizer library.
//
// Every step is one the file describes (normalizers, words, bytes, merges, template, cut, padding); a file that asks
// for anything else is refused. Texts are cleaned first, as the contract's `cleaning` says: see cleaning.js.

const WHITE = "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const ENDS = new RegExp(`^[${WHITE}]+|[${WHITE}]+$`, "gu");

/**
 * @param {object} description tokenizer.json
 * @returns {(text: string) => Int32Array} cleaned text to token ids of fixed length
 */
export function createTokenizer(description) {
  const normalize = chain(parts(description.normalizer, "normalizers").map(normalizer));
  const [split, bytes] = parts(description.pre_tokenizer, "pretokenizers");
  if (split.type !== "Split" || split.behavior !== "Removed" || !split.invert || bytes.type !== "ByteLevel") {
    throw new Error("tokenizer.json: the words are not split as CLIP splits them.");
  }
  const words = regex(split.pattern);
  const added = new Map(description.added_tokens.map((token) => [token.content, token.id]));
  const special = new RegExp(`(${[...added.keys()].map(escape).join("|")})`, "u");
  const encodeWord = bytePairs(description.model);
  const fit = fitter(description);
  return (text) => {
    const ids = [];
    for (const piece of normalize(text).split(special)) {
      if (added.has(piece)) ids.push(added.get(piece));
      else for (const [word] of piece.matchAll(words)) ids.push(...encodeWord(word));
    }
    return fit(ids);
  };
}

function parts(step, key) {
  return step.type === "Sequence" ? step[key] : [step];
}

function chain(steps) {
  return (text) => steps.reduce((value, step) => step(value), text);
}

function normalizer(step) {
  switch (step.type) {
    case "Replace": {
      const pattern = regex(step.pattern);
      return (text) => text.replace(pattern, () => step.content);
    }
    case "NFC": return (text) => text.normalize("NFC");
    case "Strip": return (text) => text.replace(ENDS, "");
    case "Lowercase": return (text) => text.toLowerCase();
    default: throw new Error(`tokenizer.json: unknown normalizer '${step.type}'.`);
  }
}

function regex(pattern) {
  // What \s covers differs between engines: JavaScript's takes the byte order mark for a space.
  return new RegExp(pattern.Regex.replaceAll("\\s", "\\p{White_Space}"), "gu");
}

function escape(text) {
  return text.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&");
}

/** Byte-pair encoding of one word, with a memory of words seen. */
function bytePairs(model) {
  if (model.type !== "BPE" || model.continuing_subword_prefix) {
    throw new Error("tokenizer.json: the model is no byte-pair encoding of CLIP's kind.");
  }
  const ranks = new Map(model.merges.map((pair, rank) => [pair.join(" "), rank]));
  const vocabulary = new Map(Object.entries(model.vocab));
  const alphabet = byteAlphabet();
  const utf8 = new TextEncoder();
  const seen = new Map();
  return (word) => {
    if (!seen.has(word)) {
      const symbols = Array.from(utf8.encode(word), (byte) => alphabet[byte]);
      symbols[symbols.length - 1] += model.end_of_word_suffix;
      seen.set(word, merge(symbols, ranks).map((symbol) => vocabulary.get(symbol)));
    }
    return seen.get(word);
  };
}

/** Join the pair of lowest rank, everywhere it occurs, until no pair has a rank. */
function merge(symbols, ranks) {
  while (symbols.length > 1) {
    let best = Infinity;
    let first = "", second = "";
    for (let i = 0; i + 1 < symbols.length; i++) {
      const rank = ranks.get(`${symbols[i]} ${symbols[i + 1]}`);
      if (rank < best) [best, first, second] = [rank, symbols[i], symbols[i + 1]];
    }
    if (best === Infinity) break;
    const joined = [];
    for (let i = 0; i < symbols.length; i++) {
      const pair = symbols[i] === first && symbols[i + 1] === second;
      joined.push(pair ? first + second : symbols[i]);
      if (pair) i++;
    }
    symbols = joined;
  }
  return symbols;
}

/** A printable character for each byte: itself where it is printable Latin-1, else one from U+0100 on. */
function byteAlphabet() {
  const printable = (byte) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(printable(byte) ? byte : next++));
}

/** Start and end token, cut on the right, padding on the right. */
function fitter({ post_processor: template, truncation, padding }) {
  const ids = (name) => template.special_tokens[name].ids;
  const [first, , last] = template.single;
  const start = ids(first.SpecialToken.id), end = ids(last.SpecialToken.id);
  const length = padding.strategy.Fixed;
  const room = truncation.max_length - start.length - end.length;
  return (tokens) => {
    const row = new Int32Array(length).fill(padding.pad_id);
    row.set([...start, ...tokens.slice(0, room), ...end]);
    return row;
  };
}
