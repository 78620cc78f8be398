// Executes foveate's portable plans on a WebGPU device, in browsers and in Node. Plain ES module, no dependencies.
//
// docs/portable-plans.md describes plans and shows how this module is used.

/** The `format` of plans. */
export const FORMAT = "foveate-plan";
/** The `version` of plans that this module executes. */
export const VERSION = 1;

// WebGPU's numbers for buffer usages and shader stages: Node has no global objects for them.
const MAP_READ = 0x1;
const COPY_SRC = 0x4;
const COPY_DST = 0x8;
const UNIFORM = 0x40;
const STORAGE = 0x80;
const COMPUTE = 0x4;

/** The features that open() asks for where an adapter has them; with the last one an app can time passes. */
export const WANTED_FEATURES = ["shader-f16", "subgroups", "timestamp-query"];

/** The limits that plans can use. */
const WANTED_LIMITS = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxStorageBuffersPerShaderStage",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupSizeX",
  "maxComputeWorkgroupsPerDimension",
];

/** Iterations that an invocation's loops may take on any device: llvmpipe leaves them silently after that. */
const LOOP_BUDGET = 65_535;
/** Plans count the elements of a binding in 32 bits. */
const MOST_BINDING_BYTES = 2 ** 31;

/**
 * Opens a device with all features and limits of its adapter that plans can use.
 *
 * @param {GPU} gpu `navigator.gpu`, or what a Node package gives.
 * @param {GPURequestAdapterOptions} [options]
 * @returns {Promise<GPUDevice>}
 */
export async function open(gpu, options = {}) {
  if (!gpu) {
    throw new Error("there is no WebGPU here: take a browser that has it, and a page from https or localhost");
  }
  const adapter = await gpu.requestAdapter(options);
  if (!adapter) {
    throw new Error("WebGPU has no adapter here: switch on hardware acceleration, or install a GPU driver");
  }
  const requiredLimits = {};
  for (const name of WANTED_LIMITS) {
    requiredLimits[name] = adapter.limits[name];
  }
  return adapter.requestDevice({
    requiredFeatures: WANTED_FEATURES.filter((name) => adapter.features.has(name)),
    requiredLimits,
  });
}

/** Whether a device computes on a CPU. */
function isSoftware(info) {
  const words = `${info.vendor} ${info.architecture} ${info.device} ${info.description}`;
  return Boolean(info.isFallbackAdapter) || /swiftshader|llvmpipe|lavapipe|warp|basic render/i.test(words);
}

/**
 * The caps of a device, as `foveate export --caps` takes them.
 *
 * @param {GPUDevice} device
 */
export function capsOf(device) {
  const { limits, features } = device;
  const info = device.adapterInfo ?? {};
  const lanes = features.has("subgroups") && info.subgroupMinSize > 0;
  return {
    max_binding_bytes: Math.floor(Math.min(limits.maxStorageBufferBindingSize, MOST_BINDING_BYTES) / 256) * 256,
    max_buffer_bytes: Math.min(limits.maxBufferSize, Number.MAX_SAFE_INTEGER),
    max_storage_buffers: limits.maxStorageBuffersPerShaderStage,
    storage_alignment: limits.minStorageBufferOffsetAlignment,
    uniform_alignment: limits.minUniformBufferOffsetAlignment,
    workgroup_bytes: limits.maxComputeWorkgroupStorageSize,
    max_invocations: Math.min(limits.maxComputeInvocationsPerWorkgroup, limits.maxComputeWorkgroupSizeX),
    max_workgroups: limits.maxComputeWorkgroupsPerDimension,
    subgroup: lanes ? [info.subgroupMinSize, info.subgroupMaxSize] : null,
    f16: features.has("shader-f16"),
    software: isSoftware(info),
    matrices: [],
    loop_budget: LOOP_BUDGET,
  };
}

