// The report of one run: worst and best queries, hubs, suspected false negatives, and the search.
let open;
const opener = (label, direction, query) => {
  const button = node("button", { type: "button", class: "open" }, label);
  button.addEventListener("click", () => open(direction, query));
  return button;
};

const card = (direction, query) => {
  const queries = block("data").runs[0].queries[direction.name];
  const rank = rankOf(queries, query);
  const answers = answerList(direction, queries, query);
  if (answersOf(queries, query).every((answer) => !answer.right)) {
    answers.append(node("li", { class: "missed" }, item(!direction.fromImages, queries.positives[query][0]),
      node("span", { class: "score" }, node("span", { class: "mark", "aria-hidden": "true" }, "✓"),
        direction.fromImages ? "right, at rank" : hidden("right, at rank"), ` ${rank}`)));
  }
  return node("article", { class: `example${direction.fromImages ? "" : " of-pictures"}` },
    node("header", {}, item(direction.fromImages, queries.rows[query], true),
      node("div", { class: "at" }, node("p", { class: "rank" }, "rank ", node("strong", {}, rank)),
        opener("Look closer", direction.name, query))),
    answers);
};

const examples = (direction) => {
  for (const kind of ["worst", "best"]) {
    const box = document.getElementById(`${direction.name}-${kind}`);
    box.replaceChildren(...block("data").examples[direction.name][kind].map((query) => card(direction, query)));
    rove(box, ".open");
  }
};

const hubs = (direction) => {
  const found = block("data").hubs[direction.name];
  document.getElementById(`${direction.name}-hubs`).replaceChildren(...found.map((hub) => node("li", {},
    item(!direction.fromImages, hub.item),
    node("span", { class: "score" }, node("strong", {}, number.format(hub.queries)), " queries, right for ", number.format(hub.right)))));
};

const STEP = 12;
const suspects = (kind) => {
  const box = document.getElementById(`${kind}-suspects`);
  const data = block("data");
  const found = data.suspects[kind];
  const button = document.getElementById(`more-${kind}-suspects`);
  const row = (one) => {
    // A text that is the same to the letter is not repeated.
    const alike = one.alike === null || data.texts[one.alike] === data.texts[one.caption] ? [] : [": ", item(false, one.alike)];
    const direction = data.directions.find((each) => each.name === one.direction);
    const reason = one.alike === null ? ` ${score(one.ahead)} above the best right answer` : " as a caption of this image";
    return node("li", {}, item(true, one.image), node("div", {}, node("p", {}, item(false, one.caption)), node("p", { class: "why" }, node("span", { class: "tag" }, one.reason), reason, ...alike),
      node("p", { class: "rank" }, `${direction.title}, score ${score(one.score)} `, opener("Look closer", one.direction, one.query))));
  };
  let settle;
  const more = () => {
    const from = box.children.length;
    box.append(...found.slice(from, from + STEP).map(row));
    button.hidden = box.children.length >= found.length;
    if (!found.length) return undefined;
    settle = settle ?? rove(box, ".open");
    settle();
    return box.children[from];
  };
  button.addEventListener("click", () => more().querySelector(".open").focus());
  more();
};

soon(function* () {
  if (!document.getElementById("data")) return;
  open = explorer();
  yield;
  for (const direction of block("data").directions) {
    examples(direction);
    hubs(direction);
    yield;
  }
  suspects("text");
  suspects("score");
});
