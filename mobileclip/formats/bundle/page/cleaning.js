// What a host does to a text before the tokenizer: ftfy.fix_text without its repair of mojibake (text decoded with the
// wrong encoding, which nobody types), then HTML entities unescaped twice, as open_clip does.

const ENTITY = /&#?[0-9A-Za-z]{1,24};/g;
const REFERENCE = /&(#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[^\t\n\f <&#;]{1,32};?)/g;
const ANSI = /\x1b\[[\d;]*[a-zA-Z]/g;
const CONTROL = /[\0-\x08\x0b\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]/g;

/**
 * @param {object} tables cleaning.json: `entities` and `capitals` (HTML), `characters` (controls, ligatures, width)
 * @returns {(text: string) => string}
 */
export function createCleaner(tables) {
  const entities = new Map(Object.entries(tables.entities));
  const strict = new Map(Object.entries(tables.capitals));
  const characters = new Map(Object.entries(tables.characters));
  const special = new RegExp(`[${[...characters.keys()].join("")}]`, "gu");
  const unescapeAll = (text) => text.replace(REFERENCE, (_, name) => reference(name, entities, characters));

  function unescapeSure(text) {
    return text.replace(ENTITY, (whole) => {
      const name = whole.slice(1);
      if (!whole.startsWith("&#")) return strict.get(name) ?? entities.get(name) ?? whole;
      const decoded = unescapeAll(whole);
      return decoded.includes(";") ? whole : decoded;
    });
  }

  function fixLine(text, mayUnescape) {
    for (;;) {
      const before = text;
      if (mayUnescape && !text.includes("<")) text = unescapeSure(text);
      text = text.replace(special, (character) => characters.get(character))
        .replace(/[\u201c-\u201f]/g, '"').replace(/[\u02bc\u2018-\u201b]/g, "'")
        .replace(/\r\n|[\r\u2028\u2029]/g, "\n")
        .replace(/\p{Surrogate}/gu, "\ufffd")
        .replace(ANSI, "").replace(CONTROL, "")
        .normalize("NFC");
      if (text === before) return text;
    }
  }

  return (text) => {
    let mayUnescape = true;  // a line with a tag is taken for markup, and so is all that follows it
    const lines = text.split(/(?<=\n)/).map((line) => {
      mayUnescape &&= !line.includes("<");
      return fixLine(line, mayUnescape);
    });
    return unescapeAll(unescapeAll(lines.join("")));
  };
}

/** One HTML character reference without its ampersand, by the rules of the HTML standard. */
function reference(name, entities, characters) {
  if (name.startsWith("#")) return numeric(name, characters);
  if (entities.has(name)) return entities.get(name);
  for (let end = name.length - 1; end > 1; end--) {
    if (entities.has(name.slice(0, end))) return entities.get(name.slice(0, end)) + name.slice(end);
  }
  return `&${name}`;
}

function numeric(name, characters) {
  const digits = name.slice(1).replace(/;$/, "");
  const code = /^[xX]/.test(digits) ? parseInt(digits.slice(1), 16) : parseInt(digits, 10);
  if (code >= 0x80 && code <= 0x9f) return characters.get(String.fromCharCode(code));
  if (code === 0 || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff)) return "\ufffd";
  return isNoCharacter(code) ? "" : String.fromCodePoint(code);
}

function isNoCharacter(code) {
  return (code < 0x20 && ![0x09, 0x0a, 0x0c, 0x0d].includes(code)) || code === 0x7f ||
    (code >= 0xfdd0 && code <= 0xfdef) || (code & 0xfffe) === 0xfffe;
}