/** Throws where a device lacks what a plan requires. */
function checkDevice(device, requires) {
  for (const feature of requires.features) {
    if (!device.features.has(feature)) {
      throw new Error(
        `the plan needs the feature ${feature}, and the device was created without it: open the device with open(), `
          + "or export a plan for what capsOf() tells of this device",
      );
    }
  }
  for (const [name, needed] of Object.entries(requires.limits)) {
    const found = device.limits[name];
    const enough = name.startsWith("min") ? found <= needed : found >= needed;
    if (!enough) {
      throw new Error(
        `the plan needs ${name} ${needed}, and the device has ${found}: open the device with open(), or export a plan `
          + "for what capsOf() tells of this device",
      );
    }
  }
  if (isSoftware(device.adapterInfo ?? {}) && requires.loop_budget > LOOP_BUDGET) {
    throw new Error(
      `the plan was made for a device whose loops take ${requires.loop_budget} iterations, and this one computes on a `
        + `CPU, where they may end after ${LOOP_BUDGET}: export it without --here, or for what capsOf() tells`,
    );
  }
  const lanes = requires.subgroup_size;
  if (lanes !== null) {
    const { subgroupMinSize: least, subgroupMaxSize: most } = device.adapterInfo ?? {};
    if (least !== lanes || most !== lanes) {
      throw new Error(
        `the plan was made for subgroups of ${lanes}, and the device has ${least} to ${most}: export a plan for what `
          + "capsOf() tells of this device",
      );
    }
  }
}

/** Pipelines of each device, by the text of their shaders. */
const pipelines = new WeakMap();

/**
 * Runs `work`, which makes its WebGPU calls before it first waits, and throws what the device has to say against them.
 * The scopes are closed before anything is waited for, so that nobody else's errors fall into them.
 */
async function checked(device, work) {
  device.pushErrorScope("out-of-memory");
  device.pushErrorScope("validation");
  const result = new Promise((resolve) => resolve(work()));
  // An error of the device says more than what follows from it.
  result.catch(() => {});
  const errors = await Promise.all([device.popErrorScope(), device.popErrorScope()]);
  const first = errors.find((error) => error);
  if (first) {
    throw new Error(first.message);
  }
  return result;
}

async function compile(device, shader) {
  const entries = shader.bindings.map(({ binding, type }) => ({
    binding,
    visibility: COMPUTE,
    buffer: { type },
  }));
  let group;
  const pipeline = await checked(device, () => {
    group = device.createBindGroupLayout({ label: shader.name, entries });
    const module = device.createShaderModule({ label: shader.name, code: shader.wgsl });
    return device.createComputePipelineAsync({
      label: shader.name,
      layout: device.createPipelineLayout({ bindGroupLayouts: [group] }),
      compute: { module, entryPoint: "main" },
    });
  });
  return { group, pipeline };
}

function pipelineOf(device, shader) {
  if (!pipelines.has(device)) {
    pipelines.set(device, new Map());
  }
  const known = pipelines.get(device);
  if (!known.has(shader.wgsl)) {
    const made = compile(device, shader);
    known.set(shader.wgsl, made);
    // Memory may be free again later: whoever asks next tries again.
    made.catch(() => known.delete(shader.wgsl));
  }
  return known.get(shader.wgsl);
}

/** A plan whose shaders are compiled on a device. */
export class Plan {
  #pipelines;

  constructor(device, json, compiled) {
    /** The device. */
    this.device = device;
    /** The plan as data. */
    this.json = json;
    this.#pipelines = compiled;
  }

  /**
   * Checks a plan against a device and compiles its shaders.
   *
   * @param {GPUDevice} device
   * @param {object} json The plan, parsed.
   * @returns {Promise<Plan>}
   */
  static async prepare(device, json) {
    if (json?.format !== FORMAT || json.version !== VERSION) {
      throw new Error(
        `this is ${json?.format} version ${json?.version}, and ${FORMAT} version ${VERSION} is executed here: export `
          + "the plan with the foveate that this module came with",
      );
    }
    checkDevice(device, json.requires);
    const compiled = await Promise.all(json.shaders.map((shader) => pipelineOf(device, shader)));
    return new Plan(device, json, compiled);
  }

