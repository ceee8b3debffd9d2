// How does the text in the file become weights? Each byte is one character of windows-1252, moved
// by `shift`. A few bytes would not survive in a page, so they are written as "=" and another one.

const ESCAPE = 0x3d; // "="
const ESCAPED_BY = 64; // what is added to a byte after "="
const BLOCK = 32; // weights of a row that share one scale, in q8_0

/** The file is not as it was written. */
export class Damaged extends Error {}

/** Return the tensors of a file by their names, as Float32Array. Raises Damaged. */
export function readTensors({ bytes, crc32, shift, tensors }, text) {
  const data = toBytes(text, bytes, shift);
  if (checksum(data) !== crc32) throw new Damaged("the weights in this file have changed");
  const read = { fp32: readFloats, fp16: readHalves, bf16: readBrainFloats, q8_0: readBlocks };
  const found = {};
  for (const { name, shape, dtype, offset } of tensors) {
    found[name] = read[dtype](data, offset, shape);
  }
  return found;
}

function toBytes(text, count, shift) {
  const byteOf = new Uint8Array(1 << 16);
  const all = new TextDecoder("windows-1252").decode(Uint8Array.from({ length: 256 }, (_, i) => i));
  for (let byte = 0; byte < 256; byte += 1) byteOf[all.charCodeAt(byte)] = byte;
  const data = new Uint8Array(count);
  let filled = 0;
  for (let i = 0; i < text.length; i += 1) {
    let byte = byteOf[text.charCodeAt(i)];
    if (byte === ESCAPE) {
      i += 1;
      byte = byteOf[text.charCodeAt(i)] - ESCAPED_BY;
    }
    data[filled] = byte - shift; // modulo 256, as bytes are
    filled += 1;
  }
  if (filled !== count) throw new Damaged(`the file has ${filled} bytes of weights, not ${count}`);
  return data;
}

/** Return the CRC-32 of bytes, as zlib has it. */
export function checksum(data) {
  const table = new Uint32Array(256);
  for (let byte = 0; byte < 256; byte += 1) {
    let rest = byte;
    for (let bit = 0; bit < 8; bit += 1) rest = rest & 1 ? (rest >>> 1) ^ 0xedb88320 : rest >>> 1;
    table[byte] = rest;
  }
  let sum = -1;
  for (let i = 0; i < data.length; i += 1) sum = table[(sum ^ data[i]) & 255] ^ (sum >>> 8);
  return ~sum >>> 0;
}

function sizeOf(shape) {
  return shape.reduce((product, length) => product * length, 1);
}

function readFloats(data, offset, shape) {
  const values = new Float32Array(sizeOf(shape));
  new Uint8Array(values.buffer).set(data.subarray(offset, offset + values.byteLength));
  return values;
}

function readBrainFloats(data, offset, shape) {
  const bits = new Uint32Array(sizeOf(shape));
  for (let i = 0; i < bits.length; i += 1) {
    bits[i] = (data[offset + 2 * i] << 16) | (data[offset + 2 * i + 1] << 24);
  }
  return new Float32Array(bits.buffer);
}

let halves = null;

/** Return the value of each of the 65,536 halves: a sign, 5 bits of exponent, 10 of fraction. */
function valuesOfHalves() {
  if (halves) return halves;
  halves = new Float32Array(1 << 16);
  for (let bits = 0; bits < halves.length; bits += 1) {
    const sign = bits & 0x8000 ? -1 : 1;
    const exponent = (bits >> 10) & 31;
    const fraction = bits & 1023;
    if (exponent === 31) halves[bits] = fraction ? NaN : sign * Infinity;
    else if (exponent === 0) halves[bits] = sign * fraction * 2 ** -24;
    else halves[bits] = sign * (1024 + fraction) * 2 ** (exponent - 25);
  }
  return halves;
}

function readHalves(data, offset, shape) {
  const table = valuesOfHalves();
  const values = new Float32Array(sizeOf(shape));
  for (let i = 0; i < values.length; i += 1) {
    values[i] = table[data[offset + 2 * i] | (data[offset + 2 * i + 1] << 8)];
  }
  return values;
}

// First the scales of all rows, as fp16, then the weights of all rows, as signed bytes
function readBlocks(data, offset, [rows, width]) {
  const perRow = Math.ceil(width / BLOCK);
  const scales = readHalves(data, offset, [rows * perRow]);
  const first = offset + 2 * scales.length;
  const values = new Float32Array(rows * width);
  for (let row = 0; row < rows; row += 1) {
    for (let column = 0; column < width; column += 1) {
      const i = row * width + column;
      const signed = (data[first + i] << 24) >> 24;
      values[i] = signed * scales[row * perRow + Math.floor(column / BLOCK)];
    }
  }
  return values;
}
