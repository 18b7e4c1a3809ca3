// Faces in a photo, as tinybeauty/faces.py finds them.
//
// A point is [x, y] or [x, y, depth] in the photo's pixels, counted from the top left corner of the first one.
// A square is [corner, right, down]: its top left corner and the vectors along its upper and its left side.
'use strict';

const UPPER_LID = [[33, 246, 161, 160, 159, 158, 157, 173, 133], [263, 466, 388, 387, 386, 385, 384, 398, 362]];
const LOWER_LID = [[33, 7, 163, 144, 145, 153, 154, 155, 133], [263, 249, 390, 373, 374, 380, 381, 382, 362]];
const BROW_TOP = [[70, 63, 105, 66, 107], [300, 293, 334, 296, 336]], BROW_BASE = [46, 276];
const LIPS_OUTER = [61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91, 146];
const BARE_SKIN = [50, 101, 118, 205, 280, 330, 347, 425, 9, 151, 108, 337, 195, 5];
const EYE_CORNERS = [33, 263], NOSE_TIP = 1, FOREHEAD = 10, CHIN = 152, MOUTH_CORNERS = [61, 291];
const DLIB_EYES = [[33, 160, 158, 133, 153, 144], [362, 385, 387, 263, 373, 380]];
const SIDE = 256, FADE = 8, VIEW = 288, MESH_SIDE = 192, MIN_SIDE = 100, MEETING = 0.05, REACH = [0.03, 0.03, 0.06, 0.1];

/** Why a face is left out, in words for a person. */
class LeftOut extends Error {}

const plus = (a, b, factor = 1) => [a[0] + factor * b[0], a[1] + factor * b[1]];
const minus = (a, b) => [a[0] - b[0], a[1] - b[1]];
const dot = (a, b) => a[0] * b[0] + a[1] * b[1];
const span = (a) => Math.hypot(a[0], a[1]);
const middleOf = (points) => points.reduce((sum, point) => plus(sum, point, 1 / points.length), [0, 0]);
const pick = (points, numbers) => numbers.map((number) => points[number]);
const sigmoid = (value) => 1 / (1 + Math.exp(-clamp(value, -100, 100)));
const inSquare = ([corner, right, down], x, y) => [corner[0] + right[0] * x + down[0] * y, corner[1] + right[1] * x + down[1] * y];

/** Return [[lowest x, lowest y], [highest x, highest y]]. */
function findBounds(points) {
  const low = [Infinity, Infinity], high = [-Infinity, -Infinity];
  for (const point of points)
    for (const axis of [0, 1]) {
      low[axis] = Math.min(low[axis], point[axis]);
      high[axis] = Math.max(high[axis], point[axis]);
    }
  return [low, high];
}

/** Return a square around a centre. */
function makeSquare(centre, side, angle) {
  const right = [side * Math.cos(angle), side * Math.sin(angle)], down = [-right[1], right[0]];
  return [plus(plus(centre, right, -0.5), down, -0.5), right, down];
}

/** Return the FFHQ square of a face. Source: Karras et al. 2019, appendix A */
function findQuad(points) {
  const [left, right] = DLIB_EYES.map((eye) => middleOf(pick(points, eye))), eyes = middleOf([left, right]), across = minus(right, left);
  const down = minus(middleOf(pick(points, MOUTH_CORNERS)), eyes);
  let x = plus(across, [down[1], -down[0]]);
  const size = Math.max(span(across) * 2, span(down) * 1.8) / Math.max(span(x), 1e-6);
  x = [x[0] * size, x[1] * size];
  const y = [-x[1], x[0]], centre = plus(eyes, down, 0.1);
  return [minus(minus(centre, x), y), [2 * x[0], 2 * x[1]], [2 * y[0], 2 * y[1]]];
}

/** Return the square that the mesh wants: upright in the face's own axes, 1.5 times as wide as its points. */
function findFrame(points) {
  const across = minus(points[EYE_CORNERS[1]], points[EYE_CORNERS[0]]), angle = Math.atan2(across[1], across[0]);
  const cos = Math.cos(angle), sin = Math.sin(angle);
  const [low, high] = findBounds(points.map(([x, y]) => [x * cos + y * sin, y * cos - x * sin])), [x, y] = middleOf([low, high]);
  return makeSquare([x * cos - y * sin, x * sin + y * cos], 1.5 * Math.max(high[0] - low[0], high[1] - low[1]), angle);
}