  /**
   * Binds buffers to the plan's tensors; allocates scratch and parameters.
   *
   * @param {Object<string, GPUBuffer>} buffers One for each tensor of the plan, with usage STORAGE.
   * @returns {Promise<Call>}
   */
  async bind(buffers) {
    this.#checkBuffers(buffers);
    const owned = [];
    try {
      return await checked(this.device, () => this.#bind(buffers, owned));
    } catch (error) {
      owned.forEach((buffer) => buffer.destroy());
      throw error;
    }
  }

  #bind(buffers, owned) {
    const { device, json } = this;
    const all = { ...buffers };
    if (json.scratch_bytes > 0) {
      all.scratch = device.createBuffer({ label: "foveate scratch", size: json.scratch_bytes, usage: STORAGE });
      owned.push(all.scratch);
    }
    const alignment = Math.max(device.limits.minUniformBufferOffsetAlignment, 16);
    const up = (bytes, unit) => Math.ceil(bytes / unit) * unit;
    const places = [];
    let size = 0;
    for (const { params } of json.dispatches) {
      size = up(size, alignment);
      // Uniform bindings come in multiples of 16 bytes.
      const bytes = Math.max(up(params.length * 4, 16), 16);
      places.push({ offset: size, size: bytes });
      size += bytes;
    }
    const uniforms = device.createBuffer({
      label: "foveate params",
      size: Math.max(up(size, 16), 16),
      usage: UNIFORM,
      mappedAtCreation: true,
    });
    owned.push(uniforms);
    const words = new Uint32Array(uniforms.getMappedRange());
    json.dispatches.forEach(({ params }, number) => words.set(params, places[number].offset / 4));
    uniforms.unmap();
    const steps = json.dispatches.map((dispatch, number) => {
      const { group, pipeline } = this.#pipelines[dispatch.shader];
      const entries = dispatch.bindings.map(({ binding, tensor, offset, bytes }) => ({
        binding,
        resource: { buffer: all[tensor], offset, size: bytes },
      }));
      entries.push({ binding: 0, resource: { buffer: uniforms, ...places[number] } });
      return {
        pipeline,
        group: device.createBindGroup({ layout: group, entries }),
        workgroups: dispatch.workgroups,
      };
    });
    return new Call(steps, owned);
  }

  #checkBuffers(buffers) {
    const names = new Set(this.json.tensors.map(({ name }) => name));
    for (const name of Object.keys(buffers)) {
      if (!names.has(name)) {
        throw new Error(`${name}: the plan has no such tensor; it has ${[...names].join(", ")}`);
      }
    }
    for (const { name, access, bytes } of this.json.tensors) {
      const buffer = buffers[name];
      if (!buffer) {
        throw new Error(`${name}: is missing; bind a buffer of at least ${bytes} bytes`);
      }
      if (!(buffer.usage & STORAGE)) {
        throw new Error(`${name}: its buffer has no usage STORAGE`);
      }
      if (buffer.size < bytes) {
        throw new Error(`${name}: its buffer has ${buffer.size} bytes, and the plan needs ${bytes}`);
      }
      if (access !== "read") {
        for (const other of names) {
          if (other !== name && buffers[other] === buffer) {
            throw new Error(`${name}: is in the buffer of ${other}; give each output a buffer of its own`);
          }
        }
      }
    }
  }
}

/** A plan bound to buffers: recording it allocates nothing, and may be done any number of times. */
export class Call {
  #steps;
  #owned;

  constructor(steps, owned) {
    this.#steps = steps;
    this.#owned = owned;
  }

  /**
   * Records the dispatches into a compute pass of the caller's.
   *
   * @param {GPUComputePassEncoder} pass
   */
  record(pass) {
    for (const { pipeline, group, workgroups } of this.#steps) {
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, group);
      pass.dispatchWorkgroups(...workgroups);
    }
  }

  /** Frees scratch and parameters; what is recorded must have run. */
  destroy() {
    this.#owned.forEach((buffer) => buffer.destroy());
  }
}

/** The array for elements of a type; halves are bit patterns where JavaScript has no Float16Array. */
function arrayOf(dtype) {
  const types = {
    f32: Float32Array,
    u32: Uint32Array,
    bool: Uint8Array,
    f16: globalThis.Float16Array ?? Uint16Array,
  };
  if (!(dtype in types)) {
    throw new Error(`elements of type ${dtype} are not known here`);
  }
  return types[dtype];
}

/**
 * A buffer for a tensor of a plan, with these contents if there are any.
 *
 * @param {GPUDevice} device
 * @param {number} bytes
 * @param {ArrayBufferView} [data]
 * @returns {GPUBuffer}
 */
