// What the page shows; text goes in as text, never as markup.

/** Options of a select; hidden names for values may be given. */
export function fillSelect(select, values, wish, names = {}) {
  select.replaceChildren(...values.map((value) => {
    const option = element("option", names[value] ?? value);
    option.value = value;
    return option;
  }));
  if (values.includes(wish)) select.value = wish;
}

const RESIZING = {
  squash: "squashed", shortest: "shorter side scaled, center cropped", longest: "longer side scaled, filled up",
};
const tiles = new WeakMap();

/** Tiles in this order; a picture keeps its tile, so that nothing flickers and the keyboard stays where it is. */
export function showGallery(list, pictures, { current, scores, choose }) {
  const items = pictures.map((picture) => {
    if (!tiles.has(picture)) tiles.set(picture, tile(picture, choose));
    const { item, button, image, score } = tiles.get(picture);
    if (picture.url && image.getAttribute("src") !== picture.url) image.src = picture.url;
    if (picture === current) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
    item.classList.toggle("waiting", !picture.features);
    score.hidden = !scores.has(picture);
    score.className = score.hidden ? "" : "score";
    score.textContent = scores.get(picture)?.toFixed(3) ?? "";
    return item;
  });
  if (items.length === list.children.length && items.every((item, i) => item === list.children[i])) return;
  const focused = document.activeElement;
  list.replaceChildren(...items);
  if (list.contains(focused)) focused.focus({ preventScroll: true });
}

function tile(picture, choose) {
  const item = document.createElement("li"), button = document.createElement("button");
  const image = document.createElement("img"), score = document.createElement("span");
  button.type = "button";
  button.onclick = () => choose(picture);
  image.alt = picture.file.name;
  button.append(image);
  item.append(button, score);
  return { item, button, image, score };
}

export function showScores(list, rows) {
  list.replaceChildren(...rows.map(({ label, share }, i) => {
    const item = document.createElement("li");
    const bar = element("span", "", "bar"), filled = document.createElement("i");
    filled.style.setProperty("--share", `${(100 * share).toFixed(1)}%`);
    bar.append(filled);
    item.append(element(i === 0 ? "b" : "span", label), element("span", percent(share), "value"), bar);
    return item;
  }));
}

export function showFacts(table, state, median) {
  const { contract, image, text, times } = state;
  const program = (loaded) => {
    const size = contract.programs.find((p) => p.tower === loaded.tower && p.precision === loaded.precision && p.format === "onnx").bytes;
    const threads = loaded.backend === "wasm" ? `, ${loaded.threads} thread${loaded.threads > 1 ? "s" : ""}` : "";
    return `${loaded.precision}, ${(size / 1e6).toFixed(1)} MB, ${loaded.backend === "webgpu" ? "WebGPU" : "WebAssembly"}${threads}, started in ${loaded.loadMs.toFixed(0)} ms`;
  };
  const rows = [["Image program", program(image)]];
  if (times.image.length) {
    rows.push(["A picture", `${median(times.image).toFixed(1)} ms, and ${median(times.prepare).toFixed(1)} ms to decode and resize`]);
  }
  rows.push(["Text program", text ? program(text) : "not loaded: it comes with the first typed text"]);
  if (times.text.length) rows.push(["A text", `${median(times.text).toFixed(1)} ms`]);
  rows.push(["Self-test", [
    `golden picture at cosine ${image.test.cosine.toFixed(6)}`,
    text && `${text.test.tokens} golden texts: tokens equal, cosine ${text.test.cosine.toFixed(6)}`,
    ...[image, text].flatMap((loaded) => loaded?.refused ?? []).map((why) => `refused ${why}`),
  ].filter(Boolean).join("; ")]);
  rows.push(["Input", `${contract.image.size} px, ${contract.image.interpolation}, ${RESIZING[contract.image.resize ?? "squash"]}; ${contract.text.context_length} tokens`]);
  rows.push(["Embedding", `${contract.embed_dim} values, logit scale ${contract.logit_scale.toFixed(2)}`]);
  rows.push(["License of the weights", contract.license]);
  table.replaceChildren(...rows.map(([name, value]) => {
    const row = document.createElement("tr");
    row.append(element("th", name), element("td", value));
    return row;
  }));
}

/** Whose data and models the student was made from; a license whose text is not known is told without a link. */
export function showCredits(list, attributions) {
  list.replaceChildren(...attributions.map((one) => {
    const item = document.createElement("li");
    const said = one.attribution ? [element("span", ` ${one.attribution}`)] : [];
    const urls = Object.entries(one.license_urls ?? {});
    const licenses = urls.length ? urls : [[one.license, ""]];
    item.append(link(one.name, one.url, "b"), ...said, ...licenses.flatMap(([name, url]) => [" · ", link(name, url)]));
    return item;
  }));
}

function link(text, url, tag = "span") {
  if (!/^https?:/.test(url)) return element(tag, text);
  const made = element("a", text);
  Object.assign(made, { href: url, target: "_blank", rel: "noopener noreferrer" });
  return made;
}

function percent(share) {
  return share < 0.0005 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`;
}

function element(tag, text, className = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}
