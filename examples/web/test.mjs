// Tests the page: its tokeniser and projections without a browser, and all of it in headless Chromium, whose
// software adapter computes where there is no GPU.
//
//     node examples/web/test.mjs
//
// CHROMIUM names the browser. The exit code is 0, 1 where something fails, or 77 where there is no browser to
// test with.

import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { request } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import { EXECUTABLE, INSTALL, INSTALL_DRIVER, QUIET, SOFTWARE, driver } from "../../web/browser.mjs";
import { Encoder, parse } from "./encoder.js";
import { serve } from "./serve.mjs";

const LIMIT = 2e-5;
// What rounding to 8 bits does to queries and keys (of their root mean square), and through them to weights.
const ROUNDED = 0.02, ROUNDED_WEIGHTS = 0.03;
const ALICE = "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: " +
  "once or twice she had peeped into the book her sister was reading, but it had no pictures or conversations in it.";

const here = (name) => fileURLToPath(new URL(name, import.meta.url));
const buffer = (name) => {
  const bytes = readFileSync(here(name));
  return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
};
let failed = 0, passed = 0;
const check = async (name, test) => {
  try {
    const said = await test();
    passed++;
    console.log(`ok      ${name}${said ? `: ${said}` : ""}`);
  } catch (error) {
    failed++;
    console.log(`FAILED  ${name}\n${error.stack}`);
  }
};
const end = async (code, line) => {
  console.log(line);
  process.exit(code);
};

// Without a browser.

const encoder = new Encoder(buffer("minilm-layer0.safetensors"));
const fixture = parse(buffer("../../tests/fixtures/real/minilm_layer0.safetensors"));
const passages = JSON.parse(fixture.notes.tokens).map((list) => list.filter((piece) => piece !== "[PAD]"));
const rows = fixture.tensors.q.shape[2];

/** Queries or keys of a passage in the fixture, as the encoder lays them out. */
const stored = (name, passage, count) => {
  const { heads, length, dim } = encoder, out = new Float32Array(heads * length * dim);
  for (let head = 0; head < heads; head++) {
    const start = (passage * heads + head) * rows * dim;
    out.set(fixture.tensors[name].data.subarray(start, start + count * dim), head * length * dim);
  }
  return out;
};
/** Attention of the stored queries, keys and values. */
const exact = (passage, count) =>
  encoder.attend({ q: stored("q", passage, count), k: stored("k", passage, count), v: stored("v", passage, count) }, count);
const largest = (a, b) => {
  assert.equal(a.length, b.length);
  return a.reduce((most, x, i) => {
    const distance = Math.abs(x - b[i]);
    return Number.isNaN(distance) ? Infinity : Math.max(most, distance);
  }, 0);
};

await check("texts fall into the pieces that another tokeniser finds", () => {
  const cases = JSON.parse(readFileSync(here("tokens.json"), "utf8"));
  assert.ok(cases.length > 10);
  for (const { text, tokens } of cases) {
    assert.deepEqual(encoder.cut(text).tokens.map(({ piece }) => piece), tokens, JSON.stringify(text));
  }
  return `${cases.length} texts`;
});

await check("attention in double precision is that of the stored outputs", () => {
  // Of the passage that fits the encoder's length whole.
  const count = passages[1].length;
  assert.ok(count <= encoder.length);
  const distance = largest(Float32Array.from(exact(1, count).o), stored("o", 1, count));
  assert.ok(distance <= 1e-5, `${distance}`);
  return distance.toExponential(1);
});

await check("queries, keys and values are those of the whole encoder, rounded", () => {
  const said = [];
  passages.forEach((passage, number) => {
    const tokens = passage.slice(0, encoder.length).map((piece) => ({ piece, source: piece }));
    const inputs = encoder.project(tokens);
    for (const name of ["q", "k", "v"]) {
      const expected = stored(name, number, tokens.length);
      let wrong = 0, all = 0;
      expected.forEach((x, i) => {
        wrong += (inputs[name][i] - x) ** 2;
        all += x ** 2;
      });
      const error = Math.sqrt(wrong / all);
      assert.ok(error <= ROUNDED, `${name} of passage ${number}: ${error}`);
      said.push(`${name} ${error.toFixed(4)}`);
    }
    const distance = largest(encoder.attend(inputs, tokens.length).weights, exact(number, tokens.length).weights);
    assert.ok(distance <= ROUNDED_WEIGHTS, `weights of passage ${number}: ${distance}`);
    said.push(`weights ${distance.toFixed(4)}`);
  });
  return said.join(", ");
});

