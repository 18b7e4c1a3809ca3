// Pictures as Pillow makes them smaller, larger and cut out: {width, height, channels, data}.
'use strict';

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const roundEven = (value) => {
  const down = Math.floor(value), rest = value - down;
  return rest < 0.5 || (rest === 0.5 && down % 2 === 0) ? down : down + 1;
};

const TRIANGLE = {reach: 1, at: (x) => Math.max(1 - Math.abs(x), 0)};
const CUBIC = {reach: 2, at: (x) => {
  x = Math.abs(x);
  return x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}};
const sinc = (x) => x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
const LANCZOS = {reach: 3, at: (x) => Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0};

/** Return a part of a photo of 4 channels as RGB. */
function crop(photo, left, top, right, bottom) {
  const width = right - left, height = bottom - top, data = new Uint8Array(width * height * 3);
  for (let y = top, to = 0; y < bottom; y++)
    for (let x = left, from = 4 * (y * photo.width + left); x < right; x++, from += 4) {
      data[to++] = photo.data[from];
      data[to++] = photo.data[from + 1];
      data[to++] = photo.data[from + 2];
    }
  return {width, height, channels: 3, data};
}

/** Return the means of blocks of a picture or photo, RGB. */
function reduce(picture, across, down = across) {
  const {width, height, channels, data} = picture, outWidth = Math.ceil(width / across), outHeight = Math.ceil(height / down);
  const out = new Uint8Array(outWidth * outHeight * 3);
  for (let y = 0, to = 0; y < outHeight; y++)
    for (let x = 0; x < outWidth; x++) {
      const right = Math.min((x + 1) * across, width), bottom = Math.min((y + 1) * down, height), count = (right - x * across) * (bottom - y * down);
      let red = 0, green = 0, blue = 0;
      for (let row = y * down; row < bottom; row++)
        for (let from = (row * width + x * across) * channels, end = (row * width + right) * channels; from < end; from += channels) {
          red += data[from];
          green += data[from + 1];
          blue += data[from + 2];
        }
      out[to++] = Math.floor((red + count / 2) / count);
      out[to++] = Math.floor((green + count / 2) / count);
      out[to++] = Math.floor((blue + count / 2) / count);
    }
  return {width: outWidth, height: outHeight, channels: 3, data: out};
}

/** Return [first, weights] for each of `count` new pixels along an axis of `length` old ones. */
function findShares(length, count, filter, end = length) {
  const scale = end / count, wide = Math.max(scale, 1), reach = filter.reach * wide;
  return Array.from({length: count}, (_, index) => {
    const middle = (index + 0.5) * scale, first = Math.max(Math.trunc(middle - reach + 0.5), 0), last = Math.min(Math.trunc(middle + reach + 0.5), length);
    const weights = Float64Array.from({length: last - first}, (_, tap) => filter.at((tap + first - middle + 0.5) / wide));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return [first, weights.map((weight) => weight / sum)];
  });
}

/** Resample rows of pixels: `shares` says from which of the old ones each new one is made. */
function resampleAcross(from, height, width, channels, shares, out) {
  for (let y = 0, to = 0; y < height; y++)
    for (const [first, weights] of shares)
      for (let channel = 0, start = (y * width + first) * channels; channel < channels; channel++, to++) {
        let sum = 0;
        for (let tap = 0, at = start + channel; tap < weights.length; tap++, at += channels) sum += from[at] * weights[tap];
        out[to] = sum;
      }
  return out;
}

/** Add up rows of `row` numbers into `sum`, from one on, each with its weight. */
function addRows(from, row, [first, weights], sum) {
  sum.fill(0);
  for (let tap = 0, at = first * row; tap < weights.length; tap++)
    for (let place = 0, weight = weights[tap]; place < row; place++, at++) sum[place] += from[at] * weight;
  return sum;
}

/** Return a picture in another size; kept as floats, or bytes rounded after each of the two ways. Source: Pillow's Resample.c */
function resample(picture, width, height, filter, ends = [picture.width, picture.height], floats = picture.data instanceof Float32Array) {
  const {channels} = picture, row = width * channels, make = (rows) => floats ? new Float32Array(rows * row) : new Uint8ClampedArray(rows * row);
  let data = picture.data;
  if (width !== picture.width || ends[0] !== picture.width)
    data = resampleAcross(data, picture.height, picture.width, channels, findShares(picture.width, width, filter, ends[0]), make(picture.height));
  if (height !== picture.height || ends[1] !== picture.height) {
    const sum = new Float64Array(row), out = make(height);
    findShares(picture.height, height, filter, ends[1]).forEach((share, y) => out.set(addRows(data, row, share, sum), y * row));
    data = out;
  }
  return {width, height, channels, data};
}

