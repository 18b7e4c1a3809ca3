// For test_page_engine.py: node run_engine.js LOOK MODELS WIDTH HEIGHT RGBA OUT OTHER...; prints JSON.
'use strict';
const fs = require('fs'), path = require('path');

const page = path.join(__dirname, '..', 'tinybeauty', 'page'), read = (file) => new Uint8Array(fs.readFileSync(file));
const code = ['graphs', 'tflite', 'pictures', 'faces', 'makeup', 'look'].map((name) => fs.readFileSync(path.join(page, `${name}.js`), 'utf8')).join('\n');
const {createStudio, LookError, runLook} = new Function(`${code}; return {createStudio, LookError, runLook}`)();
const [look, models, width, height, source, out, ...others] = process.argv.slice(2), model = (name) => read(path.join(models, `${name}.tflite`));

(async () => {
  const studio = await createStudio(read(path.join(page, 'engine.wasm')));
  studio.readModels({shortRange: model('face_detection_short_range'), fullRange: model('face_detection_full_range_sparse'),
    mesh: model('face_landmark_with_attention')});
  const image = {width: Number(width), height: Number(height), data: new Uint8ClampedArray(fs.readFileSync(source))};
  const bytes = read(look), opened = studio.openLook(bytes, 'evening.pt'), problems = [];
  for (let number = 0; number < 60; number++) {  // cut off, or a byte changed
    const bad = number % 2 ? bytes.slice(0, Math.floor(bytes.length * number / 60)) : bytes.slice();
    if (number % 2 === 0) bad[1174 + Math.floor((bytes.length - 8000) * number / 60)] ^= 64;
    try {
      studio.openLook(bad, 'bad.pt');
      problems.push('read');
    } catch (error) {
      problems.push(error instanceof LookError ? 'refused' : String(error));
    }
  }
  const {faces, leftOut} = studio.findFaces(image);
  const picture = faces[0].aligned.picture, residual = runLook(studio.engine, opened, picture);
  studio.makeUp(image, faces, opened, {strength: 1, lips: 0.5, eyes: 1.2, skin: 0.8});
  fs.writeFileSync(out, image.data);
  fs.writeFileSync(`${out}.face`, picture.data);
  fs.writeFileSync(`${out}.residual`, new Uint8Array(residual.buffer));
  others.forEach((other, index) => {
    const made = runLook(studio.engine, studio.openLook(read(other), 'other.pt'), picture);
    fs.writeFileSync(`${out}.residual${index}`, new Uint8Array(made.buffer));
  });
  console.log(JSON.stringify({quads: faces.map((face) => face.quad), leftOut, problems: [...new Set(problems)]}));
})();
