// Compiles shaders with Tint, Dawn's WGSL compiler, on Dawn's null device: no driver is needed.
//
// Reads a JSON array of `{"name", "wgsl"}` from standard input; writes one of `{"name", "errors"}` for those that Tint
// refuses.

import { missing } from "./lines.mjs";

let dawn;
try {
  dawn = await import("webgpu");
} catch {
  missing("the package webgpu is not there: npm ci, in the folder web");
}

// Devices die with the object that made them, so it is kept.
globalThis.gpu = dawn.create(["backend=null"]);
const adapter = await globalThis.gpu.requestAdapter();
if (!adapter) {
  missing("Dawn has no null device");
}
const device = await adapter.requestDevice({
  requiredFeatures: ["subgroups", "shader-f16"].filter((name) => adapter.features.has(name)),
});
let text = "";
for await (const part of process.stdin.setEncoding("utf8")) {
  text += part;
}
const refused = [];
for (const { name, wgsl } of JSON.parse(text)) {
  device.pushErrorScope("validation");
  const module = device.createShaderModule({ code: wgsl });
  const { messages } = await module.getCompilationInfo();
  const error = await device.popErrorScope();
  const errors = messages
    .filter(({ type }) => type === "error")
    .map(({ lineNum, message }) => `line ${lineNum}: ${message}`);
  if (errors.length > 0 || error) {
    refused.push({ name, errors: errors.length > 0 ? errors : [error.message] });
  }
}
process.stdout.write(JSON.stringify(refused), () => process.exit(0));
