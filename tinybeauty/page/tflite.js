// The .tflite format: face models read into a Graph of graphs.js.
//
// Source: tensorflow/lite/schema/schema.fbs, flatbuffers.dev/internals, flatbuffers.dev/flexbuffers
'use strict';

/** A table of a flatbuffer; fields are counted as in the schema. */
class Table {
  constructor(view, position) {
    this.view = view;
    this.position = position;
    this.fields = position - view.getInt32(position, true);
  }

  find(field) {
    const entry = 4 + 2 * field;
    const offset = entry < this.view.getUint16(this.fields, true) ? this.view.getUint16(this.fields + entry, true) : 0;
    return offset ? this.position + offset : 0;
  }

  follow(field) {
    const at = this.find(field);
    return at ? at + this.view.getUint32(at, true) : 0;
  }

  byte(field) { const at = this.find(field); return at ? this.view.getInt8(at) : 0; }
  int(field) { const at = this.find(field); return at ? this.view.getInt32(at, true) : 0; }
  table(field) { const at = this.follow(field); return at ? new Table(this.view, at) : null; }

  /** Return a vector of numbers: of bytes, 16 or 32 bits each. */
  numbers(field, size = 4) {
    const at = this.follow(field);
    if (!at) return [];
    const read = {1: 'getUint8', 2: 'getUint16', 4: 'getInt32'}[size];
    return Array.from({length: this.view.getUint32(at, true)}, (_, index) => this.view[read](at + 4 + size * index, true));
  }

  /** Return a vector of bytes, not copied. */
  bytes(field) {
    const at = this.follow(field);
    return at ? new Uint8Array(this.view.buffer, this.view.byteOffset + at + 4, this.view.getUint32(at, true)) : new Uint8Array(0);
  }

  tables(field) {
    const at = this.follow(field);
    return at ? Array.from({length: this.view.getUint32(at, true)}, (_, index) => {
      const entry = at + 4 + 4 * index;
      return new Table(this.view, entry + this.view.getUint32(entry, true));
    }) : [];
  }
}

/** Return what a flexbuffer holds: a map of numbers and vectors of numbers. */
function readFlexible(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const uint = (at, width) => width === 1 ? view.getUint8(at) : width === 2 ? view.getUint16(at, true) : view.getUint32(at, true);
  const read = (at, width, packed) => {
    const kind = packed >> 2, own = 1 << (packed & 3);
    if (kind === 1) return width === 1 ? view.getInt8(at) : width === 2 ? view.getInt16(at, true) : view.getInt32(at, true);
    if (kind === 2 || kind === 26) return uint(at, width);
    if (kind === 3) return width === 8 ? view.getFloat64(at, true) : view.getFloat32(at, true);
    const start = at - uint(at, width);
    if (kind === 6 || kind === 7 || kind === 8) return read(start, own, (kind - 5) << 2);
    const count = uint(start - own, own);
    if (kind >= 11 && kind <= 13) return Array.from({length: count}, (_, index) => read(start + index * own, own, (kind - 10) << 2));
    const items = Array.from({length: count}, (_, index) => read(start + index * own, own, view.getUint8(start + count * own + index)));
    if (kind !== 9) return items;
    const keys = start - 3 * own - uint(start - 3 * own, own), keyWidth = uint(start - 2 * own, own), map = {};
    items.forEach((item, index) => {
      let name = '';
      for (let letter = keys + index * keyWidth - uint(keys + index * keyWidth, keyWidth); view.getUint8(letter); letter++)
        name += String.fromCharCode(view.getUint8(letter));
      map[name] = item;
    });
    return map;
  };
  const width = bytes[bytes.length - 1];
  return read(bytes.length - 2 - width, width, bytes[bytes.length - 2]);
}

/** Return the bytes of a model that bundle.py's sort_bytes has sorted. */
function joinBytes(sorted) {
  const bytes = new Uint8Array(sorted.length), odd = (sorted.length + 1) >> 1;
  for (let at = 0; at < sorted.length; at++) bytes[at] = sorted[(at >> 1) + (at & 1 ? odd : 0)];
  return bytes;
}

