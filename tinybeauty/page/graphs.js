// Graphs of operators on engine.wasm: planned for a size of picture, run.
//
// A node is {op, inputs, output, ...}; tensors are numbers. Images lie in the engine's memory as
// (H, W, C) float32 with C padded to a multiple of 4; what is no image is a Float32Array.
'use strict';

const pad4 = (count) => (count + 3) & ~3;
const NONE = 0, RELU = 1, PRELU = 2;  // activations, as engine.c numbers them

/**
 * Return engine.wasm with a product and its sum in one step: f32x4.mul, local.get, f32x4.add become local.get, f32x4.relaxed_madd
 * and three nops. A browser that does not know relaxed SIMD finds it invalid. Source: WebAssembly 3.0, section 5.4 (instructions)
 */
function fuseMultiplyAdd(bytes) {
  const fused = bytes.slice(), from = [0xfd, 0xe6, 1, 0x20, -1, 0xfd, 0xe4, 1];
  for (let at = 0; at < fused.length; at++)
    if (from.every((byte, index) => byte < 0 || fused[at + index] === byte)) fused.set([0x20, fused[at + 4], 0xfd, 0x85, 2, 1, 1, 1], at);
  return fused;
}

/** engine.wasm and its memory: weights from the bottom up, above them an arena that the plans share. */
class Engine {
  constructor(instance) {
    this.kernels = instance.exports;
    this.memory = instance.exports.memory;
    this.top = this.kernels.heap_base();
    this.slot = 0;
    this.loaded = null;
  }

  static async create(bytes) {
    const fast = fuseMultiplyAdd(bytes);
    return new Engine((await WebAssembly.instantiate(WebAssembly.validate(fast) ? fast : bytes)).instance);
  }

  /** Make the memory reach up to an address in bytes. */
  ensure(end) {
    const lacking = end - this.memory.buffer.byteLength;
    if (lacking > 0) this.memory.grow(Math.ceil(lacking / 65536));
  }

  /** Return the address of room for some numbers that stays. */
  reserve(count) {
    const address = this.top;
    this.top = (this.top + 4 * count + 15) & ~15;
    this.ensure(this.top);
    return address;
  }

  /** Return a view of numbers in memory; the next growth of memory ends it. */
  floats(address, count) {
    return new Float32Array(this.memory.buffer, address, count);
  }

  bytes(address, count) {
    return new Uint8Array(this.memory.buffer, address, count);
  }

  /** Return the address of a copy that stays. */
  keep(values) {
    const address = this.reserve(values.length);
    this.floats(address, values.length).set(values);
    return address;
  }
}

// --- Weights as the kernels want them -----------------------------------------------------------------

/** Return weights for `pointwise`: blocks of 8 output channels, at last of 4; at(k, n) gives one weight. */
function packRows(depth, channels, at) {
  const packed = new Float32Array(depth * pad4(channels));
  let to = 0;
  for (let first = 0; first < pad4(channels);) {
    const lanes = pad4(channels) - first >= 8 ? 8 : 4;
    for (let k = 0; k < depth; k++)
      for (let lane = 0; lane < lanes; lane++, to++)
        if (first + lane < channels) packed[to] = at(k, first + lane);
    first += lanes;
  }
  return packed;
}

/** Return a convolution's weights for `pointwise`: a window's places, each of padded depth; at(place, k, n) gives one. */
function packWindow(places, depth, channels, at) {
  const step = pad4(depth);
  return packRows(places * step, channels, (row, n) => row % step < depth ? at(Math.floor(row / step), row % step, n) : 0);
}

/** Return numbers with zeros behind them, up to a multiple of 4. */
function padRow(values, channels) {
  const row = new Float32Array(pad4(channels));
  if (values) row.set(values.subarray(0, channels));
  return row;
}

// --- The plan -----------------------------------------------------------------------------------------

