"use strict";
(() => {
  const table = document.getElementById("comparison");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const headers = Array.from(table.tHead.rows[0].cells);
  const text = document.getElementById("filter-text");
  const selects = Array.from(document.querySelectorAll("select[data-filter]"));
  const shown = document.getElementById("shown");
  const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

  // Rows without a value stay at the end whichever way is sorted; equal rows keep the grid's order.
  function compare(column, numeric, direction) {
    return (a, b) => {
      const x = a.cells[column].dataset.value;
      const y = b.cells[column].dataset.value;
      if (x === "" || y === "") {
        return (x === "") - (y === "") || a.dataset.index - b.dataset.index;
      }
      const order = numeric ? Number(x) - Number(y) : collator.compare(x, y);
      return direction * order || a.dataset.index - b.dataset.index;
    };
  }

  function sort(column) {
    const header = headers[column];
    const numeric = header.classList.contains("number");
    const before = header.getAttribute("aria-sort");
    const first = numeric ? "descending" : "ascending";
    const other = numeric ? "ascending" : "descending";
    const now = before === first ? other : first;
    headers.forEach((h) => h.setAttribute("aria-sort", "none"));
    header.setAttribute("aria-sort", now);
    rows.sort(compare(column, numeric, now === "ascending" ? 1 : -1));
    body.append(...rows);
  }

  function filter() {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      const content = row.textContent.toLowerCase();
      const fits = words.every((word) => content.includes(word))
        && selects.every((s) => s.value === "" || row.getAttribute("data-" + s.dataset.filter) === s.value);
      row.hidden = !fits;
      count += fits;
    }
    shown.textContent = `${count} of ${rows.length} rows`;
  }

  function openTarget() {
    const target = document.getElementById(location.hash.slice(1));
    for (let at = target; at; at = at.parentElement) {
      if (at.tagName === "DETAILS") at.open = true;
    }
    if (target) target.scrollIntoView();
  }

  headers.forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => sort(column));
  });
  text.addEventListener("input", filter);
  selects.forEach((s) => s.addEventListener("change", filter));
  document.getElementById("filters").addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("all-columns").addEventListener("change", (event) => {
    table.classList.toggle("all", event.target.checked);
  });
  window.addEventListener("hashchange", openTarget);
  openTarget();
})();