/** Return a photo made smaller: first by whole blocks, as far as nobody sees. */
function shrinkPhoto(photo, width, height) {
  const across = Math.trunc(photo.width / width / 2) || 1, down = Math.trunc(photo.height / height / 2) || 1;
  const reduced = across > 1 || down > 1 ? reduce(photo, across, down) : crop(photo, 0, 0, photo.width, photo.height);
  return resample(reduced, width, height, TRIANGLE, [photo.width / across, photo.height / down]);
}

/** Return the square (size, size) of a picture between a corner and two sides; box: all that need be looked at; the rest is as engine.c says. */
function cutSquare(engine, picture, [corner, right, down], size, {box = [0, 0, picture.width, picture.height], fine = 1, bicubic = 0, edge = 0, up = 0} = {}) {
  const {channels} = picture, width = box[2] - box[0], height = box[3] - box[1], row = channels * width, from = engine.top, to = (from + row * height + 16) & ~15;
  engine.ensure(to + 3 * size * size + 16);
  for (let y = 0; y < height; y++) {
    const start = channels * ((box[1] + y) * picture.width + box[0]);
    engine.bytes(from + y * row, row).set(picture.data.subarray(start, start + row));
  }
  const numbers = [corner[0] - box[0], corner[1] - box[1], ...[...right, ...down].map((value) => value / size)];
  engine.kernels.cut(from, width, height, channels, to, size, fine, bicubic, edge, up, ...numbers);
  return {width: size, height: size, channels: 3, data: engine.bytes(to, 3 * size * size).slice()};
}

/** Return a picture with a border around; source(i, length) says which pixel stands at i, from -before on. */
function pad(picture, [left, top, right, bottom], source) {
  const width = picture.width + left + right, height = picture.height + top + bottom, data = new Uint8Array(width * height * 3);
  const columns = Array.from({length: width}, (_, x) => 3 * source(x - left, picture.width));
  for (let y = 0, to = 0; y < height; y++) {
    const row = 3 * picture.width * source(y - top, picture.height);
    for (let x = 0; x < width; x++)
      for (let from = row + columns[x], end = from + 3; from < end; from++, to++) data[to] = picture.data[from];
  }
  return {width, height, channels: 3, data};
}

const edge = (index, length) => clamp(index, 0, length - 1);
const mirror = (index, length) => {
  if (length === 1) return 0;
  const round = 2 * (length - 1), place = ((index % round) + round) % round;
  return place < length ? place : round - place;
};

/** Return float pixels blurred by about a radius: made small and large again. */
function soften(picture, radius) {
  if (radius < 0.5) return picture;
  const small = [picture.width, picture.height].map((length) => Math.max(roundEven(length / (1.5 * radius)), 2));
  return resample(resample(picture, ...small, TRIANGLE), picture.width, picture.height, CUBIC);
}

/** Return the means of blocks of 4 x 4 pixels, floats, of a picture whose row y and column x are the old one's rows[y], columns[x]. */
function quarter(picture, rows, columns) {
  const {data} = picture, width = Math.ceil(columns.length / 4), height = Math.ceil(rows.length / 4), out = new Float32Array(width * height * 3);
  for (let y = 0; y < rows.length; y++) {
    const deep = Math.min(4, rows.length - (y & ~3)), start = (y >> 2) * width * 3, row = rows[y] * picture.width * 3;
    for (let x = 0; x < columns.length; x++) {
      const from = row + 3 * columns[x], to = start + 3 * (x >> 2), share = 1 / (deep * Math.min(4, columns.length - (x & ~3)));
      out[to] += data[from] * share;
      out[to + 1] += data[from + 1] * share;
      out[to + 2] += data[from + 2] * share;
    }
  }
  return {width, height, channels: 3, data: out};
}

