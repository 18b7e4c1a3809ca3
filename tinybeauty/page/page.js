// The page: what is seen and touched. All work is done in the Worker.
'use strict';

const find = (id) => document.getElementById(id);
const SLIDERS = ['strength', 'lips', 'eyes', 'skin'];
let worker = null, lookNow = 0, busy = true, waiting = false;  // busy: the Worker has a picture to make up; waiting: it is out of date already
let stream = null, video = null, fresh = false, sent = false, frameTimes = [];  // fresh: the camera has a frame that the Worker has not; sent: the Worker has one and wants no more
const early = [];  // files that came before the page was ready

/** Say something; it goes again after a while unless it is to stay. */
function say(text, stays = false) {
  clearTimeout(say.timer);
  if (find('message').textContent !== text) find('message').textContent = text;  // or each frame of a camera would have it read aloud again
  if (text && !stays) say.timer = setTimeout(() => say(''), 7000);
}

const settings = () => Object.fromEntries([['look', lookNow], ...SLIDERS.map((id) => [id, Number(find(id).value)])]);

/** Return the page's data, inflated, as {name: bytes}; bundle.py wrote it. */
async function readData() {
  const {textContent: text, dataset} = find('data'), units = new Uint16Array(text.length), parts = {};
  for (let from = 0, to = 0; from < text.length; from++, to++) {
    const unit = text.charCodeAt(from);
    units[to] = unit === 0xe000 ? text.charCodeAt(++from) ^ 0x8000 : unit;
  }
  const stream = new Blob([new Uint8Array(units.buffer, 0, Number(dataset.bytes))]).stream().pipeThrough(new DecompressionStream('deflate'));
  const data = await new Response(stream).arrayBuffer();
  let start = 0;
  for (const [name, length] of JSON.parse(dataset.parts)) {
    parts[name] = new Uint8Array(data, start, length);
    start += length;
  }
  return parts;
}

function show(canvas, image) {
  if (canvas.width !== image.width || canvas.height !== image.height) {
    canvas.width = image.width;
    canvas.height = image.height;
    find('frame').style.setProperty('--ratio', image.width / image.height);
  }
  canvas.getContext('2d').putImageData(image, 0, 0);
}

/** Ask for the picture anew; while one is being made, only the last wish counts. */
function refresh() {
  if (stream) return;
  if (busy) { waiting = true; return; }
  busy = true;
  worker.postMessage({kind: 'settings', settings: settings()});
}

function setReady() {
  busy = false;
  if (waiting) {
    waiting = false;
    refresh();
  }
}

function addLook(index, name) {
  const label = document.createElement('label'), input = document.createElement('input'), canvas = document.createElement('canvas'), text = document.createElement('span');
  Object.assign(input, {type: 'radio', name: 'look', value: index, checked: index === lookNow});
  canvas.width = canvas.height = 140;
  canvas.setAttribute('aria-hidden', 'true');
  text.textContent = name;
  input.addEventListener('change', () => {
    lookNow = index;
    refresh();
  });
  label.append(input, canvas, text);
  find('looks').append(label);
  return input;
}

/** Say what a picture is and, once, what was left out of it. */
function tellFaces({faces, leftOut, own, news}) {
  find('after').setAttribute('aria-label', own ? `Your picture, ${faces} ${faces === 1 ? 'face' : 'faces'} made up` : 'A drawn face, made up');
  if (!news) return;
  if (!faces) say(leftOut.length ? `No face could be made up: ${leftOut[0]}` : 'No face found in this picture', true);
  else say(leftOut.length ? `${faces} of ${faces + leftOut.length} faces made up. Left out: ${leftOut[0]}` : '');
}

const answers = {
  ready() {
    document.body.dataset.ready = 'yes';
    find('save').disabled = false;
    setReady();
    early.forEach(openFile);
  },
  thumb({index, bitmap}) {
    document.querySelectorAll('#looks canvas')[index].getContext('2d').drawImage(bitmap, 0, 0);
  },
  look({index, name}) {
    lookNow = index;
    addLook(index, name);
    say(`${name} is there`);
    setReady();
    refresh();
  },
  made(message) {
    setReady();
    if (stream) return;
    if (message.before) {
      show(find('before'), message.before);
      tellFaces(message);
    }
    show(find('after'), message.after);
    document.body.dataset.made = Number(document.body.dataset.made || 0) + 1;
  },
  next() {
    sent = false;
    sendFrame();
  },
  frame({before, after, faces}) {
    if (!stream) return;
    show(find('before'), before);
    show(find('after'), after);
    frameTimes = [...frameTimes, performance.now()].slice(-31);
    document.body.dataset.frames = Number(document.body.dataset.frames || 0) + 1;
    if (find('rate').getAttribute('aria-pressed') === 'true' && frameTimes.length > 1)
      find('rate').textContent = `${((frameTimes.length - 1) * 1000 / (frameTimes[frameTimes.length - 1] - frameTimes[0])).toFixed(0)} frames/s`;
    const lost = 'No face in sight';
    if (!faces) say(lost, true);
    else if (find('message').textContent === lost || find('message').textContent === 'One moment …') say('');
  },
  saved({blob, name}) {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    say(`Saved as ${name}`);
    find('save').disabled = false;
  },
  wrong({text, of}) {
    say(text, true);
    document.body.dataset.wrong = Number(document.body.dataset.wrong || 0) + 1;
    if (of === 'save') find('save').disabled = false;
    if (of === 'frame') sent = false;
    else if (of !== 'start') setReady();
  },
};