/** Let a convolution add and activate on its way, where nobody else wants what lies between. */
function fuse(nodes, outputs) {
  const makers = new Map(), uses = new Map();
  const use = (number) => uses.set(number, (uses.get(number) || 0) + 1);
  nodes.forEach((node) => node.inputs.forEach(use));
  outputs.forEach(use);
  const fused = [];
  for (let node of nodes) {
    const alone = (number) => makers.has(number) && uses.get(number) === 1 && !makers.get(number).activation;
    if (node.op === 'add' && node.inputs.length === 2) {
      const last = [...node.inputs].sort((a, b) => fused.indexOf(makers.get(a)) - fused.indexOf(makers.get(b)))[1];
      const maker = makers.get(last);
      if (alone(last) && maker.op === 'conv' && maker.inputs.length === 1) {
        fused.splice(fused.indexOf(maker), 1);
        const other = node.inputs[node.inputs[0] === last ? 1 : 0];
        node = {...maker, inputs: [maker.inputs[0], other], output: node.output, activation: node.activation, slope: node.slope};
      }
    } else if (node.op === 'activate' && alone(node.inputs[0]) && ['conv', 'deep', 'add'].includes(makers.get(node.inputs[0]).op)) {
      const maker = makers.get(node.inputs[0]);
      fused.splice(fused.indexOf(maker), 1);
      node = {...maker, output: node.output, activation: node.activation, slope: node.slope};
    }
    fused.push(node);
    makers.set(node.output, node);
  }
  return fused;
}

/** Return [output length, padding before] of a window that slides; SAME puts an odd pixel behind. */
function slideOver(length, node) {
  const kernel = node.kernel, stride = node.stride;
  if (node.pad !== 'same') return [Math.floor((length + 2 * node.pad - kernel) / stride) + 1, node.pad];
  const count = Math.ceil(length / stride);
  return [count, Math.max((count - 1) * stride + kernel - length, 0) >> 1];
}

/** Return [H, W, C] of what a node makes of an image, null where it makes an array. */
function findShape(node, shape) {
  if (!shape) return node.op === 'cut' ? node.size : null;
  const [height, width, channels] = shape;
  switch (node.op) {
    case 'conv': return [slideOver(height, node)[0], slideOver(width, node)[0], node.channels];
    case 'deep': return [slideOver(height, node)[0], slideOver(width, node)[0], channels];
    case 'pool': return [height >> 1, width >> 1, channels];
    case 'up': return [2 * height, 2 * width, node.channels];
    case 'resize': return [2 * height, 2 * width, channels];
    case 'widen': return [height, width, node.channels];
    case 'cut': return node.size && [...node.size, channels];
    case 'add': case 'activate': return shape;
    default: return null;
  }
}

/** Return a call of the kernel that does a node; places gives the address of a tensor. */
function callKernel(engine, node, shapes, places, scratch) {
  const kernels = engine.kernels, [first, second] = node.inputs;
  const [height, width, channels] = shapes.get(first), [outHeight, outWidth, outChannels] = shapes.get(node.output);
  const input = places.get(first), output = places.get(node.output), other = second === undefined ? 0 : places.get(second);
  const end = [node.activation || NONE, node.slope || 0], step = pad4(channels), outStep = pad4(outChannels);
  const top = node.kernel ? slideOver(height, node)[1] : 0, left = node.kernel ? slideOver(width, node)[1] : 0;
  switch (node.op) {
    case 'conv':
      if (node.kernel === 1 && node.stride === 1)
        return () => kernels.pointwise(input, step, 1, 0, output, outStep, height * width, step, outStep, node.weight, node.bias, other, ...end);
      return () => kernels.convolve(input, height, width, step, output, outHeight, outWidth, outStep, node.kernel,
        node.kernel, node.stride, top, left, node.weight, node.bias, scratch, other, ...end);
    case 'deep':
      return () => kernels.depthwise(input, height, width, step, output, outHeight, outWidth, node.kernel, node.stride,
        top, left, node.weight, node.bias, ...end);
    case 'up':
      if (node.groups === node.channels)
        return () => kernels.upsample_deep(input, height, width, channels / node.groups, output, outStep, node.weight, node.bias);
      return () => kernels.upsample(input, height, width, channels / node.groups, output, outStep / node.groups, node.groups, node.weight, node.bias);
    case 'add': return () => kernels.add(input, other, output, height * width, step, ...end);
    case 'activate': return () => kernels.add(input, 0, output, height * width, step, ...end);
    case 'pool': return () => kernels.max_pool(input, output, outHeight, outWidth, step);
    case 'widen': return () => kernels.widen(input, step, output, outStep, height * width);
    case 'resize': return () => kernels.resize(input, height, width, step, output);
  }
  throw new Error(`no kernel for ${node.op}`);
}

