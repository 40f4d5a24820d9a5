// Keys press what is on the page; the forms work without this script.
"use strict";

const byKey = new Map(
  [...document.querySelectorAll("[data-key]")].map((element) => [element.dataset.key, element]),
);
let sent = false;

document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target.matches("input[type=text]")) {
    if (event.target.form?.id === "answer" && ["Escape", "Enter"].includes(event.key)) {
      event.preventDefault();
      event.target.blur();
    }
    return;
  }
  // Enter on a button or a link that was reached with Tab is a press of that one.
  if (event.key === "Enter" && event.target.closest("a, button, summary")) return;
  const element = byKey.get(event.key);
  if (!element) return;
  event.preventDefault();
  if (element.matches("input[type=text]")) element.focus();
  else element.click();
});

// A second press before the next pair is there would answer the same one twice.
document.getElementById("answer")?.addEventListener("submit", (event) => {
  if (sent) event.preventDefault();
  sent = true;
});
window.addEventListener("pageshow", () => {
  sent = false;
});
