"use strict";
(() => {
  const table = document.getElementById("comparison");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const headers = Array.from(table.tHead.rows[0].cells);
  const sortable = headers.filter((header) => header.dataset.column);
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

  function mark(header, direction) {
    sortable.forEach((h) => h.setAttribute("aria-sort", "none"));
    if (header) header.setAttribute("aria-sort", direction);
  }

  function sort(header) {
    const numeric = header.classList.contains("number");
    const before = header.getAttribute("aria-sort");
    const first = numeric ? "descending" : "ascending";
    const other = numeric ? "ascending" : "descending";
    const now = before === first ? other : first;
    mark(header, now);
    rows.sort(compare(headers.indexOf(header), numeric, now === "ascending" ? 1 : -1));
    body.append(...rows);
  }

  // The order that the reader chooses: by a column, highest first, or by what the rows themselves carry.
  function reorder(order) {
    const header = sortable.find((h) => h.dataset.column === order);
    mark(null);
    if (header) {
      sort(header);
    } else {
      rows.sort((a, b) => a.dataset[order] - b.dataset[order]);
      body.append(...rows);
    }
  }

  // A page opened from a file may have no clipboard to write to; the older way works there.
  async function copy(button) {
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
    } catch {
      const area = document.createElement("textarea");
      area.value = button.dataset.copy;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
      button.focus();
    }
    document.getElementById("copied").textContent = "copied: predict (write a file or folder of pictures for IMAGES), export (a new folder for FOLDER), run again";
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 2000);
  }

  // Says above a table that it goes on to the right, as long as it does.
  function cueOf(box) {
    const cue = document.createElement("p");
    cue.className = "cue";
    cue.textContent = "more columns: scroll this table to the right \u2192";
    cue.hidden = true;
    box.before(cue);
    const update = () => {
      const more = box.scrollWidth - box.clientWidth > 1;
      cue.hidden = !more;
      box.classList.toggle("more", more && box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
    };
    box.addEventListener("scroll", update, { passive: true });
    const observer = new ResizeObserver(update);
    observer.observe(box);
    observer.observe(box.firstElementChild);
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

  sortable.forEach((header) => {
    header.querySelector("button").addEventListener("click", () => sort(header));
  });
  document.getElementById("order").addEventListener("change", (event) => reorder(event.target.value));
  table.addEventListener("click", (event) => {
    const button = event.target.closest("button.copy");
    if (button) copy(button);
  });
  document.querySelectorAll(".scroll").forEach(cueOf);
  window.addEventListener("beforeprint", () => {
    document.querySelectorAll("details").forEach((details) => { details.open = true; });
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
