// A face's FFHQ square, as tinybeauty/alignment.py cuts it out, and makeup laid back onto the photo, as
// tinybeauty/blending.py does. Points and squares are those of faces.js.
'use strict';

/** Return where a (2, 3) way has a point. */
const moveTo = (way, point) => way.map((row) => dot(row, point) + row[2]);

/** Return the corners of a square. */
const findCorners = (square) => [[0, 0], [0, 1], [1, 1], [1, 0]].map(([x, y]) => inSquare(square, x, y));

/** Return {picture, points, way, square} of a face: its FFHQ square, SIDE pixels wide; way: (2, 3) from the photo's pixels. */
function align(engine, photo, face) {
  const {width, height} = photo, sides = [[0, 0], [width, 0], [0, height]];
  let [corner, right, down] = face.quad;
  const apart = Math.max(...findCorners(face.quad).flatMap((point, index) => minus(point, findCorners(sides)[index]).map(Math.abs)));
  const whole = width === height && apart <= 0.03 * width;  // the picture is aligned already
  if (whole) [corner, right, down] = sides;
  const area = (right[0] * down[1] - right[1] * down[0]) / SIDE;
  const rows = [[down[1] / area, -down[0] / area], [-right[1] / area, right[0] / area]];
  const way = rows.map((row) => [...row, -dot(row, corner)]);
  const points = face.points.map((point) => moveTo(way, point)), square = [corner, right, down];
  if (whole) {
    const picture = crop(photo, 0, 0, width, height);
    return {picture: width === SIDE ? picture : resample(picture, SIDE, SIDE, LANCZOS), points, way, square};
  }
  let side = span(right), border = Math.max(roundEven(0.1 * side), 3);
  const bounds = findBounds(findCorners([corner, right, down])), low = bounds[0].map(Math.floor), high = bounds[1].map(Math.ceil);
  const from = low.map((value) => Math.max(value - border, 0)), to = [Math.min(high[0] + border, width), Math.min(high[1] + border, height)];
  if (face.live && side < 3 * SIDE)  // fewer places are looked at, and the photo's border goes on
    return {picture: cutSquare(engine, photo, [corner, right, down], SIDE, {box: [...from, ...to], edge: 1, fine: Math.max(Math.trunc(side / SIDE), 1)}), points, way, square};
  let part = crop(photo, ...from, ...to);
  corner = minus(corner, from);
  const shrink = Math.trunc(side / SIDE * 0.5);
  if (shrink > 1) {
    part = reduce(part, shrink);
    [corner, right, down] = [corner, right, down].map((vector) => vector.map((value) => value / shrink));
    side /= shrink;
    border = Math.max(roundEven(0.1 * side), 3);
  }
  const [lowest, highest] = findBounds(findCorners([corner, right, down]));
  const lacking = [...lowest.map((value) => -Math.floor(value)), Math.ceil(highest[0]) - part.width, Math.ceil(highest[1]) - part.height].map((value) => Math.max(value, -border) + border);
  if (Math.max(...lacking) > border - 4) {
    const around = lacking.map((value) => Math.max(value, roundEven(0.3 * side)));
    const first = plus(lowest.map(Math.floor), around).map((value) => value - 3), last = plus(highest.map(Math.ceil), around).map((value) => value + 3);
    const [padded, shift] = padMirrored(part, around, side, first, last);
    part = padded;
    corner = minus(plus(corner, around), shift);
  }
  const fine = Math.ceil(side / SIDE);
  return {picture: cutSquare(engine, part, [corner, right, down], SIDE, {fine, bicubic: Number(fine === 1)}), points, way, square};
}

/** Throw LeftOut for an aligned face without colours. */
function checkColours({picture, points}) {
  const [low, high] = findBounds(points), first = low.map((value) => clamp(Math.floor(value), 0, SIDE)), last = high.map((value) => clamp(Math.ceil(value), 0, SIDE));
  let sum = 0, count = 0;
  for (let y = first[1]; y < last[1]; y++)
    for (let x = first[0]; x < last[0]; x++, count++) {
      const at = 3 * (y * SIDE + x), colour = picture.data.subarray(at, at + 3);
      sum += Math.max(...colour) - Math.min(...colour);
    }
  if (!(sum / count >= 4)) throw new LeftOut(`grey: red, green and blue differ by ${(sum / count).toFixed(1)} of 255, 4 are needed`);
}

// --- Makeup -------------------------------------------------------------------------------------------

/** Return (SIDE, SIDE) soft masks {lips, eyes} of an aligned face. Source: tinybeauty/blending.py, weigh_parts */
function findMasks(points) {
  const unit = span(minus(points[UPPER_LID[1][0]], points[UPPER_LID[0][0]]));
  const fill = (outlines, radius) => {
    const mask = {width: SIDE, height: SIDE, channels: 1, data: new Float32Array(SIDE * SIDE)};
    for (const outline of outlines) fillPolygon(mask, outline.map(([x, y]) => [x - 0.5, y - 0.5]));
    return soften(mask, radius).data.map((value) => clamp(value, 0, 1));
  };
  const outline = pick(points, LIPS_OUTER), middle = middleOf(outline);
  const lips = fill([outline.map(([x, y]) => [middle[0] + (x - middle[0]) * 1.08, middle[1] + (y - middle[1]) * 1.18])], 0.03 * unit);
  const outlines = [-1, 1].map((sign, side) => {
    const upper = pick(points, UPPER_LID[side]), lower = pick(points, LOWER_LID[side]);
    const top = pick(points, BROW_TOP[side]).map((point) => plus(point, [0, -0.05 * unit]));
    const tail = plus(points[BROW_BASE[side]], [sign * 0.05 * unit, 0]), nose = plus(upper[8], [-sign * 0.03 * unit, 0]);
    const below = lower.reverse().map((point) => plus(point, [0, 0.08 * unit])), wing = plus(upper[0], [sign * 0.24 * unit, -0.12 * unit]);
    return [tail, ...top, nose, ...below, wing];
  });
  return {lips, eyes: fill(outlines, 0.05 * unit).map((value, index) => value * (1 - lips[index]))};
}

