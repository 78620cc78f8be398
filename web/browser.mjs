// The Chromium that tests drive, and how it is started.

import { existsSync } from "node:fs";

/** Its program; undefined where there is none. The variable CHROMIUM names another one. */
export const EXECUTABLE = [process.env.CHROMIUM, "/usr/bin/chromium", "/usr/bin/google-chrome"]
  .filter(Boolean)
  .find(existsSync);

/** What to do where there is none. */
export const INSTALL = "Chromium is not there: install it (Debian and Ubuntu: apt-get install chromium), or name it in CHROMIUM";

/** What to do where the package that drives it is missing. */
export const INSTALL_DRIVER = "the package playwright-core is not there: npm ci, in the folder web";

/** Arguments of every start: it asks nothing of the network. */
export const QUIET = [
  "--no-sandbox",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--no-first-run",
  "--disable-quic",
];

/** WebGPU on its software adapter. */
export const SOFTWARE = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"];

/** The package that drives it; undefined where it is missing. */
export async function driver() {
  return import("playwright-core").catch(() => undefined);
}
