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
      for (const sum of [red, green, blue]) out[to++] = Math.floor((sum + count / 2) / count);
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

/** Return a picture in another size. Source: Pillow's Resample.c; bytes are rounded after each of the two ways. */
function resample(picture, width, height, filter, ends = [picture.width, picture.height]) {
  const {channels} = picture, make = (count) => picture.data instanceof Float32Array ? new Float32Array(count) : new Uint8ClampedArray(count);
  const oneWay = (from, lines, length, lineStep, pixelStep, count, toLine, toPixel, end) => {
    const out = make(lines * count * channels);
    findShares(length, count, filter, end).forEach(([first, weights], index) => {
      for (let line = 0; line < lines; line++)
        for (let channel = 0; channel < channels; channel++) {
          let sum = 0, at = line * lineStep + first * pixelStep + channel;
          for (let tap = 0; tap < weights.length; tap++, at += pixelStep) sum += from[at] * weights[tap];
          out[line * toLine + index * toPixel + channel] = sum;
        }
    });
    return out;
  };
  let data = picture.data;
  if (width !== picture.width || ends[0] !== picture.width)
    data = oneWay(data, picture.height, picture.width, picture.width * channels, channels, width, width * channels, channels, ends[0]);
  if (height !== picture.height || ends[1] !== picture.height)
    data = oneWay(data, width, picture.height, channels, width * channels, height, channels, width * channels, ends[1]);
  return {width, height, channels, data};
}

/** Return a photo made smaller: first by whole blocks, as far as nobody sees. */
function shrinkPhoto(photo, width, height) {
  const across = Math.trunc(photo.width / width / 2) || 1, down = Math.trunc(photo.height / height / 2) || 1;
  const reduced = across > 1 || down > 1 ? reduce(photo, across, down) : crop(photo, 0, 0, photo.width, photo.height);
  return resample(reduced, width, height, TRIANGLE, [photo.width / across, photo.height / down]);
}

/** Return the square (size, size) of an RGB picture between a corner and two sides, bilinear or bicubic; cut to whole levels. */
function cutSquare(picture, [corner, right, down], size, bicubic) {
  const {width, height, data} = picture, out = new Uint8Array(size * size * 3);
  const cubic = (a, b, c, d, t) => b + t * (c - a + t * (2 * (a - b) + c - d + t * (b - a - c + d)));
  const columns = [0, 0, 0, 0], rows = [0, 0, 0, 0], lines = [0, 0, 0, 0];
  for (let y = 0, to = 0; y < size; y++)
    for (let x = 0; x < size; x++) {
      const atX = corner[0] + (right[0] * (x + 0.5) + down[0] * (y + 0.5)) / size, atY = corner[1] + (right[1] * (x + 0.5) + down[1] * (y + 0.5)) / size;
      if (!(atX >= 0 && atY >= 0 && atX < width && atY < height)) {
        to += 3;
        continue;
      }
      const left = Math.floor(atX - 0.5), top = Math.floor(atY - 0.5), alongX = atX - 0.5 - left, alongY = atY - 0.5 - top;
      for (let tap = 0; tap < 4; tap++) {
        columns[tap] = 3 * clamp(left - 1 + tap, 0, width - 1);
        rows[tap] = 3 * width * clamp(top - 1 + tap, 0, height - 1);
      }
      for (let channel = 0; channel < 3; channel++) {
        let value;
        if (bicubic) {
          for (let row = 0; row < 4; row++) {
            const at = rows[row] + channel;
            lines[row] = cubic(data[at + columns[0]], data[at + columns[1]], data[at + columns[2]], data[at + columns[3]], alongX);
          }
          value = cubic(...lines, alongY);
        } else {
          const upper = rows[1] + channel, lower = rows[2] + channel;
          const first = data[upper + columns[1]] + (data[upper + columns[2]] - data[upper + columns[1]]) * alongX;
          value = first + (data[lower + columns[1]] + (data[lower + columns[2]] - data[lower + columns[1]]) * alongX - first) * alongY;
        }
        out[to++] = clamp(value, 0, 255);
      }
    }
  return {width: size, height: size, channels: 3, data: out};
}

/** Return a picture with a border around; source(i, length) says which pixel stands at i, from -before on. */
function pad(picture, [left, top, right, bottom], source) {
  const width = picture.width + left + right, height = picture.height + top + bottom, data = new Uint8Array(width * height * 3);
  const columns = Array.from({length: width}, (_, x) => 3 * source(x - left, picture.width));
  for (let y = 0, to = 0; y < height; y++) {
    const row = 3 * picture.width * source(y - top, picture.height);
    for (let x = 0; x < width; x++)
      for (let channel = 0; channel < 3; channel++) data[to++] = picture.data[row + columns[x] + channel];
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

/** Return a picture with mirrored borders that get blurred and pale outwards. Source: tinybeauty/alignment.py */
function padMirrored(picture, border, side) {
  const padded = pad(picture, border, mirror), {width, height} = padded, image = Float32Array.from(padded.data), count = width * height;
  const outside = (x, y) => 1 - Math.min(x / border[0], (width - 1 - x) / border[2], y / border[1], (height - 1 - y) / border[3]);
  const blurred = soften({width, height, channels: 3, data: image.slice()}, 0.02 * side).data;
  for (let at = 0; at < count; at++) {
    const share = clamp(3 * outside(at % width, Math.floor(at / width)) + 1, 0, 1);
    for (let index = 3 * at; index < 3 * at + 3; index++) image[index] += (blurred[index] - image[index]) * share;
  }
  const medians = [0, 1, 2].map((channel) => {
    const some = [];
    for (let y = 0; y < height; y += 4) for (let x = 0; x < width; x += 4) some.push(image[3 * (y * width + x) + channel]);
    some.sort((a, b) => a - b);
    return (some[(some.length - 1) >> 1] + some[some.length >> 1]) / 2;
  });
  for (let at = 0; at < count; at++) {
    const share = clamp(outside(at % width, Math.floor(at / width)), 0, 1);
    for (let channel = 0; channel < 3; channel++)
      padded.data[3 * at + channel] = roundEven(clamp(image[3 * at + channel] + (medians[channel] - image[3 * at + channel]) * share, 0, 255));
  }
  return padded;
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