/** Return the part between two corners of a picture with mirrored borders that get blurred and pale outwards. Source: tinybeauty/alignment.py */
function padMirrored(picture, border, side, low, high) {
  const wide = [picture.width + border[0] + border[2], picture.height + border[1] + border[3]], [width, height] = wide;
  const [columns, rows] = [picture.width, picture.height].map((length, axis) => Int32Array.from({length: wide[axis]}, (_, at) => mirror(at - border[axis], length)));
  const [across, down] = wide.map((length, axis) => Float32Array.from({length}, (_, at) => 1 - Math.min(at / border[axis], (length - 1 - at) / border[axis + 2])));
  const blocks = quarter(picture, rows, columns), cell = Math.max(0.03 * side, 1);  // the blur: made small and large again
  const small = resample(blocks, ...wide.map((length) => Math.max(roundEven(length / cell), 2)), TRIANGLE, [width / 4, height / 4]);
  const medians = findMedians(picture, rows, columns, resample(small, blocks.width, blocks.height, CUBIC).data, (x, y) => Math.max(across[x], down[y]));
  const blurred = resample(small, width, small.height, CUBIC).data, shares = findShares(small.height, height, CUBIC);
  [low, high] = [low, high].map((corner) => corner.map((value, axis) => clamp(value, 0, wide[axis])));
  const out = {width: high[0] - low[0], height: high[1] - low[1], channels: 3, data: new Uint8ClampedArray((high[0] - low[0]) * (high[1] - low[1]) * 3)};
  for (let y = low[1], to = 0; y < high[1]; y++) {
    const row = rows[y] * picture.width * 3, [first, weights] = shares[y];
    for (let x = low[0]; x < high[0]; x++) {
      const from = row + 3 * columns[x], outside = Math.max(across[x], down[y]), soft = Math.min(3 * outside + 1, 1), pale = clamp(outside, 0, 1);
      for (let channel = 0; channel < 3; channel++) {
        let value = picture.data[from + channel];
        if (soft > 0) {
          let sum = 0;
          for (let tap = 0, at = 3 * (first * width + x) + channel; tap < weights.length; tap++, at += 3 * width) sum += blurred[at] * weights[tap];
          value += (sum - value) * soft;
          value += (medians[channel] - value) * pale;
        }
        out.data[to++] = value;
      }
    }
  }
  return [out, low];
}

/** Return the medians of red, green and blue of each 16th pixel of a padded picture, to a 16th of a level. */
function findMedians(picture, rows, columns, soft, outside) {
  const counts = [0, 1, 2].map(() => new Uint32Array(4081));
  for (let y = 0, place = 0; y < rows.length; y += 4)
    for (let x = 0; x < columns.length; x += 4)
      for (let channel = 0, share = clamp(3 * outside(x, y) + 1, 0, 1), from = 3 * (rows[y] * picture.width + columns[x]); channel < 3; channel++, place++)
        counts[channel][clamp(Math.round(16 * (picture.data[from + channel] * (1 - share) + soft[place] * share)), 0, 4080)]++;
  return counts.map((count) => {
    let left = Math.ceil(columns.length / 4) * Math.ceil(rows.length / 4) / 2, level = 0;
    while ((left -= count[level]) > 0) level++;
    return level / 16;
  });
}

/** Return a picture turned by quarters, against the clock. */
function turn(picture, quarters) {
  for (; quarters; quarters--) {
    const {width, height, data} = picture, out = new Uint8Array(data.length);
    for (let y = 0, to = 0; y < width; y++)
      for (let x = 0; x < height; x++)
        for (let channel = 0, from = 3 * (x * width + width - 1 - y); channel < 3; channel++) out[to++] = data[from + channel];
    picture = {width: height, height: width, channels: 3, data: out};
  }
  return picture;
}

/** Fill a polygon in a float mask with 1, its border too, as Pillow does: corners are cut to whole pixels. */
function fillPolygon(mask, corners) {
  const {width, height, data} = mask, points = corners.map((point) => point.map(Math.trunc));
  const rows = points.map((point) => point[1]), lowest = Math.max(Math.min(...rows), 0), highest = Math.min(Math.max(...rows), height - 1);
  const line = (y, from, to) => {
    for (let x = Math.max(Math.ceil(from - 0.5), 0); x <= Math.min(Math.floor(to + 0.5), width - 1); x++) data[y * width + x] = 1;
  };
  for (let y = lowest; y <= highest; y++)
    for (const below of [0, 1]) {  // an edge's upper end belongs to it, then its lower one: together its whole
      const crossings = [];
      points.forEach((start, index) => {
        const end = points[(index + 1) % points.length], upper = Math.min(start[1], end[1]), lower = Math.max(start[1], end[1]);
        if (upper === lower) {
          if (y === upper) line(y, Math.min(start[0], end[0]), Math.max(start[0], end[0]));
        } else if (below ? y > upper && y <= lower : y >= upper && y < lower)
          crossings.push(start[0] + (end[0] - start[0]) * (y - start[1]) / (end[1] - start[1]));
      });
      crossings.sort((a, b) => a - b);
      for (let index = 0; index + 1 < crossings.length; index += 2) line(y, crossings[index], crossings[index + 1]);
    }
}
