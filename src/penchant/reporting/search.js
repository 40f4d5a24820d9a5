"use strict";
for (const box of document.querySelectorAll("input[type=search]")) {
  const rows = [...document.getElementById(box.getAttribute("aria-controls")).children];
  const count = box.parentElement.querySelector("output");
  const search = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      found += !row.hidden;
      if (words.length && !row.hidden) row.open = true;
    }
    count.textContent = `${found} of ${rows.length}`;
  };
  box.addEventListener("input", search);
  search();
}
