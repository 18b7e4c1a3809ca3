// The Worker: holds the Studio and the picture, answers the page's messages one at a time.
// In: {kind, ...}; out: {kind: 'ready' | 'thumb' | 'look' | 'made' | 'next' | 'frame' | 'saved' | 'wrong', ...}.
'use strict';

const PREVIEW_SIDE = 1400, MOST_PIXELS = 64e6, MOST_SIDE = 16384, MOST_LOOK_BYTES = 2e6;
let studio = null, looks = [], sample = null;
let photo = null;   // {blob, image, faces}: the file as it came, and its preview
let following;      // what Studio.follow keeps between two frames
let lastFrame = null;

/** What is wrong with a file, in words for the person who dropped it. */
class FileError extends Error {}

/** Return {width, height} that a picture's first bytes promise, null where they say nothing that we know. */
function readSize(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), text = (at, count) => String.fromCharCode(...bytes.subarray(at, at + count));
  const size = (width, height) => ({width, height});
  if (text(1, 3) === 'PNG') return size(view.getUint32(16), view.getUint32(20));
  if (text(0, 3) === 'GIF') return size(view.getUint16(6, true), view.getUint16(8, true));
  if (text(0, 2) === 'BM') return size(view.getInt32(18, true), Math.abs(view.getInt32(22, true)));
  if (text(8, 4) === 'WEBP') {
    if (text(12, 4) === 'VP8X') return size((view.getUint32(24, true) & 0xffffff) + 1, (view.getUint32(27, true) & 0xffffff) + 1);
    if (text(12, 4) === 'VP8L') return size((view.getUint32(21, true) & 0x3fff) + 1, (view.getUint32(21, true) >>> 14 & 0x3fff) + 1);
    return size(view.getUint16(26, true) & 0x3fff, view.getUint16(28, true) & 0x3fff);
  }
  if (bytes[0] === 0xff && bytes[1] === 0xd8)
    for (let at = 2; at + 9 < bytes.length; at += 2 + view.getUint16(at + 2)) {
      while (bytes[at + 1] === 0xff) at++;
      const marker = bytes[at + 1];
      if (bytes[at] !== 0xff) return null;
      if (marker >= 0xc0 && marker <= 0xcf && marker !== 0xc4 && marker !== 0xc8 && marker !== 0xcc) return size(view.getUint16(at + 7), view.getUint16(at + 5));
    }
  for (let at = 0; at + 16 < Math.min(bytes.length, 4096); at++)  // AVIF and HEIC
    if (text(at, 4) === 'ispe') return size(view.getUint32(at + 8), view.getUint32(at + 12));
  return null;
}

function checkSize({width, height}, name) {
  const millions = Math.round(width * height / 1e6);
  if (width * height > MOST_PIXELS || Math.max(width, height) > MOST_SIDE)
    throw new FileError(`${name} is ${width} × ${height} pixels (${millions} megapixels); this page takes up to ${MOST_PIXELS / 1e6} megapixels`);
}

/** Return a picture's pixels, upright, its longer side at most `side`. */
async function decode(blob, name, side) {
  let promised = null;
  try {
    promised = readSize(new Uint8Array(await blob.slice(0, 1 << 20).arrayBuffer()));
  } catch (error) { /* too short to be a picture; the browser says so below */ }
  if (promised) checkSize(promised, name);
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch (error) {
    throw new FileError(`${name} is neither a look nor a picture that this browser can read`);
  }
  checkSize(bitmap, name);
  return readBitmap(bitmap, Math.min(side / Math.max(bitmap.width, bitmap.height), 1));
}

/** Return a bitmap's pixels on white, scaled, mirrored where asked; closes it. */
function readBitmap(bitmap, scale = 1, mirrored = false) {
  const width = Math.max(Math.round(bitmap.width * scale), 1), height = Math.max(Math.round(bitmap.height * scale), 1);
  if (!readBitmap.context) readBitmap.context = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const context = readBitmap.context, {canvas} = context;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, {width, height});
  context.fillStyle = '#fff';
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = 'high';
  context.imageSmoothingEnabled = scale < 1;  // a mirrored frame takes three times as long with it
  context.setTransform(mirrored ? -1 : 1, 0, 0, 1, mirrored ? width : 0, 0);
  context.drawImage(bitmap, 0, 0, width, height);
  bitmap.close();
  const image = context.getImageData(0, 0, width, height);
  if (width * height > 1e6) canvas.width = canvas.height = 1;  // gives the memory back
  return image;
}

const copyOf = (image) => new ImageData(image.data.slice(), image.width, image.height);

function makeUpCopy(image, faces, settings) {
  const made = copyOf(image);
  if (faces.length) studio.makeUp(made, faces, looks[settings.look], settings);
  return made;
}

function toCanvas(image) {
  const canvas = new OffscreenCanvas(image.width, image.height);
  canvas.getContext('2d').putImageData(image, 0, 0);
  return canvas;
}

