// The page: a sortable table, the image that is chosen in it, and its meshes, which are loaded when
// they are first looked at.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const get = (id) => document.getElementById(id);
const columns = data.columns; // {label, mesh, better: 1 or -1, percent}
const images = data.images; // {name, strip, scores, meshes: names, files}
const loaded = new Map(); // meshes by image
let order = [...images.keys()];
let sorted = { column: -1, descending: false }; // column -1: by name
let chosen = -1;
let viewer = null;

function make(tag, text, properties = {}) {
  const element = Object.assign(document.createElement(tag), properties);
  if (text !== undefined) element.textContent = text;
  return element;
}

function format(value, column) {
  if (value === null) return "\u2013";
  return column.percent ? (100 * value).toFixed(1) : value.toPrecision(3);
}

// ---- table
function buildTable() {
  get("images").style.setProperty("--columns", columns.length); // so wide is the table
  const headings = [{ label: "Image" }, ...columns];
  headings.forEach((heading, i) => {
    const cell = make("th", undefined, { scope: "col" });
    const [label] = heading.label.split("@"); // PCK@0.15 is too wide for a column
    const button = make("button", label, { type: "button", title: `Sort by ${heading.label}` });
    if (heading.mesh) button.append(make("small", heading.mesh, { className: heading.mesh }));
    button.addEventListener("click", () => sortBy(i - 1));
    cell.append(button);
    get("head").append(cell);
  });
  images.forEach((image, i) => {
    const row = make("tr", undefined, { tabIndex: -1 });
    const cell = make("th", undefined, { scope: "row" });
    const thumb = make("span", undefined, { className: "thumb" });
    if (image.strip)
      thumb.append(
        make("img", undefined, { src: image.strip, alt: "", loading: "lazy", decoding: "async" }),
      );
    const inside = make("div", undefined, { title: image.name });
    if (image.strip) inside.append(thumb);
    const cut = Math.max(0, image.name.length - 10); // names often differ at their end alone
    inside.append(make("span", image.name.slice(0, cut), { className: "label" }));
    inside.append(make("span", image.name.slice(cut), { className: "end" }));
    cell.append(inside);
    row.append(cell);
    columns.forEach((column, c) => {
      const value = image.scores[c];
      const score = make("td", format(value, column));
      if (column.percent && column.better > 0 && value !== null) {
        score.style.setProperty("--part", value);
        score.classList.add(column.mesh || "all");
      }
      row.append(score);
    });
    row.addEventListener("click", () => choose(i, true));
    image.row = row;
  });
}

function compare(a, b) {
  const byName = images[a].name.localeCompare(images[b].name, undefined, { numeric: true });
  const sign = sorted.descending ? -1 : 1;
  if (sorted.column < 0) return sign * byName;
  const [x, y] = [images[a].scores[sorted.column], images[b].scores[sorted.column]];
  // Images without a score are last in either order.
  if (x === null || y === null) return (x === null) - (y === null) || byName;
  return sign * (x - y) || byName;
}

function sortBy(column, descending) {
  if (column >= columns.length) return;
  const best = column >= 0 && columns[column].better > 0;
  if (descending === undefined) descending = column === sorted.column ? !sorted.descending : best;
  sorted = { column, descending };
  list();
}

function sortByQuality(bestFirst) {
  const column = sorted.column >= 0 ? sorted.column : data.main;
  if (column >= 0) sortBy(column, bestFirst === columns[column].better > 0);
}

function list() {
  const wanted = get("search").value.trim().toLowerCase();
  order = [...images.keys()]
    .filter((i) => images[i].name.toLowerCase().includes(wanted))
    .sort(compare);
  get("rows").replaceChildren(...order.map((i) => images[i].row));
  [...get("head").children].forEach((cell, i) => {
    const here = i - 1 === sorted.column;
    if (here) cell.setAttribute("aria-sort", sorted.descending ? "descending" : "ascending");
    else cell.removeAttribute("aria-sort");
  });
  const column = columns[sorted.column];
  const bestFirst = column && sorted.descending === column.better > 0;
  get("best").setAttribute("aria-pressed", Boolean(column && bestFirst));
  get("worst").setAttribute("aria-pressed", Boolean(column && !bestFirst));
  tellPlace();
}

