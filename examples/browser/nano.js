// nano in a browser: pictures, text and decoding around the three ONNX graphs that `mobillama-v export onnx` writes.

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";

ort.env.wasm.numThreads = 1; // more need headers (COOP and COEP) that a plain file server does not send

const SYSTEM =
  "A chat between a curious user and an artificial intelligence assistant. " +
  "The assistant gives helpful, detailed, and polite answers to the user's questions.";

/** Load the model in `folder`, an address that ends with a slash. */
export async function load(folder) {
  const json = async (name) => (await get(folder + name)).json();
  const session = async (name) =>
    ort.InferenceSession.create(new Uint8Array(await (await get(folder + name)).arrayBuffer()));
  const config = await json("config.json");
  if (config.template !== "v1" || config.image.mode !== "squash" || config.image.resample !== "bicubic") {
    throw new Error("This page knows the template v1 and pictures that are squashed, which nano has.");
  }
  const tokenizer = new Tokenizer(await json("tokenizer.json"));
  const vision = await session("vision_encoder.onnx");
  const embed = await session("embed_tokens.onnx");
  const decoder = await session("decoder_model_merged.onnx");
  return new Model(config, tokenizer, vision, embed, decoder);
}

async function get(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address}: ${answer.status} ${answer.statusText}`);
  return answer;
}

class Model {
  constructor(config, tokenizer, vision, embed, decoder) {
    Object.assign(this, { config, tokenizer, vision, embed, decoder });
  }

  /** The answer to a question about a picture (ImageData), greedily; `onToken` is given the text so far. */
  async answer(picture, question, { maxTokens = 128, onToken = () => {} } = {}) {
    const side = this.config.image.size;
    const pixels = normalize(resize(picture, side), this.config.image);
    const features = (await this.vision.run({ pixel_values: new ort.Tensor("float32", pixels, [1, 3, side, side]) }))
      .image_features;
    const text = this.config.text_config;
    const before = [text.bos_token_id, ...this.tokenizer.encode(`${SYSTEM} USER: `)];
    const after = this.tokenizer.encode(`\n${question} ASSISTANT:`);
    let given = await this.#prompt(before, features, after);
    let past = this.#empty();
    const out = [];
    let length = 0;
    while (out.length < maxTokens && length + given.dims[1] <= text.max_position_embeddings) {
      const steps = given.dims[1];
      const positions = BigInt64Array.from({ length: steps }, (_, i) => BigInt(length + i));
      length += steps;
      const found = await this.decoder.run({
        inputs_embeds: given,
        attention_mask: new ort.Tensor("int64", new BigInt64Array(length).fill(1n), [1, length]),
        position_ids: new ort.Tensor("int64", positions, [1, steps]),
        ...past,
      });
      for (const name of Object.keys(past)) past[name] = found[name.replace("past_key_values", "present")];
      const next = argmax(found.logits.data.subarray((steps - 1) * text.vocab_size));
      if (next === text.eos_token_id) break;
      out.push(next);
      onToken(this.tokenizer.decode(out).trim());
      given = await this.#embedded([next]);
    }
    return this.tokenizer.decode(out).trim();
  }

  async #embedded(ids) {
    const input_ids = new ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]);
    return (await this.embed.run({ input_ids })).inputs_embeds;
  }

  /** Embeddings of a prompt: text, the picture's features, text. */
  async #prompt(before, features, after) {
    const parts = [await this.#embedded(before), features, await this.#embedded(after)];
    const [length, width] = [parts.reduce((sum, part) => sum + part.dims[1], 0), features.dims[2]];
    const data = new Float32Array(length * width);
    let at = 0;
    for (const part of parts) {
      data.set(part.data, at);
      at += part.data.length;
    }
    return new ort.Tensor("float32", data, [1, length, width]);
  }

  #empty() {
    const { num_key_value_heads: heads, num_attention_heads, hidden_size } = this.config.text_config;
    const dims = [1, heads, 0, hidden_size / num_attention_heads];
    const names = this.decoder.inputNames.filter((name) => name.startsWith("past_key_values"));
    return Object.fromEntries(names.map((name) => [name, new ort.Tensor("float32", new Float32Array(0), dims)]));
  }
}

function argmax(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

/** Byte-level BPE from a `tokenizer.json` whose texts are split by one pattern. */
export class Tokenizer {
  constructor({ model, pre_tokenizer, added_tokens }) {
    const steps = pre_tokenizer.pretokenizers ?? [pre_tokenizer];
    const split = steps.find((step) => step.type === "Split");
    if (model.type !== "BPE" || !split || !steps.some((step) => step.type === "ByteLevel" && !step.use_regex)) {
      throw new Error("This page knows byte-level BPE that splits texts by a pattern, which nano has.");
    }
    this.words = new RegExp(split.pattern.Regex, "gu");
    this.ids = new Map(Object.entries(model.vocab));
    this.tokens = new Map([...this.ids].map(([token, id]) => [id, token]));
    this.special = new Set(added_tokens.filter((each) => each.special).map((each) => each.id));
    this.ranks = new Map(model.merges.map((pair, rank) => [Array.isArray(pair) ? pair.join(" ") : pair, rank]));
    // GPT-2's letters for bytes: those that can be printed stand for themselves, the others come after 255.
    this.letters = [];
    for (let byte = 0, next = 256; byte < 256; byte++) {
      const printed = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
      this.letters.push(String.fromCharCode(printed ? byte : next++));
    }
    this.bytes = new Map(this.letters.map((letter, byte) => [letter, byte]));
  }

  encode(text) {
    return [...text.matchAll(this.words)].flatMap(([word]) => {
      const letters = [...new TextEncoder().encode(word)].map((byte) => this.letters[byte]);
      return this.#merged(letters).map((token) => this.ids.get(token));
    });
  }

  #merged(pieces) {
    for (;;) {
      let [best, at] = [Infinity, -1];
      for (let i = 0; i + 1 < pieces.length; i++) {
        const rank = this.ranks.get(`${pieces[i]} ${pieces[i + 1]}`) ?? Infinity;
        if (rank < best) [best, at] = [rank, i];
      }
      if (at < 0) return pieces;
      pieces.splice(at, 2, pieces[at] + pieces[at + 1]);
    }
  }

  decode(ids) {
    const tokens = ids.filter((id) => !this.special.has(id)).map((id) => this.tokens.get(id) ?? "");
    const bytes = [...tokens.join("")].map((letter) => this.bytes.get(letter));
    return new TextDecoder().decode(Uint8Array.from(bytes));
  }
}

/** RGB bytes of `picture` (ImageData) at side x side, as Pillow's antialiased bicubic filter makes them. */
export function resize({ data, width, height }, side) {
  const rows = new Uint8ClampedArray(side * height * 3);
  pass(data, rows, width, side, height, [4, width * 4], [3, side * 3]);
  const out = new Uint8ClampedArray(side * side * 3);
  pass(rows, out, height, side, side, [side * 3, 3], [side * 3, 3]);
  return out;
}

const BITS = 22; // of a weight's fraction, as in Pillow, which rounds to whole values after each of both passes

/** Resample lines of `before` values to `after`; steps are those along and across the lines. */
function pass(source, target, before, after, lines, [along, across], [alongOut, acrossOut]) {
  const scale = before / after;
  const stretch = Math.max(scale, 1);
  for (let i = 0; i < after; i++) {
    const center = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - 2 * stretch + 0.5));
    const end = Math.min(before, Math.trunc(center + 2 * stretch + 0.5));
    const exact = Array.from({ length: end - first }, (_, k) => cubic((first + k - center + 0.5) / stretch));
    const total = exact.reduce((sum, weight) => sum + weight, 0);
    const weights = exact.map((weight) => Math.round((weight / total) * 2 ** BITS));
    if (before === after) weights.forEach((_, k) => (weights[k] = first + k === i ? 2 ** BITS : 0));
    for (let line = 0; line < lines; line++) {
      for (let channel = 0; channel < 3; channel++) {
        let sum = 2 ** (BITS - 1);
        let from = line * across + first * along + channel;
        for (const weight of weights) {
          sum += weight * source[from];
          from += along;
        }
        target[line * acrossOut + i * alongOut + channel] = Math.floor(sum / 2 ** BITS);
      }
    }
  }
}

function cubic(x) {
  const d = Math.abs(x);
  if (d < 1) return (1.5 * d - 2.5) * d * d + 1;
  return d < 2 ? ((2.5 - 0.5 * d) * d - 4) * d + 2 : 0;
}

function normalize(rgb, { mean, std }) {
  const size = rgb.length / 3;
  const out = new Float32Array(rgb.length);
  for (let channel = 0; channel < 3; channel++) {
    for (let i = 0; i < size; i++) out[channel * size + i] = (rgb[i * 3 + channel] / 255 - mean[channel]) / std[channel];
  }
  return out;
}

/** The pixels of a file or an address, upright, on white where it is transparent. */
export async function pixelsOf(blob) {
  const bitmap = await createImageBitmap(blob);
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.fillStyle = "white";
  pen.fillRect(0, 0, bitmap.width, bitmap.height);
  pen.drawImage(bitmap, 0, 0);
  return pen.getImageData(0, 0, bitmap.width, bitmap.height);
}