// --- Looking ------------------------------------------------------------------------------------------

/** Return [picture, square it shows]: the upright picture of a square, grown; outside the photo its border goes on. */
function cutView(engine, photo, [corner, right, down], size, grow) {
  corner = plus(plus(corner, right, (1 - grow) / 2), down, (1 - grow) / 2);
  [right, down] = [right, down].map((side) => [side[0] * grow, side[1] * grow]);
  const whole = [corner, right, down], limits = [photo.width, photo.height];
  const [low, high] = findBounds([[0, 0], [0, 1], [1, 1], [1, 0]].map(([x, y]) => inSquare(whole, x, y)));
  const first = low.map((value) => Math.floor(value) - 2), last = high.map((value) => Math.ceil(value) + 2);
  const from = first.map((value, axis) => clamp(value, 0, limits[axis] - 1)), to = last.map((value, axis) => clamp(value, 1, limits[axis]));
  const shrink = Math.trunc(span(right) / size);
  if (shrink < 2) return [cutSquare(engine, photo, whole, size, {box: [...from, ...to], edge: 1}), whole];
  let part = reduce(crop(photo, ...from, ...to), shrink);
  const border = [from[0] - first[0], from[1] - first[1], last[0] - to[0], last[1] - to[1]].map((count) => Math.ceil(Math.max(count, 0) / shrink));
  if (border.some(Boolean)) part = pad(part, border, edge);
  const own = minus(corner, from).map((value, axis) => value / shrink + border[axis]);
  const sides = [right, down].map((side) => side.map((value) => value / shrink));
  return [cutSquare(engine, part, [own, ...sides], size), whole];
}

/** Return [a photo made small on black, how many of its pixels are one of these]. */
function shrinkOnto(photo, longer, multiple) {
  const scale = Math.max(photo.width, photo.height) / longer;
  const [width, height] = [photo.width, photo.height].map((length) => Math.max(roundEven(length / scale), 1));
  const small = shrinkPhoto(photo, width, height), [canvasWidth, canvasHeight] = [width, height].map((length) => Math.ceil(length / multiple) * multiple);
  const data = new Uint8Array(canvasWidth * canvasHeight * 3);
  for (let y = 0; y < height; y++) data.set(small.data.subarray(3 * y * width, 3 * (y + 1) * width), 3 * y * canvasWidth);
  return [{width: canvasWidth, height: canvasHeight, channels: 3, data}, scale];
}

/** Return where the mesh looks in a round: right, down, size, angle. Source: Roberts 2018, R4 */
function choosePlaces(number) {
  const steps = [0.8566749, 0.7338919, 0.6287067, 0.5385973];
  const [first, second] = [2 * number + 1, 2 * number + 2].map((factor) => steps.map((step, axis) => ((factor * step) % 1 * 2 - 1) * REACH[axis]));
  const back = (place) => place.map((value) => -value);
  return [first, back(first), second, back(second)].map(([x, y, size, angle]) => [x, y, size + 1, angle]);
}

/** Return the boxes of one heap as one, for each heap: the mean, weighted by the scores; surest first. */
function mergeHeaps(found) {
  const overlap = ([lowA, highA], [lowB, highB]) => {
    const common = Math.max(Math.min(highA[0], highB[0]) - Math.max(lowA[0], lowB[0]), 0) * Math.max(Math.min(highA[1], highB[1]) - Math.max(lowA[1], lowB[1]), 0);
    return common / ((highA[0] - lowA[0]) * (highA[1] - lowA[1]) + (highB[0] - lowB[0]) * (highB[1] - lowB[1]) - common);
  };
  const merged = [];
  for (let left = [...found].sort((a, b) => b.score - a.score); left.length;) {
    const best = left[0], near = left.filter((one) => one === best || overlap(best.shape, one.shape) > 0.3);
    const total = near.reduce((sum, one) => sum + one.score, 0);
    const shape = best.shape.map((_, index) => near.reduce((sum, one) => plus(sum, one.shape[index], one.score / total), [0, 0]));
    merged.push({score: best.score, box: shape.slice(0, 2), keys: shape.slice(2)});
    left = left.filter((one) => !near.includes(one));
  }
  return merged;
}

