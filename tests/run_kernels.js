// For test_page_engine.py: node run_kernels.js LOOK...; opens looks, convolves small pictures; prints JSON.
'use strict';
const fs = require('fs'), path = require('path');

const page = path.join(__dirname, '..', 'tinybeauty', 'page'), names = ['graphs', 'tflite', 'pictures', 'faces', 'makeup', 'look'];
const code = names.map((name) => fs.readFileSync(path.join(page, `${name}.js`), 'utf8')).join('\n');
const {Engine, Graph, LookError, LOOK_FLOATS, packWindow, padRow, readLook, slideOver} = new Function(
  `${code}; return {Engine, Graph, LookError, LOOK_FLOATS, packWindow, padRow, readLook, slideOver}`)();
let seed = 1;
const random = (low, high) => low + (seed = seed * 48271 % 2147483647) % (high - low + 1);
const numbers = (count) => Float32Array.from({length: count}, () => random(-9, 9) / 8);

/** Return a convolution's output by its formula, or a depthwise one's; weight(place, k, n) gives a factor. */
function convolve({height, width, data}, node, weight, bias, added) {
  const {kernel, stride, channels, activation} = node, [[outHeight, top], [outWidth, left]] = [height, width].map((length) => slideOver(length, node));
  return Float32Array.from({length: outHeight * outWidth * channels}, (_, at) => {
    const n = at % channels, x = Math.floor(at / channels) % outWidth, y = Math.floor(at / channels / outWidth);
    let sum = bias[n] + (added ? added[at] : 0);
    for (let place = 0; place < kernel * kernel; place++) {
      const row = y * stride + Math.floor(place / kernel) - top, column = x * stride + place % kernel - left;
      if (row < 0 || row >= height || column < 0 || column >= width) continue;
      for (let k = 0; k < 3; k++) sum += data[(row * width + column) * 3 + k] * weight(place, k, n);
    }
    return activation ? Math.max(sum, 0) : sum;
  });
}

/** Return by how much the engine differs from the formula for one picture and one kernel. */
function compare(engine) {
  const top = engine.top, picture = {height: random(1, 9), width: random(0, 9) ? random(1, 9) : random(60, 70)}, deep = random(0, 2) === 0;
  picture.data = Uint8Array.from({length: 3 * picture.height * picture.width}, () => random(0, 9));
  const node = {op: deep ? 'deep' : 'conv', inputs: [0], output: 1, kernel: random(1, 5), stride: random(1, 3), channels: deep ? 3 : random(1, 20), activation: random(0, 1)};
  node.pad = ['same', 0, node.kernel >> 1][random(0, 2)];
  if (slideOver(Math.min(picture.height, picture.width), node)[0] < 1) node.pad = 'same';
  const window = node.kernel ** 2, values = numbers(window * 3 * node.channels), bias = numbers(node.channels);
  const weight = (place, k, n) => deep && k !== n ? 0 : values[(place * 3 + k) * node.channels + n];
  node.bias = engine.keep(padRow(bias, node.channels));
  node.weight = engine.keep(deep ? Float32Array.from({length: 4 * window}, (_, at) => at % 4 < 3 ? weight(at >> 2, at % 4, at % 4) : 0) : packWindow(window, 3, node.channels, weight));
  const nodes = [node], wanted = convolve(picture, node, weight, bias);
  if (!deep && random(0, 1)) {  // the same once more, which the second one adds
    const {activation} = node;
    nodes.push({...node, output: 2, activation: 0}, {op: 'add', inputs: [1, 2], output: 3, activation});
    convolve(picture, {...node, activation: 0}, weight, bias).forEach((value, at) => { wanted[at] += value; });
    if (activation) wanted.forEach((value, at) => { wanted[at] = Math.max(value, 0); });
  }
  const [made] = new Graph(engine, nodes, 0, [nodes.at(-1).output]).run(picture, 1, 0);
  engine.top = top;
  return made.length === wanted.length ? Math.max(...made.map((value, at) => Math.abs(value - wanted[at]))) : Infinity;
}

(async () => {
  const engine = await Engine.create(new Uint8Array(fs.readFileSync(path.join(page, 'engine.wasm'))));
  engine.slot = engine.reserve(LOOK_FLOATS);
  const seconds = [], said = process.argv.slice(2).map((look) => {
    const start = process.cpuUsage().user;
    try {
      return readLook(engine, new Uint8Array(fs.readFileSync(look)), path.basename(look)).name;
    } catch (error) {
      return error instanceof LookError ? error.message : String(error);
    } finally {
      seconds.push((process.cpuUsage().user - start) / 1e6);
    }
  });
  console.log(JSON.stringify({said, seconds, apart: Math.max(...Array.from({length: 1500}, () => compare(engine)))}));
})();