function openFile(file) {
  if (!file) return;
  if (!document.body.dataset.ready) {
    early.push(file);
    return;
  }
  if (!/\.pt$/i.test(file.name)) stopCamera();
  busy = true;
  say('One moment …', true);
  worker.postMessage({kind: 'file', blob: file, name: file.name || 'The pasted picture', settings: settings()});
}

// --- Camera -------------------------------------------------------------------------------------------
const CAMERA_WORDS = {
  NotAllowedError: 'The camera was not allowed; the browser\'s address bar lets you change that',
  NotFoundError: 'No camera found on this device',
  NotReadableError: 'Another program is using the camera',
  SecurityError: 'Browsers lend a camera only to a page from https, or one that is opened as a file',
};

async function startCamera() {
  if (!worker || startCamera.asked) return;
  startCamera.asked = true;
  try {
    if (!navigator.mediaDevices) throw new DOMException('', isSecureContext ? 'NotFoundError' : 'SecurityError');
    stream = await navigator.mediaDevices.getUserMedia({video: {width: {ideal: 640}, height: {ideal: 480}, facingMode: 'user'}});
  } catch (error) {
    return say(CAMERA_WORDS[error.name] || `The camera did not start: ${error.message}`, true);
  } finally {
    startCamera.asked = false;
  }
  const own = stream;
  stream.getVideoTracks()[0].addEventListener('ended', () => { stopCamera(); say('The camera has stopped', true); });
  video = document.createElement('video');
  Object.assign(video, {srcObject: stream, muted: true, playsInline: true});
  await video.play();
  if (stream !== own) return;  // stopped in the meantime
  frameTimes = [];
  find('camera').setAttribute('aria-pressed', 'true');
  find('camera').textContent = 'Stop the camera';
  find('rate').hidden = false;
  find('after').setAttribute('aria-label', 'The camera\'s picture, made up');
  say('One moment …', true);
  nextFrame();
}

function stopCamera() {
  if (!stream) return;
  stream.getTracks().forEach((track) => track.stop());
  stream = video = null;
  find('camera').setAttribute('aria-pressed', 'false');
  find('camera').textContent = 'Use the camera';
  find('rate').hidden = true;
  say('');
  worker.postMessage({kind: 'leaveCamera', settings: settings()});
}

/** Hand the Worker the newest frame when it is free, and it has not seen it; frames in between are dropped. */
async function sendFrame() {
  if (sent || !fresh || !(video && video.videoWidth)) return;
  sent = true;
  fresh = false;
  try {
    const bitmap = await createImageBitmap(video);
    sent = Boolean(stream);  // or it was stopped in the meantime
    if (sent) worker.postMessage({kind: 'frame', bitmap, settings: settings()}, [bitmap]);
  } catch (error) {
    sent = false;  // no frame there yet
  }
}

/** Note that the camera has a new frame. */
function nextFrame() {
  if (!stream) return;
  fresh = true;
  sendFrame();
  if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(nextFrame);
  else requestAnimationFrame(nextFrame);
}

// --- Begin --------------------------------------------------------------------------------------------
function listen() {
  find('split').addEventListener('input', () => find('frame').style.setProperty('--split', `${find('split').value}%`));
  for (const id of SLIDERS) {
    const tell = () => { find(id).nextElementSibling.textContent = `${Math.round(100 * find(id).value)} %`; };
    find(id).addEventListener('input', () => { tell(); refresh(); });
    tell();
  }
  find('file').addEventListener('change', () => { openFile(find('file').files[0]); find('file').value = ''; });
  find('camera').addEventListener('click', () => stream ? stopCamera() : startCamera());
  find('rate').addEventListener('click', () => {
    const on = find('rate').getAttribute('aria-pressed') !== 'true';
    find('rate').setAttribute('aria-pressed', on);
    if (!on) find('rate').textContent = 'Frames/s';
  });
  find('save').addEventListener('click', () => {
    find('save').disabled = true;
    say('One moment …', true);
    worker.postMessage({kind: 'save', type: find('type').value, camera: Boolean(stream), settings: settings()});
  });
  addEventListener('dragover', (event) => { event.preventDefault(); document.body.classList.add('dropping'); });
  addEventListener('dragleave', (event) => { if (!event.relatedTarget) document.body.classList.remove('dropping'); });
  addEventListener('drop', (event) => {
    event.preventDefault();
    document.body.classList.remove('dropping');
    for (const file of event.dataTransfer.files) openFile(file);
    if (!event.dataTransfer.files.length) say('That is no file: drop a photo, or a look (.pt)');
  });
  addEventListener('paste', (event) => openFile(event.clipboardData.files[0]));
}

async function start() {
  find('cut').remove();
  listen();
  const simd = new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11]);
  if (!self.Worker || !self.OffscreenCanvas || !self.DecompressionStream || !self.WebAssembly || !WebAssembly.validate(simd))
    return say('This browser is too old for this page: Chrome and Edge 91, Firefox 113 or Safari 17 can show it', true);
  let parts;
  try {
    parts = await readData();
  } catch (error) {
    return say('This file is damaged, probably cut off on its way here: get it once more', true);
  }
  find('licence').textContent = new TextDecoder().decode(parts.licence);
  const looks = Object.keys(parts).filter((name) => name.startsWith('look ')).map((name) => name.slice(5));
  looks.forEach((name, index) => addLook(index, name));
  worker = new Worker(URL.createObjectURL(new Blob([parts.code], {type: 'text/javascript'})));
  worker.onmessage = ({data}) => answers[data.kind](data);
  worker.onerror = (event) => say(`This browser cannot run the page: ${event.message || 'no worker'}`, true);
  worker.postMessage({kind: 'start', parts, looks, settings: settings()}, [parts.code.buffer]);
}
start();