/** MediaPipe's models: detectors of near and of far faces, and the mesh. */
class FaceModels {
  constructor(near, far, mesh) {
    this.near = {graph: near, layers: [[8, 2], [16, 6]]};
    this.far = {graph: far, layers: [[4, 1]]};
    this.mesh = mesh;
  }

  /** Return what a detector sees in a picture: {score, box, keys}, surest first. */
  detect({graph, layers}, picture) {
    const [shapes, scores] = graph.run(picture, 1 / 127.5, -1).sort((a, b) => b.length - a.length), found = [];
    let index = 0;
    for (const [step, boxes] of layers)
      for (let y = step / 2; y < picture.height; y += step)
        for (let x = step / 2; x < picture.width; x += step)
          for (let box = 0; box < boxes; box++, index++) {
            if (scores[index] < 0) continue;  // a score of 0.5
            const raw = Array.from({length: 8}, (_, corner) => [shapes[16 * index + 2 * corner], shapes[16 * index + 2 * corner + 1]]);
            const at = raw.map((point) => plus(point, [x, y])), half = raw[1];
            found.push({score: sigmoid(scores[index]), shape: [plus(at[0], half, -0.5), plus(at[0], half, 0.5), ...at.slice(2)]});
          }
    return mergeHeaps(found);
  }

  /** Return [turn, detection] for a picture turned by quarters, in the pixels of the picture as it is. */
  detectTurned(detector, picture, turns) {
    const {width, height} = picture;
    const back = [([x, y]) => [x, y], ([x, y]) => [width - y, x], ([x, y]) => [width - x, height - y], ([x, y]) => [y, height - x]];
    return turns.flatMap((quarters) => this.detect(detector, turn(picture, quarters)).map((one) => [quarters,
      {score: one.score, box: findBounds(one.box.map(back[quarters])), keys: one.keys.map(back[quarters])}]));
  }

  /** Return {points, presence} of the mesh that looks at a square of a picture, in the picture's pixels; how: as for cutSquare. */
  findMesh(picture, square, how) {
    const [corner, right, down] = square, half = 0.5 / MESH_SIDE;  // MediaPipe counts pixels from their centres here
    const first = plus(plus(plus(corner, right, -half), down, -half), [0.5, 0.5]), cut = cutSquare(this.mesh.engine, picture, [first, right, down], MESH_SIDE, {up: 0.5, ...how});
    const [mesh, lips, leftEye, rightEye, irisLeft, irisRight, flag] = this.mesh.run(cut, 1 / 255, 0);
    const points = Array.from({length: 478}, (_, index) => [mesh[3 * index], mesh[3 * index + 1], mesh[3 * index + 2]]), subsets = this.mesh.subsets;
    [lips, leftEye, rightEye].forEach((part, index) => subsets[index].forEach((number, place) => {
      points[number][0] = part[2 * place];
      points[number][1] = part[2 * place + 1];
    }));
    [irisLeft, irisRight].forEach((iris, index) => {
      const depth = subsets[index + 1].slice(0, 16).reduce((sum, number) => sum + points[number][2] / 16, 0);
      for (let place = 0; place < 5; place++) points[468 + 5 * index + place] = [iris[2 * place], iris[2 * place + 1], depth];
    });
    const size = span(square[1]) / MESH_SIDE;
    return {points: points.map(([x, y, depth]) => [...inSquare(square, x / MESH_SIDE, y / MESH_SIDE), depth * size]), presence: sigmoid(flag[0])};
  }

  /** Return what the mesh sees of a face from some places around a square, in the photo's pixels. */
  lookClosely(photo, square, places) {
    const [view, whole] = cutView(this.mesh.engine, photo, square, VIEW, 1.5), side = VIEW / 1.5, size = span(whole[1]) / VIEW;
    return places.map(([x, y, larger, angle]) => {
      const seen = this.findMesh(view, makeSquare([VIEW / 2 + side * x, VIEW / 2 + side * y], side * larger, angle));
      return {presence: seen.presence, points: seen.points.map((point) => [...inSquare(whole, point[0] / VIEW, point[1] / VIEW), point[2] * size])};
    });
  }
}

// --- Finding ------------------------------------------------------------------------------------------
const widthOf = (box) => Math.max(box[1][0] - box[0][0], box[1][1] - box[0][1]);

/** Whether two boxes show the same face. */
function isSame(box, other) {
  const sides = [widthOf(box), widthOf(other)];
  return span(minus(middleOf(box), middleOf(other))) < 0.5 * Math.max(...sides) && Math.max(...sides) < 2.5 * Math.min(...sides);
}

