"use strict";
const root = document.documentElement;
const byId = (name) => document.getElementById(name);
const data = JSON.parse(byId("data").textContent);

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

/* What is chosen stands behind # in the address, so that a link keeps it. */
const state = Object.fromEntries(new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : ""));
const columnByName = new Map(data.columns.map((column) => [column.name, column]));
const kinds = ["quality", "tasks", "answers", "skills", "checks", "speed", "size", "cost"];
const BEST = 6, LABELS = 8, CAP = 6;  // methods in colour for their quality, names beside the plot, times the dense perplexity

const setup = () => data.setups.find((each) => each.name === state.model) || data.setups[0];
function amount() {
  const { amounts } = setup();
  return amounts.find((each) => each.name === state.amount) || amounts[Math.min(1, amounts.length - 1)];
}
const has = (name, rows) => rows.some((row) => row.values[name] && row.values[name][0] !== null);
const measured = () => data.columns.filter((column) => has(column.name, amount().rows.filter((row) => row.method !== "dense")) || has(column.name, amount().rows));
const measures = () => measured().filter((column) => column.better);
const measure = () => measures().find((column) => column.name === state.by) || measures().find((column) => column.kind === "quality") || measures()[0];
const axes = () => measured().filter((column) => ["size", "cost", "speed"].includes(column.kind) && column !== measure());
const axis = () => axes().find((column) => column.name === state.against) || axes().find((column) => column.name === "parameters") || axes()[0];
const value = (row, name) => row.values[name] ? row.values[name][0] : null;
const text = (row, name) => row.values[name] ? row.values[name][1] + (row.values[name][5] ? "‡" : "") : "-";
const whole = (row, name) => row.values[name] ? `${text(row, name)}${row.values[name][2] ? ` ${row.values[name][2]}` : ""}` : "-";
const familyOf = (row) => (data.methods[row.method.split("+")[0]] || {}).family || "other";
const colour = (row) => `var(--${familyOf(row) === "other" ? "control" : familyOf(row)})`;
const hidden = () => new Set((state.without || "").split(" ").filter(Boolean));
const words = () => (state.find || "").toLowerCase().split(/\s+/);
const isChosen = (row) => row.method === "dense" || (!hidden().has(familyOf(row)) && words().some((word) => row.label.toLowerCase().includes(word)));

/* Elements are made of text alone, so that no name of a method is ever markup. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, given] of Object.entries(attributes)) {
    if (name === "onclick") element.addEventListener("click", given);
    else if (given === true) element.setAttribute(name, "");
    else if (given !== false && given !== null && given !== undefined) element.setAttribute(name, given);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}
const dot = (row) => { const element = make("span", { class: "dot", title: familyOf(row) }); element.style.setProperty("--family", colour(row)); return element; };

/* Rows in the order of a column: the dense model on top, cells without a value last. */
function sorted(rows, column) {
  const sign = (column.better === "higher" ? -1 : 1) * (state.order === "reversed" ? -1 : 1);
  const key = (row) => row.method === "dense" ? [0, 0] : value(row, column.name) === null ? [2, 0] : [1, sign * value(row, column.name)];
  return [...rows].sort((a, b) => key(a)[0] - key(b)[0] || key(a)[1] - key(b)[1]);
}

/* The verdict of two rows of an amount, as Python found it: > the first is better, < the second, = neither, . untested. */
function verdict(each, name, first, second) {
  const all = each.verdicts[name], count = each.rows.length;
  if (!all || first === second) return ".";
  const [i, j] = first < second ? [first, second] : [second, first];
  const mark = all[i * (2 * count - i - 1) / 2 + (j - i - 1)];
  return first < second ? mark : ({ ">": "<", "<": ">" })[mark] || mark;
}
function sides(each, first, second) {
  const count = each.rows.length, [i, j] = first < second ? [first, second] : [second, first];
  const found = each.sides[i * (2 * count - i - 1) / 2 + (j - i - 1)];
  return found && (first < second ? found : [found[1], found[0], found[2]]);
}
const eligible = (each, name) => each.rows.filter((row) => row.method !== "dense" && !row.little && value(row, name) !== null);
const listed = (names) => names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
const several = (labels) => labels.length > 5 ? `${labels.slice(0, 4).join(", ")} and ${labels.length - 4} more` : listed(labels);

