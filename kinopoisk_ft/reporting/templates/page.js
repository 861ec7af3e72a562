// Sort tables, show values under the pointer, copy commands. The page works without this script.
"use strict";
const words = document.body.dataset;

function readNumber(text) {
  // A p-value may be "<0.001".
  const plain = text.replace(/[\s\u00a0<]/g, "").replace("\u2212", "-");
  const english = document.documentElement.lang === "ru" ? plain.replace(",", ".") : plain.replace(/,/g, "");
  return parseFloat(english);
}

function sortKey(row, column) {
  const cell = row.cells[column];
  const text = cell.dataset.number ?? cell.textContent.trim();
  const number = readNumber(text);
  return Number.isNaN(number) ? text : number;
}

function sortBy(table, column, heading) {
  const falling = heading.ariaSort === "ascending";
  const body = table.tBodies[0];
  const rows = [...body.rows].filter((row) => !row.classList.contains("fixed"));
  const missing = (key) => typeof key === "string" && column > 0 ? 1 : 0;
  rows.sort((a, b) => {
    const [x, y] = [sortKey(a, column), sortKey(b, column)];
    const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
    return missing(x) - missing(y) || (falling ? -order : order);
  });
  for (const other of table.tHead.rows[0].cells) other.ariaSort = null;
  heading.ariaSort = falling ? "descending" : "ascending";
  body.prepend(...rows);
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    button.title = words.sort;
    button.addEventListener("click", () => sortBy(table, column, heading));
    heading.append(button);
  });
}

const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);
document.addEventListener("pointerover", (event) => {
  const part = event.target.closest("[data-tip]");
  tip.hidden = !part;
  if (!part) return;
  tip.textContent = part.dataset.tip;
  const box = part.getBoundingClientRect();
  const left = Math.min(box.left, innerWidth - tip.offsetWidth - 8);
  tip.style.transform = `translate(${Math.max(8, left)}px, ${box.bottom + 6}px)`;
});

for (const command of document.querySelectorAll("pre")) {
  const button = document.createElement("button");
  button.className = "copy";
  button.textContent = words.copy;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(command.textContent);
      button.textContent = words.copied;
    } catch {
      // A page from a server without HTTPS has no clipboard. The reader can copy the selected text.
      getSelection().selectAllChildren(command);
    }
  });
  command.before(button);
}
