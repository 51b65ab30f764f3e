"use strict";

function button(...content) {
  const made = document.createElement("button");
  made.type = "button";
  made.append(...content);
  return made;
}

// Tables: the first press on a column's title sorts rising, the second falling, the third as it was.
const NEXT = { none: "ascending", ascending: "descending", descending: "none" };

for (const table of document.querySelectorAll("table.figures:has(thead)")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  const original = [...body.rows];
  heads.forEach((head, column) => {
    if (!head.textContent.trim()) return;
    const press = button(head.querySelector("span"));
    head.prepend(press);
    head.ariaSort = "none";
    press.addEventListener("click", () => {
      const order = NEXT[head.ariaSort];
      for (const other of heads) if (other.ariaSort) other.ariaSort = "none";
      head.ariaSort = order;
      body.append(...(order === "none" ? original : sorted(original, column, order === "ascending" ? 1 : -1)));
    });
  });
}

function sorted(rows, column, sign) {
  const key = (row) => row.cells[column].dataset.sort;
  return [...rows].sort((a, b) => {
    const [left, right] = [key(a), key(b)];
    if (left === "" || right === "") return (left === "") - (right === ""); // empty cells stay last
    const difference = Number(left) - Number(right);
    return sign * (Number.isNaN(difference) ? left.localeCompare(right, "en", { numeric: true }) : difference);
  });
}

// Folds: a link to something folded opens it.
function unfold() {
  const target = location.hash && document.getElementById(location.hash.slice(1));
  for (let fold = target && target.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
  if (target) target.scrollIntoView();
}
addEventListener("hashchange", unfold);
unfold();

// Images: a press enlarges, the arrow keys go to the neighbours. A narrow screen has few of them until a press.
const FEW = 4;
for (const grid of document.querySelectorAll("table.grid")) {
  const all = grid.tHead.rows[0].cells.length - 1;
  if (all <= FEW) continue;
  const more = button(`All ${all} prompts`);
  more.className = "more";
  grid.classList.add("few");
  more.addEventListener("click", () => { grid.classList.remove("few"); more.remove(); });
  grid.after(more);
}

const dialog = document.querySelector("dialog");
const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
let shown = null;

function enlarge(press) {
  if (!press) return;
  shown = press;
  const cell = press.closest("td");
  const [small, large] = [press.querySelector("img"), dialog.querySelector("img")];
  for (const name of ["src", "alt", "className"]) large[name] = small[name];
  dialog.querySelector(".row").textContent = cell.parentElement.cells[0].textContent;
  dialog.querySelector(".column").textContent = cell.closest("table").tHead.rows[0].cells[cell.cellIndex].textContent;
  if (!dialog.open) dialog.showModal();
}

function neighbour(across, down) {
  const cell = shown.closest("td");
  const rows = cell.closest("tbody").rows;
  return rows[cell.parentElement.sectionRowIndex + down]?.cells[cell.cellIndex + across]?.querySelector("button");
}

for (const image of document.querySelectorAll("table.grid img")) {
  const press = button();
  image.replaceWith(press);
  press.append(image);
  press.addEventListener("click", () => enlarge(press));
}
dialog.addEventListener("keydown", (event) => {
  if (!MOVES[event.key]) return;
  event.preventDefault();
  enlarge(neighbour(...MOVES[event.key]));
});
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("close", () => shown.focus());