await check("a long text is cut to the length, and says so", () => {
  const { tokens, isCut } = encoder.cut("word ".repeat(500), encoder.length);
  assert.equal(tokens.length, encoder.length);
  assert.equal(tokens.at(-1).piece, "[SEP]");
  assert.ok(isCut);
  assert.ok(!encoder.cut("word ".repeat(encoder.length - 2), encoder.length).isCut);
});

const { server, url } = await serve(0);
const { origin, port } = new URL(url);
const status = (path, method = "GET") => new Promise((done, fail) => {
  // Not fetch, which would tidy the path up.
  request({ host: "127.0.0.1", port, path, method }, (answer) => done(answer.resume().statusCode)).on("error", fail).end();
});
await check("the server has the page, and nothing else", async () => {
  for (const path of ["/examples/web/", "/examples/web/demo.js", "/examples/web/plans/weights.json", "/web/foveate.js"]) {
    assert.equal(await status(path), 200, path);
  }
  for (const path of ["/Cargo.toml", "/examples/web/../../Cargo.toml", "/examples/web/..%2f..%2fCargo.toml", "/examples/web/%2e%2e/hello.rs",
    "/examples/web/plans/../serve.mjs", "/examples/web/serve.mjs", "//etc/passwd", "/examples/web/none.js", "/web/package.json"]) {
    assert.equal(await status(path), 404, path);
  }
  assert.equal(await status("/examples/web/", "POST"), 405);
});

// In a browser.

const playwright = await driver();
if (failed) await end(1, `${failed} failed, ${passed} passed; not tried in a browser`);
if (!EXECUTABLE) await end(77, `skipped in a browser: ${INSTALL}`);
if (!playwright) await end(77, `skipped in a browser: ${INSTALL_DRIVER}`);

const WAIT = { timeout: 60_000 };

/** Opens a browser of its own, does something with its page, and closes it. */
const browse = async (args, work) => {
  const profile = mkdtempSync(join(tmpdir(), "foveate-page-"));
  const context = await playwright.chromium.launchPersistentContext(profile, {
    executablePath: EXECUTABLE, headless: true, viewport: { width: 1200, height: 900 },
    args: [...QUIET, ...args],
  });
  try {
    return await work(context.pages()[0] ?? await context.newPage());
  } finally {
    await context.close();
    rmSync(profile, { recursive: true, force: true });
  }
};
const until = (page, state) => page.waitForFunction((wanted) => document.documentElement.dataset.state === wanted, state, WAIT);
const type = async (page, text, state = "shown") => {
  await page.fill("#text", text);
  // fill() has told the page before it returns, so that the state is of this text.
  await until(page, state);
};
const shown = (page) => page.evaluate(async () => (await import("/examples/web/demo.js")).shown());
const pixels = (page, id) => page.evaluate((name) => document.getElementById(name).toDataURL(), id);

