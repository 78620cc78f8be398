// Attention and its weights on the device, by plans that `foveate export` made.

import { Plan, capsOf, open } from "../../web/foveate.js";

// Runs in a row that are timed together: one alone is shorter than what browsers let clocks tell.
export const ROW = 16;

/** What keeps the page from computing here, in words for whoever looks at it. */
export class Missing extends Error {
  constructor(title, ...lines) {
    super(title);
    this.lines = lines;
  }
}

const load = async (name) => {
  const answer = await fetch(new URL(`plans/${name}.json`, import.meta.url));
  if (!answer.ok) throw new Error(`plans/${name}.json: the server answered ${answer.status}`);
  return answer.json();
};

const openDevice = async () => {
  if (!globalThis.isSecureContext) {
    throw new Missing("WebGPU is only there for pages from https: or from this machine itself",
      "Open the page through https:, or serve it on the machine that shows it and open it as http://localhost.");
  }
  if (!navigator.gpu) {
    throw new Missing("This browser has no WebGPU",
      "The page computes attention on the GPU through WebGPU, and the browser does not offer it (there is no navigator.gpu).",
      "Chrome and Edge have it from 113, Safari from 26, Firefox from 141, depending on the system; a new version or another browser may do. On Linux some need it switched on.");
  }
  if (!await navigator.gpu.requestAdapter()) {
    throw new Missing("This browser has WebGPU, and no adapter for it",
      "It found no GPU that it would use. It may be switched off or blocked for this driver: chrome://gpu or about:support tell. Graphics acceleration must be on in the browser's settings.",
      "Chromium can compute on the CPU instead: start it with --enable-unsafe-webgpu --use-webgpu-adapter=swiftshader.");
  }
  return open(navigator.gpu);
};

export class Attention {
  /** Opens a device. Throws {@link Missing} where there is none. */
  static async open() {
    const plans = { attention: await load("attention"), weights: await load("weights") };
    const device = await openDevice();
    const self = new Attention();
    self.device = device;
    self.plans = plans;
    self.timed = device.features.has("timestamp-query");
    return self;
  }

  /** Compiles the shaders and makes the buffers, before the first run. */
  async prepare() {
    const { device, plans, timed } = this;
    device.pushErrorScope("validation");
    const start = performance.now();
    const [attention, weights] = await Promise.all([plans.attention, plans.weights].map((plan) => Plan.prepare(device, plan)));
    this.prepareMs = performance.now() - start;

    this.buffers = {};
    for (const { name, bytes } of [...plans.attention.tensors, ...plans.weights.tensors]) {
      this.buffers[name] ??= device.createBuffer({
        label: name, size: bytes, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST | GPUBufferUsage.COPY_SRC,
      });
    }
    const bind = async (plan, { tensors }) => plan.bind(Object.fromEntries(tensors.map(({ name }) => [name, this.buffers[name]])));
    this.calls = await Promise.all([bind(attention, plans.attention), bind(weights, plans.weights)]);
    this.read = device.createBuffer({ size: this.buffers.out.size + this.buffers.o.size, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
    if (timed) {
      this.queries = device.createQuerySet({ type: "timestamp", count: 4 });
      this.ticks = device.createBuffer({ size: 32, usage: GPUBufferUsage.QUERY_RESOLVE | GPUBufferUsage.COPY_SRC });
      this.ticksRead = device.createBuffer({ size: 32, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
    }
    const error = await device.popErrorScope();
    if (error) throw new Error(error.message);
  }

  /**
   * Attention of `count` tokens: its weights `[heads, length, length]`, its output, and how long that took, in ms.
   * @param {{ q: Float32Array, k: Float32Array, v: Float32Array }} inputs
   */
  async run(inputs, count) {
    const { device, buffers, calls, read } = this;
    const start = performance.now();
    for (const name of ["q", "k", "v"]) device.queue.writeBuffer(buffers[name], 0, inputs[name]);
    // Rows and keys past the tokens take no part.
    for (const name of ["q_len", "kv_len"]) device.queue.writeBuffer(buffers[name], 0, new Uint32Array([count]));
    const uploaded = performance.now();

    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    for (const call of calls) call.record(pass);
    pass.end();
    device.queue.submit([encoder.finish()]);
    await device.queue.onSubmittedWorkDone();
    const computed = performance.now();

    const copy = device.createCommandEncoder();
    copy.copyBufferToBuffer(buffers.out, 0, read, 0, buffers.out.size);
    copy.copyBufferToBuffer(buffers.o, 0, read, buffers.out.size, buffers.o.size);
    device.queue.submit([copy.finish()]);
    await read.mapAsync(GPUMapMode.READ);
    const data = read.getMappedRange().slice(0);
    read.unmap();
    const weights = new Float32Array(data, 0, buffers.out.size / 4), o = new Float32Array(data, buffers.out.size);
    const done = performance.now();
    return { weights, o, ms: { upload: uploaded - start, compute: computed - uploaded, readback: done - computed } };
  }

  /** Time of each of the two on what was uploaded last, in ms, a mean of {@link ROW} runs in a row. */
  async time() {
    const { device, calls, timed } = this;
    if (!timed) {
      const ms = [];
      for (const call of calls) {
        const start = performance.now();
        const encoder = device.createCommandEncoder();
        const pass = encoder.beginComputePass();
        for (let i = 0; i < ROW; i++) call.record(pass);
        pass.end();
        device.queue.submit([encoder.finish()]);
        await device.queue.onSubmittedWorkDone();
        ms.push((performance.now() - start) / ROW);
      }
      return { attention: ms[0], weights: ms[1], by: "wall time" };
    }
    const encoder = device.createCommandEncoder();
    calls.forEach((call, i) => {
      const pass = encoder.beginComputePass({
        timestampWrites: { querySet: this.queries, beginningOfPassWriteIndex: 2 * i, endOfPassWriteIndex: 2 * i + 1 },
      });
      for (let j = 0; j < ROW; j++) call.record(pass);
      pass.end();
    });
    encoder.resolveQuerySet(this.queries, 0, 4, this.ticks, 0);
    encoder.copyBufferToBuffer(this.ticks, 0, this.ticksRead, 0, 32);
    device.queue.submit([encoder.finish()]);
    await this.ticksRead.mapAsync(GPUMapMode.READ);
    const ns = new BigUint64Array(this.ticksRead.getMappedRange().slice(0));
    this.ticksRead.unmap();
    const ms = (i) => Number(ns[2 * i + 1] - ns[2 * i]) / 1e6 / ROW;
    return { attention: ms(0), weights: ms(1), by: "timestamps" };
  }

  /** What the browser tells of the adapter. */
  about() {
    const info = this.device.adapterInfo ?? {};
    const name = info.description || [info.vendor, info.architecture, info.device].filter(Boolean).join(" ");
    return {
      name: name || "not told by the browser",
      software: capsOf(this.device).software,
      subgroups: info.subgroupMinSize === undefined ? undefined : [info.subgroupMinSize, info.subgroupMaxSize],
      schedules: Object.entries(this.plans).map(([name, plan]) => ({ name, schedule: plan.schedule, why: plan.why })),
      version: this.plans.attention.foveate,
    };
  }
}
