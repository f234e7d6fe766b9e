// Sorting by column and the choice of light or dark. The page is complete without it.
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
})();
