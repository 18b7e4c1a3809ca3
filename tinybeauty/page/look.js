// The page's door to the engine: looks read from their .pt files, faces found and made up.
'use strict';

/** What is wrong with a look or a picture, in words for the person who dropped it. */
class LookError extends Error {}

// --- The .pt format: a zip of stored files, one of them a pickle ---------------------------------------
// Source: PKWARE APPNOTE 6.3.10; Python's Lib/pickletools.py, protocol 2; torch/serialization.py

/** Return the CRC-32 of bytes. */
function findChecksum(bytes) {
  const table = findChecksum.table || (findChecksum.table = Int32Array.from({length: 256}, (_, value) => {
    for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
    return value;
  }));
  let sum = -1;
  for (const byte of bytes) sum = table[(sum ^ byte) & 255] ^ (sum >>> 8);
  return ~sum >>> 0;
}

/** Return {name without its first folder: bytes} of a zip; throws where anything is odd. */
function readZip(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), files = new Map();
  let end = bytes.length - 22;
  while (view.getUint32(end, true) !== 0x06054b50) end--;  // below 0 it throws
  const count = view.getUint16(end + 10, true);
  if (count > 99) throw new RangeError('too many files');  // each is summed up
  let entry = view.getUint32(end + 16, true);
  for (let index = 0; index < count; index++) {
    if (view.getUint32(entry, true) !== 0x02014b50) throw new RangeError('no entry of a zip');
    const size = view.getUint32(entry + 24, true), length = view.getUint16(entry + 28, true), start = view.getUint32(entry + 42, true);
    const name = new TextDecoder().decode(bytes.subarray(entry + 46, entry + 46 + length));
    const data = start + 30 + view.getUint16(start + 26, true) + view.getUint16(start + 28, true);
    if (view.getUint32(start, true) !== 0x04034b50 || view.getUint16(entry + 10, true) || data + size > bytes.length) throw new RangeError('compressed, or cut off');
    const content = bytes.subarray(data, data + size);
    if (findChecksum(content) !== view.getUint32(entry + 16, true)) throw new RangeError('a wrong checksum');
    files.set(name.slice(name.indexOf('/') + 1), content);
    entry += 46 + length + view.getUint16(entry + 30, true) + view.getUint16(entry + 32, true);
  }
  return files;
}

/** Return what a pickle holds: dictionaries as Maps, tensors as {kind, file, count}; nothing of it is run. */
function readPickle(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), text = new TextDecoder();
  const stack = [], marks = [], memo = new Map();
  let at = 0;
  const string = (length) => {
    if (at + length > bytes.length) throw new RangeError('a string without an end');
    return text.decode(bytes.subarray(at, at += length));
  };
  const line = () => {
    const start = at;
    while (bytes[at] !== 10) if (++at >= bytes.length) throw new RangeError('a line without an end');
    return text.decode(bytes.subarray(start, at++));
  };
  const pop = () => {
    if (!stack.length) throw new RangeError('a pickle without sense');
    return stack.pop();
  };
  const sinceMark = () => stack.splice(marks.pop());
  const setItems = (items) => items.forEach((item, index) => index % 2 && stack[stack.length - 1].set(items[index - 1], item));
  const call = (what, given) => {
    if (what === 'collections OrderedDict') return new Map();
    if (what !== 'torch._utils _rebuild_tensor_v2' || given[1] !== 0 || given[2].length !== 1 || given[3][0] !== 1)
      throw new RangeError('a tensor that is not flat');
    return {...given[0], count: given[2][0]};
  };
  const steps = {
    0x80: () => at++, 0x7d: () => stack.push(new Map()), 0x5d: () => stack.push([]), 0x29: () => stack.push([]), 0x28: () => marks.push(stack.length),
    0x71: () => memo.set(bytes[at++], stack[stack.length - 1]), 0x72: () => { memo.set(view.getUint32(at, true), stack[stack.length - 1]); at += 4; },
    0x68: () => stack.push(memo.get(bytes[at++])), 0x6a: () => { stack.push(memo.get(view.getUint32(at, true))); at += 4; },
    0x58: () => { const length = view.getUint32(at, true); at += 4; stack.push(string(length)); },
    0x4b: () => stack.push(view.getUint8(at++)), 0x4d: () => { stack.push(view.getUint16(at, true)); at += 2; },
    0x4a: () => { stack.push(view.getInt32(at, true)); at += 4; }, 0x47: () => { stack.push(view.getFloat64(at)); at += 8; },
    0x88: () => stack.push(true), 0x89: () => stack.push(false), 0x4e: () => stack.push(null), 0x74: () => stack.push(sinceMark()),
    0x85: () => stack.push([pop()]), 0x86: () => { const last = pop(); stack.push([pop(), last]); },
    0x87: () => { const last = pop(), middle = pop(); stack.push([pop(), middle, last]); },
    0x65: () => { const items = sinceMark(); stack[stack.length - 1].push(...items); }, 0x61: () => { const item = pop(); stack[stack.length - 1].push(item); },
    0x75: () => setItems(sinceMark()), 0x73: () => { const item = pop(); setItems([pop(), item]); },
    0x63: () => stack.push(`${line()} ${line()}`),
    0x51: () => { const [, kind, file] = pop(); stack.push({kind, file}); },
    0x52: () => { const given = pop(); stack.push(call(pop(), given)); },
  };
  for (;;) {
    const code = view.getUint8(at++);
    if (code === 0x2e) return pop();
    if (!steps[code]) throw new RangeError(`a pickle that does ${code}`);
    steps[code]();
  }
}

