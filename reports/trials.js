// The list of trials, and one trial in a dialog. All text is set as text; nothing is built from markup.
"use strict";

(function () {
  const section = document.getElementById("trials");
  const source = document.getElementById("trial-data");
  if (!section || !source) return;
  const data = JSON.parse(source.textContent);
  const list = data.index, details = data.details;
  const [ID, METHOD, BACKBONE, DATASET, SEED, FOLD, STATUS, SCORE, SECONDS, PAGE] = [...Array(10).keys()];
  const name = (trial, field, table) => list[table][trial[field]];

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children.filter((child) => child !== null && child !== undefined).map((child) =>
      child instanceof Node ? child : String(child)));
    return element;
  };
  const drawn = (tag, attributes = {}, ...children) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  };
  const percent = (value) => value === null || value === undefined ? "–" : (100 * value).toFixed(1);
  const whole = (value) => value.toLocaleString("en");
  const duration = (seconds) => seconds === null || seconds === undefined ? "–"
    : seconds < 90 ? `${seconds.toFixed(1)} s` : seconds < 5400 ? `${(seconds / 60).toFixed(1)} min`
    : `${(seconds / 3600).toFixed(1)} h`;
  const size = (bytes) => bytes >= 1e9 ? `${(bytes / 1e9).toFixed(2)} GB` : bytes >= 1e6 ? `${(bytes / 1e6).toFixed(1)} MB`
    : `${(bytes / 1e3).toFixed(1)} KB`;

  // The list.
  const STEP = 25;
  const body = section.querySelector("tbody");
  const status = document.getElementById("trials-shown");
  const more = document.getElementById("trials-more");
  const search = document.getElementById("trials-search");
  const selects = { [METHOD]: "methods", [DATASET]: "datasets", [STATUS]: "statuses" };
  const chosen = {};
  let shown = STEP, order = { field: null, direction: 1 };
  const words = (trial) => [name(trial, METHOD, "methods"), name(trial, BACKBONE, "backbones"),
    name(trial, DATASET, "datasets"), name(trial, STATUS, "statuses")].join(" ").toLowerCase();
  const numbered = (trial) => [`seed=${trial[SEED]}`, `fold=${trial[FOLD]}`];
  const found = list.trials.map((trial, place) => ({ trial, place, words: words(trial), numbered: numbered(trial) }));
  const matching = () => {
    const wanted = search.value.toLowerCase().replace(/\b(seed|fold)\s+(\d+)/g, "$1=$2").split(/\s+/).filter(Boolean);
    const fits = (one, word) => /^(seed|fold)=\d+$/.test(word) ? one.numbered.includes(word)
      : one.words.includes(word) || (word.length > 3 && one.trial[ID].startsWith(word));
    const kept = found.filter((one) => wanted.every((word) => fits(one, word))
      && Object.keys(selects).every((field) => !chosen[field]?.value || String(one.trial[field]) === chosen[field].value));
    if (order.field === null) return kept;
    const key = ({ trial }) => trial[order.field];
    return kept.sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === null || y === null) return (x === null) - (y === null) || a.place - b.place;  // no number: last, either way
      return order.direction * (x - y) || a.place - b.place;
    });
  };
  let current = [];
  const opener = (trial) => {
    const text = name(trial, METHOD, "methods");
    if (trial[PAGE] !== null) {
      const address = `${data.folder}/${String(trial[PAGE]).padStart(3, "0")}.html#trial-${encodeURIComponent(trial[ID])}`;
      return make("a", { href: address, class: "open" }, text);
    }
    const button = make("button", { type: "button", class: "open", "data-trial": trial[ID] }, text);
    button.addEventListener("click", () => open(trial[ID]));
    return button;
  };
  const line = ({ trial }) => {
    const state = name(trial, STATUS, "statuses");
    return make("tr", {},
      make("th", { scope: "row" }, opener(trial), make("span", { class: "under" }, name(trial, BACKBONE, "backbones"))),
      make("td", { class: "text" }, name(trial, DATASET, "datasets")),
      make("td", {}, trial[FOLD] === null ? trial[SEED] : `${trial[SEED]} fold ${trial[FOLD]}`),
      make("td", { class: "text" }, make("span", { class: state === "done" ? "state done" : "state" }, state)),
      make("td", {}, percent(trial[SCORE])),
      make("td", {}, duration(trial[SECONDS])));
  };
  const show = () => {
    current = matching();
    body.replaceChildren(...current.slice(0, shown).map(line));
    const visible = Math.min(shown, current.length);
    status.textContent = `${whole(visible)} of ${whole(current.length)} trials shown`
      + (current.length < found.length ? `, ${whole(found.length)} in all.` : ".");
    more.hidden = visible >= current.length;
  };
  for (const select of section.querySelectorAll("select")) {
    const field = Number(select.dataset.field), names = list[selects[field]];
    chosen[field] = select;
    names.forEach((text, number) => select.append(make("option", { value: number }, text)));
    select.closest("label").hidden = names.length < 2;
    select.addEventListener("change", () => { shown = STEP; show(); });
  }
  search.addEventListener("input", () => { shown = STEP; show(); });
  more.addEventListener("click", () => { shown += 8 * STEP; show(); });
  const headers = [...section.querySelectorAll("thead th[data-field]")];
  for (const header of headers) {
    header.querySelector("button").addEventListener("click", () => {
      const field = Number(header.dataset.field);
      const same = order.field === field;
      order = { field, direction: same ? -order.direction : header.dataset.first === "descending" ? -1 : 1 };
      for (const other of headers) other.setAttribute("aria-sort", other !== header ? "none"
        : order.direction > 0 ? "ascending" : "descending");
      show();
    });
  }
  section.querySelector(".controls").hidden = false;
  show();

  // From a number of the leaderboard to its trials.
  for (const span of document.querySelectorAll("#leaderboard .drill")) {
    const button = make("button", { type: "button", class: "under drill", title: "Show these trials" }, span.textContent);
    button.addEventListener("click", () => {
      search.value = "";
      const number = (table, text) => list[table].indexOf(text);
      chosen[METHOD].value = String(number("methods", span.dataset.method));
      chosen[DATASET].value = span.dataset.dataset === undefined ? "" : String(number("datasets", span.dataset.dataset));
      shown = STEP;
      show();
      section.scrollIntoView();
      body.querySelector(".open")?.focus({ preventScroll: true });
    });
    span.replaceWith(button);
  }

  // One trial.
  const dialog = document.getElementById("trial");
  const title = document.getElementById("trial-title");
  const inside = document.getElementById("trial-inside");
  const part = (heading, ...children) => make("section", {}, make("h3", {}, heading), ...children);
  const pairs = (rows) => {
    const all = rows.filter(([, value]) => value !== null && value !== undefined && value !== "");
    return make("dl", { class: "pairs" }, ...all.map(([key, value]) => make("div", {}, make("dt", {}, key), make("dd", {}, value))));
  };
  const flat = (value, path = "") => {
    if (value === null || typeof value !== "object") return [[path, value === null ? "none" : value]];
    if (Array.isArray(value)) return [[path, value.map((item) => typeof item === "object" ? JSON.stringify(item) : item).join(", ")]];
    return Object.entries(value).flatMap(([key, item]) => flat(item, path ? `${path}.${key}` : key));
  };
  const UNITS = {
    memory: size, storage: size,
    time: (value, key) => key === "throughput" ? `${value.toFixed(0)} clouds/s` : key === "step" || key === "data"
      ? `${(1000 * value).toFixed(1)} ms` : duration(value),
    parameters: whole,
    compute: (value, key) => key === "energy" ? `${(value / 1000).toFixed(1)} kJ` : `${(value / 1e9).toFixed(2)} GFLOP`,
  };
  const COUNTS = ["correct", "total"];
  const numbers = (known) => {
    const rows = [];
    for (const group of ["metrics", "parameters", "memory", "time", "compute", "storage"]) {
      for (const [key, value] of Object.entries(known[group] ?? {})) {
        if (typeof value !== "number") continue;
        const text = UNITS[group] ? UNITS[group](value, key) : COUNTS.includes(key) ? whole(value)
          : key === "loss" ? value.toFixed(3) : `${percent(value)} %`;
        rows.push([`${group === "metrics" ? "" : `${group} `}${key}`.replaceAll("_", " "), text]);
      }
    }
    return rows;
  };
  const curve = (label, [epochs, values]) => {
    const [width, height, left, bottom, top] = [520, 170, 46, 24, 10];
    const low = Math.min(...values), high = Math.max(...values), last = epochs[epochs.length - 1];
    const x = (epoch) => left + (last > epochs[0] ? (epoch - epochs[0]) / (last - epochs[0]) : 0.5) * (width - left - 10);
    const y = (value) => top + (high > low ? (high - value) / (high - low) : 0.5) * (height - top - bottom);
    const text = (value) => label.includes("loss") ? value.toPrecision(3) : `${percent(value)} %`;
    const points = epochs.map((epoch, k) => `${x(epoch).toFixed(1)},${y(values[k]).toFixed(1)}`).join(" ");
    const end = values[values.length - 1];
    const say = `${label} over ${last + 1} epochs, from ${text(values[0])} to ${text(end)}`;
    const picture = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": say, class: "curve" },
      drawn("line", { class: "frame", x1: left, x2: width - 10, y1: height - bottom, y2: height - bottom }),
      ...[[high, y(high) + 4], [low, y(low) + 4]].filter(([value], k) => k === 0 || value !== high).map(([value, at]) =>
        drawn("text", { x: left - 6, y: at, "text-anchor": "end" }, text(value))),
      drawn("text", { x: left, y: height - 7 }, `epoch ${epochs[0] + 1}`),
      drawn("text", { x: width - 10, y: height - 7, "text-anchor": "end" }, String(last + 1)),
      drawn("polyline", { points, fill: "none" }),
      drawn("circle", { cx: x(last), cy: y(end), r: 3.5 }));
    return make("figure", {}, make("figcaption", {}, label.replace("/", " ").replaceAll("_", " ")), picture);
  };
  const classes = (known) => {
    const names = details.classes[known.names] ?? [];
    const rows = known.items.map((items, k) => items ? make("tr", {},
      make("th", { scope: "row" }, names[k] ?? k),
      make("td", {}, `${known.right[k]} / ${items}`),
      make("td", {}, make("meter", { min: 0, max: items, value: known.right[k], "aria-label": `${names[k] ?? k}: share right` })),
      make("td", {}, percent(known.right[k] / items))) : null).filter(Boolean);
    const mistakes = known.mistakes.map(([is, taken, items]) =>
      make("li", {}, `${names[is] ?? is} taken for ${names[taken] ?? taken}: ${items}`));
    return part("Predictions by class",
      make("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Predictions by class" }, make("table", { class: "classes" },
        make("thead", {}, make("tr", {}, ...["Class", "Right / items", "Share", "%"].map((text) => make("th", { scope: "col" }, text)))),
        make("tbody", {}, ...rows))),
      mistakes.length ? make("p", { class: "small" }, "Most frequent mistakes") : null,
      mistakes.length ? make("ul", { class: "plain" }, ...mistakes) : null);
  };
  const fill = (trial, known) => {
    const parts = [];
    const state = name(trial, STATUS, "statuses");
    parts.push(make("p", {}, make("span", { class: state === "done" ? "state done" : "state" }, state), ` trial ${trial[ID]}`));
    if (!known) {
      parts.push(make("p", {}, "This trial has left no result yet."));
      return parts;
    }
    if (known.error) parts.push(part("Error", make("pre", { tabindex: 0 }, known.error)));
    parts.push(part("Numbers", pairs(numbers(known))));
    const curves = Object.entries(known.curves ?? {}).filter(([, [epochs]]) => epochs.length > 1);
    if (curves.length) parts.push(part("Learning curves", make("div", { class: "curves" }, ...curves.map(([label, values]) => curve(label, values)))));
    if (known.classes) parts.push(classes(known.classes));
    const categories = Object.entries(known.metrics?.category_miou ?? {});
    if (categories.length) parts.push(part("mIoU by category", pairs(categories.map(([key, value]) => [key, `${percent(value)} %`]))));
    parts.push(part("Configuration", pairs([["seed", trial[SEED]], ["fold", trial[FOLD]], ...flat(details.configs[known.config] ?? {})])));
    parts.push(part("Environment", pairs(flat(details.machines[known.machine] ?? {}))));
    const attempts = (known.attempts ?? []).map((attempt) => make("li", {}, flat(attempt).map(([key, value]) => `${key} ${value}`).join(", ")));
    if (attempts.length) parts.push(part("Attempts", make("ul", { class: "plain" }, ...attempts)));
    if (known.digests) parts.push(part("Digests (SHA-256)", pairs(flat(known.digests))));
    if (known.log) parts.push(part("End of the log", make("pre", { tabindex: 0 }, known.log)));
    return parts;
  };
  const move = (address) => { try { history.replaceState(null, "", address); } catch { /* some viewers forbid it */ } };
  const place = (id) => current.findIndex(({ trial }) => trial[ID] === id);
  let at = null;
  const open = (id) => {
    const one = found.find(({ trial }) => trial[ID] === id);
    if (!one || !details) return;
    const { trial } = one;
    at = id;
    title.textContent = `${name(trial, METHOD, "methods")} on ${name(trial, DATASET, "datasets")}, seed ${trial[SEED]}`
      + (trial[FOLD] === null ? "" : `, fold ${trial[FOLD]}`);
    inside.replaceChildren(...fill(trial, details.by[id]));
    for (const [button, step] of steps) button.disabled = !current[place(id) + step];
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    move(`#trial-${id}`);
  };
  const steps = [[document.getElementById("trial-before"), -1], [document.getElementById("trial-after"), 1]];
  for (const [button, step] of steps) button.addEventListener("click", () => {
    const next = current[place(at) + step];
    if (next) open(next.trial[ID]);
  });
  document.getElementById("trial-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => {
    move("#trials");
    section.querySelector(`[data-trial="${CSS.escape(at)}"]`)?.focus();
  });
  const fromAddress = () => {
    const id = /^#trial-(.+)$/.exec(location.hash)?.[1];
    if (id) open(decodeURIComponent(id));
  };
  addEventListener("hashchange", fromAddress);
  fromAddress();
})();
