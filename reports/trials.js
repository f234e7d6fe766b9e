// The list of trials, and one trial in a dialog.
"use strict";

(function () {
  const section = document.getElementById("trials");
  if (!section || !Trials) return;
  const { data, name, make, percent, whole, duration, called, fill } = Trials;
  const list = data.index, details = data.details;
  const [ID, METHOD, BACKBONE, DATASET, SEED, FOLD, STATUS, SCORE, SECONDS, PAGE] = [...Array(10).keys()];

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
  const move = (address) => { try { history.replaceState(null, "", address); } catch { /* some viewers forbid it */ } };
  const place = (id) => current.findIndex(({ trial }) => trial[ID] === id);
  let at = null;
  const open = (id) => {
    const one = found.find(({ trial }) => trial[ID] === id);
    if (!one || !details) return;
    const { trial } = one;
    at = id;
    title.textContent = called(trial);
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
