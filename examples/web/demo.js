// The page: takes a text, has it computed, and draws what comes back.

import { Attention, Missing, ROW } from "./attention.js";
import { ramp } from "./colours.js";
import { Encoder } from "./encoder.js";

// The most that a weight may differ from double precision, as `foveate demo` has it.
const LIMIT = 2e-5;
// How long typing must pause before the text is taken, and before the device is timed, in ms.
const PAUSE = 120, QUIET = 300;
// Letters of a label on the map; the whole is in the row of tokens.
const LABEL = 14;

const $ = (id) => document.getElementById(id);
const make = (tag, text, attributes) => {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes ?? {})) element.setAttribute(name, value);
  return element;
};

const dark = matchMedia("(prefers-color-scheme: dark)");
let colours = ramp(dark.matches);
// Spaced by the root, as most weights are small. What is not a number looks like 0; the checks say that it is wrong.
const shade = (weight) => colours[weight > 0 ? Math.min(255, Math.round(255 * Math.sqrt(weight))) : 0];

let encoder, attention;
// The head and the pair that are looked at, and what was computed last.
const state = { head: 5, query: 2, key: 0, result: undefined };

// Messages.

const fail = (title, lines, again) => {
  const box = $("message");
  box.replaceChildren(make("h2", title), ...lines.map((line) => make("p", line)));
  if (again) {
    const button = make("button", "Try again", { type: "button" });
    button.addEventListener("click", start);
    const line = make("p");
    line.append(button);
    box.append(line);
  }
  box.classList.add("said");
  box.setAttribute("role", "alert");
  box.hidden = false;
  $("starting").hidden = true;
  $("demo").hidden = true;
  document.documentElement.dataset.state = "failed";
};
const wrong = (error) => {
  if (error instanceof Missing) fail(error.message, error.lines, true);
  else fail("Something went wrong", [String(error?.message ?? error)], true);
};

// Tokens and weights of what was computed last.

const label = ({ piece, source }) => piece === "[UNK]" && source ? source : piece;
const short = (text) => {
  const letters = [...text];
  return letters.length > LABEL ? letters.slice(0, LABEL - 1).join("") + "\u2026" : text;
};
const tokens = () => state.result.tokens;
const weight = (head, query, key) => state.result.weights[(head * encoder.length + query) * encoder.length + key];
const tokenSpan = (token, tag = "span") => {
  const element = make(tag, short(label(token)));
  if (token.piece === "[UNK]") {
    element.className = "unknown";
    element.title = "read as [UNK]";
  }
  return element;
};
const percent = (x) => (x * 100).toFixed(0) + " %";

/** Where most of a head's attention goes, and over how many tokens on average. */
const summary = (head) => {
  const list = tokens(), n = list.length;
  const total = { "the token before": 0, "the token after": 0, "the token itself": 0, "[CLS]": 0, "[SEP]": 0, "punctuation": 0 };
  let entropy = 0;
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < n; j++) {
      const w = weight(head, i, j), part = w / n, { piece } = list[j];
      if (j === i - 1) total["the token before"] += part;
      if (j === i + 1) total["the token after"] += part;
      if (j === i) total["the token itself"] += part;
      if (piece === "[CLS]" || piece === "[SEP]") total[piece] += part;
      else if (/^[^\p{L}\p{N}]+$/u.test(piece)) total.punctuation += part;
      if (w > 0) entropy -= part * Math.log(w);
    }
  }
  const main = Object.entries(total).filter(([, w]) => w >= 0.1).sort((a, b) => b[1] - a[1]).slice(0, 2);
  return { main, spread: Math.exp(entropy) };
};

// Drawing.

const paint = (canvas, head) => {
  // One pixel per weight, which the browser enlarges sharply.
  const n = tokens().length;
  canvas.width = canvas.height = n;
  const context = canvas.getContext("2d"), image = context.createImageData(n, n);
  for (let i = 0; i < n; i++) {
    for (let j = 0; j < n; j++) image.data.set([...shade(weight(head, i, j)), 255], (i * n + j) * 4);
  }
  context.putImageData(image, 0, 0);
};