/** Return the numbers of a tensor as float32. */
function readTensor(tensor, files) {
  const bytes = files.get(`data/${tensor.file}`).slice(), own = bytes.buffer;
  const values = {
    'torch CharStorage': () => Float32Array.from(new Int8Array(own)),
    'torch BFloat16Storage': () => new Float32Array(Uint32Array.from(new Uint16Array(own), (bits) => bits << 16).buffer),
    'torch HalfStorage': () => readHalves(new Uint16Array(own)),
    'torch FloatStorage': () => new Float32Array(own),
  }[tensor.kind]();
  if (values.length !== tensor.count) throw new RangeError('a tensor of another size');
  return values;
}

// --- The network --------------------------------------------------------------------------------------
const LOOK_FLOATS = 1 << 18;  // room for the weights of the look in use: a network of 100,000 bytes has 110,000

/** Takes the weights of a .pt one layer after the other and lays them out for the engine. */
class Packer {
  constructor(parts, slot) {
    Object.assign(this, {parts, slot, taken: {weights: 0, scales: 0, biases: 0}, count: 0, packed: [], nodes: [], tensor: 0});
  }

  take(name, count) {
    const from = this.taken[name];
    this.taken[name] += count;
    if (this.taken[name] > this.parts[name].length) throw new RangeError('too few weights');
    return this.parts[name].subarray(from, from + count);
  }

  /** Return a layer's weights in rows, one for each output channel. */
  takeRows(channels, length) {
    const rows = this.take('weights', channels * length).slice(), scales = this.take('scales', channels);
    for (let at = 0; at < rows.length; at++) rows[at] *= scales[Math.floor(at / length)];
    return rows;
  }

  /** Return the address that numbers will have in the engine. */
  keep(values) {
    const address = this.slot + 4 * this.count;
    this.packed.push([this.count, values]);
    this.count += pad4(values.length);
    if (this.count > LOOK_FLOATS) throw new LookError('this network is larger than TinyBeauty\'s');
    return address;
  }

  add(node) {
    this.nodes.push({...node, output: ++this.tensor});
    return this.tensor;
  }

  /** Convolve; `added` is a tensor to add, null for none. */
  conv(input, depth, channels, kernel, activation, bias = true, added = null) {
    const rows = this.takeRows(channels, depth * kernel * kernel), window = kernel * kernel;
    const weight = packWindow(window, depth, channels, (place, k, n) => rows[(n * depth + k) * window + place]);
    return this.add({op: 'conv', inputs: added === null ? [input] : [input, added], kernel, stride: 1, channels, pad: kernel >> 1, activation,
      weight: this.keep(weight), bias: this.keep(padRow(bias ? this.take('biases', channels) : null, channels))});
  }

  deep(input, channels, kernel) {
    const rows = this.takeRows(channels, kernel * kernel), weight = new Float32Array(kernel * kernel * pad4(channels));
    rows.forEach((value, at) => { weight[at % (kernel * kernel) * pad4(channels) + Math.floor(at / (kernel * kernel))] = value; });
    return this.add({op: 'deep', inputs: [input], kernel, stride: 1, channels, pad: kernel >> 1, activation: NONE,
      weight: this.keep(weight), bias: this.keep(padRow(null, channels))});
  }

  separable(input, depth, channels, kernel, activation = RELU, bias = true, added = null) {
    return this.conv(this.deep(input, depth, kernel), depth, channels, 1, activation, bias, added);
  }

