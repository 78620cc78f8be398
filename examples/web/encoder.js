// The first layer of a sentence encoder, up to its attention: text to pieces, pieces to queries, keys and values.

const TYPES = { F32: Float32Array, F16: Uint16Array, I8: Int8Array, I32: Int32Array };

/** A .safetensors file: the notes in its header, and its tensors. F16 stays as bits. */
export const parse = (buffer) => {
  const size = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, size)));
  const { __metadata__: notes = {}, ...entries } = header;
  const tensors = {};
  for (const [name, { dtype, shape, data_offsets: [start, end] }] of Object.entries(entries)) {
    // A copy, as a view would need an aligned start.
    tensors[name] = { shape, data: new TYPES[dtype](buffer.slice(8 + size + start, 8 + size + end)) };
  }
  return { notes, tensors };
};

const half = (bits) => {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -24 * fraction);
};

// As BERT's tokeniser has them.
const isSpace = (c) => /[\s\u0085]/.test(c) && c !== "\ufeff";
const isControl = (c) => /[\p{Cc}\p{Cf}\p{Co}\p{Cs}\ufffd]/u.test(c);
const isPunctuation = (c) => /[!-/:-@[-`{-~]|\p{P}/u.test(c);
const isIdeograph = (c) => {
  const n = c.codePointAt(0);
  return (n >= 0x4e00 && n <= 0x9fff) || (n >= 0x3400 && n <= 0x4dbf) || (n >= 0x20000 && n <= 0x2a6df) ||
    (n >= 0x2a700 && n <= 0x2ceaf) || (n >= 0xf900 && n <= 0xfaff) || (n >= 0x2f800 && n <= 0x2fa1f);
};
// Letters of a word past which BERT gives up.
const LONGEST = 100;

/** Words as they are cut, each with the text that it comes from. */
const words = function* (text) {
  let word = "", source = "";
  for (const c of text) {
    if (isSpace(c) || isIdeograph(c)) {
      if (word) yield { word, source };
      word = source = "";
      if (!isSpace(c)) yield { word: c, source: c };
      continue;
    }
    if (isControl(c)) continue;
    source += c;
    for (const plain of c.normalize("NFD").replace(/\p{Mn}/gu, "").toLowerCase()) {
      if (isPunctuation(plain)) {
        const before = source.slice(0, source.length - c.length);
        if (word) yield { word, source: before };
        yield { word: plain, source: c };
        word = source = "";
      } else {
        word += plain;
      }
    }
  }
  if (word) yield { word, source };
};

export class Encoder {
  /** @param {ArrayBuffer} buffer minilm-layer0.safetensors */
  constructor(buffer) {
    const { notes, tensors } = parse(buffer);
    this.notes = notes;
    this.pieces = JSON.parse(notes.pieces);
    this.places = new Map(this.pieces.map((piece, i) => [piece, i]));
    this.heads = Number(notes.heads);
    this.epsilon = Number(notes.epsilon);
    [this.length, this.width] = tensors.positions.shape;
    this.dim = this.width / this.heads;
    this.positions = Float32Array.from(tensors.positions.data, half);
    this.words = tensors.words.data;
    this.wordScale = tensors["words.scale"].data;
    this.norm = { weight: tensors["norm.weight"].data, bias: tensors["norm.bias"].data };
    this.layers = ["q", "k", "v"].map((name) => {
      const scale = tensors[name + ".scale"].data;
      const weight = Float32Array.from(tensors[name].data, (x, i) => x * scale[Math.floor(i / this.width)]);
      return { name, weight, bias: tensors[name + ".bias"].data };
    });
  }

  /** Pieces of one word, the longest first; one unknown where there are none. */
  wordPieces(word) {
    const letters = [...word], found = [];
    if (letters.length > LONGEST) return ["[UNK]"];
    for (let start = 0; start < letters.length;) {
      let end = letters.length, piece;
      for (; end > start; end--) {
        piece = (start ? "##" : "") + letters.slice(start, end).join("");
        if (this.places.has(piece)) break;
      }
      if (end === start) return ["[UNK]"];
      found.push(piece);
      start = end;
    }
    return found;
  }

  /**
   * A text as tokens, each a piece and the text that it comes from, between [CLS] and [SEP]. With a limit, tokens
   * past it are left out, and `left` says after how many characters of the text nothing was read.
   */
  cut(text, limit = Infinity) {
    const tokens = [{ piece: "[CLS]", source: "" }];
    let isCut = false;
    for (const { word, source } of words(text)) {
      const pieces = this.wordPieces(word);
      const room = Math.max(0, limit - 1 - tokens.length);
      tokens.push(...pieces.slice(0, room).map((piece) => ({ piece, source })));
      if (pieces.length > room) {
        isCut = true;
        break;
      }
    }
    tokens.push({ piece: "[SEP]", source: "" });
    return { tokens, isCut };
  }

  /** Queries, keys and values of tokens, `[heads, this.length, dim]` each, 0 past the last token. */
  project(tokens) {
    const { width, dim, length, heads } = this;
    if (tokens.length > length) throw new RangeError(`${tokens.length} tokens, and there are ${length} positions`);
    const out = Object.fromEntries(this.layers.map(({ name }) => [name, new Float32Array(heads * length * dim)]));
    const x = new Float32Array(width);
    tokens.forEach(({ piece }, place) => {
      const row = this.places.get(piece) * width, scale = this.wordScale[row / width];
      let mean = 0, variance = 0;
      for (let i = 0; i < width; i++) {
        x[i] = this.words[row + i] * scale + this.positions[place * width + i];
        mean += x[i] / width;
      }
      for (let i = 0; i < width; i++) variance += (x[i] - mean) ** 2 / width;
      const factor = 1 / Math.sqrt(variance + this.epsilon);
      for (let i = 0; i < width; i++) x[i] = (x[i] - mean) * factor * this.norm.weight[i] + this.norm.bias[i];
      for (const { name, weight, bias } of this.layers) {
        // Four sums at once: each alone would wait for its own last addition.
        for (let j = 0; j < width; j += 4) {
          let a = bias[j], b = bias[j + 1], c = bias[j + 2], d = bias[j + 3];
          for (let i = 0, w = j * width; i < width; i++, w++) {
            const y = x[i];
            a += y * weight[w];
            b += y * weight[w + width];
            c += y * weight[w + 2 * width];
            d += y * weight[w + 3 * width];
          }
          out[name].set([a, b, c, d], (Math.floor(j / dim) * length + place) * dim + j % dim);
        }
      }
    });
    return out;
  }

  /**
   * Attention of `count` tokens in double precision, to compare with: its weights `[heads, this.length, this.length]`,
   * and its output `o`, laid out as the queries.
   */
  attend({ q, k, v }, count) {
    const { heads, length, dim } = this;
    const weights = new Float64Array(heads * length * length), o = new Float64Array(q.length);
    for (let head = 0; head < heads; head++) {
      for (let i = 0; i < count; i++) {
        const row = weights.subarray((head * length + i) * length).subarray(0, count);
        const a = (head * length + i) * dim;
        for (let j = 0; j < count; j++) {
          const b = (head * length + j) * dim;
          let sum = 0;
          for (let d = 0; d < dim; d++) sum += q[a + d] * k[b + d];
          row[j] = sum / Math.sqrt(dim);
        }
        const most = row.reduce((x, y) => Math.max(x, y), -Infinity);
        let total = 0;
        for (let j = 0; j < count; j++) total += row[j] = Math.exp(row[j] - most);
        for (let j = 0; j < count; j++) {
          row[j] /= total;
          const b = (head * length + j) * dim;
          for (let d = 0; d < dim; d++) o[a + d] += row[j] * v[b + d];
        }
      }
    }
    return { weights, o };
  }
}