// ---- the chosen image
function choose(i, reveal) {
  if (chosen >= 0) images[chosen].row.removeAttribute("aria-current");
  chosen = i;
  const image = images[i];
  image.row.setAttribute("aria-current", "true");
  const pane = document.querySelector(".scroll");
  const [top, bottom] = [image.row.offsetTop - 48, image.row.offsetTop + image.row.offsetHeight];
  if (top < pane.scrollTop) pane.scrollTop = top;
  if (bottom > pane.scrollTop + pane.clientHeight) pane.scrollTop = bottom - pane.clientHeight;
  const detail = get("detail").getBoundingClientRect();
  if (reveal && (detail.bottom < 120 || detail.top > innerHeight - 120))
    get("detail").scrollIntoView();

  get("name").textContent = image.name;
  tellPlace();
  const groups = new Map(); // coarse and refined beside each other
  columns.forEach((column, c) => {
    if (!groups.has(column.label)) {
      groups.set(column.label, make("div"));
      groups.get(column.label).append(make("dt", column.label));
    }
    const unit = column.percent && image.scores[c] !== null ? "\u2009%" : "";
    const score = make("dd", format(image.scores[c], column) + unit);
    if (column.mesh) score.append(" ", make("small", column.mesh, { className: column.mesh }));
    groups.get(column.label).append(score);
  });
  get("scores").replaceChildren(...groups.values());
  get("strip").hidden = !image.strip;
  if (image.strip) {
    get("strip").href = get("strip-image").src = image.strip;
    get("strip-image").alt =
      `Strip of ${image.name}: photograph, meshes, keypoints and silhouettes`;
  }
  const links = Object.entries(image.files).flatMap(([label, href]) => [
    make("a", label, { href }),
    " ",
  ]);
  get("files").replaceChildren(...(links.length ? ["Files: ", ...links] : []));
  load(i);
}

function tellPlace() {
  const place = order.indexOf(chosen);
  get("place").textContent = place < 0 ? "" : `${place + 1} of ${order.length}`;
}

function step(by) {
  if (!order.length) return;
  const place = order.indexOf(chosen);
  const next = place < 0 ? 0 : (place + by + order.length) % order.length;
  choose(order[next]);
}

// ---- meshes
function bytes(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

/* Called by page/mesh_<number>.js: a page on a disk may read files in no other way. */
function receiveMeshes(i, meshes) {
  const unpacked = meshes.map(({ low, step, verts, colors }) => {
    const whole = new Uint16Array(bytes(verts).buffer);
    return {
      verts: Float32Array.from(whole, (value, k) => low[k % 3] + step[k % 3] * value),
      colors: colors ? bytes(colors) : null,
    };
  });
  loaded.set(i, unpacked);
  if (i === chosen) show(i);
}

function load(i) {
  const names = images[i].meshes;
  get("stage").hidden = get("tools").hidden = !names.length;
  if (!names.length) return;
  if (loaded.has(i)) {
    show(i);
    return;
  }
  get("message").textContent = "Loading\u2026";
  const script = make("script", undefined, {
    src: `${data.folder}/mesh_${String(i).padStart(4, "0")}.js`,
  });
  script.addEventListener("load", () => script.remove());
  script.addEventListener("error", () => {
    script.remove();
    if (i === chosen)
      get("message").textContent =
        `The folder \u201c${data.folder}\u201d beside this page is missing.`;
  });
  document.head.append(script);
}

function show(i) {
  const names = images[i].meshes;
  const meshes = loaded.get(i);
  if (!viewer) {
    const corners = bytes(data.faces).buffer;
    viewer = createViewer(
      get("canvas"),
      data.wide ? new Uint32Array(corners) : new Uint16Array(corners),
    );
  }
  viewer.show(meshes);
  get("message").textContent = "";
  get("canvas").setAttribute(
    "aria-label",
    `Meshes of ${images[i].name}: ${names.join(" and ")}. Shift and arrows turn them.`,
  );
  get("labels").replaceChildren(...names.map((name) => make("span", name, { className: name })));
  get("color").hidden = !meshes.some((mesh) => mesh.colors);
}

// ---- controls
function toggle(id, act) {
  const button = get(id);
  button.addEventListener("click", () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", on);
    if (viewer) viewer[act](on);
  });
}
toggle("color", "color");
toggle("spin", "spin");
get("reset").addEventListener("click", () => viewer?.reset());
get("previous").addEventListener("click", () => step(-1));
get("next").addEventListener("click", () => step(1));
get("best").addEventListener("click", () => sortByQuality(true));
get("worst").addEventListener("click", () => sortByQuality(false));
get("search").addEventListener("input", list);

const keys = {
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
  b: () => sortByQuality(true),
  w: () => sortByQuality(false),
  c: () => get("color").click(),
  t: () => get("spin").click(),
  0: () => viewer?.reset(),
  "+": () => viewer?.zoom(1.15),
  "-": () => viewer?.zoom(1 / 1.15),
  "/": () => get("search").focus(),
};
const turns = {
  ArrowLeft: [0.15, 0],
  ArrowRight: [-0.15, 0],
  ArrowUp: [0, 0.15],
  ArrowDown: [0, -0.15],
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target === get("search")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  let act = keys[event.key];
  if (event.shiftKey && turns[event.key]) act = () => viewer?.turn(...turns[event.key]);
  if (/^[1-9]$/.test(event.key)) act = () => sortBy(Number(event.key) - 2);
  if (!act) return;
  event.preventDefault();
  act();
});

buildTable();
get("order").hidden = data.main < 0;
if (data.main >= 0) sortByQuality(true);
else sortBy(-1, false);
if (order.length) choose(order[0]);