export function createBuffer(device, bytes, data) {
  if (data && !ArrayBuffer.isView(data)) {
    throw new Error("data of a buffer is a typed array, as Float32Array");
  }
  if (data && data.byteLength > bytes) {
    throw new Error(`${data.byteLength} bytes of data for a buffer of ${bytes}`);
  }
  const buffer = device.createBuffer({
    size: bytes,
    usage: STORAGE | COPY_SRC | COPY_DST,
    mappedAtCreation: Boolean(data),
  });
  if (data) {
    const view = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    new Uint8Array(buffer.getMappedRange()).set(view);
    buffer.unmap();
  }
  return buffer;
}

/**
 * The contents of a buffer, from its start.
 *
 * @param {GPUDevice} device
 * @param {GPUBuffer} buffer
 * @param {number} [bytes] A multiple of 4.
 * @returns {Promise<ArrayBuffer>}
 */
export async function readBuffer(device, buffer, bytes = buffer.size) {
  const staging = device.createBuffer({ size: bytes, usage: MAP_READ | COPY_DST });
  const encoder = device.createCommandEncoder();
  encoder.copyBufferToBuffer(buffer, 0, staging, 0, bytes);
  device.queue.submit([encoder.finish()]);
  await staging.mapAsync(1);
  const copy = staging.getMappedRange().slice(0);
  staging.unmap();
  staging.destroy();
  return copy;
}

/**
 * Records calls one after the other, submits them, and waits.
 *
 * @param {GPUDevice} device
 * @param {...Call} calls
 */
export async function submit(device, ...calls) {
  await checked(device, () => {
    const encoder = device.createCommandEncoder();
    const pass = encoder.beginComputePass();
    calls.forEach((call) => call.record(pass));
    pass.end();
    device.queue.submit([encoder.finish()]);
  });
  await device.queue.onSubmittedWorkDone();
}

/** Throws where an array is not what a tensor holds. */
function checkArray({ name, dtype, shape, strides, offset }, data) {
  const wanted = arrayOf(dtype);
  const kinds = dtype === "f16" ? [wanted, Uint16Array] : [wanted];
  if (!kinds.some((kind) => data instanceof kind)) {
    throw new Error(`${name}: is ${data?.constructor?.name ?? typeof data}, and the plan takes a ${wanted.name}`);
  }
  const last = shape.reduce((sum, length, axis) => sum + (length - 1) * strides[axis], offset);
  if (data.length !== last + 1) {
    throw new Error(`${name}: has ${data.length} elements, and the plan takes ${last + 1}`);
  }
}

/**
 * Runs a plan once, from arrays to arrays: the contents of the buffers, in the order in which elements lie in memory.
 *
 * @param {GPUDevice} device
 * @param {Plan} plan
 * @param {Object<string, ArrayBufferView>} inputs
 * @returns {Promise<Object<string, ArrayBufferView>>} What the plan wrote, by name.
 */
export async function run(device, plan, inputs) {
  const buffers = {};
  const taken = plan.json.tensors.filter(({ access }) => access !== "write");
  for (const name of Object.keys(inputs)) {
    if (!taken.some((tensor) => tensor.name === name)) {
      throw new Error(`${name}: is no input of the plan; it takes ${taken.map((tensor) => tensor.name).join(", ")}`);
    }
  }
  for (const tensor of taken) {
    if (inputs[tensor.name] === undefined) {
      throw new Error(`${tensor.name}: is missing among the inputs`);
    }
    checkArray(tensor, inputs[tensor.name]);
  }
  try {
    for (const { name, bytes } of plan.json.tensors) {
      buffers[name] = createBuffer(device, bytes, inputs[name]);
    }
    const call = await plan.bind(buffers);
    try {
      await submit(device, call);
    } finally {
      call.destroy();
    }
    const outputs = {};
    for (const { name, access, dtype, bytes } of plan.json.tensors) {
      if (access !== "read") {
        outputs[name] = new (arrayOf(dtype))(await readBuffer(device, buffers[name], bytes));
      }
    }
    return outputs;
  } finally {
    Object.values(buffers).forEach((buffer) => buffer.destroy());
  }
}
