"use strict";
const root = document.documentElement;
const byId = (name) => document.getElementById(name);
const data = JSON.parse(byId("data").textContent);
const tables = [...document.querySelectorAll("main figure.table table")];

/* What is kept over a reload; storage may be forbidden, as in some browsers for files. */
const kept = {
  get(name) { try { return JSON.parse(sessionStorage.getItem(location.pathname + name)); } catch { return null; } },
  set(name, value) { try { sessionStorage.setItem(location.pathname + name, JSON.stringify(value)); } catch { /* then not */ } },
};

/* Theme */
const themeButton = byId("theme");
const isDark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
const nameTheme = () => { themeButton.textContent = isDark() ? "Light theme" : "Dark theme"; };
themeButton.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch { /* holds for this view alone */ }
  nameTheme();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", nameTheme);
nameTheme();
themeButton.hidden = false;

/* Sorting: by the raw figures of `data`, rows without one last, equal ones in the order they came in. */
const rowsOf = new Map(tables.map((table) => [table, [...table.tBodies[0].rows]]));
const figureOf = (table, row, column) => {
  const figure = data.tables[table.id][rowsOf.get(table).indexOf(row)][column];
  return Array.isArray(figure) ? figure[0] : figure;
};
const compared = (a, b) => {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
};
function sort(table, column, direction) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, number) => head.setAttribute("aria-sort", number === column ? direction : "none"));
  const sign = direction === "descending" ? -1 : 1;
  const rows = [...rowsOf.get(table)];
  if (direction !== "none") {
    rows.sort((one, other) => {
      const a = figureOf(table, one, column), b = figureOf(table, other, column);
      return a === null || b === null ? compared(a, b) : sign * compared(a, b);
    });
  }
  table.tBodies[0].append(...rows);
}
const NEXT = { none: "ascending", ascending: "descending", descending: "none" };
for (const table of tables) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const direction = NEXT[head.getAttribute("aria-sort")];
      sort(table, column, direction);
      kept.set(`sort-${table.id}`, [column, direction]);
    });
  });
  const [column, direction] = kept.get(`sort-${table.id}`) ?? [0, "none"];
  if (direction !== "none" && column < table.tHead.rows[0].cells.length) sort(table, column, direction);
}

/* Charts: the curve under the pointer or with the focus stands out in every chart, and stays so when it is tapped. */
const charts = [...document.querySelectorAll(".chart")];
const curvesOf = new Map(charts.map((chart) => [chart, [...chart.querySelectorAll(".curve")]]));
let held = kept.get("held") ?? ""; // the label of the curve that was tapped
const rest = () => emphasise(held || document.activeElement.closest(".curve")?.dataset.label || "");
function emphasise(label) {
  for (const [chart, curves] of curvesOf) {
    chart.classList.toggle("chosen", curves.some((curve) => curve.dataset.label === label));
    for (const curve of curves) curve.classList.toggle("on", curve.dataset.label === label);
  }
}
if (byId("hint")) byId("hint").hidden = !document.querySelector("#charts .chart");
const NEAR = 28; // pixels
function nearest(chart, event) {
  const named = event.target.closest(".curve:not(.unnamed)");
  if (named) return named.dataset.label;
  const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.querySelector("svg").getScreenCTM().inverse());
  let best = NEAR, label = "";
  for (const curve of curvesOf.get(chart)) {
    const lines = [...curve.querySelectorAll(".stroke")].map((line) => [line.x1, line.y1, line.x2, line.y2]);
    const dots = [...curve.querySelectorAll("circle")].map((dot) => [dot.cx, dot.cy, dot.cx, dot.cy]);
    for (const ends of [...lines, ...dots]) {
      const [x1, y1, x2, y2] = ends.map((end) => end.baseVal.value), dx = x2 - x1, dy = y2 - y1;
      const share = Math.min(1, Math.max(0, ((at.x - x1) * dx + (at.y - y1) * dy) / (dx * dx + dy * dy || 1)));
      const distance = Math.hypot(at.x - x1 - share * dx, at.y - y1 - share * dy);
      if (distance < best) [best, label] = [distance, curve.dataset.label];
    }
  }
  return label;
}
const height = (curve) => Number(curve.querySelector(".name").getAttribute("y"));
for (const [chart, curves] of curvesOf) {
  const byHeight = [...curves].sort((one, other) => height(one) - height(other));
  const reach = (curve) => byHeight.forEach((one) => one.setAttribute("tabindex", one === curve ? 0 : -1));
  if (curves.length) reach(byHeight[byHeight.length - 1]);
  chart.addEventListener("pointermove", (event) => {
    const label = event.pointerType === "mouse" && nearest(chart, event);
    if (label) emphasise(label); else rest();
  });
  chart.addEventListener("pointerleave", rest);
  chart.addEventListener("click", (event) => {
    const label = nearest(chart, event);
    held = label === held ? "" : label;
    kept.set("held", held);
    if (!held) document.activeElement.blur();
    rest();
  });
  chart.addEventListener("focusin", (event) => { reach(event.target); emphasise(event.target.dataset.label); });
  chart.addEventListener("focusout", () => emphasise(held));
  chart.addEventListener("keydown", (event) => {
    const step = { ArrowUp: -1, ArrowLeft: -1, ArrowDown: 1, ArrowRight: 1 }[event.key];
    if (event.key === "Escape") { kept.set("held", held = ""); document.activeElement.blur(); }
    if (!step) return;
    event.preventDefault();
    byHeight[(byHeight.indexOf(event.target) + step + curves.length) % curves.length].focus();
  });
}

