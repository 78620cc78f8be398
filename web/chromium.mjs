// A host for `foveate verify --host "node web/chromium.mjs"`: the WebGPU of headless Chromium.
//
// The variable CHROMIUM names the browser; a real GPU is used with the argument `hardware`, else SwiftShader.

import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";

import { EXECUTABLE, INSTALL, INSTALL_DRIVER, QUIET, SOFTWARE, driver } from "./browser.mjs";
import { missing, serve } from "./lines.mjs";

const FOLDER = path.dirname(fileURLToPath(import.meta.url));
const FILES = {
  "/": ["text/html", () => '<!doctype html><title>foveate</title><link rel="icon" href="data:,">'],
  "/host.js": ["text/javascript", () => readFileSync(path.join(FOLDER, "host.js"))],
  "/foveate.js": ["text/javascript", () => readFileSync(path.join(FOLDER, "foveate.js"))],
};

if (!EXECUTABLE) {
  missing(INSTALL);
}
const playwright = await driver();
if (!playwright) {
  missing(INSTALL_DRIVER);
}

const server = createServer((request, response) => {
  const file = FILES[request.url];
  response.writeHead(file ? 200 : 404, { "content-type": file ? file[0] : "text/plain" });
  response.end(file ? file[1]() : "");
});
await new Promise((done) => server.listen(0, "127.0.0.1", done));

const profile = mkdtempSync(path.join(tmpdir(), "foveate-chromium-"));
const context = await playwright.chromium.launchPersistentContext(profile, {
  executablePath: EXECUTABLE,
  headless: true,
  args: [...QUIET, ...(process.argv[2] === "hardware" ? ["--enable-unsafe-webgpu"] : SOFTWARE)],
});

async function close() {
  await context.close();
  server.close();
  rmSync(profile, { recursive: true, force: true });
}

const page = context.pages()[0] ?? (await context.newPage());
page.on("console", (message) => console.error(`page: ${message.text()}`));
try {
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  await page.evaluate(async () => {
    const { Host } = await import("/host.js");
    window.host = await Host.open(navigator.gpu, "Chromium");
  });
} catch (error) {
  await close();
  missing(`Chromium has no WebGPU here: ${error.message}`);
}
try {
  await serve((request) => page.evaluate((asked) => window.host.answer(asked), request));
} finally {
  await close();
}
process.exit(0);