const cellSize = () => $("map").clientWidth / tokens().length;

const fit = () => {
  if (!state.result) return;
  const n = tokens().length, room = $("scroll").clientWidth - 4 - $("rows").offsetWidth;
  // Small enough that a long text fits a wide window, and large enough for a finger on a narrow one, which scrolls.
  const cell = Math.min(32, Math.max(room > 480 ? 9 : 11, Math.floor(room / n)));
  $("plot").style.setProperty("--cell", cell + "px");
  $("plot").style.setProperty("--type", Math.min(14, cell) + "px");
  $("map").style.width = $("map").style.height = cell * n + "px";
  $("line").style.top = state.query * cell + "px";
};

/** Shows a pair on the large map; says it in words. */
const point = (query, key) => {
  const n = tokens().length, size = cellSize();
  query = Math.min(n - 1, Math.max(0, query));
  state.key = Math.min(n - 1, Math.max(0, key));
  leave();
  $("rows").children[query].classList.add("on");
  $("columns").children[state.key].classList.add("on");
  const tip = $("tip"), scroll = $("scroll"), field = $("map").parentElement;
  $("cell").hidden = tip.hidden = false;
  $("cell").style.left = state.key * size + "px";
  $("cell").style.top = query * size + "px";
  const named = (token) => short(label(token)) + (token.piece === "[UNK]" ? " (read as [UNK])" : "");
  tip.textContent = named(tokens()[query]) + " \u2192 " + named(tokens()[state.key]) + "\nweight " + weight(state.head, query, state.key).toFixed(4);
  const x = field.offsetLeft + (state.key + 1) * size + 8, y = field.offsetTop + (query + 1) * size + 8;
  const right = scroll.scrollLeft + scroll.clientWidth - tip.offsetWidth - 4;
  tip.style.left = Math.max(scroll.scrollLeft, Math.min(x, right)) + "px";
  tip.style.top = (y + tip.offsetHeight > $("plot").offsetHeight ? y - size - tip.offsetHeight - 16 : y) + "px";
  return tip.textContent;
};
const leave = () => {
  $("cell").hidden = $("tip").hidden = true;
  for (const on of document.querySelectorAll(".plot .on")) on.classList.remove("on");
};

/** Chooses the token whose row is shown in the row of tokens. */
const choose = (query) => {
  state.query = Math.min(tokens().length - 1, Math.max(0, query));
  $("chosen").textContent = "\u201c" + short(label(tokens()[state.query])) + "\u201d";
  $("chosen-head").textContent = "head " + state.head;
  [...$("tokens").children].forEach((button, j) => {
    const w = weight(state.head, state.query, j), colour = shade(w), chosen = j === state.query;
    button.style.setProperty("--shade", `rgb(${colour})`);
    // Black or white, whichever stands out more from the shade.
    const [r, g, b] = colour.map((x) => (x / 255) ** 2.2);
    button.style.setProperty("--on", 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.18 ? "#000" : "#fff");
    button.setAttribute("aria-checked", chosen);
    button.tabIndex = chosen ? 0 : -1;
    button.lastChild.textContent = w >= 0.005 ? percent(w) : "\u00a0";
    button.setAttribute("aria-label", `${label(tokens()[j])}, weight ${w.toFixed(3)}`);
  });
  $("line").style.top = state.query * cellSize() + "px";
};

const drawTokens = () => {
  $("tokens").replaceChildren(...tokens().map((token, j) => {
    const button = make("button", undefined, { type: "button", role: "radio" });
    button.append(tokenSpan(token, "bdi"), make("small"));
    button.addEventListener("click", () => choose(j));
    return button;
  }));
};

const drawHead = () => {
  leave();
  paint($("map"), state.head);
  const { main, spread } = summary(state.head);
  const parts = main.map(([what, w], i) => percent(w) + (i ? " to " : " of the attention goes to ") + what);
  $("title").textContent = "Head " + state.head;
  $("summary").textContent = (parts.length ? parts.join(" and ") + ". " : "") +
    `On average a token spreads its attention over about ${spread.toFixed(spread < 10 ? 1 : 0)} of the ${tokens().length} tokens.`;
  $("map").setAttribute("aria-label", `Heat map of head ${state.head}, ${tokens().length} by ${tokens().length} tokens. ${$("summary").textContent}`);
  choose(state.query);
};

