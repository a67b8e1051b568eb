// Sorts a table by the column whose header is clicked; without it the tables stay as they were written.
const shown = (cell) => [...cell.childNodes].find((node) => node.nodeType === Node.TEXT_NODE)?.data ?? "";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const body = table.tBodies[0];
  if (body.rows.length < 2) continue;
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    const unit = head.querySelector("small");
    while (head.firstChild && head.firstChild !== unit) button.append(head.firstChild);
    head.insertBefore(button, unit);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((h) => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      table.classList.add("sorted");
      const numbers = head.dataset.by !== "text";
      const key = (row) => {
        const cell = row.cells[column], text = cell.dataset.sort ?? shown(cell);
        if (numbers) return parseFloat(text.replaceAll(",", ""));
        return text === "–" || text === "n/a" ? NaN : text.toLowerCase();
      };
      const compare = (a, b) => {
        if (Number.isNaN(a.key) || Number.isNaN(b.key)) return Number.isNaN(a.key) - Number.isNaN(b.key);
        const order = numbers ? a.key - b.key : a.key.localeCompare(b.key);
        return down ? -order : order;
      };
      const rows = [...body.rows].map((row) => ({ row, key: key(row) }));
      body.append(...rows.sort(compare).map(({ row }) => row));
    });
  });
}
