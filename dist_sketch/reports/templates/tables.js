// The columns of a table sort on a click on their heading: up, down, and back to the order in which they were written.
// Cells without a value stay last, and so do rows that are there only for comparison.
for (const table of document.querySelectorAll("table.sorts")) {
  const body = table.tBodies[0], written = [...body.rows], heads = [...table.tHead.rows[0].cells];
  const names = new Intl.Collator(undefined, { numeric: true });
  const seconds = { d: 86400, h: 3600, min: 60, s: 1 };
  const text = (row, i) => { // a second line, in small type, does not count
    const nodes = [...row.cells[i].childNodes], end = nodes.findIndex(node => ["BR", "SMALL"].includes(node.nodeName));
    const first = nodes.slice(0, end < 0 ? undefined : end).map(node => node.textContent).join("");
    return (row.cells[i].dataset.v ?? first).trim().replace("–", "");
  };
  const number = shown => {
    const parts = [...shown.matchAll(/([\d.,]+) (d|h|min|s)(?![a-z])/g)];
    if (parts.length) return parts.reduce((sum, [, n, unit]) => sum + seconds[unit] * n.replaceAll(",", ""), 0);
    const plain = shown.replace("−", "-").replaceAll(",", "");
    return parseFloat(plain.match(/^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?(?![\p{L}\p{N}_.-])/iu)?.[0]); // 2 of 9, but not 2_b
  };
  const rows = written.filter(row => !row.classList.contains("base"));
  if (rows.length < 2) continue;
  heads.forEach((head, i) => {
    const shown = rows.map(row => text(row, i)).filter(Boolean);
    if (!shown.length) return; // pictures
    const numeric = shown.every(value => !Number.isNaN(number(value)));
    const button = document.createElement("button");
    button.type = "button";
    button.title = "Sort";
    button.append(...head.childNodes);
    head.append(button);
    button.onclick = () => {
      const before = head.getAttribute("aria-sort");
      const order = { ascending: "descending", descending: null }[before] ?? (before ? null : "ascending");
      heads.forEach(other => other.removeAttribute("aria-sort"));
      if (order) head.setAttribute("aria-sort", order);
      const sign = order === "descending" ? -1 : 1;
      const compare = (a, b) => {
        const [x, y] = [text(a, i), text(b, i)];
        return (x === "") - (y === "") || sign * ((numeric && number(x) - number(y)) || names.compare(x, y));
      };
      const sorted = order ? [...rows].sort(compare) : rows;
      body.append(...sorted, ...written.filter(row => !rows.includes(row)));
    };
  });
}