/** A graph, its weights packed into the engine; it runs on pictures of any size that it can. */
class Graph {
  constructor(engine, nodes, input, outputs) {
    Object.assign(this, {engine, input, outputs, nodes: fuse(nodes, outputs), plans: new Map()});
  }

  /** Return {input, steps, values}: addresses for a picture of one size, and what to call in order. */
  plan(height, width) {
    const key = `${height} x ${width}`, engine = this.engine, base = engine.top, known = this.plans.get(key);
    if (known && known.base === base) return known;  // else weights lie there by now
    const shapes = new Map([[this.input, [height, width, 3]]]), last = new Map(), places = new Map();
    this.nodes.forEach((node, index) => {
      shapes.set(node.output, findShape(node, shapes.get(node.inputs[0])));
      node.inputs.forEach((number) => last.set(number, index));
    });
    this.outputs.forEach((number) => last.set(number, Infinity));
    let free = [[base, 0x7ffffff0]], highest = base;
    const room = (number) => 4 * shapes.get(number)[0] * shapes.get(number)[1] * pad4(shapes.get(number)[2]);
    const take = (size) => {  // the first gap that is large enough
      const gap = free.find(([start, end]) => end - start >= size), address = gap[0];
      gap[0] += size;
      highest = Math.max(highest, gap[0]);
      return address;
    };
    const release = (start, size) => {
      free.push([start, start + size]);
      free.sort((a, b) => a[0] - b[0]);
      free = free.reduce((gaps, gap) => {
        const before = gaps[gaps.length - 1];
        if (before && before[1] === gap[0]) before[1] = gap[1];
        else gaps.push(gap);
        return gaps;
      }, []);
    };
    const steps = [], values = new Map(), plan = {base, input: take(room(this.input)), steps, values, shapes, places};
    places.set(this.input, plan.input);
    this.nodes.forEach((node, index) => {
      if (shapes.get(node.output)) places.set(node.output, take(room(node.output)));
      if (node.run) {
        const size = shapes.get(node.output);
        steps.push(() => {
          const result = node.run(...node.inputs.map((number) => values.has(number) ? values.get(number) : this.read(plan, number)));
          if (size) engine.floats(places.get(node.output), result.length).set(result);
          else values.set(node.output, result);
        });
      } else {
        const row = node.op === 'conv' ? 4 * shapes.get(node.output)[1] * node.kernel ** 2 * pad4(shapes.get(node.inputs[0])[2]) : 0;
        const scratch = take((row + 15) & ~15);
        steps.push(callKernel(engine, node, shapes, places, scratch));
        release(scratch, (row + 15) & ~15);
      }
      for (const number of new Set(node.inputs))
        if (last.get(number) === index && places.has(number)) release(places.get(number), room(number));
    });
    engine.ensure(highest);
    this.plans.set(key, plan);
    return plan;
  }

  /** Return an image without its padding, as {height, width, channels, data}. */
  read(plan, number) {
    const [height, width, channels] = plan.shapes.get(number), step = pad4(channels);
    const whole = this.engine.floats(plan.places.get(number), height * width * step);
    if (step === channels) return {height, width, channels, data: whole};
    const data = new Float32Array(height * width * channels);
    for (let pixel = 0, to = 0; pixel < height * width; pixel++)
      for (let channel = 0; channel < channels; channel++) data[to++] = whole[pixel * step + channel];
    return {height, width, channels, data};
  }

  /** Run on an RGB picture {height, width, data}, a byte v being v * factor + shift; return the plan: where what is. */
  compute(picture, factor, shift) {
    const {height, width, data} = picture, plan = this.plan(height, width);
    const input = this.engine.floats(plan.input, height * width * 4);
    for (let from = 0, to = 0; from < 3 * height * width; from += 3, to += 4) {
      input[to] = data[from] * factor + shift;
      input[to + 1] = data[from + 1] * factor + shift;
      input[to + 2] = data[from + 2] * factor + shift;
      input[to + 3] = 0;
    }
    for (const step of plan.steps) step();
    return plan;
  }

  /** Return the outputs, flat; arguments as for `compute`. */
  run(...given) {
    const plan = this.compute(...given);
    return this.outputs.map((number) => {
      const value = plan.values.has(number) ? plan.values.get(number) : this.read(plan, number);
      return (value.data || value).slice();
    });
  }
}
