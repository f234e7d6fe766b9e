// Light or dark, tooltips, which picture; sorting and filtering of the leaderboard. The page is complete without it.
"use strict";

(function () {
  const root = document.documentElement;

  // Light or dark: the address (#dark, #light) first, then the last choice, then the system's.
  const remembered = () => { try { return localStorage.getItem("theme"); } catch { return null; } };
  const remember = (theme) => { try { localStorage.setItem("theme", theme); } catch { /* no storage: fine */ } };
  const dark = () => root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  const toggle = document.getElementById("theme");
  const show = () => {
    toggle.hidden = false;
    toggle.setAttribute("aria-pressed", String(dark()));
  };
  const choose = (theme) => { root.dataset.theme = theme; show(); };
  const fromAddress = () => /^#(dark|light)$/.exec(location.hash)?.[1];
  const first = fromAddress() ?? remembered();
  if (first === "dark" || first === "light") choose(first);
  show();
  toggle.addEventListener("click", () => {
    choose(dark() ? "light" : "dark");
    remember(root.dataset.theme);
  });
  addEventListener("hashchange", () => { const theme = fromAddress(); if (theme) choose(theme); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);

  // Tooltips of pictures: at once, by mouse and by touch; without this script browsers show the titles themselves.
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.setAttribute("aria-hidden", "true");  // what it says is in the tables
  tip.hidden = true;
  document.body.append(tip);
  const place = (event) => {
    const [x, y] = [event.clientX, event.clientY];
    tip.hidden = false;
    tip.style.left = `${Math.max(8, Math.min(x + 12, innerWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${y + 18 + tip.offsetHeight > innerHeight ? y - tip.offsetHeight - 10 : y + 16}px`;
  };
  for (const mark of document.querySelectorAll(".series")) {
    const title = mark.querySelector("title");
    if (!title) continue;
    const text = title.textContent;
    title.remove();
    mark.addEventListener("pointerenter", (event) => { tip.textContent = text; place(event); });
    mark.addEventListener("pointermove", place);
    mark.addEventListener("pointerleave", () => { tip.hidden = true; });
  }

  // One group of pictures at a time; all of them are there without this script, and in print.
  const choices = document.getElementById("pictures");
  if (choices) {
    choices.hidden = false;
    const buttons = [...choices.querySelectorAll("button")];
    const pick = (button) => {
      for (const other of buttons) {
        other.setAttribute("aria-pressed", String(other === button));
        document.getElementById(other.dataset.shows).classList.toggle("away", other !== button);
      }
    };
    for (const button of buttons) button.addEventListener("click", () => pick(button));
    pick(buttons[0]);
  }

  // Sorting: within each body of the table, so that other protocols and references never mix with the rest.
  const table = document.getElementById("leaderboard");
  if (!table) return;
  const headers = [...table.querySelectorAll("thead th[data-column]")];
  const status = document.getElementById("sorted");
  const key = (row, column) => row.cells[column].dataset.value ?? "";
  const compare = (a, b, numeric) => numeric ? Number(a) - Number(b) : a.localeCompare(b, "en");
  const sort = (header) => {
    const column = Number(header.dataset.column);
    const numeric = header.dataset.kind === "number";
    const before = header.getAttribute("aria-sort");
    const direction = before === "none" ? header.dataset.first
      : before === "ascending" ? "descending" : "ascending";
    for (const other of headers) other.setAttribute("aria-sort", other === header ? direction : "none");
    for (const body of table.tBodies) {
      const rows = [...body.rows].filter((row) => !row.classList.contains("section"));
      rows.sort((a, b) => {
        const x = key(a, column), y = key(b, column);
        if (x === "" || y === "") return (x === "") - (y === "");  // no number: last, either way
        return direction === "ascending" ? compare(x, y, numeric) : compare(y, x, numeric);
      });
      body.append(...rows);
    }
    status.textContent = `Sorted by ${header.innerText.trim()}, ${direction}.`;
  };
  for (const header of headers) {
    header.querySelector("button").addEventListener("click", () => sort(header));
  }

  // Filtering: by words in a row's name.
  const filter = document.getElementById("filter");
  const rows = [...table.tBodies].flatMap((body) => [...body.rows]).filter((row) => !row.classList.contains("section"));
  filter.closest("label").hidden = false;
  filter.addEventListener("input", () => {
    const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) row.hidden = !wanted.every((word) => row.cells[0].textContent.toLowerCase().includes(word));
    const left = rows.filter((row) => !row.hidden).length;
    status.textContent = `${left} of ${rows.length} rows.`;
  });
})();