/** Return the numbers of 16-bit floats: their bits moved to where 32-bit floats have them, the exponent counted from elsewhere. */
function readHalves(bits) {
  const whole = new Uint32Array(bits.length), numbers = new Float32Array(whole.buffer);
  for (let at = 0; at < bits.length; at++) {
    whole[at] = (bits[at] & 0x8000) << 16 | (bits[at] & 0x7fff) << 13;
    numbers[at] *= 2 ** 112;
  }
  return numbers;
}

/** Return a sparse weight in full; its last axis is compressed, row by row. */
function fillSparse(sparsity, shape, values) {
  const axes = sparsity.tables(2), last = axes[axes.length - 1], size = (kind) => [0, 4, 2, 1][kind];
  const starts = last.table(3).numbers(0, size(last.byte(2))), columns = last.table(5).numbers(0, size(last.byte(4)));
  const width = shape[shape.length - 1], full = new Float32Array((starts.length - 1) * width);
  for (let row = 0; row + 1 < starts.length; row++)
    for (let index = starts[row]; index < starts[row + 1]; index++) full[row * width + columns[index]] = values[index];
  return full;
}

/** Return weights of which small_models.py has made 8-bit numbers: these, times the scale of their channel. */
function scaleChannels(numbers, shape, own) {
  const half = own.byteLength >> 1, deep = shape[0] === 1, channels = deep ? shape[3] : shape[0];
  const scales = readHalves(new Uint16Array(own, half + half % 2, channels)), each = numbers.length / channels;
  return numbers.map((number, at) => number * scales[deep ? at % channels : Math.floor(at / each)]);
}

/** Return {shape, values} of a constant tensor, null where it has no data. */
function readConstant(tensor, buffers) {
  const bytes = buffers[tensor.int(2)].bytes(0);
  if (!bytes.length) return null;
  const own = bytes.slice().buffer, kind = tensor.byte(1), shape = tensor.numbers(0), sparsity = tensor.table(6);
  let values = kind === 0 ? new Float32Array(own) : kind === 1 ? readHalves(new Uint16Array(own)) : kind === 2 ? new Int32Array(own)
    : kind === 9 ? new Float32Array(new Int8Array(own, 0, own.byteLength >> 1)) : null;
  if (!values) throw new Error(`the model has numbers of kind ${kind}, which MediaPipe's face models do not`);
  if (sparsity) values = fillSparse(sparsity, shape, values);
  if (kind === 9) values = scaleChannels(values, shape, own);
  return {shape, values};
}

const OPERATORS = {0: 'ADD', 2: 'CONCATENATION', 3: 'CONV_2D', 4: 'DEPTHWISE_CONV_2D', 5: 'DEPTH_TO_SPACE', 6: 'DEQUANTIZE',
  17: 'MAX_POOL_2D', 18: 'MUL', 19: 'RELU', 22: 'RESHAPE', 23: 'RESIZE_BILINEAR', 34: 'PAD', 45: 'STRIDED_SLICE', 54: 'PRELU', 124: 'DENSIFY'};
const flat = (value) => value.data || value;

/** Return a convolution's node with its weight in the engine. */
function makeConvolution(engine, name, options, inputs, output, constants, pad) {
  const deep = name !== 'CONV_2D', {shape, values} = constants.get(inputs[1]), bias = constants.get(inputs[2]).values;
  const [count, kernel, kernelWidth, depth] = shape, channels = deep ? depth : count;
  if (kernel !== kernelWidth) throw new Error('a kernel that is no square');
  const window = kernel * kernel, same = options.byte(0) === 0 && kernel !== 1;
  let weight;
  if (deep) {
    weight = new Float32Array(window * pad4(depth));
    for (let place = 0; place < window; place++) weight.set(values.subarray(place * depth, (place + 1) * depth), place * pad4(depth));
  } else weight = packWindow(window, depth, count, (place, k, n) => values[(n * window + place) * depth + k]);
  return {op: deep ? 'deep' : 'conv', inputs: [inputs[0]], output, kernel, stride: options.int(2), channels, pad: same ? 'same' : pad,
    weight: engine.keep(weight), bias: engine.keep(padRow(bias, channels)), activation: options.byte(deep ? 4 : 3) ? RELU : NONE};
}

