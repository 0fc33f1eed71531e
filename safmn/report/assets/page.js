"use strict";
// Shared state of a report: the embedded images, the hidden series, the theme.
const images = JSON.parse(document.getElementById("images").textContent);
const seriesNames = JSON.parse(document.getElementById("series").textContent);
const hidden = new Set();
const redraws = []; // functions that draw a chart again
const redraw = () => redraws.forEach((draw) => draw());

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value;
    else if (name in made && typeof value !== "string") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const dataOf = (figure) => JSON.parse(figure.querySelector("script").textContent);

for (const box of document.querySelectorAll("[data-series]")) {
  box.addEventListener("change", () => {
    const index = Number(box.dataset.series);
    if (box.checked) hidden.delete(index);
    else hidden.add(index);
    redraw();
  });
}

{
  const button = document.getElementById("theme");
  const themes = ["system", "light", "dark"];
  let at = 0;
  button.addEventListener("click", () => {
    at = (at + 1) % themes.length;
    button.textContent = `Theme: ${themes[at]}`;
    if (at) document.documentElement.dataset.theme = themes[at];
    else delete document.documentElement.dataset.theme;
  });
}

{ // closed parts are printed open
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((each) => (each.open = true));
  });
  addEventListener("afterprint", () => opened.forEach((each) => (each.open = false)));
}
