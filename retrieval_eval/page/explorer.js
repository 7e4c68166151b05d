// Search among all queries of a direction: a list, and the chosen query with its answers and positives, per run.
const PORTION = 60;

const explorer = () => {
  const data = block("data");
  const field = document.getElementById("search");
  const order = document.getElementById("order");
  const list = document.getElementById("found");
  const count = document.getElementById("count");
  const detail = document.getElementById("detail");
  const radios = [...document.querySelectorAll("input[name=direction]")];
  let direction = data.directions[0];
  let matches = [];
  let shown = 0;
  let active = -1;
  const haystacks = new Map();

  const queriesOf = (run) => run.queries[direction.name];
  const first = () => queriesOf(data.runs[0]);

  // What a query can be found by: a caption by its text, an image by its key and its captions.
  const searched = () => {
    if (!haystacks.has(direction.name)) {
      const text = (place) => direction.fromImages
        ? [data.keys[place], ...data.own[place].map((caption) => data.texts[caption])].join("\n")
        : data.texts[place];
      haystacks.set(direction.name, first().rows.map((place) => haystack(text(place))));
    }
    return haystacks.get(direction.name);
  };
  // The queries that have the wanted words, and how they were found.
  const found = (candidates) => {
    if (!field.value.trim()) return [candidates, ""];
    const wanted = needles(field.value);
    if (!wanted.length) return [candidates, ": no word to search for"];
    const texts = searched();
    const matching = (parts) => candidates.filter((query) => holds(texts[query], wanted, parts));
    const whole = matching(false);
    if (whole.length) return [whole, ""];
    const partly = matching(true);
    return [partly, partly.length ? " by parts of words" : ""];
  };

  const ranksText = (query) => data.runs.map((run) => rankOf(queriesOf(run), query)).join(" → ");

  const option = (at) => {
    const query = matches[at];
    const place = first().rows[query];
    const made = node("li", { role: "option", id: `option-${at}`, "aria-selected": String(at === active) });
    if (direction.fromImages) made.append(item(true, place));
    made.append(node("span", { class: "name" }, direction.fromImages ? data.keys[place] : data.texts[place]),
      node("span", { class: "rank" }, hidden("rank "), ranksText(query)));
    return made;
  };
  const more = () => {
    const until = Math.min(shown + PORTION, matches.length);
    const added = [];
    for (; shown < until; shown += 1) added.push(option(shown));
    list.append(...added);
  };

  const choose = (at, scroll = true) => {
    if (at < 0 || at >= matches.length) return;
    while (shown <= at) more();
    list.children[active]?.setAttribute("aria-selected", "false");
    active = at;
    const chosen = list.children[at];
    chosen.setAttribute("aria-selected", "true");
    for (const box of [field, list]) box.setAttribute("aria-activedescendant", chosen.id);
    // The list alone scrolls: scrollIntoView would take the page along.
    if (scroll) {
      if (at === 0) list.scrollTop = 0;
      if (chosen.offsetTop < list.scrollTop) list.scrollTop = chosen.offsetTop;
      const below = chosen.offsetTop + chosen.offsetHeight - list.clientHeight;
      if (below > list.scrollTop) list.scrollTop = below;
    }
    show(matches[at]);
  };

  const positives = (queries, query) => {
    const places = queries.positives[query];
    const rows = node("ol", { class: "answers positives", "aria-label": "Right answers" });
    places.forEach((place, i) => {
      rows.append(node("li", {}, item(!direction.fromImages, place),
        node("span", { class: "score" }, `rank ${rankText(queries, queries.ranks[query][i])} · ${score(queries.similarities[query][i])}`)));
    });
    const all = queries.counts[query];
    const heading = all > places.length ? `Right answers (the best ${places.length} of ${number.format(all)})` : "Right answers";
    return [node("h4", {}, heading), rows];
  };

  const show = (query) => {
    const place = first().rows[query];
    const head = node("header", {}, item(direction.fromImages, place, true));
    if (direction.fromImages) head.append(node("p", { class: "key" }, data.keys[place]));
    const columns = data.runs.map((run) => {
      const queries = queriesOf(run);
      return node("div", { class: `run${direction.fromImages ? "" : " of-pictures"}` },
        node("h4", {}, data.runs.length > 1 ? `${run.name}: ` : "", "rank ", node("strong", {}, rankOf(queries, query))),
        answerList(direction, queries, query), ...positives(queries, query));
    });
    detail.replaceChildren(head, node("div", { class: "runs" }, ...columns));
  };

  const orders = data.orders;
  const refresh = () => {
    const total = first().rows.length;
    const [queries, how] = found(orders[order.value]?.[direction.name] ?? first().rows.map((_, query) => query));
    matches = queries;
    shown = 0;
    active = -1;
    list.replaceChildren();
    list.scrollTop = 0;
    for (const box of [field, list]) box.removeAttribute("aria-activedescendant");
    count.textContent = `${number.format(matches.length)} of ${number.format(total)} queries`
      + (direction.total > total ? ` (every ${Math.ceil(direction.total / total)}th of ${number.format(direction.total)})` : "") + how;
    if (matches.length) choose(0);
    else detail.replaceChildren(node("p", { class: "note" }, "No query matches."));
    more();
  };

  const setDirection = (name) => {
    direction = data.directions.find((one) => one.name === name);
    for (const radio of radios) radio.checked = radio.value === name;
  };
  const keys = (event) => {
    const page = Math.max(1, Math.floor(list.clientHeight / (list.children[0]?.offsetHeight || 40)) - 1);
    const to = { ArrowDown: active + 1, ArrowUp: active - 1, PageDown: Math.min(active + page, matches.length - 1), PageUp: Math.max(active - page, 0) };
    if (event.currentTarget === list) Object.assign(to, { Home: 0, End: matches.length - 1 });
    if (!(event.key in to)) return;
    event.preventDefault();
    choose(to[event.key]);
  };
  field.addEventListener("input", refresh);
  order.addEventListener("change", refresh);
  field.addEventListener("keydown", keys);
  list.addEventListener("keydown", keys);
  list.addEventListener("scroll", () => {
    if (list.scrollTop + 2 * list.clientHeight > list.scrollHeight && shown < matches.length) more();
  });
  list.addEventListener("click", (event) => {
    const chosen = event.target.closest("[role=option]");
    if (chosen) choose([...list.children].indexOf(chosen), false);
  });
  for (const radio of radios) {
    radio.addEventListener("change", () => { setDirection(radio.value); refresh(); });
  }
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input[type=search], select, textarea");
    if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    field.focus();
  });
  refresh();

  // Open one query from elsewhere on the page, with the focus on it.
  return (name, query) => {
    setDirection(name);
    field.value = "";
    refresh();
    choose(matches.indexOf(query));
    document.getElementById("queries").scrollIntoView();
    list.focus({ preventScroll: true });
  };
};