/* The answer in words: which methods share the first place, and how far they are from the dense model. */
function answer() {
  const each = amount(), column = measure(), order = sorted(eligible(each, column.name), { ...column });
  if (!order.length) return "No method has a figure here.";
  const first = state.order === "reversed" ? order.at(-1) : order[0], dense = each.rows.find((row) => row.method === "dense");
  const beside = dense && value(dense, column.name) !== null ? `, beside ${text(dense, column.name)} of the dense model` : "";
  const head = `${first.label} has the ${column.better === "lower" ? "lowest" : "highest"} ${column.title} at ${each.name}: ${text(first, column.name)}${beside}.`;
  const tie = each.ties[column.name];
  if (!tie) return `${head} It is not tested against others.`;
  const best = tie.best.map((place) => each.rows[place]).filter((row) => row !== first).map((row) => row.label);
  if (!tie.best.length) return `${head} No method is shown to be better than all others, so none is marked.`;
  if (!best.length) return `${head} It is shown to be better than every other method.`;
  return `${head} ${several(best)} ${best.length > 1 ? "are" : "is"} not shown to be worse; the ${eligible(each, column.name).length - best.length - 1} others are.`;
}

/* The front */
function highlighted() {
  const each = amount(), column = measure();
  const order = sorted(eligible(each, column.name).filter(isChosen), { ...column }).map((row) => row.label);
  if (state.order === "reversed") order.reverse();
  return [...new Set([state.a, state.b, state.method, ...order.slice(0, BEST)].filter(Boolean))].slice(0, LABELS);
}
function movedApart(places, gap, low, high) {
  const groups = [];
  places.forEach((place, number) => {
    groups.push([place - number * gap]);
    const mean = (group) => group.reduce((sum, each) => sum + each, 0) / group.length;
    while (groups.length > 1 && mean(groups.at(-2)) >= mean(groups.at(-1))) groups.splice(-2, 2, [...groups.at(-2), ...groups.at(-1)]);
  });
  const starts = groups.flatMap((group) => group.map(() => group.reduce((sum, each) => sum + each, 0) / group.length));
  const last = high - (places.length - 1) * gap;
  return starts.map((start, number) => Math.min(Math.max(start, low), Math.max(last, low)) + number * gap);
}
const joinsAmounts = (x) => x.kind === "size" && setup().amounts.length > 1;
function pointsOfPlot(x, y) {
  const joins = joinsAmounts(x);
  const shown = joins ? setup().amounts : [amount()];
  return shown.flatMap((each) => each.rows.filter((row) => row.method !== "dense" && isChosen(row) && value(row, x.name) !== null && value(row, y.name) !== null)
    .map((row) => ({ row, amount: each.name, now: each === amount(), label: row.label, x: value(row, x.name) * x.scale, y: value(row, y.name) * y.scale, ends: row.values[y.name].slice(3, 5).map((end) => end === null ? null : end * y.scale) })));
}
function frontOf(points, x, y) {
  const better = (a, b, column) => column.better === "higher" ? a > b : a < b;
  const order = [...points].sort((a, b) => (better(a.x, b.x, x) ? -1 : better(b.x, a.x, x) ? 1 : 0) || (better(a.y, b.y, y) ? -1 : 1));
  const front = [];
  for (const point of order) if (!front.length || better(point.y, front.at(-1).y, y)) front.push(point);
  return front;
}
function drawFront() {
  const x = axis(), y = measure(), place = byId("plot"), joins = x && joinsAmounts(x);
  byId("front").hidden = !x || typeof Plot === "undefined";
  if (byId("front").hidden) return;
  byId("front-title").textContent = `${capital(y.title)} against ${x.title}`;
  const points = pointsOfPlot(x, y), dense = amount().rows.find((row) => row.method === "dense");
  const level = dense && value(dense, y.name) !== null ? value(dense, y.name) * y.scale : null;
  const least = Math.min(...points.map((point) => point.y), level ?? Infinity);
  const cap = y.log && y.better === "lower" ? Math.min(Math.max(...points.map((point) => point.y), level ?? 0), CAP * (level ?? least)) : Infinity;
  const inside = points.filter((point) => point.y <= cap), above = points.length - inside.length;
  const named = highlighted(), front = frontOf(inside, x, y);
  const wide = place.clientWidth || 360, margin = wide < 560 ? 120 : 190, height = wide < 560 ? 380 : 460;
  const faint = (point) => named.includes(point.label) ? 1 : 0.35;
  const clip = (end) => Math.min(end, cap);
  const spread = inside.filter((point) => point.now && (joins ? [state.a, state.b, state.method] : named).includes(point.label) && point.ends[0] !== null && point.ends[1] !== null);
  const lines = inside.filter((point) => named.includes(point.label)).sort((a, b) => a.x - b.x);
  const axisOf = (column, key) => ({ label: `${column.title}${column.axis || column.unit ? ` (${column.axis || column.unit})` : ""}, ${column.better} is better${key === "x" ? " →" : ""}`, type: column.log ? "log" : "linear" });
  const svg = Plot.plot({
    width: wide, height, marginRight: margin, marginLeft: 52, marginTop: 28, marginBottom: 42, className: "plot",
    ariaLabel: `${y.title} against ${x.title}; the table below has the figures`,
    style: { background: "none", color: "var(--ink)", fontFamily: "inherit", fontSize: "12px" },
    x: { ...axisOf(x, "x"), tickFormat: x.name.includes("bytes") ? (n) => bytes(n) : "~s", ticks: wide < 560 ? 4 : 7, nice: !x.log, insetLeft: 8, insetRight: 8 },
    y: { ...axisOf(y, "y"), grid: true, nice: !y.log, tickFormat: "~g", ...(y.log ? { domain: [least * 0.92, (Number.isFinite(cap) ? cap : Math.max(...points.map((p) => p.y))) * 1.04] } : {}) },
    marks: [
      level === null ? null : Plot.ruleY([level], { stroke: "var(--ink)", strokeDasharray: "2 4" }),
      !joins ? Plot.line(front, { x: "x", y: "y", stroke: "var(--quiet)", strokeWidth: 1, curve: "step-after", strokeDasharray: "4 3" }) : null,
      !joins ? null : Plot.line(lines, { x: "x", y: "y", z: "label", stroke: (point) => colour(point.row), strokeWidth: 1.6 }),
      Plot.ruleX(spread, { x: "x", y1: (point) => point.ends[0], y2: (point) => clip(point.ends[1]), stroke: (point) => colour(point.row), strokeOpacity: 0.55 }),
      Plot.dot(inside, { x: "x", y: "y", r: (point) => point.now ? 4.5 : 2.6, fill: (point) => colour(point.row), fillOpacity: faint, stroke: "var(--paper)", strokeWidth: 0.7 }),
      Plot.tip(inside, Plot.pointer({ x: "x", y: "y", fill: "var(--paper)", title: (point) => `${point.label}, ${point.amount}\n${y.heading} ${whole(point.row, y.name)}\n${x.heading} ${text(point.row, x.name)}` })),
    ].filter(Boolean),
    r: { type: "identity" }, color: { type: "identity" }, opacity: { type: "identity" },
  });
  svg.addEventListener("click", () => { if (svg.value) choose({ method: svg.value.label }); });
  const ends = joins ? [...new Map(lines.map((point) => [point.label, point])).values()] : lines;
  labelEnds(svg, ends, wide, margin, height);
  for (const group of svg.querySelectorAll("g[aria-label]")) group.removeAttribute("aria-label");  // which only parts with a role may have
  svg.setAttribute("role", "img");
  place.replaceChildren(svg);
  byId("front-note").textContent = [
    `Colours are families. In full colour: the best ${BEST} and what you choose${joins ? "" : ", with 95 % intervals"}.`,
    !joins ? "The dashed line joins what no other method beats in both." : "A line joins one method at several amounts; large dots are of the chosen one.",
    level === null ? "" : `The dotted line is the dense model, ${text(dense, y.name)}.`,
    above ? `${above} figure${above > 1 ? "s" : ""} above ${CAP} times the dense model's ${above > 1 ? "are" : "is"} left out here, and stand in the table.` : "",
  ].filter(Boolean).join(" ");
}
/* Names stand in a column beside the plot, at least a line apart, each joined to its point. */
function labelEnds(svg, points, wide, margin, height) {
  const at = (name) => svg.scale(name), right = wide - margin + 18, space = "http://www.w3.org/2000/svg";
  const order = points.map((point) => ({ ...point, px: at("x").apply(point.x), py: at("y").apply(point.y) })).sort((a, b) => a.py - b.py);
  const places = movedApart(order.map((point) => point.py), 16, 30, height - 46);
  const part = (tag, attributes, words) => {
    const element = document.createElementNS(space, tag);
    for (const [name, given] of Object.entries(attributes)) element.setAttribute(name, given);
    if (words) element.textContent = words;
    svg.append(element);
  };
  const room = Math.floor((margin - 24) / 6.7);
  order.forEach((point, number) => {
    part("line", { x1: point.px + 6, y1: point.py, x2: right - 3, y2: places[number], stroke: colour(point.row), "stroke-width": 0.7, "stroke-opacity": 0.6 });
    const name = point.label.length > room ? `${point.label.slice(0, room - 1)}…` : point.label;
    part("text", { x: right, y: places[number] + 4, "text-anchor": "start", fill: colour(point.row), "font-weight": 600 }, name);
  });
}
const capital = (words) => words.charAt(0).toUpperCase() + words.slice(1);
const bytes = (count) => count >= 2 ** 30 ? `${+(count / 2 ** 30).toPrecision(3)} GiB` : count >= 2 ** 20 ? `${+(count / 2 ** 20).toPrecision(3)} MiB` : `${+(count / 2 ** 10).toPrecision(3)} KiB`;