  /** Transposed convolution, 2 x 2 with stride 2, in groups. */
  up(input, depth, channels, groups) {
    const group = depth / groups, each = channels / groups, rows = this.takeRows(channels, group * 4);
    const bias = padRow(this.take('biases', channels), channels);
    if (groups === channels || (each % 4 === 0 && Number.isInteger(group))) {
      let weight;
      if (groups === channels) {
        weight = new Float32Array(4 * group * channels);
        for (let at = 0; at < rows.length; at++)
          weight[((at % 4) * group + Math.floor(at / 4) % group) * channels + Math.floor(at / 4 / group)] = rows[at];
      } else {
        weight = joinArrays(...Array.from({length: 4 * groups}, (_, index) => packRows(group, each,
          (k, n) => rows[((index % groups * each + n) * group + k) * 4 + Math.floor(index / groups)])));
      }
      return this.add({op: 'up', inputs: [input], channels, groups, weight: this.keep(weight), bias: this.keep(bias)});
    }
    throw new LookError(`this network's layers are in ${groups} groups, which this page cannot draw with`);
  }
}

/** Return how many groups an `up` layer has, the deepest being the first; one number for all is what earlier versions had. */
function findGroups(architecture, order) {
  const given = architecture.get('up_groups'), groups = Array.isArray(given) ? given[order] : given;
  if (!Number.isInteger(groups) || groups < 1) throw new RangeError('no number of groups');
  return groups;
}

/** Return the nodes of TinyBeauty, tensor 0 its source; tinybeauty_training.py has the network. */
function buildNetwork(packer, architecture) {
  const channels = architecture.get('channels'), kernels = architecture.get('bottleneck_kernels');
  if (String(channels) !== '16,32,64,128' || String(kernels) !== '7,7,7') throw new RangeError('another network');
  const skips = [];
  let now = packer.conv(0, 3, channels[0], 3, RELU);
  for (let level = 1; level < channels.length; level++) {
    skips.push(now);
    now = packer.add({op: 'pool', inputs: [now]});
    if (level < channels.length - 1) now = packer.separable(now, channels[level - 1], channels[level], 3);
  }
  const widest = channels[channels.length - 1];
  kernels.forEach((kernel, index) => { now = packer.separable(now, index ? widest : channels[channels.length - 2], widest, kernel); });
  for (let level = channels.length - 2; level >= 0; level--) {
    now = packer.up(now, channels[level + 1], channels[level], findGroups(architecture, channels.length - 2 - level));
    const first = packer.separable(now, channels[level], channels[level], 3, NONE);
    now = packer.separable(skips[level], channels[level], channels[level], 3, RELU, false, first);
  }
  packer.conv(now, channels[0], 3, 1, NONE);
  for (const [name, taken] of Object.entries(packer.taken)) if (taken !== packer.parts[name].length) throw new RangeError(`too many ${name}`);
}

/** Return a look, {name, graph, weights}, of the bytes of a .pt file; throws a LookError. */
function readLook(engine, bytes, name) {
  const damaged = `${name} is damaged, or not a look: a look is a .pt file that TinyBeauty's training wrote`;
  let packer, version;
  try {
    const files = readZip(bytes), content = readPickle(files.get('data.pkl'));
    if (!(content instanceof Map) || content.get('format') !== 'tinybeauty') throw new LookError(`${name} is a PyTorch file, but not a look of TinyBeauty`);
    version = content.get('version');
    if (version !== 2) throw new RangeError('another version');
    const parts = {};
    for (const part of ['weights', 'scales', 'biases']) parts[part] = readTensor(content.get(part), files);
    packer = new Packer(parts, engine.slot);
    buildNetwork(packer, content.get('architecture'));
  } catch (error) {
    if (error instanceof LookError) throw error;
    const other = version !== undefined && version !== 2 ? `${name} has format version ${version}, which this page cannot read` : damaged;
    throw new LookError(other);
  }
  const weights = new Float32Array(packer.count);
  for (const [at, values] of packer.packed) weights.set(values, at);
  return {name, weights, graph: new Graph(engine, packer.nodes, 0, [packer.tensor])};
}

/** Return a look's residual (H, W, 4) for an RGB picture, not clamped, 0 in the fourth channel. */
function runLook(engine, look, picture) {
  if (engine.loaded !== look) engine.floats(engine.slot, look.weights.length).set(look.weights);
  engine.loaded = look;
  const {places} = look.graph.compute(picture, 1 / 255, 0);
  return engine.floats(places.get(look.graph.outputs[0]), 4 * picture.width * picture.height).slice();
}

// --- The studio ---------------------------------------------------------------------------------------
const LOOK_AGAIN = 24, LOOK_SOON = 12;  // frames until new faces are looked for; the same where there is none
const SMOOTH = 0.35, STILL = 1.5, MOVING = 5, FADE_IN = 0.2;  // as in tinybeauty/following.py

/** Tell each face of the others, whose pixels stay free of its makeup. */
function introduce(faces) {
  for (const face of faces) face.others = faces.filter((other) => other !== face);
}

const toPhoto = ({width, height, data}) => ({width, height, data, channels: 4});