/** Return the matrix (4, 4) from a square around some of the landmarks (N, 3) into their image. */
function findMatrix(landmarks, options) {
  const start = 3 * options.left_rotation_idx, end = 3 * options.right_rotation_idx;
  const angle = Math.atan2(landmarks[end + 1] - landmarks[start + 1], landmarks[end] - landmarks[start]) - options.target_rotation_radians;
  const cos = Math.cos(angle), sin = Math.sin(angle);
  let low = [Infinity, Infinity], high = [-Infinity, -Infinity];
  for (const number of options.subset_idxs) {
    const x = landmarks[3 * number], y = landmarks[3 * number + 1], turned = [x * cos + y * sin, y * cos - x * sin];
    low = low.map((value, axis) => Math.min(value, turned[axis]));
    high = high.map((value, axis) => Math.max(value, turned[axis]));
  }
  const width = (high[0] - low[0]) * options.scale_x, height = (high[1] - low[1]) * options.scale_y;
  const x = (low[0] + high[0]) / 2 - width / 2, y = (low[1] + high[1]) / 2 - height / 2;
  const right = width / options.output_width, down = height / options.output_height;
  return Float32Array.of(cos * right, -sin * down, 0, cos * x - sin * y, sin * right, cos * down, 0, sin * x + cos * y, 0, 0, 1, 0, 0, 0, 0, 1);
}

/** Return what lies under a matrix (4, 4) in an image, bilinear, 0 outside. */
function cutOut(image, matrix, options) {
  const {height, width, channels, data} = image, out = new Float32Array(options.output_height * options.output_width * channels);
  for (let y = 0, to = 0; y < options.output_height; y++)
    for (let x = 0; x < options.output_width; x++, to += channels) {
      const atX = matrix[0] * (x + 0.5) + matrix[1] * (y + 0.5) + matrix[3] - 0.5, atY = matrix[4] * (x + 0.5) + matrix[5] * (y + 0.5) + matrix[7] - 0.5;
      if (!(atX >= 0 && atY >= 0 && atX <= width - 1 && atY <= height - 1)) continue;
      const left = Math.min(Math.floor(atX), width - 2), top = Math.min(Math.floor(atY), height - 2), right = atX - left, down = atY - top;
      const from = (top * width + left) * channels, line = width * channels;
      for (let channel = 0; channel < channels; channel++) {
        const at = from + channel;
        out[to + channel] = (data[at] * (1 - right) + data[at + channels] * right) * (1 - down)
          + (data[at + line] * (1 - right) + data[at + line + channels] * right) * down;
      }
    }
  return out;
}

/** Return points (N, 2) under a matrix (4, 4). */
function movePoints(points, matrix) {
  const moved = new Float32Array(points.length);
  for (let at = 0; at < points.length; at += 2) {
    moved[at] = matrix[0] * points[at] + matrix[1] * points[at + 1] + matrix[3];
    moved[at + 1] = matrix[4] * points[at] + matrix[5] * points[at + 1] + matrix[7];
  }
  return moved;
}

