// What the page tells of one trial. All text is set as text; nothing is built from markup.
"use strict";

const Trials = (function () {
  const source = document.getElementById("trial-data");
  if (!source) return null;
  const data = JSON.parse(source.textContent);
  const list = data.index, details = data.details;
  const [ID, METHOD, BACKBONE, DATASET, SEED, FOLD, STATUS] = [...Array(7).keys()];
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

  const alone = document.getElementById("trial-alone");  // on a page of a single trial
  const part = (heading, ...children) => make("section", {}, make(alone ? "h2" : "h3", {}, heading), ...children);
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
  // The clouds that it got wrong, as many as the page holds.
  const look = (trial, known) => {
    const { of, items = [], wrong, more } = known.look ?? {};
    const names = details.classes[of] ?? [], clouds = [], figures = [];
    const word = (number) => make("b", {}, names[number] ?? `class ${number}`);
    const held = (item) => details.clouds?.[of]?.[item];
    for (const [item, is, taken, sure] of items.filter(([item]) => held(item) && typeof held(item) === "string")) {
      clouds.push(Gallery.cloud(`Item ${item}: ${names[is] ?? is} taken for ${names[taken] ?? taken}`, held(item)));
      const under = [`item ${item}`, typeof sure === "number" ? `${percent(sure)}\u00a0%\u00a0sure` : null].filter(Boolean).join(", ");
      figures.push(make("figure", {}, clouds.at(-1).canvas,
        make("figcaption", {}, word(is), " taken for ", word(taken), make("span", { class: "under" }, under))));
    }
    for (const [item, category, miou] of items.filter(([item]) => Array.isArray(held(item)))) {
      const [points, ...both] = held(item), titles = ["true", "told"];
      const own = both.map((parts, k) => Gallery.cloud(`Item ${item}, ${names[category] ?? category}: ${titles[k]} parts`, points, parts));
      clouds.push(...own);
      figures.push(make("figure", { class: "two" },
        ...own.map(({ canvas }, k) => make("div", {}, canvas, make("span", { class: "under" }, `${titles[k]} parts`))),
        make("figcaption", {}, word(category), make("span", { class: "under" }, `item ${item}, mIoU ${percent(miou)} %`))));
    }
    const command = make("code", {}, `harness show trial ${trial[ID]} --html trial.html`);
    const hint = more === undefined ? make("p", { class: "small" }, command, figures.length ? " shows more of them." : " shows the clouds, where the dataset is.")
      : more ? make("p", { class: "small" }, more) : null;
    if (!figures.length) return part("What it got wrong", hint);
    const buttons = ["left", "right"].map((side) => make("button", { type: "button" }, `Turn ${side}`));
    const group = make("div", { class: "clouds", role: "group", tabindex: 0, "aria-label": "Clouds; the arrow keys turn them" }, ...figures);
    Gallery.turning(group, clouds, buttons);
    return part("What it got wrong",
      make("p", { class: "small" }, known.look.said ?? `${figures.length} of ${whole(wrong)} wrong items. Drag a cloud, and all turn.`),
      make("p", { class: "choices" }, ...buttons), group, hint);
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
    if (known.look) parts.push(look(trial, known));
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
  const called = (trial) => `${name(trial, METHOD, "methods")} on ${name(trial, DATASET, "datasets")}, seed ${trial[SEED]}`
    + (trial[FOLD] === null ? "" : `, fold ${trial[FOLD]}`);

  if (alone) for (const trial of list.trials) alone.append(...fill(trial, details.by[trial[ID]]));

  return { data, name, make, percent, whole, duration, called, fill };
})();