/* The table */
const USUAL = ["kl", "average", "answer_bpb", "prefill_speed", "decode_speed", "ratio", "parameters", "prune_seconds"];
function columnsOfTable() {
  const every = measured(), by = measure(), kind = state.columns || "overview";
  const rest = kind === "all" ? every : kind === "overview" ? every.filter((column) => /^(perplexity|served)_/.test(column.name) || USUAL.includes(column.name)) : every.filter((column) => column.kind === kind);
  return [by, ...rest.filter((column) => column !== by)];
}
function sortBy(column) {
  if (!column.better) return;
  choose(column === measure() ? { order: state.order === "reversed" ? "" : "reversed" } : { by: column.name, order: "" });
}
function headOf(column) {
  const isBy = column === measure(), up = (column.better === "lower") !== (state.order === "reversed");
  const words = [column.heading, column.unit ? make("small", {}, ` ${column.unit}`) : null].filter(Boolean);
  const title = `${column.meaning}${column.better ? `; ${column.better} is better` : ""}`;
  return make("th", { scope: "col", "aria-sort": isBy ? (up ? "ascending" : "descending") : null },
    column.better ? make("button", { type: "button", title, onclick: () => sortBy(column) }, ...words) : make("span", { title }, ...words));
}
function counted(each, name, row) {
  const place = each.rows.indexOf(row), marks = eligible(each, name).filter((other) => other !== row).map((other) => verdict(each, name, place, each.rows.indexOf(other)));
  return [marks.filter((mark) => mark === ">").length, marks.filter((mark) => mark === "<").length];
}
function drawTable() {
  const each = amount(), by = measure(), columns = columnsOfTable(), tie = each.ties[by.name];
  const table = byId("table"), rows = sorted(each.rows, by).filter(isChosen);
  table.caption.textContent = `${setup().name}, ${each.title || each.name}`;
  const groups = tie ? [make("th", { scope: "col", class: "words", title: "methods that share a letter are not shown to differ" }, "group"), make("th", { scope: "col", title: "of the other methods: shown to be worse than this one, and better" }, "beats / is beaten by")] : [];
  const [first, ...rest] = columns.map(headOf);
  table.tHead.replaceChildren(make("tr", {}, make("th", { scope: "col" }, "method"), first, ...groups, ...rest));
  table.tBodies[0].replaceChildren(...rows.map((row) => rowOf(row, each, columns, tie)));
  byId("table-note").textContent = tie ? `Methods that share a letter are not shown to differ in ${by.title}: p < 0.05 after Holm's adjustment for all pairs, on the same windows or documents. Green: not shown to be worse than the first. ‡: not shown to be above guesses.` : `Pairs are not tested in ${by.title}.`;
}
function rowOf(row, each, columns, tie) {
  const place = each.rows.indexOf(row), by = columns[0].name;
  const isPair = state.a === row.label || state.b === row.label;
  const box = row.failure || row.method === "dense" ? null : make("input", { type: "checkbox", checked: isPair, "aria-label": `compare ${row.label}`, onclick: () => pick(row.label) });
  const name = row.method === "dense" ? row.label : make("button", { type: "button", onclick: () => { choose({ method: row.label }); byId("card").scrollIntoView(); } }, row.label);
  const head = make("th", { scope: "row" }, make("span", { class: "name" }, box, dot(row), name));
  if (row.failure) return make("tr", {}, head, make("td", { class: "failure", colspan: columns.length + (tie ? 2 : 0) }, row.failure));
  const cell = (column) => make("td", { class: column.name === by && tie && tie.best.includes(place) ? "best" : column.name === "ratio" && row.missed ? "missed" : null },
    text(row, column.name), row.values[column.name] && row.values[column.name][2] ? make("small", {}, ` ${row.values[column.name][2]}`) : "");
  const isCounted = tie && row.method !== "dense" && !row.little && value(row, by) !== null;
  const groups = tie ? [make("td", { class: "letters" }, tie.letters[place] || ""), make("td", {}, isCounted ? counted(each, by, row).join(" / ") : "")] : [];
  const [first, ...rest] = columns.map(cell);
  return make("tr", { class: row.method === "dense" ? "dense" : null }, head, first, ...groups, ...rest);
}
const pick = (label) => choose(state.a === label ? { a: state.b, b: "" } : state.b === label ? { b: "" } : !state.a ? { a: label } : { a: state.b || state.a, b: label });
function saved() {
  const quote = (words) => /[",\n]/.test(words) ? `"${words.replaceAll('"', '""')}"` : words;
  const columns = columnsOfTable(), rows = sorted(amount().rows, measure()).filter(isChosen);
  const lines = [["label", ...columns.map((column) => column.name)], ...rows.map((row) => [row.label, ...columns.map((column) => value(row, column.name) ?? "")])];
  const link = make("a", { download: "methods.csv", href: URL.createObjectURL(new Blob([lines.map((line) => line.map(String).map(quote).join(",")).join("\n") + "\n"], { type: "text/csv" })) });
  link.click();
}

/* Every model: the measure at the chosen amount, in a column for each setup that has it. */
const besideDense = (each, row, column) => {
  const dense = each.rows.find((other) => other.method === "dense"), own = value(row, column.name), its = dense ? value(dense, column.name) : null;
  return column.kind !== "quality" || column.better !== "lower" || !its || own === null || row === dense ? null : make("small", {}, ` ${(own / its).toPrecision(3)}×`);
};
function drawModels() {
  const column = measure(), name = amount().name;
  const columns = data.setups.map((each) => [each, each.amounts.find((other) => other.name === name)]).filter(([, each]) => each && has(column.name, each.rows));
  byId("models").hidden = columns.length < 2;
  if (byId("models").hidden) return;
  const rowOn = (each, label) => each.rows.find((row) => row.label === label && value(row, column.name) !== null);
  const rows = sorted(amount().rows, column).filter((row) => isChosen(row) && columns.filter(([, each]) => rowOn(each, row.label)).length > 1);
  byId("models-table").tHead.replaceChildren(make("tr", {}, make("th", { scope: "col" }, "method"), ...columns.map(([each]) => make("th", { scope: "col" }, make("button", { type: "button", title: "look at this model", onclick: () => choose({ model: each.name }) }, each.name)))));
  byId("models-table").tBodies[0].replaceChildren(...rows.map((row) => make("tr", { class: row.method === "dense" ? "dense" : null }, make("th", { scope: "row" }, make("span", { class: "name" }, dot(row), row.label)), ...columns.map(([, each]) => {
    const own = rowOn(each, row.label), tie = each.ties[column.name];
    if (!own) return make("td", {}, "-");
    return make("td", { class: tie && tie.best.includes(each.rows.indexOf(own)) ? "best" : null }, text(own, column.name), besideDense(each, own, column));
  }))));
  byId("models-note").textContent = `${column.title} at ${name}, in the order of ${setup().name}, of methods that two models have. ×: times the dense model's. Green: not shown to be worse than the first of that model.`;
}

/* Two methods */
const WORDS = { ">": "first", "<": "second", "=": "not shown", ".": "not tested" };
function drawPair() {
  const each = amount(), places = pairPlaces(each);
  fill("a", each.rows.filter((row) => !row.failure).map((row) => [row.label, row.label]), each.rows[places[0]]?.label);
  fill("b", each.rows.filter((row) => !row.failure).map((row) => [row.label, row.label]), each.rows[places[1]]?.label);
  const [a, b] = places.map((place) => each.rows[place]);
  byId("pair").hidden = !a || !b;
  if (byId("pair").hidden) return;
  const changed = sides(each, ...places);
  byId("sides").textContent = changed ? `Of ${changed[2].toLocaleString("en")} answers, ${changed[0] + changed[1]} change sides: only ${a.label} has ${changed[0]} of them right, only ${b.label} has ${changed[1]}.` : "";
  const filled = measured().filter((column) => column.better && (a.values[column.name] || b.values[column.name]));
  const columns = [...filled.filter((column) => each.verdicts[column.name]), ...filled.filter((column) => !each.verdicts[column.name] && ["quality", "size", "cost"].includes(column.kind))];
  byId("pair-table").tHead.replaceChildren(make("tr", {}, ...["measure", a.label, b.label, "shown to be better"].map((words) => make("th", { scope: "col" }, words))));
  byId("pair-table").tBodies[0].replaceChildren(...columns.map((column) => {
    const mark = verdict(each, column.name, ...places);
    const better = { ">": a.label, "<": b.label }[mark] || WORDS[mark];
    return make("tr", {}, make("th", { scope: "row" }, column.heading, column.unit ? make("small", {}, ` ${column.unit}`) : null), make("td", {}, whole(a, column.name)), make("td", {}, whole(b, column.name)), make("td", { class: "words" }, ["<", ">"].includes(mark) ? make("strong", {}, better) : better));
  }));
  drawMatrix(each);
}
function pairPlaces(each) {
  const order = sorted(eligible(each, measure().name), measure()).map((row) => row.label);
  const named = [state.a, state.b].map((label) => each.rows.findIndex((row) => row.label === label && !row.failure));
  const rest = order.map((label) => each.rows.findIndex((row) => row.label === label)).filter((place) => !named.includes(place));
  return named.map((place) => place >= 0 ? place : rest.shift() ?? -1);
}
function drawMatrix(each) {
  const by = measure(), rows = sorted(each.rows, by).filter((row) => isChosen(row) && value(row, by.name) !== null);
  byId("matrix-part").hidden = !each.verdicts[by.name];
  if (byId("matrix-part").hidden || !byId("matrix-part").open) return;
  byId("matrix-note").textContent = `▲: the method of the row is shown to have the better ${by.title} than that of the column. ▽: the worse. ·: not shown. A click chooses the two.`;
  byId("matrix").tHead.replaceChildren(make("tr", {}, make("th", { scope: "col" }, by.heading), ...rows.map((row) => make("th", { scope: "col" }, row.label))));
  const signs = { ">": "▲", "<": "▽", "=": "·", ".": "" };
  byId("matrix").tBodies[0].replaceChildren(...rows.map((row) => make("tr", {}, make("th", { scope: "row" }, row.label), ...rows.map((other) => {
    const mark = verdict(each, by.name, each.rows.indexOf(row), each.rows.indexOf(other));
    const name = { ">": `${row.label} is shown better than ${other.label}`, "<": `${row.label} is shown worse than ${other.label}`, "=": `${row.label} and ${other.label}: not shown` }[mark];
    return make("td", { class: mark === ">" ? "better" : null }, name ? make("button", { type: "button", tabindex: -1, "aria-label": name, title: name, onclick: () => choose({ a: row.label, b: other.label }) }, signs[mark]) : "");
  }))));
}

/* A method */
function drawCard() {
  const labels = [...new Set(setup().amounts.flatMap((each) => each.rows.filter((row) => row.method !== "dense").map((row) => row.label)))];
  byId("card").hidden = !labels.length;
  if (!labels.length) return;
  const first = sorted(amount().rows, measure()).find((row) => row.method !== "dense");
  const label = labels.includes(state.method) ? state.method : first ? first.label : labels[0];
  fill("method", labels.map((each) => [each, each]), label);
  const own = setup().amounts.flatMap((each) => each.rows.filter((row) => row.label === label).map((row) => [each, row]));
  const names = own[0][1].method.split("+"), card = data.methods[names[0]];
  const facts = card ? [["What it does", card.summary], ["Paper", card.source], ["Equation", card.equation, "code"], ["Reproduced", card.reproduced || "Not compared with its authors' code."], ["Looks at", card.needs], ["Costs", card.cost || "nothing is read"], ["Parameters", card.parameters, "code"], ["Family", card.family]] : [];
  const [here, now] = own.find(([each]) => each === amount()) || own[0];
  facts.push([`Command (${here.name})`, now.command || "", "code"]);
  for (const name of names.slice(1)) if (data.methods[name]) facts.push([`+${name}`, `${data.methods[name].summary} ${data.methods[name].source}`]);
  byId("card-text").replaceChildren(make("dl", {}, ...facts.filter((fact) => fact[1]).flatMap(([name, words, tag]) => [make("dt", {}, name), make("dd", {}, tag ? make(tag, {}, words) : linked(words))])));
  const columns = columnsOfTable();
  byId("card-table").tHead.replaceChildren(make("tr", {}, make("th", { scope: "col" }, "removed of"), ...columns.map((column) => make("th", { scope: "col" }, column.heading)), make("th", { scope: "col", class: "words" }, "what went")));
  byId("card-table").tBodies[0].replaceChildren(...own.map(([each, row]) => make("tr", {}, make("th", { scope: "row" }, each.name), ...(row.failure ? [make("td", { class: "failure", colspan: columns.length + 1 }, row.failure)] : [...columns.map((column) => make("td", {}, whole(row, column.name))), make("td", { class: "words" }, row.removed)]))));
  drawAnswers(label, own.filter(([, row]) => row.answers));
}
/* What it wrote and chose beside the dense model: at the chosen amount, or the first one with texts or answers */
function drawAnswers(label, own) {
  const [each, row] = own.find(([each]) => each === amount()) || own[0] || [];
  const { texts, count, sides, tasks, of_draws: draws } = row ? row.answers : { texts: [], tasks: [] };
  const where = row ? ` (${each.name}${draws > 1 ? `, the first of ${draws} draws` : ""})` : "";
  byId("written-part").hidden = !texts.length;
  byId("changed-part").hidden = !tasks.length;
  if (texts.length) byId("written-title").textContent = `What it wrote${where}: ${texts.length < count ? `${texts.length} of ${count}` : count} continuations`;
  byId("written").replaceChildren(...texts.map(([place, written]) => {
    const [check, prompt, dense] = setup().prompts[place];
    const lines = [["prompt", prompt], ["dense", dense], [label, written]].filter(([, words]) => words !== null);
    return make("div", {}, make("h3", {}, check), make("dl", {}, ...lines.flatMap(([name, words]) => [make("dt", {}, name), make("dd", {}, words)])));
  }));
  if (!tasks.length) return;
  const [lost, gained, others, documents] = sides, all = lost + gained + others;
  const counts = [[lost, "lost"], [gained, "gained"], [others, "other texts"]].filter(([many]) => many).map(([many, words]) => `${many.toLocaleString("en")} ${words}`);
  const few = tasks.flatMap((task) => task[1]).length;
  byId("changed-title").textContent = `Answers that changed${where}: ${all.toLocaleString("en")} of ${documents.toLocaleString("en")}, ${listed(counts)}`;
  byId("changed-note").textContent = `${few < all ? `The first ${few}. ` : ""}Documents and choices are named by their places, from 0. Where a metric goes by length, samples keep the likeliest choice without it alone.`;
  byId("changed").tHead.replaceChildren(make("tr", {}, ...["task", "document", "right", "dense", label, "change"].map((words) => make("th", { scope: "col" }, words))));
  byId("changed").tBodies[0].replaceChildren(...tasks.flatMap(([task, answers]) => answers.map(([document, right, before, after, change]) => make("tr", {}, make("th", { scope: "row" }, task), ...[document, right, before, after, change].map((words) => make("td", {}, String(words)))))));
}
/* arXiv numbers and repositories as links */
function linked(words) {
  const parts = document.createDocumentFragment();
  let from = 0;
  for (const match of words.matchAll(/arXiv (\d{4}\.\d{4,5})|(?<=Code: )[\w.-]+\/[\w.-]*\w/g)) {
    parts.append(words.slice(from, match.index), make("a", { href: match[1] ? `https://arxiv.org/abs/${match[1]}` : `https://github.com/${match[0]}`, rel: "noreferrer" }, match[0]));
    from = match.index + match[0].length;
  }
  parts.append(words.slice(from));
  return parts;
}

function drawNotes() {
  const each = amount(), notes = [...each.notes, ...setup().notes];
  byId("notes").replaceChildren(...(notes.length ? notes : ["None."]).map((note) => make("li", {}, note)));
  byId("reading").replaceChildren(...each.reading.map((note) => make("li", {}, note)));
  byId("protocol").replaceChildren(...setup().protocol.flatMap(([name, words]) => [make("dt", {}, name), make("dd", {}, words)]));
}

/* Choosing */
function fill(name, options, chosen) {
  byId(name).replaceChildren(...options.map(([given, words]) => make("option", { value: given, selected: given === chosen }, words)));
}
function fillGrouped(name, columns, chosen) {
  byId(name).replaceChildren(...kinds.filter((kind) => columns.some((column) => column.kind === kind)).map((kind) => make("optgroup", { label: kind }, ...columns.filter((column) => column.kind === kind).map((column) => make("option", { value: column.name, selected: column === chosen }, column.title === column.heading ? `${column.heading}${column.unit ? ` (${column.unit})` : ""}` : column.title)))));
}
function fillFamilies() {
  const families = [...new Set(setup().amounts.flatMap((each) => each.rows.filter((row) => row.method !== "dense").map(familyOf)))].sort();
  byId("families").hidden = families.length < 2;
  const boxes = families.map((family) => {
    const sample = make("span", { class: "dot" });
    sample.style.setProperty("--family", `var(--${family === "other" ? "control" : family})`);
    return make("label", {}, make("input", { type: "checkbox", value: family, checked: !hidden().has(family) }), sample, family);
  });
  byId("families").replaceChildren(make("legend", {}, "Families"), ...boxes);
}
function draw() {
  fill("model", data.setups.map((each) => [each.name, each.name]), setup().name);
  fill("amount", setup().amounts.map((each) => [each.name, each.name]), amount().name);
  fillGrouped("by", measures(), measure());
  fillGrouped("against", axes(), axis());
  const offered = kinds.filter((kind) => measured().some((column) => column.kind === kind));
  fill("columns", [["overview", "overview"], ...offered.map((kind) => [kind, kind]), ["all", "all"]], state.columns || "overview");
  fillFamilies();
  byId("answer").textContent = measure() ? answer() : "No cell has a figure.";
  if (measure()) { drawTable(); drawModels(); drawPair(); drawCard(); drawFront(); }
  drawNotes();
}
/* Keeps the focus on what was used, since parts of the page are made anew. */
function choose(changes) {
  Object.assign(state, changes);
  for (const name of Object.keys(state)) if (!state[name]) delete state[name];
  history.replaceState(null, "", Object.keys(state).length ? `#${new URLSearchParams(state)}` : location.pathname + location.search);
  const focus = document.activeElement, words = focus?.textContent, label = focus?.getAttribute?.("aria-label"), at = focus?.closest?.("[id]");
  draw();
  if (focus && !focus.isConnected && at) [...at.querySelectorAll("button, input")].find((each) => (label ? each.getAttribute("aria-label") === label : each.textContent === words))?.focus();
}
if (byId("explorer") && data.setups.length) {
  byId("choose").hidden = byId("explorer").hidden = false;
  for (const name of ["model", "amount", "by", "against", "columns", "a", "b", "method"]) byId(name).addEventListener("change", (event) => choose({ [name]: event.target.value, ...(name === "by" ? { order: "" } : {}) }));
  byId("find").value = state.find || "";
  byId("find").addEventListener("input", (event) => choose({ find: event.target.value.trim() }));
  byId("families").addEventListener("change", () => choose({ without: [...byId("families").querySelectorAll("input:not(:checked)")].map((box) => box.value).join(" ") }));
  byId("choose").addEventListener("submit", (event) => event.preventDefault());
  byId("save").addEventListener("click", saved);
  byId("matrix-part").addEventListener("toggle", () => drawMatrix(amount()));
  addEventListener("resize", () => { if (measure()) drawFront(); });
  draw();
}

/* A page that is served asks whether its records have changed. */
const EVERY = 3000;
async function ask() {
  const live = byId("live");
  try {
    const answered = await fetch("/", { headers: { "If-None-Match": `"${root.dataset.live}"` }, cache: "no-store" });
    if (answered.status === 200) { location.reload(); return; }
    live.textContent = answered.status === 304 ? "live" : await answered.text();
    live.classList.toggle("lost", answered.status !== 304);
  } catch {
    live.textContent = "the server is gone; these are its last figures";
    live.classList.add("lost");
  }
  setTimeout(ask, EVERY);
}
if (root.dataset.live) setTimeout(ask, EVERY);