/** Return an image of 4 C channels as one of C, twice as large; the colours of a place lie together. */
function depthToSpace({height, width, channels, data}) {
  const count = channels / 4, out = new Float32Array(data.length);
  for (let y = 0, from = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      for (let corner = 0; corner < 4; corner++)
        for (let channel = 0; channel < count; channel++)
          out[((2 * y + (corner >> 1)) * 2 * width + 2 * x + (corner & 1)) * count + channel] = data[from++];
  return out;
}

/** Return arrays one behind the other. */
function joinArrays(...parts) {
  const whole = new Float32Array(parts.reduce((count, part) => count + part.length, 0));
  parts.reduce((at, part) => (whole.set(part, at), at + part.length), 0);
  return whole;
}

/** Return the node of an operator that is no convolution. */
function makeNode(engine, name, operator, inputs, output, constants) {
  const first = [inputs[0]], constant = inputs.length > 1 && constants.get(inputs[1]), options = operator.table(4);
  const custom = operator.find(5) ? readFlexible(operator.bytes(5)) : null;
  switch (name) {
    case 'ADD': return {op: 'add', inputs, output, activation: options && options.byte(0) ? RELU : NONE};
    case 'RELU': return {op: 'activate', inputs: first, output, activation: RELU};
    case 'PRELU': return {op: 'activate', inputs: first, output, activation: PRELU, slope: engine.keep(padRow(constant.values, constant.values.length))};
    case 'MAX_POOL_2D': return {op: 'pool', inputs: first, output};
    case 'RESIZE_BILINEAR': return {op: 'resize', inputs: first, output};
    case 'PAD': return {op: 'widen', inputs: first, output, more: constant.values[7]};
    case 'RESHAPE': case 'STRIDED_SLICE': return {op: 'array', inputs: first, output, run: (value) => flat(value).slice()};
    case 'CONCATENATION': return {op: 'array', inputs, output, run: joinArrays};
    case 'DEPTH_TO_SPACE': return {op: 'array', inputs: first, output, run: depthToSpace};
    case 'MUL': return {op: 'array', inputs: first, output, run: (value) => {
      const factors = constant.values;
      return flat(value).map((number, index) => number * factors[index % factors.length]);
    }};
    case 'Landmarks2TransformMatrix': return {op: 'array', inputs, output, subset: custom.subset_idxs, run: (value) => findMatrix(value, custom)};
    case 'TransformTensorBilinear':
      return {op: 'cut', inputs, output, size: [custom.output_height, custom.output_width], run: (image, matrix) => cutOut(image, matrix, custom)};
    case 'TransformLandmarks': return {op: 'array', inputs, output, run: movePoints};
  }
  throw new Error(`the model has an operator ${name}, which MediaPipe's face models do not have`);
}

/** Return the Graph of a .tflite file; `subsets` are the landmarks of the parts that are looked at closely. */
function readModel(engine, bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), model = new Table(view, view.getUint32(0, true));
  const codes = model.tables(1), graph = model.tables(2)[0], buffers = model.tables(4), tensors = graph.tables(0);
  const constants = new Map(), padded = new Map(), widths = new Map(), nodes = [];
  tensors.forEach((tensor, number) => {
    const constant = readConstant(tensor, buffers);
    if (constant) constants.set(number, constant);
    widths.set(number, tensor.numbers(0)[3]);
  });
  for (const operator of graph.tables(3)) {
    const code = codes[operator.int(0)], builtin = Math.max(code.byte(0), code.int(3)), inputs = operator.numbers(1), output = operator.numbers(2)[0];
    const name = builtin === 32 ? new TextDecoder().decode(code.bytes(1)) : OPERATORS[builtin] || `number ${builtin}`;
    if (name === 'DEQUANTIZE' || name === 'DENSIFY') {
      constants.set(output, constants.get(inputs[0]));
      continue;
    }
    if (name === 'PAD' && constants.get(inputs[1]).values[2]) {  // the convolution that follows does it on its way
      padded.set(output, inputs[0]);
      continue;
    }
    const pad = padded.has(inputs[0]) ? 1 : 0;
    if (pad) inputs[0] = padded.get(inputs[0]);
    const node = name.endsWith('CONV_2D') ? makeConvolution(engine, name, operator.table(4), inputs, output, constants, pad)
      : makeNode(engine, name, operator, inputs, output, constants);
    if (node.op === 'widen') node.channels = widths.get(output);
    nodes.push(node);
  }
  const read = new Graph(engine, nodes, graph.numbers(1)[0], graph.numbers(2));
  read.subsets = nodes.filter((node) => node.subset).map((node) => node.subset);
  return read;
}
