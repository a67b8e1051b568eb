// Arrays in NumPy's file format, as far as jobs use it: little-endian, in C order.

const KINDS = {
  "<f4": ["float32", Float32Array],
  "<f8": ["float64", Float64Array],
  "<i4": ["int32", Int32Array],
  "<i8": ["int64", BigInt64Array],
  "|b1": ["bool", Uint8Array],
  "|u1": ["uint8", Uint8Array],
  "|i1": ["int8", Int8Array],
};

// name: what an error calls the file. Returns {dtype, shape, data}, data being a typed array.
export function parseNpy(bytes, name) {
  const magic = String.fromCharCode(...bytes.subarray(1, 6));
  if (bytes[0] !== 0x93 || magic !== "NUMPY") throw new Error(`${name} is no .npy file`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const old = bytes[6] === 1;
  const start = old ? 10 : 12;
  const length = old ? view.getUint16(8, true) : view.getUint32(8, true);
  const header = new TextDecoder().decode(bytes.subarray(start, start + length));
  const descr = /'descr':\s*'([^']+)'/.exec(header)?.[1];
  const shape = /'shape':\s*\(([^)]*)\)/.exec(header)?.[1].split(",").filter((s) => s.trim()).map(Number);
  const kind = KINDS[descr];
  if (!kind || !shape || !/'fortran_order':\s*False/.test(header)) {
    throw new Error(`${name} holds an array of another kind than jobs have: ${header.trim()}`);
  }
  const [dtype, Data] = kind;
  const content = bytes.slice(start + length);
  const count = shape.reduce((a, b) => a * b, 1);
  if (content.byteLength !== count * Data.BYTES_PER_ELEMENT) throw new Error(`${name} is shorter or longer than it says`);
  return { dtype, shape, data: new Data(content.buffer) };
}