/** Finds faces and makes them up; one for all pictures. An image is {data, width, height}, RGBA bytes. */
class Studio {
  constructor(engine) {
    Object.assign(this, {engine, models: null});
  }

  /** Take MediaPipe's three models, Uint8Arrays, without which no face is found. */
  readModels({shortRange, fullRange, mesh}) {
    this.models = new FaceModels(...[shortRange, fullRange, mesh].map((bytes) => readModel(this.engine, bytes)));
  }

  /** Return a look of the bytes of a .pt file; throws a LookError whose message says what is wrong. */
  openLook(bytes, name) {
    return readLook(this.engine, bytes, name);
  }

  /** Return {faces, leftOut: [{reason}]}: those that makeup can be put on, the largest first, and why others get none. */
  findFaces(image) {
    const photo = toPhoto(image), found = findAll(photo, this.models, 3);
    introduce(found.faces);
    const faces = found.faces.filter((face) => {
      const [x, y] = middleOf(face.points);
      try {
        checkFace(photo, face);
        checkColours(prepare(this.engine, photo, face).aligned);
        return true;
      } catch (reason) {
        if (!(reason instanceof LeftOut)) throw reason;
        found.leftOut.push({reason: `the face at (${x.toFixed()}, ${y.toFixed()}): ${reason.message}`});
        return false;
      }
    });
    return {faces, leftOut: found.leftOut};
  }

  /** Work out a look for faces of an image, which is most of the time of `makeUp`. */
  findMakeup(image, faces, look) {
    const photo = toPhoto(image);
    for (const face of faces) {
      if (!face.aligned) prepare(this.engine, photo, face);
      if (face.weight > 0 && !face.residuals.has(look)) face.residuals.set(look, findResidual(this.engine, look, face.aligned.picture));
    }
  }

  /** Put a look on faces of an image, in place and only inside the faces' squares; the image must be as it was found. */
  makeUp(image, faces, look, {strength = 1, lips = 1, eyes = 1, skin = 1} = {}) {
    const photo = toPhoto(image);
    if (!strength) return;
    this.findMakeup(image, faces, look);  // all are looked at before the first is painted
    for (const face of faces) if (face.weight > 0) layMakeup(this.engine, photo, face, face.residuals.get(look), {strength, lips, eyes, skin});
  }

  /** Return {faces, state} of a frame of a webcam; state: what the frame before returned, null for the first. */
  follow(image, state) {
    const photo = toPhoto(image), before = state || {faces: [], wait: 0};
    const faces = before.faces.map((face) => this.move(photo, face)).filter(Boolean);
    let wait = before.wait - 1;
    if (wait <= 0 || faces.length < before.faces.length) {
      this.lookForMore(photo, faces);
      wait = faces.length ? LOOK_AGAIN : LOOK_SOON;
    }
    faces.sort((a, b) => span(b.quad[1]) - span(a.quad[1]));
    introduce(faces);
    return {faces, state: {faces, wait}};
  }

  /** Return a face where it is now, null where it is gone; still faces are smoothed over time. */
  move(photo, face) {
    const seen = track(photo, this.models, face.points);
    if (!seen) return null;
    const shift = span(minus(middleOf(seen.points), middleOf(face.points))) * SIDE / Math.max(span(seen.quad[1]), 1);
    const share = SMOOTH + (1 - SMOOTH) * clamp((shift - STILL) / (MOVING - STILL), 0, 1);
    const points = face.points.map((point, index) => [...plus(point, minus(seen.points[index], point), share), seen.depths[index]]);
    const moved = makeFace(points, seen.score);
    moved.live = true;
    moved.weight = face.weight + clamp((this.isWanted(photo, moved) ? 1 : 0) - face.weight, -FADE_IN, FADE_IN);
    return moved;
  }

  isWanted(photo, face) {
    try {
      checkFace(photo, face);
      return true;
    } catch (reason) {
      return false;
    }
  }

  /** Take up the faces that are not followed yet. */
  lookForMore(photo, faces) {
    const alone = !faces.length, known = (middle, width) => faces.some((face) => span(minus(middleOf(face.points), middle)) < 0.5 * width);
    if (findSeeds(photo, this.models, 'live').every((seed) => known(middleOf(seed.box), widthOf(seed.box)))) return;
    for (const face of findAll(photo, this.models, 1, ['live']).faces) {
      const [low, high] = findBounds(face.points);
      if (known(middleOf(face.points), high[0] - low[0])) continue;
      face.live = true;
      face.weight = alone && this.isWanted(photo, face) ? 1 : 0;
      faces.push(face);
    }
  }
}

/** Return a Studio of engine.wasm, a Uint8Array. */
async function createStudio(wasm) {
  const engine = await Engine.create(wasm);
  engine.slot = engine.reserve(LOOK_FLOATS);
  return new Studio(engine);
}
