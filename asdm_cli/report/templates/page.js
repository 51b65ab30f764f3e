"use strict";

// Tables: a click on a column's title sorts by it; another click turns the order round.
for (const table of document.querySelectorAll("table.figures")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const order = head.ariaSort === "ascending" ? "descending" : "ascending";
      heads.forEach((other) => { other.ariaSort = "none"; });
      head.ariaSort = order;
      sortRows(table.tBodies[0], column, order === "ascending" ? 1 : -1);
    });
  });
}

function sortRows(body, column, sign) {
  const key = (row) => row.cells[column].dataset.sort;
  const rows = [...body.rows].sort((a, b) => {
    const [left, right] = [key(a), key(b)];
    if (left === "" || right === "") return (left === "") - (right === ""); // empty cells stay last
    const difference = Number(left) - Number(right);
    return sign * (Number.isNaN(difference) ? left.localeCompare(right, "en", { numeric: true }) : difference);
  });
  body.append(...rows);
}

// Pictures: a click enlarges, the arrow keys go to the neighbours.
const dialog = document.querySelector("dialog");
let shown = null;

function enlarge(button) {
  if (!button) return;
  shown = button;
  const [small, large] = [button.querySelector("img"), dialog.querySelector("img")];
  large.src = small.src;
  large.alt = small.alt;
  large.className = small.className;
  dialog.querySelector(".row").textContent = button.dataset.row;
  dialog.querySelector(".column").textContent = button.dataset.column;
  if (!dialog.open) dialog.showModal();
}

function neighbour(button, across, down) {
  const cell = button.closest("td");
  const row = cell.parentElement;
  const target = row.parentElement.rows[row.sectionRowIndex + down];
  return target && target.cells[cell.cellIndex + across]?.querySelector("button");
}

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

for (const button of document.querySelectorAll("table.grid button")) {
  button.addEventListener("click", () => enlarge(button));
}
dialog.addEventListener("keydown", (event) => {
  const move = MOVES[event.key];
  if (!move) return;
  event.preventDefault();
  enlarge(neighbour(shown, ...move));
});
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("close", () => shown.focus());
