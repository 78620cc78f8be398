// Tests of the runner on Dawn: `foveate export` has written the plan that PLAN names, a softmax of [4, 8] in f32.

import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";

import { SWIFTSHADER_ALONE } from "./drivers.mjs";
import { Plan, capsOf, createBuffer, open, readBuffer, run, submit } from "./foveate.js";
import { MISSING } from "./lines.mjs";

// Drivers are found once per process: web/dawn.mjs knows how, and tells by its exit code whether there are any.
const probe = spawnSync(process.execPath, [fileURLToPath(new URL("dawn.mjs", import.meta.url))], {
  input: '{"do": "open"}\n',
  encoding: "utf8",
});
if (probe.status !== 0) {
  console.error(probe.stderr);
  process.exit(probe.status ?? 1);
}
if (/swiftshader/i.test(JSON.parse(probe.stdout).name)) {
  Object.assign(process.env, SWIFTSHADER_ALONE);
}
const dawn = await import("webgpu").catch(() => process.exit(MISSING));
// Devices die with the object that made them, so it is kept.
globalThis.gpu = dawn.create([]);
const device = await open(globalThis.gpu);
after(() => device.destroy());
const json = JSON.parse(readFileSync(process.env.PLAN, "utf8"));
const change = (edit) => {
  const copy = structuredClone(json);
  edit(copy);
  return copy;
};

/** Rows of 8 numbers, and their softmax in doubles. */
const x = Float32Array.from({ length: 32 }, (_, n) => Math.sin(n * n));
const expected = Array.from(x, (value, n) => {
  const row = x.subarray(n - (n % 8), n - (n % 8) + 8);
  return Math.exp(value) / row.reduce((sum, other) => sum + Math.exp(other), 0);
});

function assertClose(y) {
  assert.equal(y.length, expected.length);
  y.forEach((value, n) => assert.ok(Math.abs(value - expected[n]) < 1e-6, `${n}: ${value}, not ${expected[n]}`));
}

test("a plan computes from arrays to arrays", async () => {
  const plan = await Plan.prepare(device, json);
  const { y } = await run(device, plan, { x });
  assertClose(y);
});

test("a call is recorded any number of times", async () => {
  const plan = await Plan.prepare(device, json);
  const buffers = { x: createBuffer(device, 128, x), y: createBuffer(device, 128) };
  const call = await plan.bind(buffers);
  await submit(device, call, call);
  assertClose(new Float32Array(await readBuffer(device, buffers.y)));
  call.destroy();
});

test("caps have what plans ask for", () => {
  const caps = capsOf(device);
  assert.ok(caps.max_binding_bytes >= 128 << 20 && caps.max_binding_bytes % 256 === 0);
  assert.ok(caps.max_storage_buffers >= 8);
  assert.equal(caps.f16, device.features.has("shader-f16"));
  const large = { ...device.limits, maxStorageBufferBindingSize: 2 ** 32 - 4 };
  for (const name of ["minStorageBufferOffsetAlignment", "minUniformBufferOffsetAlignment"]) {
    large[name] = 256;
  }
  assert.equal(capsOf({ limits: large, features: new Set() }).max_binding_bytes, 2 ** 31);
  assert.equal(caps.subgroup !== null, device.features.has("subgroups"));
});

test("what cannot run says what is missing", async () => {
  const refused = async (edit, said) => {
    await assert.rejects(Plan.prepare(device, change(edit)), said);
  };
  await refused((plan) => (plan.version = 2), /version 2/);
  await refused((plan) => (plan.format = "other"), /other/);
  await refused((plan) => plan.requires.features.push("no-such-feature"), /no-such-feature/);
  await refused((plan) => (plan.requires.subgroup_size = 3), /subgroups of 3/);
  await refused((plan) => (plan.requires.limits.maxBufferSize = 2 ** 50), /maxBufferSize/);
  await refused((plan) => (plan.requires.limits.minStorageBufferOffsetAlignment = 1), /min.*Alignment/);
  await refused((plan) => (plan.shaders[0].wgsl = "no shader"), /./);
});

test("tensors that do not fit are named", async () => {
  const plan = await Plan.prepare(device, json);
  const [x, y, small] = [128, 128, 64].map((bytes) => createBuffer(device, bytes));
  await assert.rejects(plan.bind({ x }), /y: is missing/);
  await assert.rejects(plan.bind({ x, y, z: x }), /z: the plan has no such tensor/);
  await assert.rejects(plan.bind({ x, y: small }), /y: its buffer has 64 bytes/);
  await assert.rejects(plan.bind({ x, y: x }), /y: is in the buffer of x/);
  const uniform = device.createBuffer({ size: 128, usage: 0x40 });
  await assert.rejects(plan.bind({ x: uniform, y }), /x: its buffer has no usage STORAGE/);
});

test("arrays that do not fit are named", async () => {
  const plan = await Plan.prepare(device, json);
  for (const [inputs, said] of [
    [{}, /x: is missing/],
    [{ x, z: x }, /z: is no input/],
    [{ x, y: x }, /y: is no input/],
    [{ x: Array.from(x) }, /x: is Array/],
    [{ x: x.buffer }, /x: is ArrayBuffer/],
    [{ x: new Uint8Array(128) }, /x: is Uint8Array/],
    [{ x: x.subarray(1) }, /x: has 31 elements/],
  ]) {
    await assert.rejects(run(device, plan, inputs), said);
  }
});

test("errors reach those who made them", async () => {
  const bad = change((plan) => (plan.shaders[0].wgsl = "no shader"));
  const [first, second] = await Promise.allSettled([Plan.prepare(device, bad), Plan.prepare(device, json)]);
  assert.equal(first.status, "rejected");
  assert.match(first.reason.message, /no shader|parsing WGSL/);
  assert.equal(second.status, "fulfilled");
});