await browse(SOFTWARE, async (page) => {
  const trouble = [], asked = [];
  page.on("pageerror", (error) => trouble.push(error.message));
  page.on("console", (message) => { if (["error", "warning"].includes(message.type())) trouble.push(message.text()); });
  page.on("request", (request) => asked.push(request.url()));

  await check("the page computes its first text", async () => {
    await page.goto(url);
    await page.waitForFunction(() => ["shown", "failed"].includes(document.documentElement.dataset.state), null, WAIT);
    assert.equal(await page.locator("#message").isVisible() && await page.innerText("#message"), false);
    return `${await page.locator("#device td").first().innerText()}, ${await page.locator("#times tr").nth(3).locator("td").innerText()} ms`;
  });

  await check("a typed text has the weights of double precision, and of the whole encoder", async () => {
    await type(page, ALICE);
    const { text, tokens, weights, heads, length, difference, output } = await shown(page);
    assert.equal(text, ALICE);
    assert.deepEqual(tokens.map(({ piece }) => piece), passages[1]);
    const count = tokens.length;
    const found = largest(weights, encoder.attend(encoder.project(tokens), count).weights);
    assert.ok(found <= LIMIT, `${found}`);
    assert.ok(Math.abs(difference - found) < 1e-9, `the page says ${difference}, the test ${found}`);
    assert.ok(output <= LIMIT, `output ${output}`);
    assert.equal(await page.locator("#checks td").first().innerText(), `${difference.toExponential(1)}\nright`);
    const whole = largest(weights, exact(1, count).weights);
    assert.ok(whole <= ROUNDED_WEIGHTS, `${whole}`);
    for (let row = 0; row < heads * length; row++) {
      const sum = weights.slice(row * length, (row + 1) * length).reduce((a, b) => a + b);
      const expected = row % length < count ? 1 : 0;
      assert.ok(Math.abs(sum - expected) <= LIMIT, `row ${row} adds up to ${sum}`);
    }
    return `largest differences ${found.toExponential(1)} and ${whole.toFixed(4)}, of the output ${output.toExponential(1)}`;
  });

  await check("another head is another map", async () => {
    const before = await pixels(page, "map");
    await page.locator('#heads input[value="2"]').check();
    assert.equal(await page.innerText("#title"), "Head 2");
    assert.notEqual(await pixels(page, "map"), before);
    assert.equal(await pixels(page, "map"), await pixels(page, "head-2"));
  });

  await check("a token shows what it looks at, by pointer and by keyboard", async () => {
    const button = page.locator("#tokens button");
    await button.nth(4).click();
    const { weights, length } = await shown(page);
    const row = weights.slice((2 * length + 4) * length, (2 * length + 5) * length);
    assert.equal(await button.nth(3).getAttribute("aria-label"), `beginning, weight ${row[3].toFixed(3)}`);
    assert.equal(await button.nth(4).getAttribute("aria-checked"), "true");
    await page.keyboard.press("ArrowRight");
    assert.equal(await button.nth(5).getAttribute("aria-checked"), "true");
    assert.equal(await page.innerText("#chosen"), "\u201cget\u201d");
    await page.focus("#map");
    for (const key of ["ArrowRight", "ArrowRight", "ArrowDown"]) await page.keyboard.press(key);
    const pair = weights[(2 * length + 6) * length + 1];
    assert.equal(await page.textContent("#said"), `very \u2192 alice\nweight ${pair.toFixed(4)}`);
    assert.ok(await page.locator("#tip").isVisible());
  });

  await check("times are there, and say how they were taken", async () => {
    await page.waitForFunction(() => !document.getElementById("times").innerText.includes("\u2026"), null, WAIT);
    for (const cell of await page.locator("#times td").allInnerTexts()) assert.match(cell, /^(under )?\d+(\.\d+)?$/);
    assert.match(await page.innerText("#times"), /by (timestamps|wall time)/);
    return (await page.locator("#times tr").allInnerTexts()).map((row) => row.split(/[\n\t]/)[0] + " " + row.split(/\s/).at(-1)).join(", ");
  });

  await check("no text says so, and a text after it is shown again", async () => {
    for (const text of ["", " \n\t "]) {
      await type(page, text, "empty");
      assert.match(await page.innerText("#note"), /no text yet/);
      assert.ok(!await page.locator("#results").isVisible());
    }
    await type(page, "\u200b\u0301", "empty");
    assert.match(await page.innerText("#note"), /nothing in this text/);
    await type(page, "a");
    assert.equal((await shown(page)).tokens.length, 3);
  });

  await check("a long text is cut with a note", async () => {
    await type(page, "One two three four five. ".repeat(2000));
    assert.equal((await shown(page)).tokens.length, encoder.length);
    assert.match(await page.innerText("#note"), /64 tokens, .* cut after \u201ctwo\u201d/);
  });

  await check("no text breaks the page, and none becomes markup", async () => {
    for (const text of ["👩‍👩‍👧 🎉🎉 日本語 中文 العربية שלום", "<img src=x onerror=alert(1)> &amp; </textarea>", "\ud800 lone \udc00", "a".repeat(5000), "\u202egnirts\u202c"]) {
      await type(page, text);
      const { difference, tokens } = await shown(page);
      assert.ok(difference <= LIMIT);
      assert.equal(await page.locator("#tokens button").count(), tokens.length);
    }
    assert.equal(await page.locator("img").count(), 0);
    await type(page, "日本 x");
    assert.match(await page.innerText("#note"), /2 are read as \[UNK\]/);
    assert.deepEqual((await page.locator("#tokens bdi").allInnerTexts()), ["[CLS]", "日", "本", "x", "[SEP]"]);
  });

  await check("of a text typed fast, the last is shown", async () => {
    await page.fill("#text", "");
    await page.locator("#text").pressSequentially("The quick brown fox jumps over the lazy dog.", { delay: 15 });
    await until(page, "shown");
    assert.equal((await shown(page)).text, "The quick brown fox jumps over the lazy dog.");
    await page.locator("#texts button").nth(3).click();
    await page.locator("#texts button").nth(1).click();
    await until(page, "shown");
    assert.equal((await shown(page)).text, await page.inputValue("#text"));
    assert.equal(await page.locator('#texts [aria-pressed="true"]').count(), 1);
  });

  await check("nothing sticks out of a narrow window, light or dark", async () => {
    for (const colorScheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme });
      for (const width of [360, 700, 1200]) {
        await page.setViewportSize({ width, height: 800 });
        assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), `${width} pixels`);
      }
    }
  });

  await check("a lost device is told, and another one taken", async () => {
    await page.evaluate(async () => (await import("/examples/web/demo.js")).device().destroy());
    await until(page, "failed");
    assert.match(await page.innerText("#message"), /The GPU was lost/);
    const text = await page.inputValue("#text");
    await page.click("#message button");
    await until(page, "shown");
    assert.equal((await shown(page)).text, text);
    assert.ok(!await page.locator("#message").isVisible());
  });

  await check("nothing is asked of other hosts, and no errors are printed", () => {
    assert.deepEqual(asked.filter((address) => !address.startsWith(origin + "/") && !address.startsWith("data:")), []);
    assert.deepEqual(trouble, []);
    return `${new Set(asked).size} files`;
  });

  // Slightly off, and no number at all: the root of what is below 0.
  for (const factor of ["1.001", "sqrt(-1.0 - f32(local))"]) {
    await check(`a plan that computes wrong is called wrong: ${factor}`, async () => {
      await page.route("**/plans/weights.json", async (route) => {
        const plan = await (await route.fetch()).json();
        for (const shader of plan.shaders) shader.wgsl = shader.wgsl.replace(/Result\(pair_weight/g, `${factor} * Result(pair_weight`);
        await route.fulfill({ json: plan });
      });
      await page.reload();
      await until(page, "shown");
      assert.match(await page.innerText("#checks"), /wrong/);
      await page.unroute("**/plans/weights.json");
    });
  }

  await check("a plan of a version to come is refused in words", async () => {
    await page.route("**/plans/weights.json", async (route) => {
      await route.fulfill({ json: { ...await (await route.fetch()).json(), version: 2 } });
    });
    await page.reload();
    await until(page, "failed");
    assert.match(await page.innerText("#message"), /version 2/);
    await page.unroute("**/plans/weights.json");
  });
});

await browse(SOFTWARE, async (page) => {
  await page.addInitScript(() => { delete Navigator.prototype.gpu; });
  await check("without WebGPU the page says so", async () => {
    await page.goto(url);
    await until(page, "failed");
    assert.match(await page.innerText("#message"), /This browser has no WebGPU/);
    assert.ok(!await page.locator("#demo").isVisible());
  });
});

await browse(["--disable-gpu"], async (page) => {
  await check("without an adapter the page says so", async () => {
    await page.goto(url);
    await until(page, "failed");
    assert.match(await page.innerText("#message"), /no WebGPU|no adapter/);
    assert.ok(!await page.locator("#demo").isVisible());
    return (await page.innerText("#message h2"));
  });
  await check("opened as a file, the page says how to serve it", async () => {
    await page.goto(new URL("index.html", import.meta.url).href);
    await page.locator("#message").waitFor(WAIT);
    assert.match(await page.innerText("#message"), /make web-demo[^]*http\.server/);
  });
});

server.close();
await end(failed ? 1 : 0, `${failed} failed, ${passed} passed`);