/** Return what the detectors take for faces, one for each place; how: 'live' looks only upright, 'thoroughly' at everything. */
function findSeeds(photo, models, how) {
  const thoroughly = how === 'thoroughly', live = how === 'live';
  const longer = clamp(32 * Math.ceil(Math.max(photo.width, photo.height) * 13 / 52 / 32), 192, thoroughly ? 768 : 576);
  const looks = [[models.near, ...shrinkOnto(photo, 128, 128), live ? [0] : [0, 1, 2, 3]]];
  if (thoroughly) looks.push([models.near, ...shrinkOnto(photo, 64, 128), [0, 1, 2, 3]]);
  looks.push([models.far, ...shrinkOnto(photo, longer, 32), thoroughly ? [0, 1, 2, 3] : [0]]);
  if (!thoroughly && !live) looks.push([models.far, ...shrinkOnto(photo, Math.max(Math.ceil(longer / 64) * 32, 192), 32), [1, 2, 3]]);
  const seen = looks.flatMap(([detector, picture, scale, turns]) => models.detectTurned(detector, picture, turns).map(([, one]) => ({
    score: one.score, box: one.box.map(([x, y]) => [x * scale, y * scale]), keys: one.keys.map(([x, y]) => [x * scale, y * scale])})));
  const seeds = [];
  for (const one of seen.sort((a, b) => b.score - a.score)) if (!seeds.some((other) => isSame(one.box, other.box))) seeds.push(one);
  return seeds;
}

const seedSquare = (seed) => {
  const across = minus(seed.keys[1], seed.keys[0]);
  return makeSquare(middleOf(seed.box), 1.5 * widthOf(seed.box), Math.atan2(across[1], across[0]));
};

/** Return the detection of one face seen from near and upright; throws LeftOut. */
function lookUpright(photo, models, seed) {
  for (let look = 0; look < 3; look++) {
    const [view, whole] = cutView(models.mesh.engine, photo, seedSquare(seed), 128, 1.3);
    const seen = models.detectTurned(models.near, view, [0, 1, 2, 3]).filter(([, one]) => span(minus(middleOf(one.box), [64, 64])) < 32);
    if (!seen.length) throw new LeftOut('from near it is no face');
    const [quarters, best] = seen.reduce((a, b) => b[1].score > a[1].score ? b : a), back = ([x, y]) => inSquare(whole, x / 128, y / 128);
    const middle = back(middleOf(best.box)), half = widthOf(best.box) / 2 * span(whole[1]) / 128;
    seed = {score: best.score, box: [plus(middle, [half, half], -1), plus(middle, [half, half])], keys: best.keys.map(back)};
    const across = minus(best.keys[1], best.keys[0]);
    if (quarters === 0 && Math.abs(across[1]) < 0.2 * across[0]) break;
  }
  return seed;
}

/** Throw LeftOut where eyes, nose, mouth and chin are not in their order from top to bottom. */
function checkPlausible(points) {
  const [left, right] = DLIB_EYES.map((eye) => middleOf(pick(points, eye))), across = minus(right, left), down = [-across[1], across[0]];
  const rows = [points[FOREHEAD], middleOf([left, right]), points[NOSE_TIP], middleOf(pick(points, MOUTH_CORNERS)), points[CHIN]];
  const heights = rows.map((row) => dot(row, down) / Math.max(dot(across, across), 1e-6)), mouth = heights[3] - heights[1];
  if (heights.some((height, index) => index && height - heights[index - 1] < 0.05) || !(mouth > 0.5 && mouth < 2.5)) throw new LeftOut('its landmarks are no face\'s');
}

const meanOf = (looks) => looks[0].points.map((_, number) => [0, 1, 2].map((axis) => looks.reduce((sum, look) => sum + look.points[number][axis], 0) / looks.length));

