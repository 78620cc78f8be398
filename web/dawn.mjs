// A host for `foveate verify --host "node web/dawn.mjs"`: Dawn, Chromium's WebGPU, in Node.
//
// An argument names a part of the adapter's name. Dawn takes what Vulkan drivers are there; where it takes none, or
// SwiftShader is asked for, it is told of Chromium's SwiftShader.

import { spawn } from "node:child_process";

import { SWIFTSHADER, SWIFTSHADER_ALONE } from "./drivers.mjs";
import { Host } from "./host.js";
import { missing, serve } from "./lines.mjs";

let dawn;
try {
  dawn = await import("webgpu");
} catch {
  missing("the package webgpu is not there: npm ci, in the folder web");
}

const wanted = process.argv[2];

// Devices die with the object that made them, so it is kept.
let gpu;

async function openOn(part) {
  gpu = dawn.create(part ? [`adapter=${part}`] : []);
  return Host.open(gpu, "Dawn");
}

const swiftshader = /swiftshader/i.test(wanted ?? "");
const told = process.env.VK_ICD_FILENAMES === SWIFTSHADER;
const host = swiftshader && !told ? undefined : await openOn(wanted).catch(() => undefined);
if (host) {
  await serve((request) => host.answer(request));
  process.exit(0);
}
if (told || !SWIFTSHADER || (wanted && !swiftshader)) {
  missing("Dawn finds no such adapter: install a GPU driver, or Debian's chromium-common for SwiftShader");
}
// A process finds its drivers once, so another one is told.
const again = spawn(process.execPath, process.argv.slice(1), {
  stdio: "inherit",
  env: { ...process.env, ...SWIFTSHADER_ALONE },
});
again.on("exit", (code) => process.exit(code ?? 1));