/** Return how much of each pixel of an aligned face is its own, (SIDE, SIDE), null for all. Source: tinybeauty/blending.py, find_own */
function findOwn(face, others) {
  if (!others.length) return null;
  const {way} = face.aligned, [[a, b], [d, e]] = way, own = new Float32Array(SIDE * SIDE);
  const [measure, ...measures] = [face, ...others].map(({points, quad}) => {
    const [x, y] = moveTo(way, middleOf(points)), side = Math.sqrt(a * e - b * d) * span(quad[1]);
    return (at) => Math.sqrt((at % SIDE + 0.5 - x) ** 2 + (Math.trunc(at / SIDE) + 0.5 - y) ** 2) / side;
  });
  for (let at = 0; at < own.length; at++)
    own[at] = clamp(0.5 + (measures.reduce((least, other) => Math.min(least, other(at)), 9) - measure(at)) / (2 * MEETING), 0, 1);
  return own;
}

const RAMP = Float32Array.from({length: SIDE}, (_, at) => {
  const share = clamp(Math.min(at, SIDE - 1 - at) / FADE, 0, 1);
  return share * share * (3 - 2 * share);
});

/** Return what a look adds to an aligned face, (SIDE, SIDE, 4) in grey levels, faded out at the border. */
function findResidual(engine, look, picture) {
  const residual = runLook(engine, look, picture);
  for (let y = 0, at = 0, from = 0; y < SIDE; y++)
    for (let x = 0; x < SIDE; x++, at++)
      for (let share = 255 * Math.min(RAMP[x], RAMP[y]), end = at + 3; at < end; at++, from++) {
        const pixel = picture.data[from] / 255;
        residual[at] = (clamp(pixel + residual[at], 0, 1) - pixel) * share;
      }
  return residual;
}

/** Lay a face's residual onto a photo of 4 channels, in place; request: {strength, lips, eyes, skin}. */
function layMakeup(engine, photo, face, residual, request) {
  const {aligned} = face, {strength, lips, eyes, skin} = request, one = lips === eyes && eyes === skin;
  if (!one) aligned.masks ??= findMasks(aligned.points);
  aligned.own ??= findOwn(face, face.others || []);
  const {masks, own} = aligned;
  let weighed = residual.slice();
  for (let at = 0, place = 0; at < weighed.length; at += 4, place++) {
    const part = one ? skin : skin + (lips - skin) * masks.lips[place] + (eyes - skin) * masks.eyes[place];
    const share = strength * face.weight * part * (own ? own[place] : 1);
    weighed[at] *= share;
    weighed[at + 1] *= share;
    weighed[at + 2] *= share;
  }
  let size = SIDE, way = aligned.way;
  const [[a, b], [d, e]] = way, fine = Math.sqrt(Math.abs(a * e - b * d));
  if (fine >= 1.2) {  // no finer than the photo, or it would jag
    size = Math.max(roundEven(SIDE / fine), 8);
    weighed = resample({width: SIDE, height: SIDE, channels: 4, data: weighed}, size, size, CUBIC).data;
    way = way.map((row) => row.map((value) => value * size / SIDE));
  }
  const [low, high] = findBounds(findCorners(aligned.square));
  const left = clamp(Math.floor(low[0]), 0, photo.width), right = clamp(Math.ceil(high[0]), 0, photo.width);
  const top = clamp(Math.floor(low[1]), 0, photo.height), bottom = clamp(Math.ceil(high[1]), 0, photo.height);
  if (left >= right || top >= bottom) return;
  const width = right - left, line = 4 * (size + 8), frame = engine.top, band = Math.max(Math.floor(65536 / width), 1);
  const pixels = (frame + 4 * line * (size + 8) + 15) & ~15;
  engine.ensure(pixels + 4 * width * band);
  const floats = engine.floats(frame, line * (size + 8)).fill(0);
  for (let y = 0; y < size; y++) floats.set(weighed.subarray(4 * size * y, 4 * size * (y + 1)), (y + 4) * line + 16);
  for (let first = top; first < bottom; first += band) {
    const rows = Math.min(band, bottom - first), bytes = new Uint8Array(engine.memory.buffer, pixels, 4 * width * rows);
    for (let row = 0; row < rows; row++) {
      const from = 4 * ((first + row) * photo.width + left);
      bytes.set(photo.data.subarray(from, from + 4 * width), 4 * row * width);
    }
    const shift = way.map((row) => row[0] * left + row[1] * first + row[2]);
    engine.kernels.lay(pixels, rows, width, frame, size, face.live ? 0 : 1, way[0][0], way[0][1], shift[0], way[1][0], way[1][1], shift[1]);
    for (let row = 0; row < rows; row++) photo.data.set(bytes.subarray(4 * row * width, 4 * (row + 1) * width), 4 * ((first + row) * photo.width + left));
  }
}

/** Return a face with its aligned picture and no residuals yet. */
function prepare(engine, photo, face) {
  return Object.assign(face, {aligned: align(engine, photo, face), residuals: new Map()});
}