/** Send a swatch: the drawn face with a look. */
function sendThumb(index) {
  const canvas = new OffscreenCanvas(140, 140), made = makeUpCopy(sample.image, sample.faces, {look: index, strength: 1, lips: 1, eyes: 1, skin: 1});
  const side = 0.56 * made.width;
  canvas.getContext('2d').drawImage(toCanvas(made), 0.22 * made.width, 0.24 * made.height, side, side, 0, 0, 140, 140);
  const bitmap = canvas.transferToImageBitmap();
  postMessage({kind: 'thumb', index, bitmap}, [bitmap]);
}

function sendLook(bytes, name) {
  if (bytes.length > MOST_LOOK_BYTES) throw new FileError(`${name} is too large to be a look`);
  const look = studio.openLook(bytes, name), index = looks.push(look) - 1;
  postMessage({kind: 'look', index, name: name.replace(/\.pt$/i, '')});
  sendThumb(index);
}

/** Send the picture with today's settings; fresh: as it was, too; news: it has just come. */
function sendMade(settings, fresh, news) {
  const after = makeUpCopy(photo.image, photo.faces, settings);
  const before = fresh ? copyOf(photo.image) : null;
  postMessage({kind: 'made', before, after, faces: photo.faces.length, leftOut: photo.leftOut.map((face) => face.reason), own: photo.own, news},
    [after.data.buffer, ...before ? [before.data.buffer] : []]);
}

const answers = {
  async start({parts, looks: names, settings}) {
    const blob = new Blob([parts.face], {type: 'image/jpeg'}), points = JSON.parse(new TextDecoder().decode(parts.points));
    studio = await createStudio(parts.wasm);
    const image = await decode(blob, 'the drawn face', PREVIEW_SIDE);
    sample = photo = {blob, image, faces: [Object.assign(makeFace(points, 1), {live: true})], leftOut: [], own: false, name: 'drawn face'};
    const open = (name) => looks.push(studio.openLook(parts[`look ${name}`], name));
    open(names[0]);
    sendMade(settings, true);
    names.slice(1).forEach(open);
    for (const name of ['shortRange', 'fullRange', 'mesh']) parts[name] = joinBytes(parts[name]);
    studio.readModels(parts);
    postMessage({kind: 'ready'});
    looks.forEach((_, index) => sendThumb(index));
  },
  async file({blob, name, settings}) {
    const start = new Uint8Array(await blob.slice(0, 4).arrayBuffer());
    if (!blob.size) throw new FileError(`${name} is empty`);
    if (/\.pt$/i.test(name) || (start[0] === 0x50 && start[1] === 0x4b)) {
      if (blob.size > MOST_LOOK_BYTES) throw new FileError(`${name} is too large to be a look`);
      return sendLook(new Uint8Array(await blob.arrayBuffer()), name);
    }
    const image = await decode(blob, name, PREVIEW_SIDE);
    photo = {blob, image, ...studio.findFaces(image), own: true, name};
    sendMade(settings, true, true);
  },
  settings({settings}) {
    sendMade(settings, false);
  },
  frame({bitmap, settings}) {
    const before = readBitmap(bitmap, 1, true), after = copyOf(before), found = studio.follow(before, following);
    following = found.state;
    if (settings.strength) studio.findMakeup(before, found.faces, looks[settings.look]);
    postMessage({kind: 'next'});  // the next frame is on its way while this one is painted
    studio.makeUp(after, found.faces, looks[settings.look], settings);
    lastFrame = copyOf(after);
    postMessage({kind: 'frame', before, after, faces: found.faces.length}, [before.data.buffer, after.data.buffer]);
  },
  leaveCamera({settings}) {
    following = undefined;
    lastFrame = null;
    sendMade(settings, true);
  },
  async save({type, camera, settings}) {
    let made = lastFrame, name = 'camera';
    if (camera && !made) throw new FileError('The camera has shown nothing yet');
    if (!camera) {
      made = await decode(photo.blob, photo.name, MOST_SIDE);
      const {faces} = made.width === photo.image.width ? photo : studio.findFaces(made);
      if (faces.length) studio.makeUp(made, faces, looks[settings.look], settings);
      name = photo.name.replace(/\.[^.]*$/, '');
    }
    const blob = await toCanvas(made).convertToBlob({type, quality: 0.95});
    postMessage({kind: 'saved', blob, name: `${name} ${looks[settings.look].name.replace(/\.pt$/i, '')}.${type === 'image/png' ? 'png' : 'jpg'}`});
  },
};

let queue = Promise.resolve();
onmessage = ({data}) => {
  queue = queue.then(() => answers[data.kind](data)).catch((error) => {
    const known = error instanceof FileError || error instanceof LookError;
    const text = known ? error.message : data.kind === 'start' ? `This browser cannot run the page: ${error.message}` : `That did not work: ${error.message}`;
    postMessage({kind: 'wrong', text, of: data.kind});
  });
};
