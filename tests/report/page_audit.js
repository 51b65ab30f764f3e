// What a browser makes of a page, for test_browser.py.
"use strict";

const channels = (text) => {
  const [red, green, blue, alpha = 1] = text.match(/[\d.]+/g).map(Number);
  return { rgb: [red, green, blue], alpha };
};

// Relative luminance and contrast as WCAG 2 defines them.
const luminance = ({ rgb }) =>
  rgb
    .map((value) => value / 255)
    .map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);

const contrast = (one, other) => {
  const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (light + 0.05) / (dark + 0.05);
};

const paper = (element) => {
  for (let box = element; box; box = box.parentElement) {
    const colour = channels(getComputedStyle(box).backgroundColor);
    if (colour.alpha === 1) return colour;
  }
  throw new Error("no opaque background");
};

// [contrast, text] of every text that can be seen.
const contrasts = () => {
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = texts.nextNode(); node; node = texts.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || element.matches("script, style, title") || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const ink = channels(element instanceof SVGElement ? style.fill : style.color);
    found.push([contrast(ink, paper(element)), node.data.trim()]);
  }
  return found;
};

const headings = () => [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")].map((head) => Number(head.tagName[1]));

const nameless = () => [
  ...[...document.querySelectorAll("button, a, summary, th")].filter(
    (element) => !(element.textContent.trim() || element.querySelector("img")?.alt),
  ),
  ...[...document.querySelectorAll("[role]")].filter(
    (element) => !element.ariaLabel && !document.getElementById(element.getAttribute("aria-labelledby"))?.textContent,
  ),
  ...[...document.querySelectorAll("body img")].filter((image) => !image.alt && !image.closest("dialog")),
].map((element) => element.outerHTML.slice(0, 200));

const twice = () => {
  const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
  return ids.filter((id, index) => ids.indexOf(id) !== index);
};

const wider = () => document.documentElement.scrollWidth - document.documentElement.clientWidth;

// Names of elements that scroll inside the page.
const scrolling = () =>
  [...document.body.querySelectorAll("*")]
    .filter((element) => ["auto", "scroll"].some((word) => getComputedStyle(element).overflow.includes(word)))
    .filter(({ scrollWidth, clientWidth, scrollHeight, clientHeight }) => scrollWidth > clientWidth + 1 || scrollHeight > clientHeight + 1)
    .map((element) => element.tagName);