rest();

/* Filtering: the dense model stays as what the others are compared with. */
const filter = byId("filter");
function apply() {
  const words = byId("filter-method").value.toLowerCase().split(/[\s,]+/).filter(Boolean);
  const ratio = byId("filter-ratio").value;
  const named = (method) => words.length === 0 || words.some((word) => method.toLowerCase().includes(word));
  const fits = (element) => ratio === "" || !element.dataset.ratio || element.dataset.ratio === ratio;
  let shown = 0, all = 0;
  for (const table of tables) {
    const box = table.closest("figure");
    for (const row of rowsOf.get(table)) {
      row.hidden = !(fits(row) && (named(row.dataset.method) || row.classList.contains("dense")));
    }
    [...table.tHead.rows[0].cells].forEach((head, number) => {
      for (const row of table.rows) if (row.cells[number] && !row.querySelector(".failure")) row.cells[number].hidden = !fits(head);
    });
    box.hidden = !fits(box) || rowsOf.get(table).every((row) => row.hidden);
    const pruned = rowsOf.get(table).filter((row) => !row.classList.contains("dense"));
    all += pruned.length;
    shown += box.hidden ? 0 : pruned.filter((row) => !row.hidden).length;
  }
  for (const cell of document.querySelectorAll("details.cell")) {
    cell.hidden = !(fits(cell) && named(cell.dataset.method));
  }
  byId("shown").textContent = shown === all ? "" : `${shown} of ${all} rows`;
  kept.set("filter", [byId("filter-method").value, ratio]);
}
if (filter) {
  const [method, ratio] = kept.get("filter") ?? ["", ""];
  byId("filter-method").value = method;
  byId("filter-ratio").value = ratio;
  if (byId("filter-ratio").selectedIndex < 0) byId("filter-ratio").value = "";
  filter.addEventListener("input", apply);
  filter.addEventListener("submit", (event) => event.preventDefault());
  byId("all").addEventListener("click", () => {
    byId("filter-method").value = "";
    byId("filter-ratio").value = "";
    apply();
  });
  filter.hidden = false;
  apply();
}

/* A figure or a method's name opens the cell that it comes from. */
const dialog = byId("dialog");
function open(target, figure) {
  const cell = byId(target);
  if (!cell) return;
  byId("dialog-title").textContent = data.titles[target];
  byId("dialog-figure").textContent = figure;
  byId("dialog-figure").hidden = figure === "";
  byId("dialog-cell").replaceChildren(...[...cell.childNodes].filter((node) => node.nodeName !== "SUMMARY").map((node) => node.cloneNode(true)));
  dialog.showModal();
  byId("dialog-cell").scrollTop = 0;
}
function inWords(table, row, cell, target) {
  const column = cell.cellIndex;
  const head = table.tHead.rows[0].cells[column].textContent.trim();
  const figure = data.tables[table.id][rowsOf.get(table).indexOf(row)][column];
  const [value, low, high, stderr] = Array.isArray(figure) ? figure : [figure];
  if (typeof value !== "number") return `${head}: ${cell.textContent}`;
  const parts = [`${head}: ${cell.textContent}`, `exactly ${value}`];
  const drawn = data.drawn[target]?.includes(data.columns[table.id][column]) ?? false;
  if (typeof low === "number" && typeof high === "number") {
    parts.push(`${drawn ? "one standard deviation between the draws" : "95 % interval"}: ${low} to ${high}`);
  }
  if (typeof stderr === "number") parts.push(`${drawn ? "standard deviation between the draws" : "standard error"} ${stderr}`);
  return parts.join("; ");
}
document.querySelector("main").addEventListener("click", (event) => {
  const link = event.target.closest("tbody th a");
  const cell = event.target.closest("td[data-target]");
  if (link) {
    event.preventDefault();
    open(link.hash.slice(1), "");
  } else if (cell && getSelection().isCollapsed) {
    open(cell.dataset.target, inWords(cell.closest("table"), cell.closest("tr"), cell, cell.dataset.target));
  }
});
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });

/* What is closed on the screen is open on paper. */
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details.protocol:not([open])")];
  closed.forEach((details) => { details.open = true; });
});
addEventListener("afterprint", () => closed.forEach((details) => { details.open = false; }));

/* While a run goes on: ask whether the page is still the newest, and load it again when it is not. */
const EVERY = 3000;
async function ask() {
  const live = byId("live");
  try {
    const answer = await fetch("/", { headers: { "If-None-Match": `"${root.dataset.live}"` }, cache: "no-store" });
    if (answer.status === 200 && !dialog.open) { location.reload(); return; }
    live.textContent = answer.status === 200 || answer.status === 304 ? "live" : await answer.text();
    live.classList.toggle("lost", answer.status !== 200 && answer.status !== 304);
  } catch {
    live.textContent = "the server is gone; these are its last figures";
    live.classList.add("lost");
  }
  setTimeout(ask, EVERY);
}
if (root.dataset.live) setTimeout(ask, EVERY);
