"use strict";
// Of many prompts the first ones are shown, until a search or the button asks for more.
const FIRST = 10;
for (const box of document.querySelectorAll("input[type=search]")) {
  const rows = [...document.getElementById(box.getAttribute("aria-controls")).children];
  const count = box.parentElement.querySelector("output");
  const all = box.parentElement.querySelector("button");
  let most = FIRST;
  const search = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    rows.forEach((row, i) => {
      const text = row.textContent.toLowerCase();
      row.hidden = words.length ? !words.every((word) => text.includes(word)) : i >= most;
      found += !row.hidden;
      if (words.length && !row.hidden) row.open = true;
    });
    count.textContent = `${found} of ${rows.length}`;
    all.hidden = words.length > 0 || most >= rows.length;
  };
  box.addEventListener("input", search);
  all.addEventListener("click", () => {
    most = rows.length;
    search();
  });
  search();
}