const drawAll = () => {
  if (!state.result) return;
  colours = ramp(dark.matches);
  const strip = $("ramp").getContext("2d");
  colours.forEach((colour, i) => {
    strip.fillStyle = `rgb(${colour})`;
    strip.fillRect(i, 0, 1, 1);
  });
  for (let head = 0; head < encoder.heads; head++) {
    paint($("head-" + head), head);
    const { main, spread } = summary(head);
    $("about-" + head).textContent = main.length ? percent(main[0][1]) + " to " + main[0][0] : `over ${spread.toFixed(0)} of ${tokens().length}`;
  }
  for (const id of ["rows", "columns"]) $(id).replaceChildren(...tokens().map((token) => tokenSpan(token)));
  drawTokens();
  fit();
  drawHead();
};

const fill = (id, rows) => $(id).replaceChildren(...rows.map(([name, small, value, below, bad]) => {
  const row = make("tr"), head = make("th", name, { scope: "row" }), cell = make("td", value);
  if (small) head.append(make("small", small));
  if (below) cell.append(make("small", below));
  if (bad) cell.className = "bad";
  row.append(head, cell);
  return row;
}));
// Browsers round clocks to 0.1 ms or so.
const clock = (ms) => ms.toFixed(1);
const drawTimes = () => {
  const { ms, row, total } = state.result;
  const gpu = (name) => row ? (row[name] > 0 ? row[name].toPrecision(2) : `under ${(0.1 / ROW).toPrecision(1)}`) : "\u2026";
  const how = `on the device, mean of ${ROW} in a row` + (row ? `, by ${row.by}` : "");
  fill("times", [
    ["Text to pieces", "on the CPU", clock(ms.cut)],
    ["Pieces to queries, keys, values", "on the CPU", clock(ms.project)],
    ["Upload", "until the queue has taken it", clock(ms.upload)],
    ["Attention and weights, once", "from submission to the end of the wait", clock(ms.compute)],
    ["Reading back", "", clock(ms.readback)],
    ["From text to weights", "all of the above", clock(total)],
    ["Attention", how, gpu("attention")],
    ["Weights", how, gpu("weights")],
    ["The same in double precision", "on the CPU, to check", clock(ms.check)],
  ]);
};
const drawChecks = () => {
  const { difference, sums, output } = state.result;
  // Not `> LIMIT`: that would let NaN pass.
  const verdict = (x) => x <= LIMIT ? "right" : `wrong: at most ${LIMIT.toExponential(0)} is right`;
  fill("checks", [
    ["Largest difference of a weight", "from double precision, all heads", difference.toExponential(1), verdict(difference), !(difference <= LIMIT)],
    ["Rows add up to 1", "largest distance, all heads", sums.toExponential(1), verdict(sums), !(sums <= LIMIT)],
    ["Largest difference of attention's output", "from double precision, as a part of the largest output", output.toExponential(1), verdict(output), !(output <= LIMIT)],
  ]);
};
const drawDevice = () => {
  const about = attention.about();
  const range = about.subgroups && [...new Set(about.subgroups)].join(" to ");
  fill("device", [
    ["Adapter", about.software ? "computes on the CPU" : "", about.name],
    ["Subgroups", "invocations", range ?? "not told by the browser"],
    ...about.schedules.map(({ name, schedule, why }) => [`Schedule of ${name}`, why, schedule]),
    ["Preparing the plans", "shaders compiled, ms", clock(attention.prepareMs)],
  ]);
};

// Computing.

