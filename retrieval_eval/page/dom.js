// What both pages share: elements made of text (never of markup), items, lists for the arrow keys, work done when idle.
"use strict";
const parsed = new Map();
// A block of the page's JSON, parsed when it is first asked for.
const block = (id) => {
  if (!parsed.has(id)) parsed.set(id, JSON.parse(document.getElementById(id).textContent));
  return parsed.get(id);
};
const number = new Intl.NumberFormat("en");
const node = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
};
const hidden = (text) => node("span", { class: "unseen" }, text);

// What a picture shows, in words: its caption (the first of those on the page), or its key.
const told = (place) => {
  const data = block("data");
  const [caption] = data.own[place];
  return caption === undefined ? data.keys[place] : data.texts[caption];
};

// An image (by its picture, or by its key where it has none) or a caption.
const item = (isImage, place, large = false) => {
  const data = block("data");
  if (!isImage) return node("q", {}, data.texts[place]);
  const key = data.keys[place];
  const size = large ? " large" : "";
  const picture = block("pictures")[place];
  if (picture === null) return node("span", { class: `picture blank${size}` }, key);
  return node("img", { src: picture, alt: told(place), title: key, class: `picture${size}` });
};

const score = (value) => value.toFixed(3);
// A gallery that was searched tells ranks up to a depth.
const rankText = (queries, rank) => queries.depth !== null && rank > queries.depth
  ? `beyond ${number.format(queries.depth)}` : number.format(rank);
const rankOf = (queries, query) => {
  const tied = queries.tied[query];
  return tied ? `${number.format(tied[0])}–${number.format(tied[1])}` : rankText(queries, queries.rank[query]);
};
const answersOf = (queries, query) => {
  const start = query * queries.width;
  return Array.from({ length: queries.width }, (_, i) => ({
    place: queries.answers[start + i],
    score: queries.scores[start + i],
    right: queries.right[start + i] === "1",
  }));
};

const answerList = (direction, queries, query) => {
  const list = node("ol", { class: "answers", "aria-label": "Answers" });
  for (const answer of answersOf(queries, query)) {
    list.append(node("li", { class: answer.right ? "right" : "wrong" }, item(!direction.fromImages, answer.place),
      node("span", { class: "score" }, node("span", { class: "mark", "aria-hidden": "true" }, answer.right ? "✓" : "·"),
        hidden(answer.right ? "right, score" : "wrong, score"), ` ${score(answer.score)}`)));
  }
  return list;
};

// Arrow keys, Home and End move the focus among the matching elements of a box; Tab enters and leaves it. Returns what
// to call when elements were added.
const rove = (box, selector) => {
  const all = () => [...box.querySelectorAll(selector)];
  const settle = (chosen) => { for (const one of all()) one.tabIndex = one === chosen ? 0 : -1; };
  const refresh = () => settle(all().find((one) => one.getAttribute("tabindex") === "0") ?? all()[0]);
  settle(all()[0]);
  box.addEventListener("focusin", (event) => {
    const chosen = event.target.closest(selector);
    if (chosen) settle(chosen);
  });
  box.addEventListener("keydown", (event) => {
    const list = all();
    const at = list.indexOf(document.activeElement);
    if (at < 0) return;
    const step = { ArrowDown: at + 1, ArrowRight: at + 1, ArrowUp: at - 1, ArrowLeft: at - 1, Home: 0, End: list.length - 1 };
    const next = list[step[event.key]];
    if (!next) return;
    event.preventDefault();
    next.focus();
  });
  return refresh;
};

// Work in small pieces once the page stands, so that it opens at once: the generator yields between them.
const whenIdle = window.requestIdleCallback ?? ((work) => setTimeout(work, 1));
const soon = (pieces) => {
  const work = pieces();
  const next = () => {
    if (work.next().done) document.documentElement.dataset.ready = "yes";
    else whenIdle(next, { timeout: 500 });
  };
  document.addEventListener("DOMContentLoaded", () => whenIdle(next, { timeout: 500 }));
};
