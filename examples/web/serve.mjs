// Serves the page on this machine alone: node examples/web/serve.mjs [port]

import { createServer } from "node:http";
import { open } from "node:fs/promises";
import { dirname, extname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = resolve(dirname(fileURLToPath(import.meta.url)), "../..");
const PAGE = "/examples/web/";
const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".json": "application/json",
  ".safetensors": "application/octet-stream",
};
// What the page needs and nothing else, so that no path can lead elsewhere.
const FILES = /^\/(?:examples\/web\/(?:plans\/)?[a-z0-9-]+\.(?:html|css|js|json|safetensors)|web\/foveate\.js)$/;

const answer = async (request, response) => {
  const say = (status, headers, body) => response.writeHead(status, headers).end(body);
  const text = { "content-type": "text/plain; charset=utf-8" };
  if (!["GET", "HEAD"].includes(request.method)) return say(405, { ...text, allow: "GET, HEAD" }, "GET or HEAD\n");
  let path = request.url.split("?")[0];
  if (path === "/" || path === PAGE.slice(0, -1)) return say(302, { location: PAGE });
  if (path === PAGE) path += "index.html";
  let file;
  try {
    if (!FILES.test(path)) throw new Error("not of the page");
    file = await open(join(ROOT, path));
    const data = await file.readFile();
    say(200, {
      "content-type": TYPES[extname(path)], "content-length": data.length,
      "cache-control": "no-cache", "x-content-type-options": "nosniff",
    }, request.method === "HEAD" ? undefined : data);
  } catch {
    say(404, text, "not found\n");
  } finally {
    await file?.close();
  }
};

/** A server of the page, on this machine alone; port 0 takes any that is free. */
export const serve = (port) => new Promise((done, fail) => {
  const server = createServer(answer);
  server.once("error", fail);
  server.listen(port, "127.0.0.1", () => {
    done({ server, url: `http://127.0.0.1:${server.address().port}${PAGE}` });
  });
});

if (process.argv[1] && resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const port = Number(process.argv[2] ?? 8000);
  if (!Number.isInteger(port) || port < 0 || port > 65535) {
    console.error("usage: node examples/web/serve.mjs [port]");
    process.exit(2);
  }
  try {
    const { url } = await serve(port);
    console.log(`${url}   (Ctrl-C ends it)`);
  } catch (error) {
    console.error(error.code === "EADDRINUSE" ? `port ${port} is taken: give another one, or 0 for any` : error.message);
    process.exit(1);
  }
}