const compute = async (text) => {
  const start = performance.now();
  const { tokens, isCut } = encoder.cut(text, encoder.length);
  if (tokens.length === 2) return { text, tokens: [] };
  const cut = performance.now();
  const inputs = encoder.project(tokens);
  const projected = performance.now();
  const { weights, o, ms } = await attention.run(inputs, tokens.length);
  const done = performance.now();
  const expected = encoder.attend(inputs, tokens.length);
  const checked = performance.now();
  const { length, dim } = encoder;
  let difference = 0, sums = 0, output = 0, scale = 0;
  const larger = (most, x) => Number.isNaN(x) ? Infinity : Math.max(most, x);
  for (let row = 0; row < encoder.heads * length; row++) {
    if (row % length >= tokens.length) continue;
    let sum = 0;
    for (let i = row * length; i < (row + 1) * length; i++) {
      difference = larger(difference, Math.abs(weights[i] - expected.weights[i]));
      sum += weights[i];
    }
    sums = larger(sums, Math.abs(sum - 1));
    for (let i = row * dim; i < (row + 1) * dim; i++) {
      output = larger(output, Math.abs(o[i] - expected.o[i]));
      scale = Math.max(scale, Math.abs(expected.o[i]));
    }
  }
  output /= scale;
  return {
    text, tokens, isCut, weights, difference, sums, output, total: done - start,
    ms: { cut: cut - start, project: projected - cut, check: checked - done, ...ms },
  };
};

const note = (result) => {
  const parts = [];
  if (!result.tokens.length) {
    parts.push(/\S/.test(result.text) ? "There is nothing in this text that the encoder reads." : "There is no text yet: type one, or pick one above.");
  } else {
    parts.push(`${result.tokens.length} tokens, [CLS] and [SEP] included.`);
    if (result.isCut) {
      const last = result.tokens.at(-2);
      parts.push(`The text is cut after \u201c${short(last.source)}\u201d: the page takes ${encoder.length} tokens at most.`);
    }
    const unknown = result.tokens.filter(({ piece }) => piece === "[UNK]").length;
    if (unknown) parts.push(`${unknown === 1 ? "One is" : unknown + " are"} read as [UNK] (dotted), as this page has no pieces for ${unknown === 1 ? "it" : "them"}.`);
  }
  $("note").textContent = parts.join(" ");
};

const show = (result) => {
  note(result);
  const empty = !result.tokens.length;
  $("results").hidden = empty;
  $("results").classList.remove("old");
  state.result = empty ? undefined : result;
  if (!empty) {
    state.query = Math.min(state.query, result.tokens.length - 1);
    drawAll();
    drawTimes();
    drawChecks();
  }
  document.documentElement.dataset.state = empty ? "empty" : "shown";
};

let wanted, working = false, pause, quiet;
const work = async () => {
  if (working || wanted === undefined) return;
  working = true;
  try {
    while (wanted !== undefined) {
      const text = wanted;
      wanted = undefined;
      const result = await compute(text);
      // What was typed meanwhile makes this old, and is on its way.
      if (text === $("text").value) show(result);
    }
    clearTimeout(quiet);
    quiet = setTimeout(time, QUIET);
  } catch (error) {
    wrong(error);
  } finally {
    working = false;
  }
};
const time = async () => {
  const { result } = state;
  if (working || !result) return;
  working = true;
  try {
    result.row = await attention.time();
    if (state.result === result) drawTimes();
  } catch (error) {
    wrong(error);
  } finally {
    working = false;
  }
  work();
};
const ask = (wait) => {
  const text = $("text").value;
  for (const button of $("texts").children) button.setAttribute("aria-pressed", button.dataset.text === text);
  $("results").classList.add("old");
  document.documentElement.dataset.state = "working";
  clearTimeout(pause);
  pause = setTimeout(() => {
    wanted = text;
    work();
  }, wait);
};

// Setting up.

const load = async (name) => {
  const answer = await fetch(new URL(name, import.meta.url));
  if (!answer.ok) throw new Error(`${name}: the server answered ${answer.status}`);
  return answer;
};

