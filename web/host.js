// Answers the requests of `foveate verify --host` on a WebGPU device: see docs/portable-plans.md.

import { Plan, capsOf, createBuffer, open, readBuffer, submit } from "./foveate.js";

function toBase64(bytes) {
  const CHUNK = 0x8000;
  let text = "";
  for (let from = 0; from < bytes.length; from += CHUNK) {
    text += String.fromCharCode(...bytes.subarray(from, from + CHUNK));
  }
  return btoa(text);
}

function fromBase64(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}

/** A device that answers requests. */
export class Host {
  #device;
  #buffers = new Map();
  #lost = null;

  /**
   * @param {GPU} gpu
   * @param {string} name What the implementation is called.
   */
  static async open(gpu, name) {
    const device = await open(gpu);
    const host = new Host();
    host.#device = device;
    const info = device.adapterInfo ?? {};
    const words = [info.description || info.device || info.architecture || info.vendor, `(${name})`];
    host.name = words.filter(Boolean).join(" ");
    device.lost.then(({ message }) => {
      host.#lost = message;
    });
    return host;
  }

  #buffer(number) {
    const buffer = this.#buffers.get(number);
    if (!buffer) {
      throw new Error(`there is no buffer ${number}`);
    }
    return buffer;
  }

  async #answer(request) {
    if (this.#lost !== null) {
      throw new Error(`the device was lost: ${this.#lost}`);
    }
    const device = this.#device;
    switch (request.do) {
      case "open":
        return { name: this.name, caps: capsOf(device) };
      case "create":
        this.#buffers.set(request.buffer, createBuffer(device, request.bytes));
        return {};
      case "write":
        device.queue.writeBuffer(this.#buffer(request.buffer), 0, fromBase64(request.data));
        return {};
      case "run": {
        const plan = await Plan.prepare(device, request.plan);
        const buffers = {};
        for (const [name, number] of Object.entries(request.tensors)) {
          buffers[name] = this.#buffer(number);
        }
        const call = await plan.bind(buffers);
        try {
          await submit(device, call);
        } finally {
          call.destroy();
        }
        return {};
      }
      case "read": {
        const bytes = await readBuffer(device, this.#buffer(request.buffer), request.bytes);
        return { data: toBase64(new Uint8Array(bytes)) };
      }
      case "free":
        this.#buffer(request.buffer).destroy();
        this.#buffers.delete(request.buffer);
        return {};
      default:
        throw new Error(`there is no request ${request.do}`);
    }
  }

  /** The answer to a request; never throws. */
  async answer(request) {
    try {
      return await this.#answer(request);
    } catch (error) {
      return { error: String(error?.message ?? error) };
    }
  }
}
