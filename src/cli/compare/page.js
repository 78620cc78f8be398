"use strict";
// Sorts and filters the table of all rows. Without it the page shows them as they are.
(() => {
  const table = document.querySelector("table.rows");
  const form = document.querySelector(".controls");
  const body = table.tBodies[0];
  const lines = [...body.rows];
  const value = (line, place) => line.cells[place]?.dataset.v ?? "";
  const order = (a, b) => {
    const numbers = [a, b].map((text) => (text === "" ? NaN : Number(text)));
    if (numbers.every(Number.isFinite)) return numbers[0] - numbers[1];
    return a.localeCompare(b, "en");
  };
  const heads = [...table.tHead.rows[0].cells];
  const sort = (place, down) => {
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[place]?.setAttribute("aria-sort", down ? "descending" : "ascending");
    const sorted = [...lines];
    if (place in heads)
      sorted.sort((a, b) => {
        const [x, y] = [value(a, place), value(b, place)];
        // What has no figure comes last either way.
        if (x === "" || y === "") return (x === "") - (y === "");
        return down ? order(y, x) : order(x, y);
      });
    body.append(...sorted);
  };
  const choice = form.elements.sort;
  heads.forEach((head, place) => {
    // A phone does not show the heads.
    choice.add(new Option(`${head.innerText.replace(/\s+/g, " ")}, up`, `${place} up`));
    choice.add(new Option(`${head.innerText.replace(/\s+/g, " ")}, down`, `${place} down`));
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.scope = "col";
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      sort(place, down);
      choice.value = `${place} ${down ? "down" : "up"}`;
    });
  });
  choice.addEventListener("change", () => {
    const [place, way] = choice.value.split(" ");
    sort(place === "" ? -1 : Number(place), way === "down");
  });
  const filter = () => {
    const { text, op, record, unusual, count } = form.elements;
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const line of lines) {
      const content = line.textContent.toLowerCase();
      line.hidden = !(
        words.every((word) => content.includes(word)) &&
        (!op.value || line.dataset.op === op.value) &&
        (!record.value || line.dataset.record === record.value) &&
        (!unusual.checked || "unusual" in line.dataset)
      );
      shown += !line.hidden;
    }
    count.value = `${shown} of ${lines.length}`;
  };
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  filter();
})();
