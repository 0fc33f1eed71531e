"use strict";
// Tables that are sorted by a click on a heading. Empty cells come last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((each) => each.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows];
      const hiddenRows = rows.filter((row) => row.classList.contains("more")).length;
      rows.sort((one, other) => compareCells(one.cells[column], other.cells[column], down ? -1 : 1));
      rows.forEach((row, index) => row.classList.toggle("more", index >= rows.length - hiddenRows));
      table.tBodies[0].append(...rows);
    });
  });
}

function compareCells(one, other, sign) {
  const [a, b] = [one, other].map((cell) => cell.dataset.value ?? cell.textContent);
  if (a === "" || b === "") return (a === "") - (b === "");
  if (one.dataset.value !== undefined && other.dataset.value !== undefined) return sign * (a - b);
  return sign * a.localeCompare(b, undefined, { numeric: true });
}

for (const button of document.querySelectorAll(".show-more")) {
  button.addEventListener("click", () => {
    button.previousElementSibling.querySelectorAll("tr.more").forEach((row) => row.classList.remove("more"));
    button.remove();
  });
}