/** Return one face, looked at from several places until they agree; throws LeftOut. */
function lookAt(photo, models, seed, rounds) {
  let frame = findFrame(meanOf(models.lookClosely(photo, seedSquare(seed), choosePlaces(0).slice(0, 2)))), looks = [];
  for (let round = 1; round <= rounds; round++) {
    looks = [...looks, ...models.lookClosely(photo, frame, choosePlaces(round))];
    frame = findFrame(meanOf(looks));
  }
  const points = meanOf(looks), sure = looks.map((look) => look.presence).sort((a, b) => a - b), count = sure.length;
  const own = [...DLIB_EYES, [NOSE_TIP], MOUTH_CORNERS].map((part) => middleOf(pick(points, part))), eyes = Math.max(span(minus(own[1], own[0])), 1e-6);
  const presence = (sure[(count - 1) >> 1] + sure[count >> 1]) / 2;
  if (presence < 0.5) throw new LeftOut(`the mesh sees no face there: presence ${presence.toFixed(2)}, 0.5 is needed`);
  checkPlausible(points);
  const apart = Math.max(...own.map((part, index) => span(minus(part, seed.keys[index])))) / eyes;
  if (apart > 0.4) throw new LeftOut(`detector and mesh do not agree: ${apart.toFixed(2)} eye distances apart, 0.4 at most`);
  const spread = (number, axis) => looks.reduce((sum, look) => sum + (look.points[number][axis] - points[number][axis]) ** 2, 0) / count;
  const shaken = points.reduce((sum, _, number) => sum + Math.sqrt(spread(number, 0) + spread(number, 1)), 0) / points.length / eyes;
  if (shaken > 0.05) throw new LeftOut(`the mesh does not agree with itself: by ${shaken.toFixed(2)} eye distances, 0.05 at most`);
  return makeFace(points, seed.score);
}

function makeFace(points, score) {
  return {points: points.map(([x, y]) => [x, y]), depths: points.map((point) => point[2]), score, quad: findQuad(points), weight: 1};
}

/** Return {faces, leftOut} of a photo, the largest face first; rounds: of four looks each. */
function findAll(photo, models, rounds, ways = ['quickly', 'thoroughly']) {
  const found = [], failed = [];
  for (const how of ways) {
    for (const seed of findSeeds(photo, models, how))
      try {
        const seen = lookUpright(photo, models, seed);
        if (!found.some(([other]) => isSame(seen.box, other.box))) found.push([seen, lookAt(photo, models, seen, rounds)]);
      } catch (reason) {
        if (!(reason instanceof LeftOut)) throw reason;
        failed.push([seed, reason.message]);
      }
    if (found.length) break;
  }
  const leftOut = new Set();
  for (const [seed, reason] of failed) {
    const [x, y] = middleOf(seed.box);
    const nearest = Math.min(1, ...found.map(([other]) => Math.max(...minus(middleOf(other.box), [x, y]).map(Math.abs)) / (other.box[1][0] - other.box[0][0])));
    if (seed.score >= 0.7 && nearest > 0.75) leftOut.add(`something like a face at (${x.toFixed()}, ${y.toFixed()}): ${reason}`);
  }
  const faces = found.map(([, face]) => face).sort((a, b) => span(b.quad[1]) - span(a.quad[1]));
  return {faces, leftOut: [...leftOut].map((reason) => ({reason}))};
}

/** Return a face near to where it was in the frame before, null if it is not there. */
function track(photo, models, points) {
  const square = findFrame(points), seen = models.findMesh(photo, square, {edge: 1, fine: Math.max(Math.trunc(span(square[1]) / MESH_SIDE), 1)});
  try {
    checkPlausible(seen.points);
  } catch (reason) {
    return null;
  }
  return seen.presence >= 0.5 ? makeFace(seen.points, seen.presence) : null;
}

/** Throw LeftOut for a face that shows too little of the makeup. */
function checkFace(photo, face) {
  const {points} = face, side = span(face.quad[1]);
  if (side < MIN_SIDE) throw new LeftOut(`too small: the face's square has ${side.toFixed()} px, ${MIN_SIDE} are needed`);
  const inner = pick(points, [...BARE_SKIN, ...LIPS_OUTER, ...UPPER_LID[0], ...UPPER_LID[1]]);
  if (inner.some(([x, y]) => x < 0 || y < 0 || x > photo.width || y > photo.height)) throw new LeftOut('cut off: eyes, mouth or cheeks lie outside the picture');
  const [left, right] = EYE_CORNERS.map((corner) => points[corner]), across = minus(right, left);
  const turned = Math.abs(dot(minus(points[NOSE_TIP], middleOf([left, right])), across)) / Math.max(dot(across, across), 1e-6);
  if (turned > 0.45) throw new LeftOut(`turned away: the nose lies ${turned.toFixed(2)} eye distances beside the middle, 0.45 at most`);
}