let isSetUp = false;
const setUp = (texts) => {
  if (isSetUp) return;
  isSetUp = true;
  $("text").value ||= texts[0];
  $("text").addEventListener("input", () => ask(PAUSE));
  for (const text of texts) {
    const button = make("button", text.split(" ").slice(0, 5).join(" ") + " \u2026", { type: "button", "data-text": text });
    button.addEventListener("click", () => {
      $("text").value = text;
      ask(0);
    });
    $("texts").append(button);
  }
  for (let head = 0; head < encoder.heads; head++) {
    const option = make("label"), input = make("input", undefined, { type: "radio", name: "head", value: head });
    input.checked = head === state.head;
    input.addEventListener("change", () => {
      state.head = head;
      drawHead();
    });
    const figure = make("figure"), caption = make("figcaption");
    caption.append(make("b", "Head " + head), make("span", "", { id: "about-" + head, class: "soft" }));
    figure.append(make("canvas", undefined, { id: "head-" + head, "aria-hidden": "true" }), caption);
    option.append(input, figure);
    $("heads").append(option);
  }
  for (const tick of [0, 0.02, 0.1, 0.25, 0.5, 1]) {
    const mark = make("span", tick);
    mark.style.left = Math.sqrt(tick) * 100 + "%";
    $("ticks").append(mark);
  }

  $("tokens").addEventListener("keydown", (event) => {
    const last = tokens().length - 1;
    const to = {
      ArrowLeft: state.query - 1, ArrowUp: state.query - 1, ArrowRight: state.query + 1, ArrowDown: state.query + 1,
      Home: 0, End: last,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose((to + last + 1) % (last + 1));
    $("tokens").children[state.query].focus();
  });

  const map = $("map");
  const at = (event) => {
    const box = map.getBoundingClientRect(), n = tokens().length;
    return [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width].map((x) => Math.min(n - 1, Math.max(0, Math.floor(x * n))));
  };
  map.addEventListener("pointermove", (event) => point(...at(event)));
  map.addEventListener("pointerdown", (event) => {
    const [query, key] = at(event);
    choose(query);
    point(query, key);
  });
  map.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") leave(); });
  map.addEventListener("blur", leave);
  map.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    if (!$("cell").hidden) {
      choose(state.query + step[0]);
      state.key += step[1];
    }
    $("said").textContent = point(state.query, state.key);
    $("cell").scrollIntoView({ block: "nearest", inline: "nearest" });
  });
  dark.addEventListener("change", drawAll);
  addEventListener("resize", () => {
    leave();
    fit();
  });
};

const start = async () => {
  $("message").hidden = true;
  $("starting").hidden = false;
  document.documentElement.dataset.state = "starting";
  const old = attention;
  attention = undefined;
  old?.device.destroy();
  try {
    const opened = await Attention.open();
    attention = opened;
    opened.device.lost.then(({ reason, message }) => {
      if (attention === opened) fail("The GPU was lost", [message || `The browser says no more than: ${reason}.`], true);
    });
    opened.device.addEventListener("uncapturederror", ({ error }) => {
      if (attention === opened) wrong(error);
    });
    const model = encoder ? undefined : load("minilm-layer0.safetensors").then((answer) => answer.arrayBuffer());
    const [data] = await Promise.all([model, opened.prepare()]);
    encoder ??= new Encoder(data);
    setUp(await (await load("texts.json")).json());
    $("starting").hidden = true;
    $("demo").hidden = false;
    $("foot").hidden = false;
    $("foot").textContent = `Plans by foveate ${opened.about().version}. ` +
      `Encoder: all-MiniLM-L6-v2 (Apache-2.0), the first of its 6 layers, numbers rounded to 8 bits. Of its ${Number(encoder.notes.vocabulary).toLocaleString("en")} pieces ` +
      `${encoder.pieces.length.toLocaleString("en")} are here, so a rare word falls into smaller pieces than the whole encoder would cut it into.`;
    drawDevice();
    ask(0);
  } catch (error) {
    wrong(error);
  }
};

/** What is shown: for tests, and for the curious in the console. */
export const shown = () => state.result && {
  ...state.result, weights: [...state.result.weights], head: state.head, heads: encoder.heads, length: encoder.length,
};
/** The device that computes, for tests. */
export const device = () => attention?.device;

start();
